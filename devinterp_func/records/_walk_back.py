"""Walks back over a run: what is found in each step, last step first, and what is carried on, sealed in a folder.

The folder has a run's form, as that of ``walk``, but its steps are counted from the walk's end. What is carried lies
beside them as weights do beside a run's, the newest alone; so a killed walk goes on with the same bits.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from devinterp_func import checks, tree
from devinterp_func.records._backwards import BLOCK, KEPT, backwards
from devinterp_func.records._directory import file_path, lock, n_steps, snapshots
from devinterp_func.records._machine import machine
from devinterp_func.records._manifest import RunPath, create
from devinterp_func.records._run import Run
from devinterp_func.records._store import read_params, write_params
from devinterp_func.records._walk import SHARD, read_walk, write_steps
from devinterp_func.training import Move
from devinterp_func.tree import Params
from devinterp_func.units import Patterns

Seen = TypeVar("Seen")
Found = TypeVar("Found", bound=tuple)  # a NamedTuple of tensors


def walk_back(
    run: Run,
    folder: RunPath,
    what: Mapping[str, Any],
    captured: Patterns,
    look: Callable[[Move], Seen],
    carry: Callable[[Seen, Params | None], tuple[Found, Params]],
    kind: type[Found],
    *,
    start: int = 0,
    stop: int | None = None,
    block: int = BLOCK,
    kept: int = KEPT,
    scratch: RunPath | None = None,
) -> Iterator[tuple[int, Found]]:
    """Replays a run's steps, last first, and writes what is found in them; goes on where the folder's walk stopped.

    Args:
        run: the run; only read.
        folder: new, or this very walk's; not the run's own.
        what: what the walk looks for: names and values that make it another walk if they differ.
        captured, look: of ``backwards``.
        carry: what is found in a step that was looked at, a NamedTuple of tensors in main memory; and what to carry on
            to the step before, tensors by name. It gets what the step after carried on, None at the last step.
        kind: the NamedTuple that ``carry`` finds.
        start: first step. A later call may go back farther.
        stop: step to stop before, where the walk begins; by default as far as the run is recorded.
        block, kept, scratch: of ``backwards``.

    Yields:
        Each step that is new to the folder, and what was found in it; ``read_walk_back`` then gives them all.

    Raises:
        ValueError: as ``backwards``.
        RecordError: the folder is another walk's, is in use, a file is damaged, or as ``Run.moves``.
    """
    start, stop = run.span(start, stop)
    checks.integer("block", block), checks.integer("kept", kept, 2)  # before the folder is made
    create(folder, {**what, "run": run.manifest["digest"], "stop": stop, "machine": machine()})
    with lock(folder):
        done, at, pending = n_steps(folder), max(snapshots(folder), default=0), list[Found]()
        if stop - done <= start:
            return
        carried = _read(folder, at, run.device) if at else None
        where = {"start": start, "stop": stop - at, "block": block, "kept": kept, "scratch": scratch}
        for step, seen in enumerate(backwards(run, look, captured, **where), at):  # type: ignore[arg-type]
            found, carried = carry(seen, carried)
            if step < done:  # killed after these were written, and before what they carried on was
                continue
            pending.append(found)
            if len(pending) == SHARD or stop - step - 1 == start:
                write_steps(folder, pending)
                write_params(folder, step + 1, carried)
                for earlier in snapshots(folder)[:-1]:
                    file_path(folder, "params", earlier).unlink()
                pending = []
            yield stop - step - 1, found


def read_walk_back(folder: RunPath, kind: type[Found]) -> Found:
    """All that a walk back has found so far, its steps stacked in their own order.

    Args:
        folder: of ``walk_back``.
        kind: the NamedTuple that it found in each step.

    Raises:
        RecordError: as ``read_walk``.
    """
    found: Found = tree.map(lambda x: x.flip(0), read_walk(folder, kind))
    return found


def _read(folder: RunPath, step: int, device: str) -> Params:
    return {name: x.to(device) for name, x in read_params(folder, step).items()}
