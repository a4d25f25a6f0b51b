"""What moved a neuron: the outliers of its parameters by visit, by position, by token and by parameter.

A *visit* is one datum in one step. ``Index.outliers`` of a run's index gives a neuron's outliers at once.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int, Int64, Num
from torch import Tensor

from devinterp_func import checks, stats
from devinterp_func.records import Moved


class Visits(NamedTuple):
    """Visits that moved a neuron."""

    step: Int64[Tensor, "v"]
    datum: Int64[Tensor, "v"]
    outliers: Int64[Tensor, "v"]  # of the neuron
    amount: Float64[Tensor, "v"]  # Σ|Δ| over them

    def __repr__(self) -> str:
        return f"Visits({len(self.step):,} of {len(self.datum.unique()):,} data, {int(self.outliers.sum()):,} outliers)"


class Entries(NamedTuple):
    """Parameters of a neuron that were outliers, each with the largest of them."""

    parameter: Int64[Tensor, "w"]
    outliers: Int64[Tensor, "w"]  # how often it was one
    delta: Float[Tensor, "w"]  # the largest by |Δ|, with its sign
    datum: Int64[Tensor, "w"]  # that made it
    step: Int64[Tensor, "w"]
    position: Int64[Tensor, "w"]

    def __repr__(self) -> str:
        return f"Entries({len(self.parameter):,} parameters, {int(self.outliers.sum()):,} outliers)"


class Typical(NamedTuple):
    """Tokens that are over-represented, those of the largest G² first."""

    token: Int64[Tensor, "n"]
    count: Num[Tensor, "n"]  # type: ignore[assignment]  # a tuple's own method
    frequency: Float64[Tensor, "n"]
    reference_frequency: Float64[Tensor, "n"]
    relative_frequency: Float64[Tensor, "n"]  # of these two


def visits(moved: Moved) -> Visits:
    """What moved a neuron by visit, the largest Σ|Δ| first; of equal ones the earliest.

    Args:
        moved: the neuron's outliers in order, as ``Index.outliers`` gives them: those of a visit beside each other.

    >>> two = torch.tensor([0, 0])
    >>> visits(Moved(two, torch.tensor([7, 7]), torch.tensor([1, 2]), two, torch.tensor([-1.0, 2.0]))).amount
    tensor([3.], dtype=torch.float64)
    """
    n_data = int(moved.datum.max()) + 1 if len(moved.datum) else 1
    pairs, of = (moved.step * n_data + moved.datum).unique_consecutive(return_inverse=True)
    amount = torch.zeros(len(pairs), dtype=torch.float64).index_add_(0, of, moved.delta.abs().double())
    order = amount.argsort(descending=True, stable=True)
    outliers = torch.bincount(of, minlength=len(pairs))[order]
    return Visits(pairs[order] // n_data, pairs[order] % n_data, outliers, amount[order])


def largest_of_each_datum(found: Visits) -> Visits:
    """Of each datum the first of its visits, in their order.

    >>> one = torch.tensor([1, 1])
    >>> largest_of_each_datum(Visits(torch.tensor([5, 6]), torch.tensor([3, 3]), one, one.double())).step
    tensor([5])
    """
    _, of = found.datum.unique(return_inverse=True)
    first = torch.full((int(of.max()) + 1 if len(of) else 0,), len(of)).scatter_reduce_(
        0, of, torch.arange(len(of)), "amin"
    )
    return Visits(*(column[first.sort().values] for column in found))


def amounts_at(moved: Moved, found: Visits, n_positions: int) -> Float64[Tensor, "v C"]:
    """Σ|Δ| over a neuron's outliers at each position of some visits.

    Args:
        moved: the neuron's outliers.
        found: some of its visits.
        n_positions: C, of a datum.
    """
    checks.integer("n_positions", n_positions)
    amounts = torch.zeros(len(found.step), n_positions, dtype=torch.float64)
    for row, (step, datum) in enumerate(zip(found.step.tolist(), found.datum.tolist(), strict=True)):
        own = (moved.step == step) & (moved.datum == datum)
        amounts[row].index_add_(0, moved.position[own], moved.delta[own].abs().double())
    return amounts


def label_counts(moved: Moved, labels: Int[Tensor, "N C"], n_labels: int) -> Int64[Tensor, "V"]:
    """Outliers by the label at their position; of all of a neuron's outliers these are ``tally``'s.

    Args:
        moved: the neuron's outliers.
        labels: of each datum's positions, such as the data's targets.
        n_labels: V.

    >>> one = torch.tensor([1])
    >>> label_counts(Moved(one, one, one, one, one.float()), torch.tensor([[0, 0], [1, 2]]), 3)
    tensor([0, 0, 1])
    """
    return torch.bincount(labels[moved.datum, moved.position], minlength=n_labels)


def typical(counts: Num[Tensor, "V"], reference: Num[Tensor, "V"], top: int = 15) -> Typical:
    """The over-represented tokens of largest G² against a reference.

    Args:
        counts: such as of ``label_counts``.
        reference: such as the counts of all data's targets.
        top: at most so many.

    Raises:
        ValueError: as ``stats.compare``.

    >>> typical(torch.tensor([3, 1, 0]), torch.tensor([30, 40, 30])).token
    tensor([0])
    """
    chosen = stats.notable_tokens(counts, reference, "log_likelihood", top)
    return Typical(chosen, *(column[chosen] for column in stats.compare(counts, reference)))


def largest_entries(moved: Moved) -> Entries:
    """A neuron's parameters by their largest outlier, the largest |Δ| first; of equal ones the earliest."""
    size, m = moved.delta.abs(), len(moved.delta)
    times = torch.bincount(moved.parameter)  # by number: sorting a neuron's outliers would take longer
    parameters = times.nonzero()[:, 0]
    of = torch.zeros_like(times).index_copy_(0, parameters, torch.arange(len(parameters)))[moved.parameter]
    most = size.new_zeros(len(parameters)).scatter_reduce_(0, of, size, "amax")
    candidates = (size == most[of]).nonzero()[:, 0]
    first = torch.full((len(parameters),), m).scatter_reduce_(0, of[candidates], candidates, "amin").sort().values
    at = first[size[first].argsort(descending=True, stable=True)]
    number = moved.parameter[at]
    return Entries(number, times[number], moved.delta[at], moved.datum[at], moved.step[at], moved.position[at])


def alike(counts: Int[Tensor, "G T"], row: int) -> Float64[Tensor, "G"]:
    """Cosine of each neuron's outliers by step with those of one of them; 0 for one that never moved.

    Args:
        counts: outliers of G neurons in each step.
        row: the one.

    >>> alike(torch.tensor([[3, 4], [4, -3], [0, 0], [6, 8]]), 0)
    tensor([1., 0., 0., 1.], dtype=torch.float64)
    """
    values = counts.double()
    along, size = values @ values[row], values.square().sum(1).sqrt()
    return along / (size * size[row]).clamp(min=torch.finfo(torch.float64).tiny)
