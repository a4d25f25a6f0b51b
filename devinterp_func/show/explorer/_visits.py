"""What a datum did in the steps that saw it: sums over its recorded outliers."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from devinterp_func import records
from devinterp_func.per_example import Outliers
from devinterp_func.records import StepRecord
from devinterp_func.show.explorer._site import Site


class Visits(NamedTuple):
    """The v steps that saw a datum, in order."""

    step: Int64[Tensor, "v"]
    row: Int64[Tensor, "v"]  # in the step's batch
    loss: Float[Tensor, "v"]  # nats
    amount: Float[Tensor, "v"]  # Σ|Δ| over its recorded outliers
    share: Float[Tensor, "v"]  # ... of that of all the step's data; NaN where that is 0


class Touched(NamedTuple):
    """How some outliers are spread over G neurons."""

    outliers: Int64[Tensor, "G"]  # how many
    amount: Float[Tensor, "G"]  # Σ|Δ|, float64


def visits(site: Site, datum: int) -> Visits:
    """The steps that saw a datum."""
    course = site.index.course
    step, row = site.index.visits(datum).unbind(1)
    amount = course.amount[step, row]
    return Visits(step, row, course.loss[step, row], amount, amount / course.amount[step].sum(1))


def shifts(record: StepRecord, row: int, most: int | None = None) -> Outliers:
    """A datum's recorded outliers of a step, largest first, at most so many; of equal ones the lower parameter.

    Args:
        record: of the step.
        row: the datum's in the batch.
        most: None for all.
    """
    found = record.outliers
    own = found.datum.long() == row
    parameter, delta, position, rows = (field[own] for field in found)
    order = parameter.argsort(stable=True)
    order = order[delta[order].abs().argsort(descending=True, stable=True)][:most]
    return Outliers(parameter[order].long(), delta[order].float(), position[order].long(), rows[order].long())


def touched(found: Outliers, of: Int64[Tensor, "P"], n: int) -> Touched:
    """How many of some outliers each of n neurons has, and their Σ|Δ|.

    Args:
        found: such as ``shifts`` gives.
        of: each parameter's neuron, −1 for none: ``Groups.of``.
        n: neurons.
    """
    group = of[found.parameter.long()]
    there = group >= 0
    amount = torch.zeros(n, dtype=torch.float64).index_add_(0, group[there], found.delta[there].abs().double())
    return Touched(torch.bincount(group[there], minlength=n), amount)


def positions(site: Site, datum: int) -> Float[Tensor, "C"]:
    """Σ|Δ| of a datum's recorded outliers at each position where they were moved most, over all its visits; float64.

    Of a text C is the number of its tokens, else as many as it takes; outliers without a position are left out.
    """
    found = [shifts(records.read(site.run, int(step)), int(row)) for step, row in site.index.visits(datum)]
    position = torch.cat([part.position for part in found]) if found else torch.zeros(0, dtype=torch.int64)
    delta = torch.cat([part.delta for part in found]) if found else torch.zeros(0)
    there = position >= 0
    n = len(site.run.data.tokens[datum]) if site.vocab is not None else max(position.tolist(), default=-1) + 1
    return torch.zeros(n, dtype=torch.float64).index_add_(0, position[there], delta[there].abs().double())
