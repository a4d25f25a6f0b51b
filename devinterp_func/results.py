"""What an analysis found, in a folder beside its run: tables, figures, arrays, each written whole; and what is done.

A stage is done when its marker says so for the same run, as far as it was recorded, and the same settings. A run is
never written to: its directory holds what was recorded and nothing else.
"""

import dataclasses
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import safetensors.torch
from matplotlib.figure import Figure
from torch import Tensor

from devinterp_func import records
from devinterp_func.rundir import Run
from devinterp_func.sealed import RecordError, canonical

WORDS = {"sublayer", "token", "notable tokens", "notable as a whole", "notable targets", "both", "text"}
WORDS |= {"logits raised", "logits lowered", "most active on", "target", "input", "head", "at steps"}
"""Columns of words, some of which are digits; CSV has no types."""


def beside(run: Run, out: Path | None = None) -> Path:
    """The folder for a run's results: ``out``, or the run's own name with ``-results``.

    >>> beside("runs/demo").as_posix()
    'runs/demo-results'
    """
    return Path(run).with_name(f"{Path(run).name}-results") if out is None else Path(out)


def origin(run: Run, settings: Any) -> dict[str, Any]:
    """What a stage's results follow from: the run, how much of it was recorded, and the script's settings.

    Args:
        run: the run.
        settings: the script's settings, a dataclass; where it reads and writes does not count.

    Raises:
        RecordError: no such run, or one of which nothing is recorded.
    """
    steps = records.n_steps(run)
    if not steps:
        raise RecordError(f"{run} has no recorded steps yet; there is nothing to analyse")
    chosen = {name: value for name, value in dataclasses.asdict(settings).items() if name not in ("run", "out")}
    return {"run": records.manifest(run)["digest"], "steps": steps, "settings": chosen}


def is_done(folder: Path, stage: str, origin: Mapping[str, Any]) -> bool:
    """Whether the stage was finished for this very origin."""
    marker = folder / f"{stage}.json"
    return marker.exists() and marker.read_text() == canonical(origin, indent=2)


def finish(folder: Path, stage: str, origin: Mapping[str, Any]) -> None:
    """Marks a stage as done; its results are written before."""
    write(folder / f"{stage}.json", canonical(origin, indent=2).encode())


def write(path: Path, content: bytes) -> Path:
    """Puts a file in place whole or not at all, over an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
    return path


def write_table(folder: Path, name: str, table: pl.DataFrame) -> Path:
    """A table as CSV, floats to six significant digits."""
    rounded = table.with_columns(pl.selectors.float().round_sig_figs(6))
    return write(folder / f"{name}.csv", rounded.write_csv().encode())


def read_table(folder: Path, name: str) -> pl.DataFrame:
    """A table of ``write_table``.

    Raises:
        FileNotFoundError: it is not there; the message names the script that makes it.
    """
    path = folder / f"{name}.csv"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there; the scripts before this one make it (see experiments/reproduce.py)"
        )
    words = {name: pl.String for name in pl.read_csv(path, n_rows=0).columns if name in WORDS}
    return pl.read_csv(path, infer_schema_length=None, schema_overrides=words)


def write_figure(folder: Path, name: str, figure: Figure) -> Path:
    """A figure as SVG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return write(folder / f"{name}.svg", buffer.getvalue())


def write_arrays(folder: Path, name: str, arrays: Mapping[str, Tensor]) -> Path:
    """Arrays as safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    path, temporary = folder / f"{name}.safetensors", folder / f".{name}.safetensors.tmp"
    safetensors.torch.save_file({k: v.contiguous() for k, v in arrays.items()}, temporary)
    os.replace(temporary, path)
    return path


def read_arrays(folder: Path, name: str) -> dict[str, Tensor]:
    """Arrays of ``write_arrays``, memory-mapped.

    Raises:
        FileNotFoundError: they are not there.
    """
    path = folder / f"{name}.safetensors"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there; the scripts before this one make it (see experiments/reproduce.py)"
        )
    return safetensors.torch.load_file(path)


def export(run: Run, folder: Path, to: Path) -> list[Path]:
    """Copies what a reader wants to another folder: pages, tables, figures and the run's manifest; no arrays.

    Raises:
        FileNotFoundError: there are no results.
    """
    found = sorted(path for path in folder.glob("*") if path.suffix in (".html", ".csv", ".svg"))
    if not found:
        raise FileNotFoundError(f"{folder} has no pages, tables or figures; the analysis scripts write them there")
    kept = [*found, Path(run) / "manifest.json"]
    return [write(to / path.name, path.read_bytes()) for path in kept]
