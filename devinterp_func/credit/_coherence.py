"""What a step of training is like: how its data agree, how few of them make it, and what the model can predict by then.

For the present share Δ = Σ_j Δ_j of a step of n data, in a unit or in several together (the inner products add up over
units):

    share of a datum    ⟨Δ_j, Δ⟩ / ‖Δ‖²              adds up to 1 over the data
    size                ‖Δ‖
    alignment           cosine of Δ and the step before's
    coherence           ‖Δ‖² / Σ_j ‖Δ_j‖²            n where all data pull alike, 1 where at right angles
    effective sample size    (Σ_j ‖Δ_j‖²)² / Σ_j ‖Δ_j‖⁴   n where all are as long, 1 where one datum makes the step

The smaller the coherence, the larger a step's noise beside its signal (McCandlish et al. 2018, *An empirical model of
large-batch training*). Over a window of steps the data of all its steps are pooled, a datum's part of the way being
share · size: what it adds to ‖Δ‖.

Where the optimizer remembers or decays, a step is more than its present share. Past and decay are the work of none of
its data and count in none of these measures, size, turn and alignment included.

What the model can predict by then is any function of the weights, such as the losses of classes of positions that
``bigram.class_losses`` gives.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import checks, per_example, records
from devinterp_func.records import Run, RunPath
from devinterp_func.training import Move
from devinterp_func.tree import Params

TOP = 0.01  # the share of data that count as the top


class Coherence(NamedTuple):
    """Inner products of a step's deltas in U units, or of S steps', stacked; losses are before the step."""

    step: Int[Tensor, "*S"]
    along: Float[Tensor, "*S U n"]  # ⟨Δ_j, Δ⟩
    square: Float[Tensor, "*S U n"]  # ‖Δ_j‖²
    turn: Float[Tensor, "*S U"]  # ⟨Δ, the last step's Δ⟩; NaN where there is none
    last: Float[Tensor, "*S U"]  # ‖the last step's Δ‖²; NaN where there is none
    loss: Float[Tensor, "*S c"]  # what ``losses`` gave, nats; NaN where not measured

    def pooled(self, units: Sequence[int]) -> "Coherence":
        """Some units as one vector."""
        along, square = (x[..., units, :].sum(-2, keepdim=True) for x in (self.along, self.square))
        turn, last = (x[..., units].sum(-1, keepdim=True) for x in (self.turn, self.last))
        return Coherence(self.step, along, square, turn, last, self.loss)

    def size(self) -> Float[Tensor, "*S U"]:
        """‖Δ‖."""
        return self.along.sum(-1).clamp(min=0).sqrt()

    def share(self) -> Float[Tensor, "*S U n"]:
        """Each datum's share of what all of them did."""
        return self.along / self.along.sum(-1, keepdim=True)

    def alignment(self) -> Float[Tensor, "*S U"]:
        """Cosine of what the data did and what those of the step before did."""
        return self.turn / (self.size() * self.last.sqrt())

    def coherence(self) -> Float[Tensor, "*S U"]:
        """How far the data pull alike."""
        return self.along.sum(-1) / self.square.sum(-1)

    def __repr__(self) -> str:
        many = f"step {int(self.step)}" if self.step.ndim == 0 else f"{len(self.step)} steps"
        return f"Coherence: {many}, {self.along.shape[-2]} units, {self.along.shape[-1]} data a step"


def effective_sample_size(square: Float[Tensor, "*S n"]) -> Float[Tensor, "*S"]:
    """Effective sample size of data with these ‖Δ_j‖².

    >>> effective_sample_size(torch.tensor([[2.0, 2.0, 2.0], [5.0, 0.0, 0.0]]))
    tensor([3., 1.], dtype=torch.float64)
    """
    x = square.double()
    return x.sum(-1).square() / x.square().sum(-1)


def top_share(part: Float[Tensor, "m"], top: float = TOP) -> float:
    """What the data with the largest |part|, a share ``top`` of them and at least one, have of the parts' sum.

    >>> top_share(torch.tensor([3.0, 1.0, 1.0, 1.0]), top=0.25)
    0.5
    """
    m = max(1, round(top * len(part)))
    largest = part.abs().topk(m).indices
    return float(part[largest].double().sum() / part.double().sum())


@torch.no_grad()
def measure_step(move: Move, last: Move | None, loss: Float[Tensor, "c"]) -> Coherence:
    """Measures a step in each unit that it has factors of.

    Args:
        move: a step.
        last: the step before with the factors of the same units; None if there is none.
        loss: of each class of positions before the step, or NaN.
    """
    rows = []
    for name, factor in move.factors.items():
        change, one = per_example.total(factor), {name: factor}
        turn = square = change.new_tensor(torch.nan)
        if last is not None:
            before = per_example.total(last.factors[name])
            turn, square = (change * before).sum(), before.square().sum()
        rows.append(
            (per_example.amounts({name: change}, one).sum(-1), per_example.delta_norms(one).square(), turn, square)
        )
    along, square, turn, last_square = (torch.stack(column).cpu() for column in zip(*rows, strict=True))
    return Coherence(torch.tensor(move.step), along, square, turn, last_square, loss.cpu())


# ---- a run


def coherence(
    run: Run,
    folder: RunPath,
    losses: Callable[[Params], Float[Tensor, "c"]],
    what: Mapping[str, Any],
    *,
    start: int = 0,
    stop: int | None = None,
    every: int = 10,
) -> Iterator[tuple[int, Coherence]]:
    """Replays the steps of a run and writes their measures into a folder, as ``records.walk`` does.

    Args:
        run, folder, start, stop: of ``records.walk``; the units are those that the run captured.
        losses: what the model can predict, such as ``bigram.class_losses`` of some texts.
        what: names and values that say which losses these are.
        every: steps from one measurement of the losses to the next.

    Yields:
        Each new step, and its measures; ``records.read_walk(folder, Coherence)`` gives them all.

    Raises:
        ValueError: start, stop or every out of range.
        RecordError: as ``records.walk``.
    """
    every = checks.integer("every", every)
    unmeasured = torch.full_like(losses(run.params(0)), torch.nan)

    def measured(move: Move, last: records.Last[Coherence] | None) -> Coherence:
        loss = losses(move.before) if move.step % every == 0 else unmeasured
        return measure_step(move, None if last is None else last.move, loss)

    about = {"walk": "coherence", "every": every, **what}
    yield from records.walk(run, folder, about, run.recording.units, measured, Coherence, start=start, stop=stop)


# ---- windows of steps


class WindowMeasures(NamedTuple):
    """Measures of windows of steps in G groups of units, float64."""

    step: Int[Tensor, "W"]  # first of each window
    size: Float[Tensor, "W G"]  # ‖Δ‖, mean over the steps
    alignment: Float[Tensor, "W G"]  # mean over the steps that have one before
    coherence: Float[Tensor, "W G"]  # of the sums over the steps
    effective: Float[Tensor, "W G"]  # effective sample size of all the window's data, as a share of their number
    top: Float[Tensor, "W G"]  # what the top 1 % of all the window's data have of the way
    loss: Float[Tensor, "W c"]  # mean over where it was measured; NaN where it was not

    def __repr__(self) -> str:
        return f"WindowMeasures: {len(self.step)} of {self.size.shape[1]} groups of units"


def measure_windows(steps: Coherence, groups: Sequence[Sequence[int]], width: int) -> WindowMeasures:
    """Measures of windows of steps; the last window is left out if it is not full.

    Args:
        steps: of a replay, stacked.
        groups: units that count as one vector, by their number.
        width: steps of a window.

    Raises:
        ValueError: there are fewer steps than one window takes.
    """
    width, n = checks.integer("width", width), len(steps.step)
    if n < width:
        raise ValueError(f"the window is {width} steps; the walk has {n}")
    spans = [slice(first, first + width) for first in range(0, n - width + 1, width)]
    measures = [_window_measures(steps.pooled(units), spans) for units in groups]
    size, alignment, agreement, effective, top = torch.stack(measures, 2)
    loss = torch.stack([steps.loss[span].double().nanmean(0) for span in spans])
    first = steps.step[: len(spans) * width : width]
    return WindowMeasures(first, size, alignment, agreement, effective, top, loss)


def _window_measures(steps: Coherence, spans: Sequence[slice]) -> Float[Tensor, "5 W"]:
    """Size, alignment, coherence, effective sample size and top share of a group in each window."""
    size, alignment = (x[:, 0].double() for x in (steps.size(), steps.alignment()))
    along, square = (x[:, 0].double() for x in (steps.along, steps.square))
    way = along / size.clamp(min=torch.finfo(size.dtype).tiny)[:, None]
    rows = [
        (
            float(size[span].mean()),
            float(alignment[span].nanmean()),
            float(along[span].sum() / square[span].sum()),
            float(effective_sample_size(square[span].flatten())) / square[span].numel(),
            top_share(way[span].flatten()),
        )
        for span in spans
    ]
    return torch.tensor(rows, dtype=torch.float64).T
