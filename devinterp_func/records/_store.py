"""Step records: written as training goes, never rewritten, read back lazily, and verified to the last bit.

A run is a directory (``_directory.py``) of sealed files (``_sealed.py``); this module knows what is in them.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from devinterp_func.optim import State
from devinterp_func.records._directory import chain, file_path, last_shard, n_steps, numbers, require, snapshots
from devinterp_func.records._manifest import RunPath, manifest
from devinterp_func.records._readonly import freeze
from devinterp_func.records._sealed import Header, RecordError, read_sealed, write_sealed
from devinterp_func.records._step import Shard, StepRecord, float64, stack, take_row, unstack
from devinterp_func.tree import Params


def write_shard(run: RunPath, records: Sequence[StepRecord]) -> Path:
    """Appends consecutive steps to the run as one shard.

    Args:
        run: the run; its writer should hold `lock`.
        records: from step `n_steps` on, of equal shapes and dtypes.

    Raises:
        RecordError: a gap or an overlap, unequal shapes, or the system refused to write.
    """
    last = last_shard(run)
    first, steps = last.step + last.count, [record.step for record in records]
    if not steps or steps != list(range(first, first + len(steps))):
        raise RecordError(f"{run} goes on at step {first}, which {_span(steps)} do not")
    header = Header("steps", first, len(steps), last.run, last.digest)
    return write_sealed(file_path(run, "steps", first), header, stack(records))


def write_params(run: RunPath, step: int, params: Params) -> Path:
    """Stores the weights before ``step``; the steps up to it are already written.

    Raises:
        RecordError: steps are missing, these weights are there already, or the system refused to write.
    """
    return _write_beside(run, "params", step, params)


def write_state(run: RunPath, step: int, state: State) -> Path:
    """Stores what the optimizer remembers before ``step``; the steps up to it are already written.

    Raises:
        RecordError: as `write_params`.
    """
    flat = {f"{unit}/{name}": x for unit, buffers in state.buffers.items() for name, x in buffers.items()}
    return _write_beside(run, "state", step, flat)


def write_evaluation(run: RunPath, step: int, values: Mapping[str, float]) -> Path:
    """Stores named numbers (float64) for the weights before ``step``; the steps up to it are already written.

    Raises:
        RecordError: as `write_params`.
    """
    return _write_beside(run, "evaluation", step, {name: float64(value) for name, value in values.items()})


def write_data(run: RunPath, tensors: Mapping[str, Tensor]) -> Path:
    """Stores the run's text: any named tensors.

    Raises:
        RecordError: a corpus is there already, or the system refused to write.
    """
    root = manifest(run)["digest"]
    return write_sealed(file_path(run, "data", 0), Header("data", 0, 0, root, root), _at_hand(tensors))


def read(run: RunPath, step: int) -> StepRecord:
    """One step's record.

    Raises:
        RecordError: the step is not recorded, or its shard is damaged.
    """
    header = last_shard(run, before=step + 1)
    if not header.step <= step < header.step + header.count:
        raise RecordError(f"{run} has no step {step}: it holds {n_steps(run)} steps, the first being 0")
    return freeze(take_row(_shard(run, header), step - header.step))


def scan(run: RunPath, start: int = 0, stop: int | None = None) -> Iterator[StepRecord]:
    """The records of steps start to stop - 1 in order, lazily: one shard is open at a time.

    Raises:
        RecordError: a shard is missing, damaged, or not of this run.
    """
    end = sys.maxsize if stop is None else stop
    for header in chain(run):
        if header.step < end and start < header.step + header.count:
            yield from _records(_shard(run, header), start, end)


def scan_shards(run: RunPath) -> Iterator[Shard]:
    """The run's shards in order, lazily, for analysis at the speed of whole tensors.

    Raises:
        RecordError: as `scan`.
    """
    for header in chain(run):
        yield freeze(_shard(run, header))


def read_params(run: RunPath, step: int) -> Params:
    """The weights before ``step``, in memory of their own.

    A matrix product may differ in its last bit between mapped and allocated memory, whose alignments differ; training
    goes on from these, so they lie where they lay.

    Raises:
        RecordError: no weights are stored for this step (the error names those there are), or they are damaged.
    """
    if step not in snapshots(run):
        raise RecordError(f"{run} has no weights before step {step}; it has those before {snapshots(run)}")
    return _own(load(run, "params", step)[1])


def read_state(run: RunPath, step: int) -> State:
    """What the optimizer remembers before ``step``, in memory of its own; units without memory are not among it.

    Raises:
        RecordError: none is stored for this step (the error names those there are), or it is damaged.
    """
    if step not in (there := numbers(run, "state")):
        raise RecordError(f"{run} has no state of the optimizer before step {step}; it has those before {there}")
    buffers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _own(load(run, "state", step)[1]).items():
        unit, _, name = key.rpartition("/")
        buffers.setdefault(unit, {})[name] = tensor
    return State(step, buffers)


def read_data(run: RunPath) -> dict[str, Tensor]:
    """The run's text as `write_data` got it, in memory of its own.

    Raises:
        RecordError: the run has none, or it is damaged.
    """
    return _own(load(run, "data", 0)[1])


def read_evaluations(run: RunPath) -> dict[int, dict[str, float]]:
    """All evaluations: step -> name -> number.

    Raises:
        RecordError: one is damaged.
    """
    manifest(run)
    steps = numbers(run, "evaluation")
    return {step: {name: t.item() for name, t in load(run, "evaluation", step)[1].items()} for step in steps}


def load(run: RunPath, kind: str, step: int) -> tuple[Header, dict[str, Tensor]]:
    """A file of the run, whole and where it belongs."""
    root = manifest(run)["digest"]
    header, tensors = read_sealed(file_path(run, kind, step))
    return require(file_path(run, kind, step), header, kind, root), tensors


def led_to(run: RunPath, kind: str, step: int) -> Header:
    """The shard whose last step led to the weights before ``step``."""
    header = last_shard(run, before=step)
    if header.step + header.count < step:
        held = header.step + header.count
        raise RecordError(
            f"{file_path(run, kind, step)}: steps {held} to {step - 1}, which led to it, are not recorded"
        )
    return header


def _write_beside(run: RunPath, kind: str, step: int, tensors: Mapping[str, Tensor]) -> Path:
    last = led_to(run, kind, step)
    return write_sealed(file_path(run, kind, step), Header(kind, step, 0, last.run, last.digest), _at_hand(tensors))


def _at_hand(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In main memory and contiguous; the very same where they are so already."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in main memory, contiguous, none sharing storage with another."""
    contiguous = torch.contiguous_format
    return {name: tensor.detach().cpu().clone(memory_format=contiguous) for name, tensor in tensors.items()}


def _span(steps: list[int]) -> str:
    return f"steps {steps[0]} to {steps[-1]} ({len(steps)} of them)" if steps else "no records"


def _shard(run: RunPath, header: Header) -> Shard:
    return unstack(header.step, load(run, "steps", header.step)[1])


def _records(shard: Shard, start: int, end: int) -> Iterator[StepRecord]:
    for row in range(max(start - shard.first, 0), min(end - shard.first, shard.count)):
        yield freeze(take_row(shard, row))
