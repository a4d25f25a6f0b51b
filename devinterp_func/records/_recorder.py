"""Training written to a run directory, resumable after a kill at any moment with the same bits."""

import dataclasses
import math
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from devinterp_func import batches, checks, models, optim, text, training, units
from devinterp_func.batches import Data
from devinterp_func.models import Config
from devinterp_func.records._directory import file_path, lock, n_steps, numbers, snapshots
from devinterp_func.records._machine import is_missing, machine, on_device
from devinterp_func.records._manifest import RunPath, create, is_there
from devinterp_func.records._record_step import Recording, delta_buffer, same_bits, to_record
from devinterp_func.records._sealed import RecordError
from devinterp_func.records._step import StepRecord, stack
from devinterp_func.records._store import read, read_params, write_corpus, write_evaluation, write_params, write_shard
from devinterp_func.text import Corpus
from devinterp_func.training import Recipe
from devinterp_func.tree import Params

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
    corpus: Corpus,
    config: Config,
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
        corpus, config, recipe: text, model and how it is trained.
        recording: what is recorded of it.
        device: "cpu" or a CUDA device.
        check_law: form all deltas once more at each step and measure how far their sum misses the update.

    Raises:
        ValueError: text, model, recipe and recording do not fit each other; said before anything is written.
        RecordError: the directory is another run's, is in use, cannot be written, or re-derives to other bits.
        FloatingPointError: a gradient is NaN or infinite; what was recorded before is kept.
    """
    manifest = prepare(run, corpus, config, recipe, recording, device)
    data = batches.chunk(corpus.train, recipe.context)
    create(run, manifest)
    with lock(run):
        if not file_path(run, "corpus", 0).exists():
            write_corpus(run, text.pack(corpus))
        start, recorded = max(snapshots(run), default=0), n_steps(run)
        params = read_params(run, start) if start else training.initial(config, recipe)
        due = _Due(run, corpus, config, recipe, recording, len(data.tokens))
        params = on_device(params, device)
        _settle(due, start, params)
        yield from _go_on(due, data, params, start, recorded, check_law)


def prepare(
    run: RunPath,
    corpus: Corpus,
    config: Config,
    recipe: Recipe,
    recording: Recording = Recording(),  # noqa: B008  (immutable)
    device: str = "cpu",
) -> dict[str, Any]:
    """The manifest of a run to be; refuses before any work what ``record`` would refuse.

    Args:
        run, corpus, config, recipe, recording, device: as for ``record``; nothing is written.

    Raises:
        RuntimeError: within torch's inference mode, or there is no such device.
        ValueError: text, model, recipe and recording do not fit each other; what does not is named, with what would.
        RecordError: the directory is another run's, or holds something else.
    """
    checks.gradients_allowed()
    _require_device(device)
    _require_fit(corpus, config, recipe, recording)
    manifest = _describe(corpus, config, recipe, recording, device)
    is_there(run, manifest)
    return manifest


def _require_device(device: str) -> None:
    if not isinstance(device, str) or not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"device is {device!r}; it must be 'cpu', 'cuda', or one such as 'cuda:0'")
    if is_missing(device):
        raise RuntimeError(
            f"device is {device!r}; torch finds {torch.cuda.device_count()} CUDA devices here: use 'cpu'"
        )


def _require_fit(corpus: Corpus, config: Config, recipe: Recipe, recording: Recording) -> None:
    if config.vocab_size != len(corpus.vocab):
        types = len(corpus.vocab)
        raise ValueError(
            f"Config.vocab_size is {config.vocab_size}, but {corpus.name!r} has {types} types; they must agree"
        )
    for part in ("train", "valid", "test"):
        stream = getattr(corpus, part)
        checks.token_ids(f"the {part} part of {corpus.name!r}", stream, config.vocab_size)
        if len(stream) < recipe.context + 1:
            raise ValueError(
                f"the {part} part of {corpus.name!r} has {len(stream)} tokens, fewer than the {recipe.context + 1} "
                f"that a context of {recipe.context} takes; a longer text or a smaller context would do"
            )
    training.total_steps(recipe, (len(corpus.train) - 1) // recipe.context)  # says what batch sizes there are
    shapes = models.shapes(config)
    captured = {name: shapes[name] for name in units.choose(shapes, recording.units)}
    if recording.k > (P := units.n_parameters(captured)):
        raise ValueError(f"k is {recording.k}; it must be between 1 and the {P} captured parameters")
    if text.unpack(corpus.name, text.pack(corpus)).vocab.tokens != corpus.vocab.tokens:
        raise ValueError(
            f"the vocabulary of {corpus.name!r} does not survive being stored; some token is no valid text"
        )


def _describe(corpus: Corpus, config: Config, recipe: Recipe, recording: Recording, device: str) -> dict[str, Any]:
    shapes = models.shapes(config)
    sizes = {split: len(getattr(corpus, split)) for split in ("train", "valid", "test")}
    how = dataclasses.asdict(recipe)
    return {
        "config": dataclasses.asdict(config),
        "recipe": how | {"max_norm": None if math.isinf(recipe.max_norm) else recipe.max_norm},
        "recording": dataclasses.asdict(recording) | {"units": list(recording.units)},
        "n_steps": training.total_steps(recipe, (sizes["train"] - 1) // recipe.context),
        "units": [[name, list(shapes[name])] for name in units.choose(shapes, recording.units)],
        "corpus": {"name": corpus.name, "fingerprint": text.fingerprint(corpus), **sizes},
        "device": device,
        **machine(),
    }


class _Due(NamedTuple):
    run: RunPath
    corpus: Corpus
    config: Config
    recipe: Recipe
    recording: Recording
    n_data: int

    @property
    def n_steps(self) -> int:
        return training.total_steps(self.recipe, self.n_data)

    def evaluation(self, done: int) -> bool:
        return done == self.n_steps or (done > 0 and done % training.steps_per_epoch(self.recipe, self.n_data) == 0)

    def snapshot(self, done: int) -> bool:
        return done == self.n_steps or done % self.recording.snapshot_every == 0


def _go_on(due: _Due, data: Data, params: Params, start: int, recorded: int, check_law: bool) -> Iterator[Progress]:
    pending: list[StepRecord] = []
    buffer, step_bytes, writing = None, 0, 0.0
    for move in training.moves(params, data, due.config, due.recipe, captured=due.recording.units, start=start):
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
        spent, evaluation = _settle(due, done, move.after)
        writing += spent
        missed = max(optim.missed(move).values()) if check_law else 0.0
        yield Progress(done, due.n_steps, made, missed, done * step_bytes, writing, evaluation)


def _settle(due: _Due, done: int, params: Params) -> tuple[float, dict[str, float]]:
    """Writes what is due after ``done`` steps and not there yet; seconds spent writing, and the evaluation."""
    evaluation: dict[str, float] = {}
    if due.evaluation(done) and done not in numbers(due.run, "evaluation"):
        splits = ("valid", "test") if done == due.n_steps else ("valid",)
        for split in splits:
            stream = getattr(due.corpus, split)
            evaluation[split] = training.evaluate(params, stream, due.config, due.recipe)
    began = time.perf_counter()
    if evaluation:
        write_evaluation(due.run, done, evaluation)
    if due.snapshot(done) and done not in snapshots(due.run):
        write_params(due.run, done, params)
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
