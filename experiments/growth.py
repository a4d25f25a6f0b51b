"""Which words built each neuron, and which wore it down? Splits the growth of every neuron's squared norm over tokens.

    python experiments/growth.py runs/demo                          # columns, the post's neurons
    python experiments/growth.py runs/post --axis both              # rows too, in the same walk: 5 GB of memory

Every step is made again once. What it adds to a neuron's squared norm is split over its token positions: as credits,
which explain it exactly, and in first order, which leaves a remainder to no one. Of the columns the amounts of all
target tokens are kept; skill.py, run after this, judges them among the other rankings.
"""

from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import polars as pl
import torch
import tyro
from rich.console import Console

from devinterp_func import growth, records, results, tables, training, walks
from devinterp_func.neurons import Axis

LINES: dict[Axis, str] = {"in": "columns", "out": "rows"}


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""
    out: Path | None = None
    """Where the results go; by default beside the run, RUN-results."""
    start: int = 0
    """First step."""
    stop: int | None = None
    """Step to stop before; by default as far as the run is recorded."""
    axis: Literal["in", "out", "both"] = "in"
    """in: a neuron is a column of its unit, as in the post; out: a row."""


def main(settings: Settings) -> Path:
    console, run, folder = Console(), settings.run, results.beside(settings.run, settings.out)
    axes: tuple[Axis, ...] = ("in", "out") if settings.axis == "both" else (settings.axis,)
    origins = {axis: results.origin(run, replace(settings, axis=axis)) for axis in axes}
    left = [axis for axis in axes if not results.is_done(folder, stem(settings.start, axis), origins[axis])]
    if not left:
        console.print(f"growth: done before, in {folder}")
        return folder
    torch.set_num_threads(records.manifest(run)["threads"])  # the same bits need the same threads
    start, stop = walks.span(run, settings.start, settings.stop)
    steps = growth.walk(run, left, start=start, stop=stop)
    accounts = deque(tables.watched(steps, stop - start, "walking"), maxlen=1).pop()
    vocab = training.load(run)[2].vocab
    for axis, account in accounts.items():
        name = stem(start, axis)
        results.write_table(folder, f"{name}_units", units := growth.unit_frame(account))
        results.write_table(folder, f"{name}_neurons", found := growth.neuron_frame(account, vocab))
        if axis == "in":
            by_unit = growth.by_unit(account).items()
            results.write_arrays(folder, name, {unit: part.target.T.contiguous().float() for unit, part in by_unit})
            first = {unit: part.linear.T.contiguous().float() for unit, part in by_unit}
            results.write_arrays(folder, f"{name}_first_order", first)
        shown = units.select("unit", "before", "growth", "first order", "remainder", "residual")
        console.print(tables.rich_table(shown, f"squared norms of {LINES[axis]}, steps {start:,} to {stop:,}"))
        words = found.select("neuron", "growth", "built by", "worn down by").sort("growth", descending=True)
        shown = pl.concat([words.head(4), words.tail(4)])
        console.print(tables.rich_table(shown, f"{LINES[axis]} that grew most and least, and their targets"))
        results.finish(folder, name, origins[axis])
    console.print(f"tables: {folder}/growth*", markup=False)
    return folder


def stem(start: int, axis: Axis) -> str:
    """What the names of the files begin with."""
    name = "growth" if axis == "in" else "growth_rows"
    return f"{name}-{start:06d}" if start else name


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
