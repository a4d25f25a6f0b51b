"""What a step's gradients go on to do through the optimizer's memory: the recursion behind ``credit.lifetime``.

``look_at`` takes of a step, going forwards, what the recursion needs; ``carry`` goes over these backwards. Their
equations are in ``_lifetime.py``.
"""

from collections.abc import Generator, Iterable, Sequence
from math import fsum
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import optim, per_example
from devinterp_func.credit._ledger import mean_gradient, require_all_factors
from devinterp_func.credit.probes import Probe
from devinterp_func.optim import Share
from devinterp_func.per_example import Factor
from devinterp_func.training import Move
from devinterp_func.tree import Params


class Books(NamedTuple):
    """A span's changes of P probes, and what they are made of; float64."""

    change: Float[Tensor, "P"]  # f(w_stop) − f(w_start)
    lifetime: Float[Tensor, "P"]  # of all data of the span
    decay: Float[Tensor, "P"]  # weight decay's
    entering: Float[Tensor, "P"]  # earlier data's, through the memory that the span began with
    missed: Float[Tensor, "P"]  # the quadrature's
    present: Float[Tensor, "P"]  # of the lifetimes, what the data did in their own steps

    def unexplained(self) -> Float[Tensor, "P"]:
        """What the books are out by: rounding."""
        return self.change - self.lifetime - self.decay - self.entering - self.missed


class Lifetimes(NamedTuple):
    """What S consecutive steps did to P probes, by datum and position, float64."""

    step: Int[Tensor, "S"]
    datum: Int[Tensor, "S n"]  # ids of each step's data
    before: Float[Tensor, "S P"]  # the probes before each step
    after: Float[Tensor, "P"]  # ... and after the last
    lifetime: Float[Tensor, "S P n C"]  # credit in the datum's own step and in all later ones of the span
    present: Float[Tensor, "S P n C"]  # ... in its own alone: the ledger's credit
    decay: Float[Tensor, "S P"]  # weight decay's, what the memory carried of it included
    entering: Float[Tensor, "P"]  # of the memory that the span began with
    missed: Float[Tensor, "S P"]  # what the quadrature misses of each step

    def books(self) -> Books:
        """What the span's changes are made of."""
        sums = {name: getattr(self, name).sum((0, 2, 3)) for name in ("lifetime", "present")}
        sums |= {name: getattr(self, name).sum(0) for name in ("decay", "missed")}
        return Books(change=self.after - self.before[0], entering=self.entering, **sums)

    def __repr__(self) -> str:
        books = self.books()
        parts = ", ".join(f"{name} {getattr(books, name).tolist()}" for name in ("change", "lifetime", "entering"))
        return f"Lifetimes over {len(self.step)} steps: {parts}"


class SeenStep(NamedTuple):
    """What the walk backwards needs of a step; nothing else of it is held."""

    step: int
    datum: Int[Tensor, "n"]
    part: float  # c / n
    factors: dict[str, Factor]  # of the gradients
    shares: dict[str, Share]  # the numbers alone, without gain and memory
    pulled: list[Params]  # LᵀG of each probe; ``carry`` uses them up
    coupled: Params  # w of the units whose decay is part of the gradient
    memory: Params  # before the step; of the span's first alone
    before: Float[Tensor, "P"]
    after: Float[Tensor, "P"]  # of the span's last step; NaN of any other
    moved: Float[Tensor, "P"]  # ⟨G, Δw⟩
    decay: Float[Tensor, "P"]  # ⟨G, decay · w⟩


def part_of(move: Move) -> float:
    """c / n: a datum's gradient times this is its part of u."""
    return float(move.split.clip) / len(move.datum)


# ---- a step, going forwards


@torch.no_grad()
def look_at(move: Move, probes: Sequence[Probe], m: int, *, first: bool, last: bool) -> SeenStep:
    """What the walk backwards needs of a step.

    Args:
        move: with the factors of all parameters.
        probes, m: of ``split_change``.
        first, last: whether it is that of the span.

    Raises:
        ValueError: a parameter has no factors.
    """
    require_all_factors(move)
    shares, pulled, moved, decay = move.split.shares, list[Params](), list[float](), list[float]()
    for probe in probes:
        gradient = mean_gradient(move, probe, m)
        moved.append(fsum(_inner(gradient[name], move.after[name] - w) for name, w in move.before.items()))
        decayed = [name for name in move.before if shares[name].decay]
        decay.append(fsum(shares[name].decay * _inner(gradient[name], move.before[name]) for name in decayed))
        pulled.append({name: optim.pull_gain(shares[name].gain, gradient.pop(name)) for name in move.before})
    return SeenStep(
        step=move.step,
        datum=move.datum.cpu(),
        part=part_of(move),
        factors=move.gradients,
        shares={name: share._replace(gain=0.0, memory=None) for name, share in shares.items()},
        pulled=pulled,
        coupled={name: move.before[name] for name, share in shares.items() if share.coupled},
        memory={name: share.memory for name, share in shares.items() if first and share.memory is not None},
        before=numbers([float(probe.value(move.before)) for probe in probes]),
        after=numbers([float(probe.value(move.after)) if last else float("nan") for probe in probes]),
        moved=numbers(moved),
        decay=numbers(decay),
    )


def numbers(values: Sequence[float | Tensor]) -> Float[Tensor, "P"]:
    """Numbers, or tensors of one, in float64."""
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


def _inner(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(dtype=torch.float64))


# ---- all steps, going backwards


@torch.no_grad()
def carry(steps: Iterable[SeenStep], n_probes: int) -> Generator[int, None, Lifetimes]:
    """Yields each step when it is done; returns what came of all.

    Args:
        steps: consecutive, the last first.
        n_probes: P.
    """
    R: list[Params] = [{} for _ in range(n_probes)]  # of the units whose memory has mattered since
    rows = []
    for seen in steps:
        pairs = [_carry_probe(seen, i, R[i]) for i in range(n_probes)]
        R = [earlier for _, earlier in pairs]
        columns = [torch.stack(column) for column in zip(*(row for row, _ in pairs), strict=True)]
        rows.append((seen.step, seen.datum, seen.before, seen.after, seen.moved, *columns))
        memory = seen.memory
        yield seen.step
        del seen, pairs  # a block's last step lets the block go
    entering = [fsum(_inner(r, memory[name]) for name, r in each.items()) for each in R]
    step, datum, before, after, moved, lifetime, present, decay = zip(*reversed(rows), strict=True)
    values = torch.stack([*before, after[-1]])
    return Lifetimes(
        step=torch.tensor(step),
        datum=torch.stack(datum),
        before=values[:-1],
        after=values[-1],
        lifetime=torch.stack(lifetime),
        present=torch.stack(present),
        decay=torch.stack(decay),
        entering=numbers(entering),
        missed=values.diff(dim=0) - torch.stack(moved),
    )


def outcome(walk: Generator[int, None, Lifetimes]) -> Lifetimes:
    """What came of ``carry``, gone through to its end."""
    while True:
        try:
            next(walk)
        except StopIteration as end:
            return end.value


def _carry_probe(seen: SeenStep, i: int, R: Params) -> tuple[tuple[Tensor, Tensor, Tensor], Params]:
    """(lifetime, present, decay) of a step, and R before it."""
    own, whole, earlier, decay = Params(), Params(), Params(), seen.decay[i].clone()
    for name, pulled in seen.pulled[i].items():
        share, r = seen.shares[name], R.get(name)
        if share.past or share.keep:
            earlier[name] = pulled * share.past if r is None else (r * share.keep).add_(pulled, alpha=share.past)
        own[name] = pulled.mul_(share.present)  # in place: one probe's is as large as the weights
        whole[name] = own[name] if r is None else torch.add(own[name], r, alpha=share.take)
        if name in seen.coupled:
            decay += share.coupled * _inner(whole[name], seen.coupled[name])
    present = _amounts(seen, own)
    return (_amounts(seen, whole) if R else present, present, decay), earlier


def _amounts(seen: SeenStep, gradient: Params) -> Float[Tensor, "n C"]:
    return per_example.amounts(gradient, seen.factors).double().cpu() * seen.part
