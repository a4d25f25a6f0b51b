"""A ledger summed up: each probe's course in windows of steps, and the texts that moved it most.

The sign of an amount is that of the probe's change: for a loss, a negative credit is a datum that lowered it.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import checks
from devinterp_func.credit._ledger import Entries
from devinterp_func.credit._removals import datum_totals


class ProbeCourses(NamedTuple):
    """P probes over W windows of consecutive steps."""

    step: Int[Tensor, "W"]  # first of the window
    steps: Int[Tensor, "W"]  # how many
    value: Float[Tensor, "W P"]  # before the window
    raised: Float[Tensor, "W P"]  # sum of the positive credits, each of a datum in a step
    lowered: Float[Tensor, "W P"]  # ... and of the negative ones
    past: Float[Tensor, "W P"]  # what data of earlier steps did, through the optimizer's memory
    decay: Float[Tensor, "W P"]  # what weight decay did
    net_missed: Float[Tensor, "W P"]  # Σ (Δf − Σ credits − past − decay): with all five a value leads to the next
    missed: Float[Tensor, "W P"]  # Σ |Δf − Σ credits − past − decay|
    change: Float[Tensor, "W P"]  # Σ |Δf|

    def __repr__(self) -> str:
        return f"ProbeCourses of {self.value.shape[1]} probes over {int(self.steps.sum()):,} steps"


class CreditedText(NamedTuple):
    """A datum and what it did to a probe in all the steps it was in."""

    effect: Literal["raised", "lowered"]
    rank: int  # among the data of this effect, from 1
    datum: int
    steps: int  # how many it was in
    credit: Float[Tensor, "C"]  # by position; of a text that of predicting its target there

    @property
    def position(self) -> int:
        """Where most of it is."""
        return int((self.credit * self.credit.sum().sign()).argmax())


def probe_courses(entries: Entries, every: int) -> ProbeCourses:
    """Each probe's value, what raised and lowered it, past, decay, and what all of these miss, in windows of steps.

    Args:
        entries: of consecutive steps, stacked.
        every: steps of a window; the last may have fewer.
    """
    checks.integer("every", every)
    each = entries.credit.sum(-1)
    summed = (
        each.clamp(min=0).sum(-1),
        each.clamp(max=0).sum(-1),
        entries.past,
        entries.decay,
        entries.missed(),
        entries.missed().abs(),
        entries.change().abs(),
    )
    columns = [torch.stack([part.sum(0) for part in x.split(every)]) for x in summed]
    counts = torch.tensor([len(part) for part in entries.step.split(every)])
    return ProbeCourses(entries.step[::every], counts, entries.before[::every], *columns)


def most_credited(entries: Entries, probe: int, most: int = 10) -> list[CreditedText]:
    """The data that raised a probe, most first, then those that lowered it, credits summed over the steps.

    Args:
        entries: of some steps, stacked.
        probe: its number among the entries'.
        most: data of each effect.
    """
    ids, by_datum = datum_totals(entries.credit[:, probe], entries.datum)
    steps, total = entries.datum.unique(return_counts=True)[1], by_datum.sum(1)
    found = []
    effects: tuple[tuple[Literal["raised", "lowered"], int], ...] = (("raised", 1), ("lowered", -1))
    for effect, sign in effects:
        order = (sign * total).argsort(descending=True, stable=True)
        for rank, i in enumerate(order[sign * total[order] > 0][:most].tolist(), start=1):
            found.append(CreditedText(effect, rank, int(ids[i]), int(steps[i]), by_datum[i]))
    return found
