"""What of a step is recorded, and one step's record made from a move: pure, no files."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from devinterp_func import checks, optim, per_example, tree, units
from devinterp_func.graph import Graph
from devinterp_func.optim import Split, Summed
from devinterp_func.per_example import Factor, Outliers, Per
from devinterp_func.records._step import Factors, StepRecord, equal_bits, stack
from devinterp_func.training import Move

GAIN = "gain"  # of each entry: the only tensor of a factor that is not its data's
DELTAS_AT_ONCE = 2**26  # bytes of deltas formed before their outliers are taken


@dataclass(frozen=True)
class Recording:
    """What is recorded of a training, apart from what is trained; defaults are the post's.

    Raises:
        TypeError, ValueError: a value of another type, or out of range; it is named.
    """

    k: int = 1000  # outliers of each datum, or of the step
    per: Per = "datum"
    units: tuple[str, ...] = ()  # patterns of the captured units, of ``units.choose``
    factors: bool = False  # the factors too
    snapshot_every: int = 488  # steps; six times an epoch of the post

    def __post_init__(self) -> None:
        if self.per not in ("datum", "step"):
            raise ValueError(f"per is {self.per!r}; it must be 'datum' or 'step'")
        if not isinstance(self.factors, bool):
            raise TypeError(f"factors is {self.factors!r}; it must be True or False")
        object.__setattr__(self, "units", units.as_patterns(self.units))
        for name in ("k", "snapshot_every"):
            object.__setattr__(self, name, checks.integer(name, getattr(self, name)))


def delta_buffer(factors: dict[str, Factor]) -> Float[Tensor, "m P"]:
    """Scratch for the deltas of as many of the n data at once as is reasonable."""
    row = per_example.workspace(factors, 1)
    n = per_example.n_data(next(iter(factors.values())))
    return row.new_zeros(max(1, min(n, DELTAS_AT_ONCE // row.nbytes)), row.shape[1])


class Piece(NamedTuple):
    """What some of a step's data did: their part of its record, in main memory."""

    datum: Int[Tensor, "m"]
    loss: Float[Tensor, "m"]
    outliers: Outliers
    factors: Factors


def measures(graph: Graph, recording: Recording, step: int) -> bool:
    """Whether a record says how far its step misses the law: the model rounds, and the step begins with a snapshot."""
    return bool(graph.rounded) and step % recording.snapshot_every == 0


def summed_shares(
    factors: dict[str, Factor], split: Split, shares: Sequence[Sequence[slice]], rows: slice
) -> list[Summed | None]:
    """What the data of each process's share did, part after part; None of a share that has no part among the rows.

    Args:
        factors: of the deltas of some of the batch's data.
        split: how the step came about.
        shares: rows of the batch that are captured at once, share by share.
        rows: which these data are.
    """
    found: list[Summed | None] = []
    for share in shares:
        own = [part for part in share if rows.start <= part.start < rows.stop]
        parts = [slice(part.start - rows.start, part.stop - rows.start) for part in own]
        each = [{name: per_example.take_data(f, part) for name, f in factors.items()} for part in parts]
        found.append(add_up([optim.summed(some, split) for some in each]))
    return found


def add_up(parts: Sequence[Summed | None]) -> Summed | None:
    """What several parts did together, in their order; None of none."""
    found = [part for part in parts if part is not None]
    return reduce(optim.add_summed, found) if found else None


class Law(NamedTuple):
    """How far a step misses the law, of each captured unit, and how far it may."""

    missed: Float[Tensor, "U"]
    bound: Float[Tensor, "U"]


def law_of(move: Move, found: Summed) -> Law:
    """How far a step misses the law by what its data did together."""
    both = optim.missed(move, found.sums), optim.missed_bound(move, found)
    return Law(*(torch.tensor(list(numbers.values()), dtype=torch.float32) for numbers in both))


def to_record(
    move: Move,
    recording: Recording,
    buffer: Float[Tensor, "m P"] | None = None,
    measured: Sequence[Sequence[slice]] | None = None,
) -> StepRecord:
    """The record of a step: its outliers, and its factors where they are wanted, in main memory.

    Args:
        move: the step.
        recording: what is recorded.
        buffer: of ``delta_buffer``, to be used again at every step.
        measured: ``training.shares`` of the recipe, where it is to be measured how far the step misses the law.
    """
    n = len(move.datum)
    law = None
    if measured is not None:
        found = add_up(summed_shares(move.factors, move.split, measured, slice(0, n)))
        assert found is not None
        law = law_of(move, found)
    pieces = [to_piece(move, recording, move.factors, slice(0, n), n, buffer)]
    return from_pieces(move, recording, pieces, len(move.factors), law)


def to_piece(
    move: Move,
    recording: Recording,
    factors: dict[str, Factor],
    rows: slice,
    n: int,
    buffer: Float[Tensor, "m P"] | None = None,
    first: int = 0,
) -> Piece:
    """The part of a step's record that some of its data make.

    Args:
        move, recording, buffer: as for ``to_record``.
        factors: of these data's deltas.
        rows: of the batch, which they are.
        n: data of the whole batch.
        first: row of the batch that the move's data begin with.
    """
    buffer = delta_buffer(factors) if buffer is None else buffer
    found = per_example.top_k_from_factors(factors, recording.k, recording.per, buffer)
    outliers = narrow(found._replace(datum=found.datum + rows.start), factors, n)
    kept = tensors_of(factors) if recording.factors else {}
    own = slice(rows.start - first, rows.stop - first)
    return Piece(*tree.map(lambda x: x.cpu(), (move.datum[own], move.losses[own], outliers, kept)))


def from_pieces(
    move: Move, recording: Recording, pieces: Sequence[Piece], n_units: int, law: Law | None = None
) -> StepRecord:
    """The record of a step whose data are those of several pieces, in order; ``n_units`` are captured."""
    law = Law(*torch.full((2, n_units), torch.nan, dtype=torch.float32)) if law is None else law
    lr, clip, grad_norm = (float(value) for value in (move.split.lr, move.split.clip, move.split.grad_norm))
    split = tree.map(lambda x: x.float().cpu(), move.split.sizes())
    datum, loss, outliers = (_joined([piece[i] for piece in pieces]) for i in range(3))
    if recording.per == "step" and len(pieces) > 1:
        outliers = per_example.top_k_of_step(outliers, recording.k)
    factors = {
        unit: {name: x if name.endswith(GAIN) else _joined([p.factors[unit][name] for p in pieces]) for name, x in own}
        for unit, own in ((unit, fields.items()) for unit, fields in pieces[0].factors.items())
    }
    made = (lr, clip, grad_norm, datum, loss, split, *law, outliers, factors)
    return StepRecord(move.step, move.epoch, move.batch, *made)


def _joined(parts: Sequence[Any]) -> Any:
    """Tensors, or tuples of them, one after the other."""
    return parts[0] if len(parts) == 1 else tree.map(lambda *xs: torch.cat(xs), *parts)


def same_bits(a: StepRecord, b: StepRecord) -> bool:
    """Whether two records agree in every bit."""
    ours, theirs = stack([a]), stack([b])
    return ours.keys() == theirs.keys() and all(equal_bits(ours[name], theirs[name]) for name in ours)


def narrow(outliers: Outliers, factors: dict[str, Factor], n: int) -> Outliers:
    """Outliers of n data in the narrowest types that hold any of these factors'."""
    context = max(per_example.n_positions(factor) for factor in factors.values())
    return outliers._replace(
        parameter=_narrow(outliers.parameter, sum(map(per_example.size_of, factors.values()))),
        position=_narrow(outliers.position, context, torch.uint8, torch.int16),
        datum=_narrow(outliers.datum, n, torch.int16),
    )


def tensors_of(factors: dict[str, Factor]) -> Factors:
    """What a record keeps of factors."""
    return {unit: _tensors(factor) for unit, factor in factors.items()}


def _narrow(values: Int[Tensor, "*n"], size: int, *kinds: torch.dtype) -> Integer[Tensor, "*n"]:
    """In the narrowest of some types that holds every number below ``size``; in int32 or int64 where none does."""
    fits = (kind for kind in (*kinds, torch.int32, torch.int64) if size - 1 <= torch.iinfo(kind).max)
    return values.to(next(fits))


def _tensors(factor: Factor) -> dict[str, Tensor]:
    """A factor's tensors by field; those of a sum after the number of their part, such as "0.tokens"."""
    fields = tree.flat(factor).items()
    return {
        name.replace("parts.", "").replace("factor.", ""): value for name, value in fields if isinstance(value, Tensor)
    }
