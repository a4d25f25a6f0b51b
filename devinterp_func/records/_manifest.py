"""A run's manifest, which says what the run is, and the folder that it makes a run.

manifest.json is canonical JSON with its own digest; that digest is the run's identity.
"""

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from devinterp_func.records._sealed import FORMAT, RecordError, canonical, install, make_folder, parse_canonical

RunPath = str | os.PathLike[str]

CLUTTER = re.compile(  # what systems and editors leave in any folder; nothing of a run
    r"\.DS_Store|\._.*|\.nfs.*|\.fuse_hidden.*|Thumbs\.db|desktop\.ini|.*~|\..*\.sw[a-p]|\.#.*|#.*#", re.DOTALL
)


def create(run: RunPath, manifest: Mapping[str, Any]) -> None:
    """Makes a run's directory and its manifest; does nothing if this very run is there.

    Args:
        run: a directory that is not there, empty, or this run.
        manifest: what the run is, JSON values only; ``n_steps`` is how many steps make it complete.

    Raises:
        RecordError: the directory is another run (each differing entry is listed) or holds something else.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     create(run, {"n_steps": 100, "seed": 1})
    ...     manifest(run)["seed"], manifest(run)["format"]
    (1, 5)
    """
    if is_there(run, manifest):
        return
    _make_empty(Path(run))
    with flock(Path(run)):
        install(Path(run) / "manifest.json", canonical(_body(manifest), indent=2).encode())


def is_there(run: RunPath, manifest: Mapping[str, Any]) -> bool:
    """Whether this very run is in the directory already; nothing is written.

    Raises:
        RecordError: as `create`.
    """
    body = _body(manifest)
    if (Path(run) / "manifest.json").exists():
        _require_same(run, body)
        return True
    _require_empty(Path(run))
    return False


def manifest(run: RunPath) -> dict[str, Any]:
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
    body = parse_canonical(path, text, indent=2)
    if body.get("digest") != _digest(body):
        raise RecordError(f"{path}: damaged: its content is not what its digest says")
    return body


def _digest(body: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in body.items() if name != "digest"}
    return hashlib.sha256(canonical(rest).encode()).hexdigest()


def _require_same(run: RunPath, body: dict[str, Any]) -> None:
    there = manifest(run)
    if there["digest"] == body["digest"]:
        return
    old, new = _flat(there), _flat(body)
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name) and name != "digest")
    lines = [f"  {name}: there {old.get(name, 'nothing')}, now {new.get(name, 'nothing')}" for name in names]
    hint = "Choose another directory, or the values of the run that is there."
    raise RecordError("\n".join([f"{run} is another run:", *lines, hint]))


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """Nested dicts as one, dotted names to the values' JSON."""
    if not isinstance(value, Mapping) or not value:
        return {name: canonical(value)}
    parts = [_flat(part, f"{name}.{key}" if name else str(key)) for key, part in value.items()]
    return {key: text for part in parts for key, text in part.items()}


def _body(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What manifest.json holds."""
    if reserved := manifest.keys() & {"digest", "format"}:
        raise RecordError(f"the manifest's entries {sorted(reserved)} are create's own to write")
    body = {"format": FORMAT, **manifest}
    return body | {"digest": _digest(body)}


def _make_empty(run: Path) -> None:
    """The run's folder, with at most what an interrupted `create` left in it."""
    try:
        make_folder(run)
    except OSError as error:
        raise RecordError(f"{run} cannot be made a run: {error.strerror}") from error
    _require_empty(run)


def _require_empty(run: Path) -> None:
    try:
        others = sorted(set(listed(run)) - {".lock", ".manifest.json.tmp"})
    except FileNotFoundError:
        return
    except OSError as error:
        raise RecordError(f"{run} cannot be made a run: {error.strerror}") from error
    if others:
        raise RecordError(f"{run} is not a run and not empty: it holds {', '.join(others[:5])}")


def listed(folder: Path) -> list[str]:
    """The names in a folder but those that systems and editors leave in any."""
    return [name for name in os.listdir(folder) if not CLUTTER.fullmatch(name)]


@contextmanager
def flock(run: Path) -> Iterator[None]:
    """Holds the folder's lock; the system releases it when the process ends, however it ends."""
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
