"""What a shift undid: how much of what earlier data had made of the same entry it took back, and whose that was.

Of an entry only recorded shifts are known, those that were outliers of their datum (or of their step). With
s the sum of the entry's recorded shifts before step t, and Δ a shift of it in step t,

    undone = min(|Δ|, |s|) where Δ and s have opposite signs, else 0

and its maker is the datum whose own earlier shifts of the entry go farthest in the direction of s.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from devinterp_func.records import Moved


class Undone(NamedTuple):
    """Of each of m shifts, what the record has of its entry before; float64."""

    before: Float[Tensor, "m"]  # sum of the entry's recorded shifts in earlier steps
    undone: Float[Tensor, "m"]  # how much of it the shift took back, at least 0
    maker: Int64[Tensor, "m"]  # the datum that had made most of it, of equal ones the first; −1 where it is 0
    made: Float[Tensor, "m"]  # the sum of that datum's shifts of the entry before; 0 without one

    def __repr__(self) -> str:
        return f"Undone: {float(self.undone.sum()):.4g} of {len(self.undone):,} shifts"


def undone(moved: Moved, step: int, parameter: Int[Tensor, "m"], delta: Float[Tensor, "m"]) -> Undone:
    """What some shifts of a step undid.

    Args:
        moved: all recorded shifts of the entries, such as ``Index.outliers(parameter)`` gives; others do not count.
        step: in which the shifts were; those of this step and later ones do not count.
        parameter: the entry of each shift, each once.
        delta: the shifts.

    Raises:
        ValueError: an entry is there twice.

    >>> moved = Moved(*(torch.tensor(x) for x in ([1, 2, 5], [7, 8, 7], [3, 3, 3], [0, 0, 0], [2.0, -0.5, 9.0])))
    >>> undone(moved, 5, torch.tensor([3]), torch.tensor([-1.0]))._asdict()
    {'before': tensor([1.5000], dtype=torch.float64), 'undone': tensor([1.], dtype=torch.float64),
     'maker': tensor([7]), 'made': tensor([2.], dtype=torch.float64)}
    """
    entries, order = parameter.long().unique(return_inverse=True)
    if len(entries) < len(parameter):
        raise ValueError(f"{len(parameter)} entries were given, {len(entries)} of them different; give each once")
    at, amounts, datum = _earlier(moved, step, entries)
    before = torch.zeros(len(entries), dtype=torch.float64).index_add_(0, at, amounts)
    n = int(datum.max()) + 1 if len(datum) else 1
    pairs, place = (at * n + datum).unique(return_inverse=True)
    made = torch.zeros(len(pairs), dtype=torch.float64).index_add_(0, place, amounts)
    maker, most = torch.full((len(entries),), -1), torch.zeros(len(entries), dtype=torch.float64)
    for i in range(len(entries)):
        own = (pairs // n == i).nonzero()[:, 0]
        if before[i]:
            best = own[(made[own] * before[i].sign()).argmax()]
            maker[i], most[i] = pairs[best] % n, made[best]
    whole, shift = before[order], delta.double()
    taken = torch.minimum(shift.abs(), whole.abs()) * (shift * whole < 0)
    return Undone(whole, taken, maker[order], most[order])


def _earlier(moved: Moved, step: int, entries: Int64[Tensor, "e"]) -> tuple[Tensor, Tensor, Tensor]:
    """The shifts of some entries before a step: which entry, how much, whose."""
    at = torch.searchsorted(entries, moved.parameter.long()).clamp(max=max(0, len(entries) - 1))
    kept = moved.step < step
    kept &= (entries[at] == moved.parameter) if len(entries) else False
    return at[kept], moved.delta[kept].double(), moved.datum[kept].long()
