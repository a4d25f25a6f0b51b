"""Walks over a run: its steps made again one by one, and what a function finds in each, sealed in a folder beside it.

The weights are stored now and then, the updates not at all: each is made again from the snapshot before it. The folder
has a run's form: a manifest that names the run, and a chain of shards. ``records.verify`` checks it; a killed walk goes
on with the same bits.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from devinterp_func import batches, records, rundir, sealed, training
from devinterp_func.records import RecordError
from devinterp_func.rundir import Run
from devinterp_func.sealed import Header
from devinterp_func.training import Move
from devinterp_func.tree import Params

SHARD = 64  # steps; so many are lost to a kill at most
Found = TypeVar("Found", bound=tuple)  # a NamedTuple of tensors


def span(run: Run, start: int, stop: int | None) -> tuple[int, int]:
    """The steps start to stop - 1 of a run, ``stop`` being by default as far as it is recorded.

    Raises:
        ValueError: the run does not have them.
    """
    recorded = records.n_steps(run)
    stop = recorded if stop is None else stop
    if not 0 <= start < stop <= recorded:
        raise ValueError(f"the walk is from step {start} to {stop}; {run} has {recorded} recorded steps")
    return start, stop


def walk(
    run: Run,
    folder: Run,
    what: Mapping[str, Any],
    units: tuple[str, ...],
    look: Callable[[Move, Move | None], Found],
    start: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[int, Found | None]]:
    """Makes the steps of a run again and writes what is found in them; goes on where the folder's walk stopped.

    Args:
        run: the run; only read.
        folder: new, or this very walk's; not the run's own.
        what: what the walk looks for: names and values that make it another walk if they differ.
        units: the steps' factors, as in ``Recipe.units``.
        look: a pure function of a step and the one before it, None at the walk's first; gives a NamedTuple of tensors
            in main memory.
        start: first step of the walk.
        stop: step to stop before; None for as far as the run is recorded. A later call may go farther.

    Yields:
        Each step as it is made, and what was found; None in its place on the way from a snapshot to the next step.

    Raises:
        ValueError: start or stop out of range.
        RecordError: the folder is another walk's, is in use, or a file is damaged.
    """
    start, stop = span(run, start, stop)
    config, recipe, corpus = training.load(run)
    made = training.manifest(corpus, config, recipe)
    machine = {name: made[name] for name in ("threads", "processor", "versions")}
    records.create(folder, {**what, "run": records.manifest(run)["digest"], "start": start, "machine": machine})
    with records.lock(folder):
        done, pending, last = start + records.n_steps(folder), list[Found](), None
        first = start if done == start else done - 1
        for move in roll(run, first, stop, units) if done < stop else ():
            found = None if move.step < done else look(move, last if move.step > start else None)
            if found is not None:
                pending.append(found)
            if pending and ((move.step + 1) % SHARD == 0 or move.step + 1 == stop):
                _write(folder, pending)
                pending = []
            last = move
            yield move.step, found


def roll(run: Run, start: int, stop: int, units: tuple[str, ...] = ()) -> Iterator[Move]:
    """The run's steps made again, from the snapshot at or before ``start`` on, with the factors of ``units``."""
    config, recipe, corpus = training.load(run)
    data = batches.chunk(corpus.train, recipe.context)
    recipe = dataclasses.replace(recipe, units=units)
    at = max(step for step in records.snapshots(run) if step <= start)
    yield from training.moves(records.read_params(run, at), data, config, recipe, start=at, stop=stop)


def weights(run: Run, step: int) -> Params:
    """The weights before any step: a snapshot, or made again from the one before."""
    if step in records.snapshots(run):
        return records.read_params(run, step)
    return deque(roll(run, step, step), maxlen=1).pop().after


def read(folder: Run) -> dict[str, Tensor]:
    """All that a walk has found so far, its steps stacked, by field.

    Raises:
        RecordError: there is no walk, it has no steps yet, or a file is damaged.
    """
    parts: list[dict[str, Tensor]] = []
    root = records.manifest(folder)["digest"]
    for header in rundir.chain(folder):
        path = rundir.path(folder, "steps", header.step)
        found, tensors = sealed.read(path)
        rundir.require(path, found, "steps", root)
        parts.append(tensors)
    if not parts:
        raise RecordError(f"{folder} holds no steps yet; the walk that was begun there goes on with the same command")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _write(folder: Run, pending: list[Found]) -> None:
    last = rundir.last_shard(folder)
    first = last.step + last.count  # counted from the walk's start
    stacked = map(torch.stack, zip(*pending, strict=True))
    header = Header("steps", first, len(pending), last.run, last.digest)
    names: tuple[str, ...] = pending[0]._fields  # type: ignore[attr-defined]
    sealed.write(rundir.path(folder, "steps", first), header, dict(zip(names, stacked, strict=True)))
