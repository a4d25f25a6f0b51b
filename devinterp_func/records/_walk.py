"""Walks over a run: its steps replayed one by one, and what a function finds in each, sealed in a folder beside it.

Only snapshots are stored; updates are recomputed from the snapshot before. The folder has a run's form: a manifest that
names the run, and a chain of shards. ``records.verify`` checks it; a killed walk goes on with the same bits.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from devinterp_func import tree
from devinterp_func.records._directory import chain, file_path, last_shard, lock, n_steps, require
from devinterp_func.records._machine import machine
from devinterp_func.records._manifest import RunPath, create, manifest
from devinterp_func.records._run import Run
from devinterp_func.records._sealed import Header, RecordError, read_sealed, write_sealed
from devinterp_func.training import Move
from devinterp_func.units import Patterns

SHARD = 64  # steps; so many are lost to a kill at most
Found = TypeVar("Found", bound=tuple)  # a NamedTuple of tensors


@dataclass(frozen=True)  # checkers of types cannot read a generic NamedTuple
class Last(Generic[Found]):
    """The step before, and what was found in it."""

    move: Move
    found: Found


Look = Callable[[Move, Last[Found] | None], Found]
"""A pure function of a step and of the one before it, None at the walk's first; gives tensors in main memory."""


def walk(
    run: Run,
    folder: RunPath,
    what: Mapping[str, Any],
    captured: Patterns,
    look: Look[Found],
    kind: type[Found],
    *,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[int, Found]]:
    """Replays the steps of a run and writes what is found in them; goes on where the folder's walk stopped.

    Args:
        run: the run; only read.
        folder: new, or this very walk's; not the run's own.
        what: what the walk looks for: names and values that make it another walk if they differ.
        captured: the units whose factors the steps carry, as patterns.
        look: what is found in a step.
        kind: the NamedTuple that ``look`` gives.
        start: first step of the walk.
        stop: step to stop before; None for as far as the run is recorded. A later call may go farther.

    Yields:
        Each step that is new to the folder, and what was found in it.

    Raises:
        ValueError: start or stop out of range.
        RecordError: the folder is another walk's, is in use, a file is damaged, or as ``Run.moves``.
    """
    start, stop = run.span(start, stop)
    create(folder, {**what, "run": run.manifest["digest"], "start": start, "machine": machine()})
    with lock(folder):
        done, pending = start + n_steps(folder), list[Found]()
        before = None if done == start else tree.map(lambda x: x[-1], _load(folder, kind, last_only=True))
        last: Last[Found] | None = None
        first = start if before is None else done - 1
        for move in run.moves(first, stop, captured) if done < stop else ():
            if move.step < done:
                assert before is not None
                last = Last(move, before)
                continue
            found = look(move, last)
            pending.append(found)
            if (move.step + 1) % SHARD == 0 or move.step + 1 == stop:
                write_steps(folder, pending)
                pending = []
            last = Last(move, found)
            yield move.step, found


def read_walk(folder: RunPath, kind: type[Found]) -> Found:
    """All that a walk has found so far, its steps stacked.

    Args:
        folder: of ``walk``.
        kind: the NamedTuple that it found in each step.

    Raises:
        RecordError: there is no walk, it has no steps yet, or a file is damaged.
    """
    return _load(folder, kind)


def _load(folder: RunPath, kind: type[Found], last_only: bool = False) -> Found:
    parts: list[dict[str, Tensor]] = []
    root = manifest(folder)["digest"]
    headers = list(chain(folder))
    for header in headers[-1:] if last_only else headers:
        path = file_path(folder, "steps", header.step)
        found, tensors = read_sealed(path)
        require(path, found, "steps", root)
        parts.append(tensors)
    if not parts:
        raise RecordError(f"{folder} holds no steps yet; the walk that was begun there goes on with the same command")
    return kind(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def write_steps(folder: RunPath, pending: list[Found]) -> None:
    """Adds a shard: what was found in some steps."""
    last = last_shard(folder)
    first = last.step + last.count  # counted from the walk's start
    header = Header("steps", first, len(pending), last.run, last.digest)
    write_sealed(file_path(folder, "steps", first), header, tree.stack(pending)._asdict())
