"""Sealed files: safetensors written whole or not at all, and refused when a single bit of them has changed.

Safetensors checks its header against the file's length, but a flipped payload bit loads silently. So each file carries,
in its one metadata entry, a digest of its content and of all it says about itself.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from torch import Tensor

from devinterp_func.records._layout import file_parts, raw

FORMAT = 5
UNRELEASED = "an unreleased devinterp_func 0.2.0, from before its optimizers with memory,"
LATER = "an unreleased devinterp_func 0.2.0, from before its steps could be shared and rounded,"
READERS = {1: "devinterp_func 0.1", 2: UNRELEASED, 3: UNRELEASED, 4: LATER}  # which version reads an older format
ENTRY = "devinterp_func"  # a single entry: safetensors writes several in random order, and files would not reproduce


class RecordError(RuntimeError):
    """A run is not what it should be, or could not be written; the message names the file and its fault."""


class Header(NamedTuple):
    """What a sealed file says about itself."""

    kind: str  # "steps", "params", "state", "evaluation" or "data"
    step: int  # the first step of a shard; the step that weights, state or evaluation come before
    count: int  # type: ignore[assignment]  # steps in the file
    run: str  # digest of the run's manifest
    previous: str  # digest of the shard before
    digest: str = ""  # of everything above and of the tensors


def canonical(value: Any, indent: int | None = None) -> str:
    """The JSON text of a value: sorted keys, ASCII, one spelling.

    Args:
        value: anything JSON can say; tuples become lists.
        indent: spaces a level, for people; ``None`` for the shortest text.

    Raises:
        RecordError: the value holds NaN, an infinity, or something JSON has no word for.

    >>> canonical({"b": 1, "a": (True, None)})
    '{"a":[true,null],"b":1}'
    """
    separators = (",", ":") if indent is None else (",", ": ")
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False, indent=indent, separators=separators)
    except (TypeError, ValueError) as error:
        raise RecordError(f"not expressible as JSON: {error}") from error


def digest(header: Header, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over the header without its digest, then name, dtype, shape and bytes of each tensor by name."""
    fields = {name: value for name, value in stored_fields(header).items() if name != "digest"}
    content = hashlib.sha256(canonical(fields).encode())
    for name, tensor in sorted(tensors.items()):
        content.update(canonical([name, str(tensor.dtype), list(tensor.shape)]).encode())
        content.update(raw(tensor))
    return content.hexdigest()


def write_sealed(path: Path, header: Header, tensors: Mapping[str, Tensor]) -> Path:
    """Seals contiguous CPU tensors in a new file; they are written from where they are, none is copied.

    Args:
        path: the file's final name; its folder's parent exists.
        header: what the file is; the digest is filled in.
        tensors: contiguous.

    Raises:
        RecordError: the path is taken, or the system refused.
    """
    sealed = header._replace(digest=digest(header, tensors))
    return install(path, file_parts(tensors, {ENTRY: canonical(stored_fields(sealed))}))


def read_header(path: Path) -> Header:
    """The header alone; the content is not checked against the digest.

    Raises:
        RecordError: no such file, no sealed file, or one of another format.
    """
    with _opened(path) as file:
        return _parse_header(path, file.metadata())


def read_sealed(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """Header and memory-mapped tensors of a file whose content is what its digest says.

    Raises:
        RecordError: as `read_header`, or the content has changed.
    """
    with _opened(path) as file:
        header = _parse_header(path, file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if digest(header, tensors) != header.digest:
        raise RecordError(f"{path}: damaged: its content is not what its digest says")
    return header, tensors


def install(path: Path, data: bytes | Sequence[bytes | memoryview], replace: bool = False) -> Path:
    """Puts ``data`` at ``path``, whole or not at all, and on the disk before it returns; all files are written so.

    Args:
        path: the file.
        data: its content, or the parts that make it.
        replace: over an older file; those of a run are never rewritten.

    Raises:
        RecordError: the path is taken, or the system refused (disk full, file too large, no permission).
    """
    if not replace and os.path.lexists(path):
        raise RecordError(f"{path} exists already, and the files of a run are never rewritten")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        make_folder(path.parent)
        _write_durably(temporary, [data] if isinstance(data, bytes) else data)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temporary)
        raise RecordError(
            f"{path} could not be written: {error.strerror or error}. What was written before is whole and still "
            "verifies; the same command goes on from there once the cause is removed"
        ) from error
    return path


def make_folder(path: Path) -> None:
    """Makes a folder that is not there yet, durably."""
    if not path.is_dir():
        os.makedirs(path, exist_ok=True)
        _sync(path.parent)


def _write_durably(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    """A new name is on the disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except RecordError:
        raise
    except FileNotFoundError:
        raise RecordError(f"{path} is not there") from None
    except Exception as error:  # a damaged header raises whatever it happens to meet in safetensors or torch
        raise RecordError(f"{path}: not a whole safetensors file: {error}") from error


def stored_fields(header: Header) -> dict[str, Any]:
    """What is stored of a header."""
    return {"format": FORMAT, **header._asdict()}


def _parse_header(path: Path, metadata: dict[str, str] | None) -> Header:
    text = (metadata or {}).get(ENTRY)
    if text is None or len(metadata or {}) != 1:
        raise RecordError(f"{path}: not a file of a run: its metadata are {sorted(metadata or {})}, not [{ENTRY!r}]")
    fields = parse_canonical(path, text)
    header = {name: fields.get(name) for name in Header._fields}
    well_formed = all(isinstance(header[name], kind) for name, kind in Header.__annotations__.items())
    if not well_formed or fields.keys() != {"format", *header}:
        raise RecordError(f"{path}: damaged: its header is {text}")
    return Header(**header)  # type: ignore[arg-type]


def parse_canonical(path: Path, text: str, indent: int | None = None) -> dict[str, Any]:
    """The dict that ``text``, read from ``path``, is the canonical JSON of.

    Raises:
        RecordError: it is of another format, or not what `canonical` writes.
    """
    try:
        fields = json.loads(text)
        version = fields["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise RecordError(f"{path}: damaged: no JSON object with a format in it") from error
    if version != FORMAT:
        reader = READERS.get(version, "another version of devinterp_func")
        raise RecordError(f"{path}: of format {version!r}, which {reader} reads; this one reads format {FORMAT}")
    if canonical(fields, indent) != text:
        raise RecordError(f"{path}: damaged: its JSON is not canonical")
    return fields
