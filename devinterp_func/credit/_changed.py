"""Steps made again in another way: without some data, or by another recipe, and measured as ``coherence`` measures."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from devinterp_func import keys, training, tree
from devinterp_func.credit._circumstances import Circumstances, move_circumstances, pad
from devinterp_func.credit._coherence import Coherence, measure_step
from devinterp_func.credit._retrain import Window, window
from devinterp_func.records import Run
from devinterp_func.training import Move
from devinterp_func.tree import Params
from devinterp_func.units import Patterns


class Changed(NamedTuple):
    """The steps of a changed training; data that were left out have done nothing and come last."""

    steps: Coherence
    beside: Circumstances
    params: Params  # after the last step

    def __repr__(self) -> str:
        return f"Changed: {len(self.steps.step)} steps"


def window_from(run: Run, start: int, stop: int) -> Window:
    """The steps of a run from any step on, which is reached by a replay from the snapshot before.

    Raises:
        ValueError: they are not recorded.
        RecordError: as ``Run.moves``.
    """
    run.span(start, stop)
    if start in run.snapshots:
        return window(run, start, stop - start)
    [move] = run.moves(start - 1, start, ())
    params, state = move.after, move.state
    return Window(run.graph, params, state, run.data, run.recipe, start, stop)


def change(
    steps: Window,
    captured: Patterns,
    losses: Callable[[Params], Float[Tensor, "c"]],
    every: int,
    removed: Bool[Tensor, "S n"] | None = None,
) -> Changed:
    """Makes the steps of a window by its recipe, without some occurrences, and measures each.

    Args:
        steps: of ``window_from``, or made by hand, such as with another recipe.
        captured: units that are measured, as patterns.
        losses: what the model can predict, as of ``coherence``; measured before each step that ``every`` divides.
        every: steps.
        removed: of each step, which places of its batch are left out; None for none.
    """
    graph, params, state, data, recipe, start, stop = steps
    made: list[Coherence] = []
    unmeasured, last, end = torch.full_like(losses(params), torch.nan), None, [params]

    def measured() -> Iterator[Move]:
        nonlocal last
        for move in training.moves(
            graph, params, data, recipe, state=state, captured=captured, start=start, stop=stop, removed=removed
        ):
            loss = losses(move.before) if move.step % every == 0 else unmeasured
            step = measure_step(move, last, loss) if len(move.datum) else _empty(move, loss)
            made.append(_padded(step, recipe.batch_size))
            last, end[0] = move if len(move.datum) else None, move.after
            yield move

    beside = move_circumstances(measured(), recipe.batch_size)
    return Changed(tree.stack(made), beside, end[0])


def _empty(move: Move, loss: Tensor) -> Coherence:
    """A step that all data were left out of."""
    nothing, unknown = torch.zeros(len(move.factors), 0), torch.full((len(move.factors),), torch.nan)
    return Coherence(torch.tensor(move.step), nothing, nothing, unknown, unknown, loss.cpu())


def _padded(step: Coherence, n: int) -> Coherence:
    return step._replace(along=pad(step.along, n, 0.0), square=pad(step.square, n, 0.0))


def as_much_at_random(
    norm: Float[Tensor, "S n"], among: Bool[Tensor, "S n"], total: float, *, key: keys.Key | int
) -> Bool[Tensor, "S n"]:
    """Random occurrences whose norms add up to a total, or the last of which reaches beyond it.

    Args:
        norm: of each occurrence's delta.
        among: those to draw from.
        total: of the norms.
        key: of the draw.

    Raises:
        ValueError: all of them together have less.
    """
    if (whole := float(norm[among].sum(dtype=torch.float64))) < total:
        raise ValueError(
            f"the norms of {int(among.sum())} occurrences add up to {whole:.4g}; asked for are {total:.4g}"
        )

    order = keys.permutation(norm.numel(), key=key)
    order = order[among.flatten()[order]]
    before = norm.flatten()[order].double().cumsum(0) - norm.flatten()[order]
    chosen = torch.zeros(norm.numel(), dtype=torch.bool)
    chosen[order[before < total]] = True
    return chosen.view(norm.shape)
