"""Training written to a run directory, resumable after a kill at any moment with the same bits."""

import time
from collections.abc import Iterator
from typing import NamedTuple

from devinterp_func import batches, outliers, records, rundir, sgd, text, training, tree
from devinterp_func.batches import Data
from devinterp_func.records import RecordError, StepRecord
from devinterp_func.rundir import Run
from devinterp_func.steprecord import stack
from devinterp_func.text import Corpus
from devinterp_func.training import Move, Recipe
from devinterp_func.transformer import Config
from devinterp_func.tree import Params

SHARD_BYTES = 2**24  # so many are lost to a kill at most, and about so many are held in memory


class Progress(NamedTuple):
    """Where a recording stands after a step."""

    done: int  # steps made, those before a resume included
    n_steps: int
    record: StepRecord
    residual: float  # of the law at this step, the largest of the captured units; 0 where not checked
    bytes: int  # on the disk in step records so far
    writing: float  # seconds spent writing since the start
    evaluation: dict[str, float]  # losses in nats of "valid" and "test" after this step, where due


def record(
    run: Run, corpus: Corpus, config: Config, recipe: Recipe, *, device: str = "cpu", check_law: bool = False
) -> Iterator[Progress]:
    """Trains and writes the run directory, or goes on with the one that is there; yields after every step.

    Killed at any moment and called again with the same arguments it leaves the same tensors, bit for bit (same machine,
    versions, threads and device, all held in the manifest). Steps made again after a resume are compared with what is
    recorded.

    Args:
        run: the directory: new, or of this very run.
        corpus, config, recipe: text, model and recipe.
        device: "cpu" or a CUDA device.
        check_law: form all deltas once more at each step and measure how far their sum misses the update.

    Raises:
        RecordError: the directory is another run's, is in use, cannot be written, or re-derives to other bits.
        FloatingPointError: a gradient is NaN or infinite; what was recorded before is kept.
    """
    data = batches.chunk(corpus.train, recipe.context)
    records.create(run, training.manifest(corpus, config, recipe, device))
    with records.lock(run):
        if not rundir.path(run, "corpus", 0).exists():
            records.write_corpus(run, text.pack(corpus))
        start, recorded = max(records.snapshots(run), default=0), records.n_steps(run)
        params = records.read_params(run, start) if start else training.initial(config, recipe)
        params = tree.map(lambda tensor: tensor.to(device), params)
        due = _Due(run, corpus, config, recipe, len(data.tokens))
        _settle(due, start, params)
        yield from _go_on(due, data, params, start, recorded, check_law)


class _Due(NamedTuple):
    run: Run
    corpus: Corpus
    config: Config
    recipe: Recipe
    n_data: int

    @property
    def n_steps(self) -> int:
        return training.schedule_length(self.recipe, self.n_data)

    def evaluation(self, done: int) -> bool:
        return done == self.n_steps or (done > 0 and done % batches.n_batches(self.n_data, self.recipe.batch_size) == 0)

    def snapshot(self, done: int) -> bool:
        return done == self.n_steps or done % self.recipe.snapshot_every == 0


def _go_on(due: _Due, data: Data, params: Params, start: int, recorded: int, check_law: bool) -> Iterator[Progress]:
    pending: list[StepRecord] = []
    buffer, step_bytes, writing = None, 0, 0.0
    for move in training.moves(params, data, due.config, due.recipe, start=start):
        buffer = training.delta_buffer(move.factors) if buffer is None else buffer
        made = training.to_record(move, due.recipe, buffer)
        step_bytes = step_bytes or n_bytes(made)
        if move.step < recorded:
            _require_same(due.run, made)
        else:
            pending.append(made)
        done, began = move.step + 1, time.perf_counter()
        # Cut by absolute steps, so that a resumed run has the same shards.
        if pending and (done % max(1, SHARD_BYTES // step_bytes) == 0 or due.snapshot(done) or due.evaluation(done)):
            records.write_shard(due.run, pending)
            pending = []
        writing += time.perf_counter() - began
        spent, evaluation = _settle(due, done, move.after)
        writing += spent
        residual = _residual(move) if check_law else 0.0
        yield Progress(done, due.n_steps, made, residual, done * step_bytes, writing, evaluation)


def _settle(due: _Due, done: int, params: Params) -> tuple[float, dict[str, float]]:
    """Writes what is due after ``done`` steps and not there yet; seconds spent writing, and the evaluation."""
    evaluation: dict[str, float] = {}
    if due.evaluation(done) and done not in rundir.numbers(due.run, "evaluation"):
        splits = ("valid", "test") if done == due.n_steps else ("valid",)
        for split in splits:
            stream = getattr(due.corpus, split)
            evaluation[split] = training.evaluate(params, stream, due.config, due.recipe)
    began = time.perf_counter()
    if evaluation:
        records.write_evaluation(due.run, done, evaluation)
    if due.snapshot(done) and done not in records.snapshots(due.run):
        records.write_params(due.run, done, params)
    return time.perf_counter() - began, evaluation


def _residual(move: Move) -> float:
    return max(sgd.residual(move.before, move.after, outliers.form_units(move.factors)).values())


def n_bytes(made: StepRecord) -> int:
    """What a step record takes on the disk."""
    return sum(tensor.nbytes for tensor in stack([made]).values())


def _require_same(run: Run, made: StepRecord) -> None:
    if not training.same_bits(made, records.read(run, made.step)):
        raise RecordError(
            f"{run}: step {made.step}, made again from the last snapshot, differs from its record. Was the run "
            "begun on another machine? Nothing was changed; go on there, or start a new run"
        )
