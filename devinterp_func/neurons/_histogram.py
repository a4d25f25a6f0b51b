"""Activations in bins: what a figure of many distributions needs, in a few numbers each."""

from collections.abc import Hashable, Mapping
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

Name = TypeVar("Name", bound=Hashable)
OUTSIDE = 0.001  # share of a distribution on either side that the edges need not hold


class Histogram(NamedTuple):
    """Some activations in bins; exact zeros, a ReLU's rest, are counted apart."""

    edges: Float64[Tensor, "edges"]
    counts: Int64[Tensor, "bins"]  # of those that are not 0; the outermost bins hold what lies beyond them, too
    zeros: int
    median: float  # of those that are not 0; NaN where there are none

    @property
    def n(self) -> int:
        """How many activations there are."""
        return int(self.counts.sum()) + self.zeros

    def __repr__(self) -> str:
        return f"Histogram({self.n:,} values, {self.zeros:,} of them 0, median {self.median:.3g})"


def histograms(values: Mapping[Name, Float[Tensor, "_"]], bins: int = 60) -> dict[Name, Histogram]:
    """Histograms of several sets of activations in the same bins, over the middle 99.8 % of each set.

    Args:
        values: of ``neurons.activations_on`` or ``neurons.activations_of_neighbours``.
        bins: how many.

    >>> histograms({"a": torch.tensor([0.0, 1.0, 2.0])}, bins=2)
    {'a': Histogram(3 values, 1 of them 0, median 1)}
    """
    active = {name: v[v != 0].double().cpu() for name, v in values.items()}
    quantiles = torch.tensor([OUTSIDE, 1 - OUTSIDE], dtype=torch.float64)
    ranges = [torch.quantile(v, quantiles).tolist() for v in active.values() if len(v)]
    low, high = min((r[0] for r in ranges), default=0.0), max((r[1] for r in ranges), default=1.0)
    edges = torch.linspace(low, high if high > low else low + 1, bins + 1, dtype=torch.float64)
    return {
        name: Histogram(
            edges,
            torch.histogram(v.clamp(edges[0], edges[-1]), edges).hist.long(),
            int((values[name] == 0).sum()),
            float(v.median()) if len(v) else torch.nan,
        )
        for name, v in active.items()
    }
