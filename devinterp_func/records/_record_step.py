"""What of a step is recorded, and one step's record made from a move: pure, no files."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from devinterp_func import checks, per_example, tree, units
from devinterp_func.per_example import Factor, Per
from devinterp_func.records._step import StepRecord, equal_bits, stack
from devinterp_func.training import Move

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


def to_record(move: Move, recording: Recording, buffer: Float[Tensor, "m P"] | None = None) -> StepRecord:
    """The record of a step: its outliers, and its factors where they are wanted, in main memory.

    Args:
        move: the step.
        recording: what is recorded.
        buffer: of ``delta_buffer``, to be used again at every step.
    """
    buffer = delta_buffer(move.factors) if buffer is None else buffer
    outliers = per_example.top_k_from_factors(move.factors, recording.k, recording.per, buffer)
    context = max(per_example.n_positions(factor) for factor in move.factors.values())
    P = sum(per_example.size_of(factor) for factor in move.factors.values())
    outliers = outliers._replace(
        parameter=_narrow(outliers.parameter, P),
        position=_narrow(outliers.position, context, torch.uint8, torch.int16),
        datum=_narrow(outliers.datum, len(move.datum), torch.int16),
    )
    kept = {unit: _tensors(factor) for unit, factor in move.factors.items()} if recording.factors else {}
    lr, clip, grad_norm = (float(value) for value in (move.split.lr, move.split.clip, move.split.grad_norm))
    split = tree.map(torch.Tensor.float, move.split.sizes())
    host = tree.map(lambda x: x.cpu(), (move.datum, move.losses, split, outliers, kept))
    return StepRecord(move.step, move.epoch, move.batch, lr, clip, grad_norm, *host)


def same_bits(a: StepRecord, b: StepRecord) -> bool:
    """Whether two records agree in every bit."""
    ours, theirs = stack([a]), stack([b])
    return ours.keys() == theirs.keys() and all(equal_bits(ours[name], theirs[name]) for name in ours)


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
