"""One step's record as tensors, many steps' records as stacked tensors, and back: pure, no files."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func.optim import Sizes
from devinterp_func.per_example import Outliers
from devinterp_func.records._sealed import RecordError
from devinterp_func.tree import Tree, map

Factors = dict[str, dict[str, Tensor]]

COUNTS = ("step", "epoch", "batch")
MEASURES = ("lr", "clip", "grad_norm")
PLAIN = ("datum", "loss", "missed", "missed_bound")


class StepRecord(NamedTuple):
    """What one gradient step did, and through which data; the tensors a reader gives are read-only."""

    step: int
    epoch: int
    batch: int
    lr: float
    clip: float  # the coefficient c ≤ 1
    grad_norm: float  # before clipping, over all parameters
    datum: Int[Tensor, "n"]  # row numbers of the training data
    loss: Float[Tensor, "n"]  # mean over the datum's positions, nats
    split: Sizes  # of all units' changes: how much is present, past and decay
    missed: Float[Tensor, "U"]  # how far each captured unit misses the law (``optim.missed``), NaN where not measured:
    # it is at steps that begin with a snapshot, where the model works in less than its parameters' precision
    missed_bound: Float[Tensor, "U"]  # ... at most (``optim.missed_bound``)
    outliers: Outliers  # of the present deltas: (n, k), or (k,) for the whole step
    factors: Factors  # of the deltas, {} unless recorded: unit -> {"inputs": (n, C, in), "signals": (n, C, out)}, as
    # the factor's kind has them; "gain": the unit's shape, where each entry has its own; "0.inputs" in a sum

    def __repr__(self) -> str:
        return _describe(self)


class Shard(NamedTuple):
    """Consecutive steps, every field of their records stacked along a leading S, read-only; for whole-run analysis."""

    first: int
    count: int  # type: ignore[assignment]  # S; as a tuple's method nobody misses it
    step: Int[Tensor, "S"]
    epoch: Int[Tensor, "S"]
    batch: Int[Tensor, "S"]
    lr: Float[Tensor, "S"]
    clip: Float[Tensor, "S"]
    grad_norm: Float[Tensor, "S"]
    datum: Int[Tensor, "S n"]
    loss: Float[Tensor, "S n"]
    split: Sizes  # (S, U, 3)
    missed: Float[Tensor, "S U"]
    missed_bound: Float[Tensor, "S U"]
    outliers: Outliers  # (S, n, k), or (S, k) for whole steps
    factors: Factors  # unit -> {"inputs": (S, n, C, in), ...}

    def __repr__(self) -> str:
        return _describe(self)


def stack(records: Sequence[StepRecord]) -> dict[str, Tensor]:
    """The records' tensors by name, each stacked along a leading S, in main memory.

    The datum of an outlier is left out where its row says it.

    Raises:
        RecordError: two records differ in a shape, a dtype, or what they hold.
    """
    for record in records:
        _require_rows(record)
    flat = [flatten(record) for record in records]
    kinds = [{name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} for tensors in flat]
    for record, kind in zip(records, kinds, strict=True):
        if kind != kinds[0]:
            differing = sorted(name for name in kind.keys() | kinds[0].keys() if kind.get(name) != kinds[0].get(name))
            raise RecordError(f"step {record.step}: {differing} differ in shape or dtype from step {records[0].step}'s")
    return {name: torch.stack([tensors[name] for tensors in flat]).detach().cpu() for name in flat[0]}


def _require_rows(record: StepRecord) -> None:
    outliers = record.outliers
    if outliers.parameter.ndim == 2 and not (outliers.datum == _rows(outliers.parameter)).all():
        raise RecordError(f"step {record.step}: the datum of an outlier in row j of n must be j")


def flatten(record: StepRecord) -> dict[str, Tensor]:
    """A record's tensors by the names they are stored under; of outliers the datum only where no row says it."""
    outliers = {f"outliers/{name}": tensor for name, tensor in record.outliers._asdict().items()}
    if record.outliers.parameter.ndim == 2:
        del outliers["outliers/datum"]
    return {
        **{name: torch.tensor(getattr(record, name)) for name in COUNTS},
        **{name: float64(getattr(record, name)) for name in MEASURES},
        **{name: getattr(record, name) for name in PLAIN},
        **{f"split/{name}": tensor for name, tensor in record.split._asdict().items()},
        **outliers,
        **{f"factors/{unit}/{name}": t for unit, factors in record.factors.items() for name, t in factors.items()},
    }


def unstack(first: int, tensors: dict[str, Tensor]) -> Shard:
    """The shard of steps from ``first`` on whose tensors `stack` made."""
    parameter = tensors["outliers/parameter"]
    rows = {"outliers/datum": _rows(parameter)} if parameter.ndim == 3 else {}
    outliers = Outliers(*((tensors | rows)[f"outliers/{name}"] for name in Outliers._fields))
    factors: Factors = {}
    for name in sorted(tensors):
        if name.startswith("factors/"):
            unit, _, factor = name.removeprefix("factors/").rpartition("/")
            factors.setdefault(unit, {})[factor] = tensors[name]
    plain = {name: tensors[name] for name in (*COUNTS, *MEASURES, *PLAIN)}
    split = Sizes(*(tensors[f"split/{name}"] for name in Sizes._fields))
    return Shard(first, len(plain["step"]), **plain, split=split, outliers=outliers, factors=factors)


def take_row(shard: Shard, row: int) -> StepRecord:
    """The record in a row of the shard: views of its tensors."""
    numbers = [getattr(shard, name)[row].item() for name in (*COUNTS, *MEASURES)]
    arrays = {name: getattr(shard, name) for name in (*PLAIN, "split", "outliers", "factors")}
    return StepRecord(*numbers, **map(lambda tensor: tensor[row], arrays))


def equal_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors in main memory agree in dtype, shape and every bit; −0 is not 0, and a NaN is itself."""
    ours, theirs = (x.detach().contiguous().view(-1).view(torch.uint8) for x in (a, b))
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(ours, theirs)


def float64(value: float) -> Float[Tensor, ""]:
    """A number as a tensor that keeps every bit of it."""
    return torch.tensor(value, dtype=torch.float64)


def _rows(parameter: Int[Tensor, "*S n k"]) -> Int[Tensor, "*S n k"]:
    """The datum of each outlier when every datum has a row of its own: not stored."""
    n = parameter.shape[-2]
    kind = torch.int16 if n - 1 <= torch.iinfo(torch.int16).max else torch.int32
    rows = torch.arange(n, dtype=kind, device=parameter.device)
    return rows[:, None].expand(parameter.shape)


def _describe(fields: StepRecord | Shard) -> str:
    return f"{type(fields).__name__}({', '.join(f'{n}={_short(value)}' for n, value in fields._asdict().items())})"


def _short(value: Tree) -> str:
    """A number as it is, tensors by their shapes."""
    if isinstance(value, Tensor):
        return str(list(value.shape))
    if isinstance(value, Outliers):
        return _short(value.delta)
    if isinstance(value, Sizes):
        return _short(value.size)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_short(part)}' for name, part in value.items())}}}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
