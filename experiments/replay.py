"""Re-derive one recorded step: all its per-datum deltas, the law's residual, and the largest deltas with their text.

python experiments/replay.py runs/demo --step 250
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

from devinterp_func import batches, outliers, records, tables, training
from devinterp_func.records import RecordError


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""
    step: int
    """The step, counted from 0."""
    show: int = 10
    """How many of the largest deltas to print."""


def main(settings: Settings) -> None:
    console = Console()
    try:
        torch.set_num_threads(records.manifest(settings.run)["threads"])  # the same bits need the same threads
        recorded = records.read(settings.run, settings.step)
        again = training.replay(settings.run, settings.step)
    except RecordError as error:
        console.print(f"[bold red]{error}[/bold red]")
        sys.exit(1)
    same = training.same_bits(again.record, recorded)
    console.print(
        f"step {again.record.step}, epoch {again.record.epoch}: loss {again.record.loss.mean():.4f},", end=" "
    )
    console.print(f"gradient norm {again.record.grad_norm:.4f}, clip {again.record.clip:.4f}")
    console.print(
        "every recorded bit came out again" if same else "[bold red]differs from what was recorded[/bold red]"
    )
    console.print(residual_table(again))
    _, recipe, corpus = training.load(settings.run)
    largest = outliers.of_step(recorded.outliers, settings.show)
    data, shapes = batches.chunk(corpus.train, recipe.context), training.shapes(settings.run)
    console.print(tables.shift_table(largest, recorded.datum, shapes, data, corpus.vocab))
    sys.exit(not same)


def residual_table(again: training.Replay) -> Table:
    """How far the deltas' sum misses the update, unit by unit."""
    table = Table("unit", "‖w' − w‖", "‖(w' − w) − Σ deltas‖ / ‖w' − w‖", "entries of delta")
    for unit, residual in again.residual.items():
        moved = (again.after[unit] - again.before[unit]).norm()
        table.add_row(unit, f"{moved:.4g}", f"{residual:.1e}", f"{again.deltas[unit].numel():,}")
    return table


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
