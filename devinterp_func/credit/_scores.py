"""Every score of a window's data by one interface, so that what judges one judges all.

A score says of each visit of a datum how much it raised each probe at the window's end: by name (P, S, n), of the sign
of the probe's derivative by the datum's weight. So the probe without some visits is forecast to be less by the sum of
their scores; of "norm" and "random", which know no probe, only the order means something.

    influence   the probe's derivative by the weight of the datum's loss in that step (``window_influences``)
    fisher      the same with the empirical Fisher for the Hessian (arXiv 2605.18814)
    lifetime    what the visit did in its own step and through the optimizer's memory (``split_lifetimes``)
    credit      what it did in its own step (``split_change``)
    marginal    ... to first order at the step's end
    at_start    ... and at its start: the gradients' product of TracIn, at every step (Pruthi et al. 2020)
    norm        how far it moved the weights in its own step
    random      uniform numbers
"""

from collections.abc import Callable, Generator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import checks, keys, per_example, units
from devinterp_func.credit._carried import SeenStep, carry, look_at, outcome
from devinterp_func.credit._influence import window_influences
from devinterp_func.credit._ledger import check_nodes, mean_gradient
from devinterp_func.credit._retrain import Window
from devinterp_func.credit._window_walk import window_backwards, window_moves
from devinterp_func.credit.probes import Probe
from devinterp_func.training import Move
from devinterp_func.tree import Params

SCORES = ("influence", "fisher", "lifetime", "credit", "marginal", "at_start", "norm", "random")
_REPLAYED = ("lifetime", "credit", "marginal", "at_start", "norm")  # all of one replay


def window_scores(
    window: Window,
    probes: Sequence[Probe],
    names: Sequence[str] = SCORES,
    *,
    m: int = 2,
    kept: int = 32,
    key: keys.Key | int = 0,
) -> dict[str, Float[Tensor, "P S n"]]:
    """Scores of the data of a window's steps, by visit and in memory; float64.

    Influences are two walks of their own, one for each curvature; what is of single steps is of one replay.

    Args:
        window: of ``credit.window``, or made by hand.
        probes: at least one.
        names: of ``SCORES``.
        m: nodes of the quadrature of credits and lifetimes, gradients of each probe a step.
        kept: of ``window_influences``; of lifetimes it is how many steps' factors are held at once, and for each probe
            and step as much as the weights.
        key: of the random score.

    Raises:
        ValueError: a name that is no score, no probes, or m or kept is below 1.
    """
    if unknown := [name for name in names if name not in SCORES]:
        raise ValueError(f"{unknown[0]!r} is no score; there are {', '.join(SCORES)}")
    check_nodes(m, probes)
    checks.integer("kept", kept)
    found: dict[str, Tensor] = {}
    if "influence" in names:
        found["influence"] = window_influences(window, probes, kept=kept).scores()
    if "fisher" in names:
        found["fisher"] = window_influences(window, probes, curvature="fisher", kept=kept).scores()
    if own := [name for name in names if name in _REPLAYED]:
        found |= _replayed(window, probes, own, m, kept)
    if "random" in names:
        shape = len(probes), window.stop - window.start, window.recipe.batch_size
        found["random"] = keys.uniform(shape, 0.0, 1.0, key=keys.fold_in(key, "score")).double()
    return {name: found[name] for name in dict.fromkeys(names)}


def by_visit(scores: Float[Tensor, "P N"], ids: Int[Tensor, "N"], datum: Int[Tensor, "S n"]) -> Float[Tensor, "P S n"]:
    """Scores of whole data, such as those of a trained model's, spread evenly over their visits.

    Args:
        scores: of different data.
        ids: theirs, in any order.
        datum: the datum of each visit.

    Raises:
        ValueError: an id is there twice, or a visited datum has no score.

    >>> by_visit(torch.tensor([[6.0, 1.0]]), torch.tensor([4, 7]), torch.tensor([[4, 7], [4, 4]]))
    tensor([[[2., 1.],
             [2., 2.]]])
    """
    known, order = ids.unique(return_inverse=True)
    if len(known) < len(ids):
        raise ValueError(f"there are {len(ids)} ids, {len(known)} of them different; give each datum once")
    seen, visits = datum.unique(return_counts=True)
    if len(lacking := seen[~torch.isin(seen, known)]):
        first = int(lacking[0])
        raise ValueError(f"{len(lacking)} of {len(seen)} visited data have no score, the first of them {first}")
    each = scores[:, order.argsort()][:, torch.searchsorted(known, seen)] / visits
    return each[:, torch.searchsorted(seen, datum)]


# ---- one replay


Row = dict[str, Float[Tensor, "P n"]]  # of a step, by score


def _replayed(
    window: Window, probes: Sequence[Probe], names: Sequence[str], m: int, kept: int
) -> dict[str, Float[Tensor, "P S n"]]:
    """The scores of single steps, and lifetimes: of one replay, which for lifetimes goes back block by block."""
    if "lifetime" not in names:
        rows = [_row(move, probes, names, m) for move in window_moves(window, window.stop, units.EVERY)]
        return {name: torch.stack([row[name] for row in rows], 1) for name in names}
    rows, singly = list[Row](), [name for name in names if name not in ("lifetime", "credit")]
    lived = outcome(carry(_backwards(window, probes, singly, m, kept, rows), len(probes)))
    found = {name: torch.stack([row[name] for row in reversed(rows)], 1) for name in singly}
    whole, own = (x.sum(-1).movedim(1, 0) for x in (lived.lifetime, lived.present))
    return found | {"lifetime": whole, "credit": own}  # what was done in the own step is the credit


@torch.no_grad()
def _row(move: Move, probes: Sequence[Probe], names: Sequence[str], m: int) -> Row:
    """A step's scores but lifetimes."""
    wanted: dict[str, Callable[[Probe], Params]] = {
        "credit": lambda probe: mean_gradient(move, probe, m),
        "marginal": lambda probe: probe.value_and_grad(move.after)[1],
        "at_start": lambda probe: probe.value_and_grad(move.before)[1],
    }
    row = Row()
    for name in names:
        if name == "norm":
            row[name] = per_example.delta_norms(move.factors).double().cpu().expand(len(probes), -1)
        else:
            amounts = [per_example.amounts(wanted[name](probe), move.factors).sum(-1) for probe in probes]
            row[name] = torch.stack(amounts).double().cpu()
    return row


def _backwards(
    window: Window, probes: Sequence[Probe], names: Sequence[str], m: int, kept: int, rows: list[Row]
) -> Generator[SeenStep, None, None]:
    """What lifetimes need of the steps, the last first; the other scores of each go to ``rows``."""

    def look(move: Move) -> tuple[SeenStep, Row]:
        ends = {"first": move.step == window.start, "last": move.step + 1 == window.stop}
        return look_at(move, probes, m, **ends), _row(move, probes, names, m)

    for seen, row in window_backwards(window, look, kept, units.EVERY):
        rows.append(row)
        yield seen
        del seen  # a block's last step lets the block go
