"""Training as a generator of moves; it writes nothing."""

from devinterp_func.training._evaluate import evaluate
from devinterp_func.training._moves import Move, initial, masks_of, moves, step_data
from devinterp_func.training._recipe import Recipe, learning_rate, order, steps_per_epoch, total_steps

__all__ = [
    "Move",
    "Recipe",
    "evaluate",
    "initial",
    "learning_rate",
    "masks_of",
    "moves",
    "order",
    "step_data",
    "steps_per_epoch",
    "total_steps",
]
