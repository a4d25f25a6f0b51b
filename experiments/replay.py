"""Replay one recorded step: all its deltas, its past and decay, how far they miss the law, the largest with their text.

python experiments/replay.py runs/demo --step 250
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import stage
import tyro

from devinterp_func import checks, per_example, records
from devinterp_func.optim import PARTS
from devinterp_func.records import RecordError, Replay, Run
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
    stage.say(f"gradient norm {step.grad_norm:.4f}, clip {step.clip:.4f}, learning rate {step.lr:.4g}")
    stage.say(words.training_words(run.manifest["recipe"]))
    if not records.same_bits(step, recorded):
        raise RecordError(f"{run}: step {settings.step}, replayed, differs from its record; try experiments/verify.py")
    stage.say("every recorded bit came out again")
    entries = sum(delta.numel() for delta in replayed.deltas.values())
    stage.say(f"{entries:,} entries of deltas. Change is ‖w' − w‖; the parts are shares along it;")
    stage.say("missed is ‖(w' − w) − Σ deltas − past − decay‖ / ‖w' − w‖")
    console.print(missed_table(run, replayed))
    largest = per_example.top_k_of_step(recorded.outliers, settings.show)
    console.print(terminal.shift_table(largest, recorded.datum, run.shapes, run.data, words.vocab_of(run)))


def missed_table(run: Run, replayed: Replay) -> terminal.Columns:
    """Unit by unit: what the change was made of, and how far the parts' sum misses it."""
    shares = dict(zip(run.manifest["parameters"], replayed.record.split.shares().tolist(), strict=True))
    rows = [
        {"unit": unit, "change": float((replayed.after[unit] - replayed.before[unit]).norm())}
        | dict(zip(PARTS, shares[unit], strict=True))
        | {"missed": missed}
        for unit, missed in replayed.missed.items()
    ]
    formats = {**dict.fromkeys(PARTS, ".0%"), "change": ".2g", "missed": ".0e"}
    return terminal.rich_table(pl.DataFrame(rows), rows=len(rows), width=80, formats=formats)


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
