"""What an analysis found, in a folder beside its run: typed tables, arrays, figures, each written whole.

A stage is done when its marker says so for the same run as far as it was recorded, the same settings, and the same
stages before it. A run is never written to: its directory holds what was recorded and nothing else.
"""

import dataclasses
import hashlib
import io
import json
import math
import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import polars as pl
import safetensors.torch
from matplotlib.figure import Figure
from torch import Tensor

from devinterp_func import records
from devinterp_func.records import Run, RunPath
from devinterp_func.show import drawing, schema
from devinterp_func.show._written import slug as slug
from devinterp_func.show.schema import Table

HIDDEN = ("run", "out", "export")  # settings that say where, not what


class Missing(FileNotFoundError):
    """A result that an earlier script would have made; the message names the script."""


def beside(run: RunPath, out: Path | None = None) -> Path:
    """The folder for a run's results: ``out``, or the run's own name with ``-results``.

    Raises:
        ValueError: ``out`` is in the run.

    >>> beside("/data/runs/demo").as_posix()
    '/data/runs/demo-results'
    """
    path = Path(os.path.abspath(run))
    if out is None:
        return path.with_name(f"{path.name}-results")
    if Path(out).resolve().is_relative_to(path.resolve()):
        raise ValueError(f"{out} is in the run {run}, which is never written to; results go beside it")
    return Path(out)


def origin(folder: Path, run: Run, settings: Any, after: Sequence[str] = ()) -> dict[str, Any]:
    """What a stage's results follow from: the run, how much of it was recorded, settings, and the stages before.

    Args:
        folder: where the results are.
        run: the run.
        settings: the script's settings, a dataclass; where it reads and writes does not count.
        after: stages whose results are read, such as ``("attribute",)``.

    Raises:
        Missing: one of them is not done.
    """
    chosen = {name: _plain(value) for name, value in dataclasses.asdict(settings).items() if name not in HIDDEN}
    found = {"run": run.manifest["digest"], "steps": run.n_steps, "settings": chosen}
    return found | {"after": {stage: _digest(folder, run, stage) for stage in after}}


def is_done(folder: Path, stage: str, origin: Mapping[str, Any]) -> bool:
    """Whether the stage was finished for this very origin."""
    marker = folder / f"{stage}.json"
    return marker.exists() and marker.read_text() == records.canonical(origin, indent=2)


def is_current(folder: Path, stage: str, origin: Mapping[str, Any]) -> bool:
    """Whether the stage's results, whatever its settings were, follow from this run and the stages before it."""
    marker = folder / f"{stage}.json"
    if not marker.exists():
        return False
    there = json.loads(marker.read_text())
    same_run = all(there.get(name) == origin[name] for name in ("run", "steps"))
    return same_run and all(origin["after"].get(before, digest) == digest for before, digest in there["after"].items())


def outdated(folder: Path, run: Run) -> dict[str, str]:
    """Stages whose results no longer follow from the run and from the stages before them, and why."""
    markers = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    of_one_run = {stage: there for stage, there in markers.items() if {"run", "steps", "after"} <= there.keys()}
    return {stage: why for stage, there in of_one_run.items() if (why := _why_outdated(folder, run, there))}


def _why_outdated(folder: Path, run: Run, there: Mapping[str, Any]) -> str | None:
    if there["run"] != run.manifest["digest"]:
        return "is of another run"
    if there["steps"] != run.n_steps:
        return f"is of {there['steps']:,} steps; {run.n_steps:,} are recorded now"
    changed = [stage for stage, digest in there["after"].items() if digest != _marker_digest(folder, stage)]
    return f"was made before {' and '.join(changed)} changed" if changed else None


def finish(folder: Path, stage: str, origin: Mapping[str, Any]) -> None:
    """Marks a stage as done; its results are written before."""
    write(folder / f"{stage}.json", records.canonical(origin, indent=2).encode())


def write(path: Path, content: bytes) -> Path:
    """Puts a file in place whole or not at all, over an older one."""
    return records.install(path, content, replace=True)


def write_table(folder: Path, name: str, table: pl.DataFrame) -> Path:
    """A table as Parquet: types, nulls and lists as they are."""
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    return write(folder / f"{name}.parquet", buffer.getvalue())


def add_rows(
    folder: Path, name: str, kind: Table, rows: pl.DataFrame, instead_of: Collection[Any] = ()
) -> pl.DataFrame:
    """Writes a table's new rows beside those it has: they take the place of old ones with the same key.

    Args:
        folder, name: of the file.
        kind: the table, whose ``key`` tells rows apart.
        rows: new rows.
        instead_of: values of the key's first column whose old rows go although there may be no new ones.

    Returns:
        The whole table: old rows first, in their order.

    Raises:
        ValueError: the table has no key, or other columns.
    """
    if not kind.key:
        raise ValueError(f"rows of {kind.caption!r} cannot be added: no column tells them apart")
    schema.require(rows, kind, name)
    whole = rows
    if (folder / f"{name}.parquet").exists():
        old = read_table(folder, name, kind).filter(~pl.col(kind.key[0]).is_in(list(instead_of)).fill_null(False))
        kept = old.join(rows, on=list(kind.key), how="anti", nulls_equal=True, maintain_order="left")
        whole = pl.concat([kept, rows.select(old.columns)])
    write_table(folder, name, whole)
    return whole


def read_table(folder: Path, name: str, kind: Table | None = None) -> pl.DataFrame:
    """A table of ``write_table``.

    Args:
        folder, name: of the file.
        kind: which table it is, to name the script that makes it and to check the columns.

    Raises:
        Missing: it is not there; the message names the script that makes it.
        ValueError: it has other columns, as another version wrote it, or is damaged.
    """
    path = folder / f"{name}.parquet"
    if not path.exists():
        raise Missing(f"{path} is not there; {_script(kind)} makes it")
    try:
        table = pl.read_parquet(path, glob=False)  # a folder may be called run[lr=5]
        if kind is not None:
            schema.require(table, kind, path)
    except (ValueError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{str(error).splitlines()[0]}; run {_script(kind)} again") from error
    return table


def has_table(folder: Path, name: str) -> bool:
    """Whether a table is there."""
    return (folder / f"{name}.parquet").exists()


def write_figure(folder: Path, name: str, figure: Figure) -> Path:
    """A figure as SVG on white paper, as a page may be dark; the same bytes for the same figure."""
    buffer = io.BytesIO()
    # In the style it was laid out in, or labels move; letters as paths, as a reader may lack the font.
    with drawing.house_style(), matplotlib.rc_context({"svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
    return write(folder / f"{name}.svg", buffer.getvalue())


def write_arrays(folder: Path, name: str, arrays: Mapping[str, Tensor]) -> Path:
    """Arrays as safetensors."""
    return write(
        folder / f"{name}.safetensors", safetensors.torch.save({k: v.cpu().contiguous() for k, v in arrays.items()})
    )


def read_arrays(folder: Path, name: str, script: str = "a script before this one") -> dict[str, Tensor]:
    """Arrays of ``write_arrays``, memory-mapped.

    Raises:
        Missing: they are not there.
    """
    path = folder / f"{name}.safetensors"
    if not path.exists():
        raise Missing(f"{path} is not there; experiments/{script} makes it")
    return safetensors.torch.load_file(path)


def command(stage: str, run: RunPath) -> str:
    """What runs a stage's script on a run.

    >>> command("directions_5_20", Path("runs/a b"))
    "python experiments/directions.py 'runs/a b'"
    """
    script = re.split(r"[-_](?=\d)|-", stage)[0]
    return f"python experiments/{script}.py {shlex.quote(os.fspath(run))}"


def export(run: RunPath, folder: Path, to: Path) -> list[Path]:
    """Copies what a reader wants to another folder: pages, tables, figures and the run's manifest; no arrays.

    Returns:
        The copies.

    Raises:
        Missing: there are no results.
        ValueError: the other folder is in the run.
    """
    beside(run, to)
    found = sorted(path for path in folder.glob("*") if path.suffix in (".html", ".parquet", ".svg"))
    if not found:
        raise Missing(f"{folder} has no pages, tables or figures; the analysis scripts write them there")
    kept = [*found, Path(run) / "manifest.json"]
    return [write(to / path.name, path.read_bytes()) for path in kept]


def _plain(value: Any) -> Any:
    """A setting as JSON can hold it."""
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    endless = isinstance(value, float) and not math.isfinite(value)
    return str(value) if endless or isinstance(value, Path) else value


def _script(kind: Table | None) -> str:
    return "a script before this one" if kind is None else f"experiments/{kind.script}"


def _digest(folder: Path, run: Run, stage: str) -> str:
    found = _marker_digest(folder, stage)
    if found is None:
        raise Missing(f"{folder} has no results of {stage}; first run: {command(stage, run)}")
    return found


def _marker_digest(folder: Path, stage: str) -> str | None:
    marker = folder / f"{stage}.json"
    return hashlib.sha256(marker.read_bytes()).hexdigest() if marker.exists() else None
