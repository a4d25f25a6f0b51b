"""Outliers counted without holding the record: by epoch and parameter, over training, and as flat rows.

Outliers are of present deltas, what a step's own data did to the weights: past and decay are not in them
(``records.split_course`` says how much of the change they are). A stream of shards (``run.shards()``, or any other
iterable of them, of either kind, per datum or per step) is read once; rows are never all in memory.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int64, Num
from torch import Tensor

from devinterp_func import tree
from devinterp_func.checks import integer
from devinterp_func.records import Shard
from devinterp_func.units import Shapes

BLOCK = 2**19  # outliers, or flags of (row, group), worked on at once: what stays in the cache


class OutlierRows(NamedTuple):
    """Outliers as flat columns (the post's Table 1), in the order of the record."""

    step: Int64[Tensor, "M"]
    epoch: Int64[Tensor, "M"]
    batch: Int64[Tensor, "M"]
    row: Int64[Tensor, "M"]  # of the datum in its batch
    datum: Int64[Tensor, "M"]  # id: row of the training data
    parameter: Int64[Tensor, "M"]
    delta: Float[Tensor, "M"]  # present: what the datum did in its own step
    position: Int64[Tensor, "M"]  # token position that contributed most

    def __repr__(self) -> str:
        return f"OutlierRows of {len(self.step):,} outliers"


class OutlierCourse(NamedTuple):
    """Outliers over training, by bins of steps."""

    edges: Int64[Tensor, "edges"]  # bin b holds the steps edges[b] to edges[b + 1] − 1
    counts: Int64[Tensor, "bins units"]

    def __repr__(self) -> str:
        bins, U = self.counts.shape
        return f"OutlierCourse of {int(self.counts.sum()):,} outliers in {bins} bins of steps and {U} units"


def outlier_rows(shard: Shard) -> OutlierRows:
    """All outliers of a shard as flat columns."""
    block = _block(shard)
    step, epoch, batch = (_per_outlier(values, block) for values in (block.step, block.epoch, block.batch))
    n = max(1, shard.datum.shape[1])
    parameter, position, datum = block.parameter.long(), block.position.long(), block.datum[block.row]
    return OutlierRows(step, epoch, batch, block.row % n, datum, parameter, block.delta.clone(), position)


def outlier_counts(shards: Iterable[Shard], n_parameters: int) -> Int64[Tensor, "E P"]:
    """Outliers by epoch and parameter; E is one more than the last epoch recorded, 0 for an empty stream.

    Raises:
        ValueError: a parameter number is not below ``n_parameters``.
    """
    found = torch.zeros(0, n_parameters, dtype=torch.int64)
    for block in _blocks(shards):
        _require("parameter", block.parameter, n_parameters, f"there are {n_parameters} parameters")
        if (missing := int(block.epoch.max()) + 1 - len(found)) > 0:
            found = torch.cat([found, found.new_zeros(missing, n_parameters)])
        flat = _per_outlier(block.epoch, block) * n_parameters + block.parameter
        found.view(-1).scatter_add_(0, flat, torch.ones_like(flat))
    return found


def top_parameters(counts: Int[Tensor, "*E P"], m: int) -> Int64[Tensor, "n"]:
    """Numbers of the m parameters with the most outliers, ties by number; fewer where fewer have any.

    >>> top_parameters(torch.tensor([[1, 0, 5, 0], [4, 0, 0, 2]]), m=9)
    tensor([0, 2, 3])
    """
    total = counts.reshape(-1, counts.shape[-1]).sum(0)
    order = total.sort(descending=True, stable=True).indices[:m]
    return order[total[order] > 0]


def outliers_over_training(shards: Iterable[Shard], shapes: Shapes, n_bins: int, n_steps: int) -> OutlierCourse:
    """Outliers by bins of steps and by unit.

    Args:
        shards: the record.
        shapes: the captured units, in order.
        n_bins: step s falls into bin ⌊s · n_bins / n_steps⌋; no more bins than steps are made.
        n_steps: all steps lie in 0 to n_steps − 1.

    Raises:
        ValueError: a step or a parameter number is out of range, or there are no bins or no steps.
    """
    bins, U = min(integer("n_bins", n_bins, least=1), integer("n_steps", n_steps, least=1)), len(shapes)
    sizes = torch.tensor([math.prod(shape) for shape in shapes.values()], dtype=torch.int64)
    unit_of = torch.arange(U).repeat_interleave(sizes)
    counts = torch.zeros(bins * U, dtype=torch.int64)
    for block in _blocks(shards):
        _require("step", block.step, n_steps, f"n_steps is {n_steps}")
        _require("parameter", block.parameter, len(unit_of), f"the units have {len(unit_of)} parameters")
        bin_of = _per_outlier(block.step * bins // n_steps, block)
        counts += torch.bincount(bin_of * U + unit_of[block.parameter], minlength=len(counts))
    edges = (torch.arange(bins + 1) * n_steps + bins - 1) // bins  # the first step s with s · bins ≥ b · n_steps
    return OutlierCourse(edges, counts.view(bins, U))


class _Block(NamedTuple):
    """Some steps: their rows, each a datum of a step, and their outliers as flat columns; not to be written to."""

    step: Int[Tensor, "S"]
    epoch: Int[Tensor, "S"]
    batch: Int[Tensor, "S"]
    datum: Int[Tensor, "R"]
    row: Int64[Tensor, "M"]  # the outlier's among the R = S · n rows
    parameter: Int[Tensor, "M"]
    delta: Float[Tensor, "M"]
    position: Num[Tensor, "M"]


def _blocks(shards: Iterable[Shard], flags: int = 0) -> Iterator[_Block]:
    """The stream, a few steps at a time; ``flags`` is how many numbers the caller needs for each row."""
    for shard in shards:
        n, outliers = shard.datum.shape[1], shard.outliers.parameter.flatten(1).shape[1]
        for steps in torch.arange(len(shard.step)).split(max(1, BLOCK // max(1, n * flags, outliers))):
            yield _block(shard, slice(int(steps[0]), int(steps[-1]) + 1))


def _block(shard: Shard, steps: slice = slice(None)) -> _Block:
    fields = shard.step, shard.epoch, shard.batch, shard.datum, shard.outliers
    step, epoch, batch, datum, found = tree.map(lambda x: _plain(x)[steps], fields)
    first = torch.arange(len(step)).view(-1, *[1] * (found.datum.ndim - 1)) * datum.shape[1]
    columns = (first + found.datum, found.parameter, found.delta, found.position)
    return _Block(step, epoch, batch, datum.flatten(), *(column.flatten() for column in columns))


def _plain(x: Tensor) -> Tensor:
    """Without the guard of a frozen tensor, which costs time at every operation."""
    return x.as_subclass(Tensor)


def _per_outlier(values: Int[Tensor, "S"], block: _Block) -> Int64[Tensor, "M"]:
    """A number of each step, repeated for its outliers."""
    return values.long().repeat_interleave(len(block.row) // len(values))


def _require(what: str, values: Num[Tensor, "*M"], stop: int, why: str) -> None:
    """All values in 0 to stop − 1."""
    if values.numel():
        low, high = (int(value) for value in values.aminmax())
        if low < 0 or high >= stop:
            raise ValueError(f"{what} {low if low < 0 else high} is out of range: {why}")
