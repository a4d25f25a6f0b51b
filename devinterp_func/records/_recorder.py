"""Training written to a run directory, resumable after a kill at any moment with the same bits."""

import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from devinterp_func import batches, checks, optim, per_example, text, training, tree, units
from devinterp_func import graph as graphs
from devinterp_func.graph import Graph
from devinterp_func.models import Model
from devinterp_func.optim import State
from devinterp_func.records._dataset import Dataset, dataset, pack_data
from devinterp_func.records._described import describe
from devinterp_func.records._directory import file_path, lock, n_steps, numbers, snapshots
from devinterp_func.records._machine import is_missing, on_device
from devinterp_func.records._manifest import RunPath, create, is_there
from devinterp_func.records._record_step import Recording, delta_buffer, same_bits, to_record
from devinterp_func.records._sealed import RecordError
from devinterp_func.records._snapshot import read_snapshot, write_snapshot
from devinterp_func.records._step import StepRecord, stack
from devinterp_func.records._store import read, write_data, write_evaluation, write_shard
from devinterp_func.records._traced import traced
from devinterp_func.training import Recipe
from devinterp_func.tree import Params

WRONG = 0.02  # of a unit's gradient; rounding misses far less
SHARD_BYTES = 2**24  # so many are lost to a kill at most, and about so many are held in memory


class Progress(NamedTuple):
    """Where a recording stands after a step."""

    done: int  # steps made, those before a resume included
    n_steps: int
    record: StepRecord
    missed: float  # how far this step misses the law, the largest of the captured units; 0 where not checked
    bytes: int  # on the disk in step records so far
    writing: float  # seconds spent writing since the start
    evaluation: dict[str, float]  # losses in nats of "valid" and "test" after this step, where due


def record(
    run: RunPath,
    data: Any,
    model: Model,
    recipe: Recipe,
    recording: Recording = Recording(),  # noqa: B008  (immutable)
    *,
    device: str = "cpu",
    check_law: bool = False,
) -> Iterator[Progress]:
    """Trains and writes the run directory, or goes on with the one that is there; yields after every step.

    Killed at any moment and called again with the same arguments it leaves the same tensors, bit for bit (same machine,
    versions, threads and device, all held in the manifest). Steps replayed after a resume are compared with what is
    recorded.

    Args:
        run: the directory: new, or of this very run.
        data: a text (``text.Corpus``), which is cut into data of ``recipe.context`` tokens; or tensors with a leading
            N, an example of which is what the loss takes; or both training and other data (``records.Dataset``).
        model: of ``models``.
        recipe: how it is trained.
        recording: what is recorded of it.
        device: "cpu" or a CUDA device.
        check_law: form all deltas once more at each step and measure how far their sum misses the update.

    Raises:
        ValueError: data, model, recipe and recording do not fit each other; said before anything is written.
        RecordError: the directory is another run's, is in use, cannot be written, or re-derives to other bits.
        FloatingPointError: a gradient is NaN or infinite; what was recorded before is kept.
    """
    prepared = _prepare(run, data, model, recipe, recording, device)
    _require_right(prepared, device)
    create(run, prepared.manifest)
    with lock(run):
        if not file_path(run, "data", 0).exists():
            write_data(run, pack_data(prepared.data))
        due = _Due(run, prepared.graph, prepared.data, recipe, recording)
        if not snapshots(run):
            _settle(due, 0, prepared.params, prepared.state)
        start, recorded = max(snapshots(run)), n_steps(run)
        params, state = read_snapshot(run, recipe.optimizer, start, device)
        yield from _go_on(due, params, state, start, recorded, check_law)


def prepare(
    run: RunPath,
    data: Any,
    model: Model,
    recipe: Recipe,
    recording: Recording = Recording(),  # noqa: B008  (immutable)
    device: str = "cpu",
) -> dict[str, Any]:
    """The manifest of a run to be; refuses before any work what ``record`` would refuse.

    Args:
        run, data, model, recipe, recording, device: as for ``record``; nothing is written.

    Raises:
        RuntimeError: within torch's inference mode, or there is no such device.
        ValueError: data, model, recipe and recording do not fit each other; what does not is named, with what would.
        RecordError: the directory is another run's, or holds something else.
    """
    return _prepare(run, data, model, recipe, recording, device).manifest


class _Prepared(NamedTuple):
    manifest: dict[str, Any]
    graph: Graph
    data: Dataset
    params: Params  # before step 0
    state: State


def _prepare(run: RunPath, data: Any, model: Model, recipe: Recipe, recording: Recording, device: str) -> _Prepared:
    checks.gradients_allowed()
    _require_device(device)
    cut = dataset(data, recipe)
    params = training.initial(model, recipe)
    graph = traced(model, params, cut, device)
    _require_fit(cut, graph, recipe, recording)
    state = recipe.optimizer.init(params)  # an error before the work where it does not fit the parameters
    manifest = describe(cut, model, graph, recipe, recording, device)
    is_there(run, manifest)
    return _Prepared(manifest, graph, cut, params, state)


def _require_right(prepared: _Prepared, device: str) -> None:
    """Holds capture against autograd on the first two data, so that no wrong gradient is ever recorded."""
    few = tree.map(lambda x: x[:2].to(device), tuple(prepared.data.train))
    missed = per_example.capture_missed(prepared.graph, on_device(prepared.params, device), *few)
    if wrong := {name: miss for name, miss in missed.items() if not miss <= WRONG}:
        name, miss = max(wrong.items(), key=lambda pair: pair[1])
        raise ValueError(
            f"capture misses the gradient of {name!r} by {miss:.1e} of it: some operation of this loss comes out wrong "
            "under torch's vmap; write it with other operations (per_example.capture_missed measures it)"
        )


def _require_device(device: str) -> None:
    if not isinstance(device, str) or not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"device is {device!r}; it must be 'cpu', 'cuda', or one such as 'cuda:0'")
    if is_missing(device):
        raise RuntimeError(
            f"device is {device!r}; torch finds {torch.cuda.device_count()} CUDA devices here: use 'cpu'"
        )


def _require_fit(data: Dataset, graph: Graph, recipe: Recipe, recording: Recording) -> None:
    corpus = data.corpus
    if corpus is not None and graph.head is not None and graph.vocab_size != len(corpus.vocab):
        raise ValueError(
            f"the model has {graph.vocab_size} words, but {corpus.name!r} has {len(corpus.vocab)} types; they must "
            "agree"
        )
    for name in data.sizes():
        try:
            graphs.check_batch(graph, tuple(data.split(name)))
        except ValueError as error:
            raise ValueError(f"the {name} part of {data.name!r}: {error}") from error
    training.total_steps(recipe, batches.n_data(data.train))  # says what batch sizes there are
    captured = {name: graph.shapes[name] for name in graphs.choose(graph, recording.units)}
    if recording.k > (P := units.n_parameters(captured)):
        raise ValueError(f"k is {recording.k}; it must be between 1 and the {P} captured parameters")
    if corpus is not None and text.unpack(corpus.name, text.pack(corpus)).vocab != corpus.vocab:
        raise ValueError(
            f"the vocabulary of {corpus.name!r} does not survive being stored; some token is no valid text"
        )


class _Due(NamedTuple):
    run: RunPath
    graph: Graph
    data: Dataset
    recipe: Recipe
    recording: Recording

    @property
    def n_steps(self) -> int:
        return training.total_steps(self.recipe, batches.n_data(self.data.train))

    def evaluation(self, done: int) -> bool:
        per_epoch = training.steps_per_epoch(self.recipe, batches.n_data(self.data.train))
        return done == self.n_steps or (done > 0 and done % per_epoch == 0)

    def snapshot(self, done: int) -> bool:
        return done == self.n_steps or done % self.recording.snapshot_every == 0


def _go_on(due: _Due, params: Params, state: State, start: int, recorded: int, check_law: bool) -> Iterator[Progress]:
    pending: list[StepRecord] = []
    buffer, step_bytes, writing = None, 0, 0.0
    for move in training.moves(
        due.graph, params, due.data.train, due.recipe, state=state, captured=due.recording.units, start=start
    ):
        buffer = delta_buffer(move.factors) if buffer is None else buffer
        made = to_record(move, due.recording, buffer)
        step_bytes = step_bytes or n_bytes(made)
        if move.step < recorded:
            _require_same(due.run, made)
        else:
            pending.append(made)
        done, began = move.step + 1, time.perf_counter()
        # Cut by absolute steps, so that a resumed run has the same shards.
        if pending and (done % max(1, SHARD_BYTES // step_bytes) == 0 or due.snapshot(done) or due.evaluation(done)):
            write_shard(due.run, pending)
            pending = []
        writing += time.perf_counter() - began
        spent, evaluation = _settle(due, done, move.after, move.state)
        writing += spent
        missed = max(optim.missed(move).values()) if check_law else 0.0
        yield Progress(done, due.n_steps, made, missed, done * step_bytes, writing, evaluation)


def _settle(due: _Due, done: int, params: Params, state: State) -> tuple[float, dict[str, float]]:
    """Writes what is due after ``done`` steps and not there yet; seconds spent writing, and the evaluation."""
    evaluation: dict[str, float] = {}
    if due.evaluation(done) and done not in numbers(due.run, "evaluation"):
        splits = ("valid", "test") if done == due.n_steps else ("valid",)
        there = {split: due.data.split(split) for split in splits if due.data.split(split) is not None}
        for split, held_out in there.items():
            evaluation[split] = training.evaluate(due.graph, params, held_out, due.recipe.batch_size)
    began = time.perf_counter()
    if evaluation:
        write_evaluation(due.run, done, evaluation)
    if due.snapshot(done) and done not in snapshots(due.run):
        write_snapshot(due.run, due.recipe.optimizer, done, params, state)
    return time.perf_counter() - began, evaluation


def n_bytes(made: StepRecord) -> int:
    """What a step record takes on the disk."""
    return sum(tensor.nbytes for tensor in stack([made]).values())


def _require_same(run: RunPath, made: StepRecord) -> None:
    if not same_bits(made, read(run, made.step)):
        raise RecordError(
            f"{run}: step {made.step}, replayed from the last snapshot, differs from its record. Was the run "
            "begun on another machine? Nothing was changed; go on there, or start a new run"
        )
