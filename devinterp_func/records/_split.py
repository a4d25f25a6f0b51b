"""How much of the change was present, past and decay, over a training: pure, of a stream of shards."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from devinterp_func.checks import integer
from devinterp_func.optim import Sizes
from devinterp_func.records._step import Shard


class SplitCourse(NamedTuple):
    """Means over bins of steps of what the three parts of the units' changes are; U is all units of the model."""

    edges: Int64[Tensor, "edges"]  # bin b holds the steps edges[b] to edges[b + 1] − 1
    sizes: Sizes  # (bins, U, 3), float64: root mean squares of the norms, means of the inner products with the change

    def __repr__(self) -> str:
        bins, U, _ = self.sizes.along.shape
        return f"SplitCourse of {U} units in {bins} bins of steps"


def split_course(shards: Iterable[Shard], n_bins: int, n_steps: int) -> SplitCourse:
    """How much of the units' changes each part was, in bins of steps.

    ``sizes.shares()`` weighs each step by the squared size of its change: so shares of several bins, or units, together
    are those of the sums of ``along``.

    Args:
        shards: the record, such as ``run.shards()``.
        n_bins: step s falls into bin ⌊s · n_bins / n_steps⌋; no more bins than steps are made.
        n_steps: all steps lie in 0 to n_steps − 1.

    Raises:
        ValueError: a step is out of range, two shards are of different units, or there are no bins, steps or shards.
    """
    bins = min(integer("n_bins", n_bins), integer("n_steps", n_steps))
    found: tuple[Tensor, Tensor, Tensor] | None = None
    for shard in shards:
        step, size, along = (x.as_subclass(Tensor) for x in (shard.step, shard.split.size, shard.split.along))
        if len(step) and not 0 <= int(step.min()) <= int(step.max()) < n_steps:
            raise ValueError(f"step {int(step.max())} is out of range: n_steps is {n_steps}")
        if found is None:
            zeros = torch.zeros(bins, *size.shape[1:], dtype=torch.float64)
            found = torch.zeros(bins, 1, 1, dtype=torch.float64), zeros, zeros.clone()
        if found[1].shape[1:] != size.shape[1:]:
            raise ValueError(f"shard {shard.first} has {size.shape[1]} units; those before have {found[1].shape[1]}")
        at = step.long() * bins // n_steps
        for total, values in zip(found, (torch.ones(len(step), 1, 1), size.double() ** 2, along), strict=True):
            total.index_add_(0, at, values.double())
    if found is None:
        raise ValueError("there are no shards; a run has some once steps are recorded")
    count, squares, products = found
    edges = (torch.arange(bins + 1) * n_steps + bins - 1) // bins  # the first step s with s · bins ≥ b · n_steps
    many = count.clamp(min=1)
    return SplitCourse(edges, Sizes((squares / many).sqrt(), products / many))
