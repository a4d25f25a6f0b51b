"""Which tokens built each neuron, and which wore it down? Splits the growth of every neuron's squared norm over tokens.

    python experiments/norms.py runs/demo                          # columns, the post's neurons
    python experiments/norms.py runs/demo --axis both --stop 100   # rows too, in the same replay

Every step is replayed once. What it adds to a neuron's squared norm is split over its token positions: as credits,
which explain it exactly but for past (earlier data's, through the optimizer's memory) and weight decay; and in first
order, which leaves a remainder to no token. Of the columns the amounts of all target tokens are kept; skill.py, run
after this, judges them among the other rankings, those of spans too. With the post's model a replay of both axes takes
5 GB of memory.
"""

from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import stage
import tyro

from devinterp_func import credit, records
from devinterp_func.credit import NormGrowth
from devinterp_func.neurons import Axis
from devinterp_func.show import results, tables, terminal
from devinterp_func.show._norm_sections import token_words

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
    run = records.open(settings.run)
    start, stop = run.span(settings.start, settings.stop)
    axes: tuple[Axis, ...] = ("in", "out") if settings.axis == "both" else (settings.axis,)
    span = "" if (start, stop) == (0, run.n_steps) else f"-{start}-{stop}"
    stages = {
        axis: stage.start(
            ("norms" if axis == "in" else "norms-rows") + span,
            replace(settings, start=start, stop=stop, axis=axis),
            run=run,
            family="norms",
        )
        for axis in axes
    }
    todo = [axis for axis, work in stages.items() if not work.done]
    if todo:
        steps = terminal.watched(credit.norms(run, todo, start=start, stop=stop), stop - start, "replaying")
        for axis, growth in deque(steps, maxlen=1).pop().items():
            keep(stages[axis], growth, start, stop)
            stages[axis].finish()
    return stages[axes[0]].folder


def keep(work: stage.Stage, growth: NormGrowth, start: int, stop: int) -> None:
    """Writes and shows the tables of an axis; of columns the arrays, too."""
    makers = (tables.norm_unit_frame, tables.norm_neuron_frame, tables.norm_token_frame)
    units, neurons, tokens = (make(growth, start, stop) for make in makers)
    work.add("norms_units", tables.NORM_UNITS, units)
    work.add("norms_neurons", tables.NORM_NEURONS, neurons)
    work.add("norms_tokens", tables.NORM_TOKENS, tokens)
    axis = growth.neurons[0].axis
    if axis == "in":
        by_unit = growth.by_unit().items()
        arrays = {unit: part.target.T.float() for unit, part in by_unit}
        first_order = {unit: part.linear.T.float() for unit, part in by_unit}
        results.write_arrays(work.folder, work.name, arrays)
        results.write_arrays(work.folder, work.name.replace("norms", "norms_first_order", 1), first_order)
    said = f"squared norms of {LINES[axis]}, steps {start:,} to {stop:,}"
    rest = [name for name in ("past", "decay") if (units[name] != 0).any()]
    work.show(units.select("unit", "before", "growth", "first order", "remainder", *rest, "missed"), said)
    order = neurons.select("neuron", "growth").sort("growth", descending=True)
    shown = token_words(tokens, work.run.corpus.vocab).select("neuron", "built by", "worn down by")
    told = order.join(shown, on="neuron", how="left", maintain_order="left")
    work.show(told[:4].extend(told[4:].tail(4)), f"{LINES[axis]} that grew most and least, and their targets")


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
