"""A run's directory: its manifest, its one writer, and which files are there. Only files' headers are read here.

    manifest.json                     what the run is: canonical JSON with its own digest
    data.safetensors                optional: the text, so that the run needs nothing else
    steps/000000.safetensors          a shard: consecutive steps, stacked, named by the first
    params/000000.safetensors         weights before that step
    state/000000.safetensors          what the optimizer remembers before that step, where it does
    evaluations/002928.safetensors    named numbers for the weights before that step
    .lock                             held while a writer is at work

Each shard names the digest of the one before, the first one that of the manifest; weights, states and evaluations name
the shard that led to them. So nothing is lost, exchanged or altered unnoticed.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devinterp_func.records._manifest import RunPath, flock, listed, manifest
from devinterp_func.records._sealed import Header, RecordError, read_header

FOLDERS = {"steps": "steps", "params": "params", "state": "state", "evaluation": "evaluations"}
NAME = re.compile(r"(\d{6}|[1-9]\d{6,})\.safetensors")
TEMPORARY = re.compile(r"\.(manifest\.json|data\.safetensors|\d{6,}\.safetensors)\.tmp")


@contextmanager
def lock(run: RunPath) -> Iterator[None]:
    """Makes the caller the run's only writer and removes the temporary files that a crash left.

    The system releases the lock when the process ends, however it ends.

    Raises:
        RecordError: another writer is at work, or there is no run.
    """
    manifest(run)
    with flock(Path(run)):
        for leftover in unfinished(run):
            leftover.unlink()
        yield


def n_steps(run: RunPath) -> int:
    """How many steps are recorded so far."""
    last = last_shard(run)
    return last.step + last.count


def shards(run: RunPath) -> list[tuple[int, int]]:
    """(first step, number of steps) of each shard.

    Raises:
        RecordError: a shard is missing, out of order, or not of this run.
    """
    return [(header.step, header.count) for header in chain(run)]


def snapshots(run: RunPath) -> list[int]:
    """The steps whose weights are stored, in order."""
    manifest(run)
    return numbers(run, "params")


def chain(run: RunPath) -> Iterator[Header]:
    """The shards' headers in order, each checked to continue the one before.

    Raises:
        RecordError: a shard is missing, out of order, or not of this run.
    """
    last = _origin(run)
    for first in numbers(run, "steps"):
        where, expected = file_path(run, "steps", first), last.step + last.count
        header = require(where, read_header(where), "steps", last.run)
        if first > expected:
            raise RecordError(f"{where}: steps {expected} to {first - 1}, which come before it, are missing")
        if first < expected or header.previous != last.digest:
            raise RecordError(
                f"{where}: does not continue the shard before it, {file_path(run, 'steps', last.step).name}"
            )
        yield header
        last = header


def last_shard(run: RunPath, before: int = sys.maxsize) -> Header:
    """The header of the last shard that starts before a step; of an empty one at step 0 where there is none."""
    origin = _origin(run)
    starts = [first for first in numbers(run, "steps") if first < before]
    where = file_path(run, "steps", max(starts, default=0))
    return require(where, read_header(where), "steps", origin.run) if starts else origin


def require(where: Path, header: Header, kind: str, run: str) -> Header:
    """The header, if it belongs where it lies.

    Raises:
        RecordError: another kind of file, another run's, or another step's.
    """
    if header.kind != kind:
        raise RecordError(f"{where}: holds {header.kind!r} where {kind!r} belongs")
    if header.run != run:
        raise RecordError(f"{where}: belongs to another run ({header.run[:12]}), not to this one ({run[:12]})")
    if kind in FOLDERS and where.name != file_path("", kind, header.step).name:
        raise RecordError(f"{where}: renamed or exchanged: it says that it starts at step {header.step}")
    return header


def file_path(run: RunPath, kind: str, step: int) -> Path:
    """Where a file of the run lies."""
    return Path(run) / "data.safetensors" if kind == "data" else Path(run, FOLDERS[kind], f"{step:06d}.safetensors")


def numbers(run: RunPath, kind: str) -> list[int]:
    """The steps that the files of a kind are named by, in order; what systems and editors leave there is passed over.

    Raises:
        RecordError: something else lies among them that no run writes.
    """
    folder = Path(run) / FOLDERS[kind]
    names = [name for name in listed(folder) if not TEMPORARY.fullmatch(name)] if folder.is_dir() else []
    for name in names:
        if not NAME.fullmatch(name):
            raise RecordError(
                f"{folder / name}: not a file of a run, whose names are like 000000.safetensors; move it elsewhere"
            )
    return sorted(int(name.partition(".")[0]) for name in names)


def unfinished(run: RunPath) -> list[Path]:
    """The temporary files that a writer has in work or a crash left."""
    folders = [Path(run), *(Path(run) / folder for folder in FOLDERS.values())]
    return [file for folder in folders for file in sorted(folder.glob(".*.tmp")) if TEMPORARY.fullmatch(file.name)]


def _origin(run: RunPath) -> Header:
    """What the first shard continues: an empty shard whose digest is the manifest's."""
    root = manifest(run)["digest"]
    return Header("steps", 0, 0, root, root, root)
