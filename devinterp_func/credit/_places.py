"""Which data change place between their credits in their own steps and their lifetimes."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import checks
from devinterp_func.credit._carried import Lifetimes
from devinterp_func.credit._removals import datum_totals


class PlacedText(NamedTuple):
    """A datum, what it did to a probe in all the steps it was in, and its place among all data.

    Places count from 1, the datum that raised the probe most, to the number of data, the one that lowered it most.
    """

    datum: int
    steps: int  # how many it was in
    present: Float[Tensor, "C"]  # by position; of a text that of predicting its target there
    lifetime: Float[Tensor, "C"]
    present_place: int
    lifetime_place: int

    @property
    def position(self) -> int:
        """Where most of its lifetime is."""
        return int((self.lifetime * self.lifetime.sum().sign()).argmax())

    def __repr__(self) -> str:
        return f"PlacedText(datum {self.datum}: place {self.present_place} to {self.lifetime_place})"


def most_lived(found: Lifetimes, probe: int, most: int = 10) -> list[PlacedText]:
    """The data whose lifetimes raised a probe most, then those that lowered it most; each in the order of its size.

    Args:
        found: of ``split_lifetimes``, or read of ``lifetime``.
        probe: its number among the probes.
        most: data of each effect, at most.
    """
    data, n = _Data.of(found, probe), checks.integer("most", most)
    order, total = data.lifetime_place.argsort(), data.lifetime.sum(1)
    raised = [i for i in order[:n].tolist() if total[i] > 0]
    lowered = [i for i in order.flip(0)[:n].tolist() if total[i] < 0]
    return [data.text(i) for i in raised + lowered]


def changed_places(found: Lifetimes, probe: int, most: int = 10, among: int = 100) -> list[PlacedText]:
    """The data that change place most between their credits in their own steps and their lifetimes.

    Args:
        found, probe: of ``most_lived``.
        most: data, at most.
        among: only data that either amount has among so many of the first, or of the last. In between, places change
            though amounts hardly do.
    """
    checks.integer("most", most)
    data, among = _Data.of(found, probe), checks.integer("among", among)
    places = torch.stack([data.present_place, data.lifetime_place])
    outer = ((places <= among) | (places > len(data.ids) - among)).any(0)
    moved = places.diff(dim=0)[0].abs().masked_fill(~outer, 0)
    order = moved.argsort(descending=True, stable=True)[:most]
    return [data.text(i) for i in order[moved[order] > 0].tolist()]


class _Data(NamedTuple):
    """All data of a span, each once."""

    ids: Int[Tensor, "N"]
    steps: Int[Tensor, "N"]
    present: Float[Tensor, "N C"]
    lifetime: Float[Tensor, "N C"]
    present_place: Int[Tensor, "N"]
    lifetime_place: Int[Tensor, "N"]

    @classmethod
    def of(cls, found: Lifetimes, probe: int) -> "_Data":
        ids, steps = found.datum.unique(return_counts=True)
        sums = [datum_totals(x[:, probe], found.datum)[1] for x in (found.present, found.lifetime)]
        return cls(ids, steps, *sums, *(places(x.sum(1)) for x in sums))

    def text(self, i: int) -> PlacedText:
        numbers = int(self.ids[i]), int(self.steps[i]), self.present[i], self.lifetime[i]
        return PlacedText(*numbers, int(self.present_place[i]), int(self.lifetime_place[i]))


def places(amounts: Float[Tensor, "N"]) -> Int[Tensor, "N"]:
    """From 1, the largest; equal amounts in the order of the data."""
    order = amounts.argsort(descending=True, stable=True)
    return torch.empty_like(order).index_copy_(0, order, torch.arange(1, len(order) + 1))
