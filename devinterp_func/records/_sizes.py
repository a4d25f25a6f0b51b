"""What a recording takes on the disk and in memory, counted before anything is trained: pure, from shapes alone.

A record's *outline* is made by the functions that make the record, on torch's meta device, where tensors have shapes
and types but no numbers. So the counts follow whatever a record holds.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from devinterp_func import batches, optim, per_example, training
from devinterp_func.graph import Graph
from devinterp_func.optim import Sizes, Split
from devinterp_func.per_example import Factor, Outliers
from devinterp_func.records._dataset import Dataset, pack_data
from devinterp_func.records._going_on import SHARD_BYTES
from devinterp_func.records._layout import file_header
from devinterp_func.records._record_step import GAIN, Recording, narrow, tensors_of
from devinterp_func.records._sealed import ENTRY, Header, canonical, stored_fields
from devinterp_func.records._step import StepRecord, flatten
from devinterp_func.training import Recipe
from devinterp_func.tree import Params

DIGEST = 64  # characters


class RunBytes(NamedTuple):
    """Bytes of a run's files; all but manifest.json, which is a few thousand."""

    steps: int  # the step records' tensors
    params: int  # snapshots' weights
    state: int  # ... and what the optimizer remembers
    evaluation: int  # losses on held-out data
    data: int
    headers: int  # what the files say about themselves
    files: int  # how many there are

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self) - self.files


# ---- one step


def outline(graph: Graph, recipe: Recipe, recording: Recording) -> StepRecord:
    """The record of a step as tensors on the meta device: every field's shape and dtype, and no number.

    Args:
        graph: of the model's loss; one traced with stand-ins (``models.stand_ins``) will do.
        recipe, recording: how it is trained, and what is recorded.

    Raises:
        TypeError, ValueError: as ``graph.choose``, or k is more than there are captured parameters.
    """
    n, factors = recipe.batch_size, per_example.outline(graph, recipe.batch_size, recording.units)
    P = sum(map(per_example.size_of, factors.values()))
    if recording.k > P:
        raise ValueError(f"k is {recording.k}; it must be between 1 and the {P} captured parameters")
    kept = tensors_of(delta_factors(graph, recipe, factors)) if recording.factors else {}
    shape = (n, recording.k) if recording.per == "datum" else (recording.k,)
    floats, whole = per_example.workspace(factors, 1).dtype, torch.int64
    found = Outliers(*(_new(shape, floats if name == "delta" else whole) for name in Outliers._fields))
    known = {
        **dict.fromkeys(("step", "epoch", "batch"), 0),
        **dict.fromkeys(("lr", "clip", "grad_norm"), 0.0),
        "datum": _new((n,), whole),
        "loss": _new((n,), graph.trace.output.meta["val"].dtype),
        "split": Sizes(*(_new((len(graph.shapes), len(optim.PARTS))) for _ in Sizes._fields)),
        "outliers": narrow(found, factors, n),
        "factors": kept,
    }
    each = {name: _new((len(factors),)) for name in StepRecord._fields if name not in known}  # a number a captured unit
    return StepRecord(**known | each)  # type: ignore[arg-type]


def step_bytes(graph: Graph, recipe: Recipe, recording: Recording, half: bool = False) -> int:
    """Bytes of a step record's tensors, exactly.

    Args:
        graph, recipe, recording: as for ``outline``.
        half: count factors' inputs and signals as of 2 bytes a number, which they are of a loss in bfloat16; the gain
            of an entry, which follows the weights, stays as it is.

    Raises:
        TypeError, ValueError: as ``outline``.
    """
    stored = flatten(outline(graph, recipe, recording)).items()
    return sum(2 * x.numel() if half and _is_halved(name, x) else x.nbytes for name, x in stored)


def _is_halved(name: str, x: Tensor) -> bool:
    return name.startswith("factors/") and not name.endswith(GAIN) and x.is_floating_point()


def delta_factors(graph: Graph, recipe: Recipe, factors: dict[str, Factor]) -> dict[str, Factor]:
    """The factors of the deltas that a step of the recipe's optimizer makes of gradients', all on the meta device."""
    params = meta_params(graph)
    state, one, shares = recipe.optimizer.init(params), torch.ones(()), {}
    for name in factors:
        weight, group = params[name], recipe.optimizer.group(name, params[name].ndim)
        _, _, shares[name] = group.rule.step(weight, weight, 1.0, state.buffers[name], 1.0, 1, True)
    split = Split(one, one, one, shares, params, params)
    return optim.delta_factors(factors, split, recipe.batch_size)


def meta_params(graph: Graph) -> Params:
    """A graph's parameters on the meta device."""
    return {name: _new(shape, graph.dtypes[name]) for name, shape in graph.shapes.items()}


# ---- a run


def run_bytes(
    graph: Graph, recipe: Recipe, recording: Recording, data: Dataset | None = None, n_steps: int | None = None
) -> RunBytes:
    """Bytes of a whole run's files, exactly.

    Args:
        graph, recipe, recording: as for ``outline``.
        data: what is trained on; without it neither data nor evaluations are counted.
        n_steps: how many steps; by default the recipe's on these data.

    Raises:
        TypeError, ValueError: as ``outline``; neither data nor steps are given.
    """
    if data is None and n_steps is None:
        raise ValueError("how many steps there are follows from data; give them, or n_steps")
    per_epoch = None if data is None else training.steps_per_epoch(recipe, batches.n_data(data.train))
    steps = training.total_steps(recipe, batches.n_data(data.train)) if n_steps is None else n_steps  # type: ignore[union-attr]
    found = Counter[str]()
    for header, tensors, times in _files(graph, recipe, recording, data, steps, per_epoch or steps + 1):
        found.update({header.kind: times * n_bytes_of(tensors), "headers": times * header_bytes(header, tensors)})
        found["files"] += times
    return RunBytes(**{name: found[name] for name in RunBytes._fields})


def _files(
    graph: Graph, recipe: Recipe, recording: Recording, data: Dataset | None, n_steps: int, per_epoch: int
) -> Iterator[tuple[Header, Mapping[str, Tensor], int]]:
    """A run's files: header, tensors, and how many are like that; the recorder's rules of when it writes which."""
    snapshots = {*range(0, n_steps, recording.snapshot_every), n_steps}
    evaluated = {*range(per_epoch, n_steps + 1, per_epoch), n_steps}
    record = flatten(outline(graph, recipe, recording))
    cuts = sorted({*range(0, n_steps, max(1, SHARD_BYTES // n_bytes_of(record))), *snapshots, *evaluated})
    for (start, count), times in Counter((_as_long(a), b - a) for a, b in pairwise(cuts)).items():
        stacked = {name: _new((count, *x.shape), x.dtype) for name, x in record.items()}
        yield _header("steps", start, count), stacked, times
    params, beside = meta_params(graph), dict[str, Mapping[str, Tensor]]()
    beside["params"] = params
    if recipe.optimizer.remembers:
        buffers = recipe.optimizer.init(params).buffers
        beside["state"] = {f"{unit}/{name}": x for unit, own in buffers.items() for name, x in own.items()}
    for step, times in Counter(map(_as_long, snapshots)).items():
        yield from ((_header(kind, step), tensors, times) for kind, tensors in beside.items())
    if data is not None:
        yield _header("data", 0), pack_data(data), 1
        for step in evaluated:
            splits = [s for s in data.sizes() if s == "valid" or (s == "test" and step == n_steps)]
            if splits:
                yield _header("evaluation", step), {name: _new((), torch.float64) for name in splits}, 1


def _header(kind: str, step: int, count: int = 0) -> Header:
    return Header(kind, step, count, *3 * ["0" * DIGEST])


def _as_long(step: int) -> int:
    """The least number with as many digits."""
    return 10 ** (len(str(step)) - 1) if step else 0


def header_bytes(header: Header, tensors: Mapping[str, Tensor]) -> int:
    """Bytes that a sealed file has beside its tensors' own: safetensors' table of them, with our entry in it."""
    return len(file_header(tensors, {ENTRY: canonical(stored_fields(header))}))


def n_bytes_of(tensors: Mapping[str, Tensor]) -> int:
    return sum(x.nbytes for x in tensors.values())


def _new(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


# ---- all of it


def full_log_bytes(n_parameters: int, n_updates: int | float, bytes_each: int = 4) -> int:
    """Bytes that it takes to log every update of every parameter: P · updates · bytes.

    For its model the post says 882 GB, for GPT-3 490 EB, without a derivation. The weights that it watches and its
    292,800 per-datum updates make 843 GB of float32 (785 GiB); with biases and norms 850 GB; 882 GB is what 306,250
    updates make. GPT-3's 300 billion tokens in sequences of 2,048 make 103 EB; 490 EB is 700 million updates.

    >>> [full_log_bytes(P, n) / 1e9 for P, n in ((720_000, 292_800), (726_000, 292_800), (720_000, 306_250))]
    [843.264, 850.2912, 882.0]
    >>> full_log_bytes(175_000_000_000, 300e9 / 2048) / 1e18, full_log_bytes(175_000_000_000, 700e6) / 1e18
    (102.5390625, 490.0)
    """
    return int(n_parameters * n_updates * bytes_each)
