"""A recording's steps: made, recorded, and written beside the next ones; of several processes, by one."""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from devinterp_func import batches, training, tree
from devinterp_func.graph import Graph
from devinterp_func.optim import State, Summed
from devinterp_func.per_example import Factor
from devinterp_func.records._dataset import Dataset
from devinterp_func.records._directory import numbers, snapshots
from devinterp_func.records._manifest import RunPath
from devinterp_func.records._record_step import (
    Piece,
    Recording,
    add_up,
    delta_buffer,
    from_pieces,
    law_of,
    measures,
    same_bits,
    summed_shares,
    to_piece,
)
from devinterp_func.records._sealed import RecordError
from devinterp_func.records._snapshot import write_snapshot
from devinterp_func.records._step import StepRecord, stack
from devinterp_func.records._store import read, write_evaluation, write_shard
from devinterp_func.records._writer import Writer, writing
from devinterp_func.training import Move, Recipe, World
from devinterp_func.tree import Params

SHARD_BYTES = 2**24  # so many are lost to a kill at most, and about so many are held in memory
HELD_FACTORS = 2.0**30  # bytes of factors that a process holds for a step of several parts; else they are formed again


class Progress(NamedTuple):
    """Where a recording stands after a step."""

    done: int  # steps made, those before a resume included
    n_steps: int
    record: StepRecord
    missed: float  # how far this step misses the law, the largest of the captured units; 0 where not checked
    bytes: int  # on the disk in step records so far
    writing: float  # seconds that the training waited for the disk since the start
    evaluation: dict[str, float]  # losses in nats of "valid" and "test" after this step, where due


class Due(NamedTuple):
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


def go_on(
    due: Due, params: Params, state: State, start: int, recorded: int, check_law: bool, world: World, held: float
) -> Iterator[Progress]:
    """Makes, records and writes the steps from ``start`` on; those before ``recorded`` are compared with their records.

    Of several processes rank 0 alone compares and writes; the progress of the others has records of their own data.
    """
    pending: list[StepRecord] = []
    buffer, step_bytes, there = None, 0, _there(due.run)
    how: dict[str, Any] = {"captured": due.recording.units, "world": world, "hold": held}
    moves = training.moves(due.graph, params, due.data.train, due.recipe, state=state, start=start, **how)
    del params, state  # three times the weights, which nothing needs after the first step
    with writing() as writer:
        for move in moves:
            writer.check()
            made, missed, buffer = _recorded(due, move, world, buffer, check_law)
            done, evaluation = move.step + 1, dict[str, float]()
            if due.snapshot(done):
                _require_agreement(world, done, move)
            if world.rank == 0:
                step_bytes = step_bytes or n_bytes(made)
                if move.step < recorded:
                    _require_same(due.run, made)
                else:
                    pending.append(made)
                # Cut by absolute steps, so that a resumed run has the same shards.
                full = done % max(1, SHARD_BYTES // step_bytes) == 0
                if pending and (full or due.snapshot(done) or due.evaluation(done)):
                    writer.put(write_shard, due.run, pending)
                    pending = []
                evaluation = _settle(writer, due, there, done, move.after, move.state)
            if done == due.n_steps:
                writer.finish()
            yield Progress(done, due.n_steps, made, missed, done * step_bytes, writer.waited, evaluation)
            del move, made  # while the next step is made


def _recorded(
    due: Due, move: Move, world: World, buffer: Tensor | None, check_law: bool
) -> tuple[StepRecord, float, Tensor]:
    """A step's record; how far it misses the law, the largest of the captured units, 0 where not checked; the buffer.

    Of several processes rank 0's has all data, the others' their own.
    """
    pieces, shares = list[Piece](), training.shares(due.recipe)
    shares = shares if world.size == 1 else shares[world.rank : world.rank + 1]
    first, recorded = shares[0][0].start, measures(due.graph, due.recording, move.step)
    sums, n_units = list[Summed | None]([None] * len(shares)), 0
    for rows, factors in _parts(due, move, world, first):
        buffer, n_units = delta_buffer(factors) if buffer is None else buffer, len(factors)
        pieces.append(to_piece(move, due.recording, factors, rows, due.recipe.batch_size, buffer, first))
        if check_law or recorded:
            found = summed_shares(factors, move.split, shares, rows)
            sums = [add_up(pair) for pair in zip(sums, found, strict=True)]
    if world.size > 1:
        got = training.gather(world, (pieces, [_on(own, "cpu") for own in sums])) or []
        pieces = [piece for own, _ in got for piece in own] or pieces
        sums = [each for _, other in got for each in other]  # rank 0 alone measures
    total = _on(add_up(sums), next(iter(move.after.values())).device)
    law = None if total is None else law_of(move, total)
    missed = 0.0 if law is None else float(law.missed.max())
    assert buffer is not None
    return from_pieces(move, due.recording, pieces, n_units, law if recorded else None), missed, buffer


def _on(found: Summed | None, device: str | torch.device) -> Summed | None:
    return None if found is None else found._replace(sums=tree.map(lambda x: x.to(device), found.sums))


def _parts(due: Due, move: Move, world: World, first: int) -> Iterator[tuple[slice, dict[str, Factor]]]:
    """Rows of the batch that are this process's, and their deltas' factors: all at once where the move holds them."""
    if move.factors:
        yield slice(first, first + len(move.datum)), move.factors
        return
    yield from training.part_factors(due.graph, move, due.data.train, due.recipe, due.recording.units, world)


def _require_agreement(world: World, done: int, move: Move) -> None:
    """Refuses to go on where another process came to other weights: then their updates are no longer the same."""
    if world.size == 1:
        return
    digest = hashlib.blake2b()
    for tensor in tree.leaves((move.after, move.state.buffers)):
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    found = training.gather(world, digest.hexdigest())
    if wrong := [rank for rank, other in enumerate(found or []) if other != digest.hexdigest()]:
        raise RecordError(
            f"after step {done - 1} rank {wrong[0]} has other weights than rank 0, by the same gradients: are the "
            "machines of one kind? Nothing of this is written; the same command goes on from the last snapshot"
        )


class _There(NamedTuple):
    """What was on the disk when the recording began or went on; what is written since comes after it."""

    evaluations: list[int]
    snapshots: list[int]


def _there(run: RunPath) -> _There:
    return _There(numbers(run, "evaluation"), snapshots(run))


def _settle(writer: Writer, due: Due, there: _There, done: int, params: Params, state: State) -> dict[str, float]:
    """Has written what is due after ``done`` steps and not there yet; gives the evaluation."""
    evaluation: dict[str, float] = {}
    if due.evaluation(done) and done not in there.evaluations:
        splits = ("valid", "test") if done == due.n_steps else ("valid",)
        parts = {split: due.data.split(split) for split in splits if due.data.split(split) is not None}
        for split, held_out in parts.items():
            evaluation[split] = training.evaluate(due.graph, params, held_out, due.recipe.batch_size)
    if evaluation:
        writer.put(write_evaluation, due.run, done, evaluation)
    if due.snapshot(done) and done not in there.snapshots:
        writer.put(write_snapshot, due.run, due.recipe.optimizer, done, params, state)
    return evaluation


def n_bytes(made: StepRecord) -> int:
    """What a step record takes on the disk."""
    return sum(tensor.nbytes for tensor in stack([made]).values())


def _require_same(run: RunPath, made: StepRecord) -> None:
    if not same_bits(made, read(run, made.step)):
        raise RecordError(
            f"{run}: step {made.step}, replayed from the last snapshot, differs from its record. Was the run "
            "begun on another machine? Nothing was changed; go on there, or start a new run"
        )
