"""A run's directory: its manifest, its one writer, and which files are there. Only `sealed` headers are read here.

    manifest.json                     what the run is: canonical JSON with its own digest
    corpus.safetensors                optional: the text, so that the run needs nothing else
    steps/000000.safetensors          a shard: consecutive steps, stacked, named by the first
    params/000000.safetensors         weights before that step
    evaluations/002928.safetensors    named numbers for the weights before that step
    .lock                             held while a writer is at work

Each shard names the digest of the one before, the first one that of the manifest; weights and evaluations name the
shard that led to them. So nothing is lost, exchanged or altered unnoticed.
"""

import fcntl
import hashlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from devinterp_func.sealed import FORMAT, Header, RecordError, canonical, install, make_folder, parse, read_header

Run = str | os.PathLike[str]

FOLDERS = {"steps": "steps", "params": "params", "evaluation": "evaluations"}
NAME = re.compile(r"(\d{6}|[1-9]\d{6,})\.safetensors")
TEMPORARY = re.compile(r"\.(manifest\.json|corpus\.safetensors|\d{6,}\.safetensors)\.tmp")


def create(run: Run, manifest: Mapping[str, Any]) -> None:
    """Makes a run's directory and its manifest; does nothing if this very run is there.

    Args:
        run: a directory that is not there, empty, or this run.
        manifest: what the run is, JSON values only; ``n_steps`` is how many steps make it complete.

    Raises:
        RecordError: the directory is another run (each differing entry is listed) or holds something else.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     create(run, {"n_steps": 100, "seed": 1})
    ...     manifest(run)["seed"], n_steps(run)
    (1, 0)
    """
    path = Path(run) / "manifest.json"
    if reserved := manifest.keys() & {"digest", "format"}:
        raise RecordError(f"the manifest's entries {sorted(reserved)} are create's own to write")
    body = {"format": FORMAT, **manifest}
    body["digest"] = _digest(body)
    if path.exists():
        return _require_same(run, body)
    _make_empty(Path(run))
    with _flock(Path(run)):
        install(path, canonical(body, indent=2).encode())


def manifest(run: Run) -> dict[str, Any]:
    """The run's manifest as given to `create`, and ``digest`` (its SHA-256, the run's identity) and ``format``.

    Raises:
        RecordError: there is no run, or its manifest is damaged or of another format.
    """
    path = Path(run) / "manifest.json"
    try:
        text = path.read_bytes().decode("ascii")
    except (FileNotFoundError, NotADirectoryError):
        raise RecordError(f"{run} is not a run: it has no manifest.json") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: damaged or unreadable: {error}") from error
    body = parse(path, text, indent=2)
    if body.get("digest") != _digest(body):
        raise RecordError(f"{path}: damaged: its content is not what its digest says")
    return body


@contextmanager
def lock(run: Run) -> Iterator[None]:
    """Makes the caller the run's only writer and removes the temporary files that a crash left.

    The system releases the lock when the process ends, however it ends.

    Raises:
        RecordError: another writer is at work, or there is no run.
    """
    manifest(run)
    with _flock(Path(run)):
        for leftover in unfinished(run):
            leftover.unlink()
        yield


def n_steps(run: Run) -> int:
    """How many steps are recorded so far."""
    last = last_shard(run)
    return last.step + last.count


def shards(run: Run) -> list[tuple[int, int]]:
    """(first step, number of steps) of each shard.

    Raises:
        RecordError: a shard is missing, out of order, or not of this run.
    """
    return [(header.step, header.count) for header in chain(run)]


def snapshots(run: Run) -> list[int]:
    """The steps whose weights are stored, in order."""
    manifest(run)
    return numbers(run, "params")


def chain(run: Run) -> Iterator[Header]:
    """The shards' headers in order, each checked to continue the one before.

    Raises:
        RecordError: a shard is missing, out of order, or not of this run.
    """
    last = _origin(run)
    for first in numbers(run, "steps"):
        where, expected = path(run, "steps", first), last.step + last.count
        header = require(where, read_header(where), "steps", last.run)
        if first > expected:
            raise RecordError(f"{where}: steps {expected} to {first - 1}, which come before it, are missing")
        if first < expected or header.previous != last.digest:
            raise RecordError(f"{where}: does not continue the shard before it, {path(run, 'steps', last.step).name}")
        yield header
        last = header


def last_shard(run: Run, before: int = sys.maxsize) -> Header:
    """The header of the last shard that starts before a step; of an empty one at step 0 where there is none."""
    origin = _origin(run)
    starts = [first for first in numbers(run, "steps") if first < before]
    where = path(run, "steps", max(starts, default=0))
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
    if kind in FOLDERS and where.name != path("", kind, header.step).name:
        raise RecordError(f"{where}: renamed or exchanged: it says that it starts at step {header.step}")
    return header


def path(run: Run, kind: str, step: int) -> Path:
    """Where a file of the run lies."""
    return Path(run) / "corpus.safetensors" if kind == "corpus" else Path(run, FOLDERS[kind], f"{step:06d}.safetensors")


def numbers(run: Run, kind: str) -> list[int]:
    """The steps that the files of a kind are named by, in order.

    Raises:
        RecordError: something lies among them that no run writes.
    """
    folder = Path(run) / FOLDERS[kind]
    names = [name for name in os.listdir(folder) if not TEMPORARY.fullmatch(name)] if folder.is_dir() else []
    for name in names:
        if not NAME.fullmatch(name):
            raise RecordError(f"{folder / name}: not a file of a run, whose names are like 000000.safetensors")
    return sorted(int(name.partition(".")[0]) for name in names)


def unfinished(run: Run) -> list[Path]:
    """The temporary files that a writer has in work or a crash left."""
    folders = [Path(run), *(Path(run) / folder for folder in FOLDERS.values())]
    return [file for folder in folders for file in sorted(folder.glob(".*.tmp")) if TEMPORARY.fullmatch(file.name)]


def _origin(run: Run) -> Header:
    """What the first shard continues: an empty shard whose digest is the manifest's."""
    root = manifest(run)["digest"]
    return Header("steps", 0, 0, root, root, root)


def _digest(body: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in body.items() if name != "digest"}
    return hashlib.sha256(canonical(rest).encode()).hexdigest()


def _require_same(run: Run, body: dict[str, Any]) -> None:
    there = manifest(run)
    if there["digest"] == body["digest"]:
        return
    old, new = _flat(there), _flat(body)
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name) and name != "digest")
    lines = [f"  {name}: there {old.get(name, 'nothing')}, now {new.get(name, 'nothing')}" for name in names]
    raise RecordError("\n".join([f"{run} is another run:", *lines]))


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """Nested dicts as one, dotted names to the values' JSON."""
    if not isinstance(value, Mapping) or not value:
        return {name: canonical(value)}
    parts = [_flat(part, f"{name}.{key}" if name else str(key)) for key, part in value.items()]
    return {key: text for part in parts for key, text in part.items()}


def _make_empty(run: Path) -> None:
    """The run's folder, with at most what an interrupted `create` left in it."""
    try:
        make_folder(run)
        others = sorted(set(os.listdir(run)) - {".lock", ".manifest.json.tmp"})
    except OSError as error:
        raise RecordError(f"{run} cannot be made a run: {error.strerror}") from error
    if others:
        raise RecordError(f"{run} is not a run and not empty: it holds {', '.join(others[:5])}")


@contextmanager
def _flock(run: Path) -> Iterator[None]:
    try:
        descriptor = os.open(run / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise RecordError(f"{run} cannot be locked: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode().strip() or "unknown"
            raise RecordError(f"{run} has a writer already: process {holder}") from None
        with suppress(OSError):  # the number is for people; a full disk is no reason to refuse
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
