"""Training as a generator of moves; it writes nothing."""

from devinterp_func.training._distributed import ALONE, TIMEOUT, LostRank, World, gather, joined, share
from devinterp_func.training._evaluate import evaluate
from devinterp_func.training._moves import Move, initial, moves, part_factors
from devinterp_func.training._parts import check_exchange, shares
from devinterp_func.training._recipe import Recipe, learning_rate, order, steps_per_epoch, total_steps
from devinterp_func.training._seen import masks_of, step_data

__all__ = [
    "ALONE",
    "LostRank",
    "Move",
    "Recipe",
    "TIMEOUT",
    "World",
    "check_exchange",
    "evaluate",
    "gather",
    "initial",
    "joined",
    "learning_rate",
    "masks_of",
    "moves",
    "order",
    "part_factors",
    "share",
    "shares",
    "step_data",
    "steps_per_epoch",
    "total_steps",
]
