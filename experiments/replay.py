"""Replay one recorded step: all its per-datum deltas, how far they miss the law, and the largest with their text.

python experiments/replay.py runs/demo --step 250
"""

from dataclasses import dataclass
from pathlib import Path

import stage
import tyro
from rich.table import Table

from devinterp_func import checks, per_example, records
from devinterp_func.records import RecordError, Replay
from devinterp_func.show import terminal, words


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""
    step: int
    """The step, counted from 0."""
    show: int = 10
    """How many of the largest deltas to print."""


def main(settings: Settings) -> None:
    checks.integer("show", settings.show)
    run, console = records.open(settings.run), terminal.console()
    recorded = records.read(run, settings.step)
    replayed = records.replay(run, settings.step)
    step = replayed.record
    stage.say(f"step {step.step}, epoch {step.epoch}: loss {step.loss.mean():.4f},")
    stage.say(f"gradient norm {step.grad_norm:.4f}, clip {step.clip:.4f}")
    if not records.same_bits(step, recorded):
        raise RecordError(f"{run}: step {settings.step}, replayed, differs from its record; try experiments/verify.py")
    stage.say("every recorded bit came out again")
    stage.say("missed is ‖(w' − w) − Σ deltas‖ / ‖w' − w‖")
    console.print(missed_table(replayed))
    largest = per_example.top_k_of_step(recorded.outliers, settings.show)
    console.print(terminal.shift_table(largest, recorded.datum, run.shapes, run.data, words.vocab_of(run)))


def missed_table(replayed: Replay) -> Table:
    """How far the deltas' sum misses the update, unit by unit."""
    table = Table("unit", "‖w' − w‖", "missed", "entries of delta")
    table.columns[0].no_wrap = True  # a name stays whole
    for unit, missed in replayed.missed.items():
        moved = (replayed.after[unit] - replayed.before[unit]).norm()
        table.add_row(terminal.plain(unit), f"{moved:.4g}", f"{missed:.1e}", f"{replayed.deltas[unit].numel():,}")
    return table


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
