"""Does training have phases, and do a few snapshots show them?

    python experiments/phases.py runs/demo                  # about as long as it took to train
    python experiments/phases.py runs/a runs/b runs/c       # several seeds: do their change points agree?

Every step is made again and measured: how large it is, how its data agree, how few of them make it, and what the model
can predict by then. Interrupted, the same command goes on where it stopped. What was found at every step is in
RUN-results/phases of each run, tables and figures beside it for the first one.
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
import tyro
from rich.console import Console

from devinterp_func import (
    batches,
    keys,
    phase_snapshots,
    phase_tables,
    phases,
    plots,
    records,
    results,
    tables,
    training,
)
from devinterp_func.changes import Points
from devinterp_func.phase_tables import ALL, LOSSES, Course
from devinterp_func.phases import Texts


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[tuple[Path, ...]]
    """The run directories: one, or several seeds."""
    out: Path | None = None
    """Where the results go; by default beside the first run, RUN-results."""
    start: int = 0
    """First step of the walk."""
    stop: int | None = None
    """Step to stop before; by default as far as each run is recorded."""
    window: int = 50
    """Steps that are put together."""
    every: int = 10
    """Steps from one measurement of the losses to the next; at most the window."""
    texts: int = 60
    """Validation texts whose losses are measured."""
    common: int = 100
    """How many tokens count as common: unigram statistics predict them."""
    snapshots: int = 8
    """How many snapshots are few."""
    seed: int = 0
    """Of the draws."""


def main(settings: Settings) -> Path:
    if not settings.run or not 1 <= settings.every <= settings.window:
        raise ValueError(f"{len(settings.run)} runs, every {settings.every}: it takes a run, and 1 <= every <= window")
    console, folder = Console(), results.beside(settings.run[0], settings.out)
    key, found = keys.Key(settings.seed, ("phases",)), dict[str, list[pl.DataFrame]]()
    seeds: list[tuple[Course, Points]] = []
    for run in settings.run:
        torch.set_num_threads(records.manifest(run)["threads"])  # the same bits need the same threads
        _, recipe, corpus = training.load(run)
        some = phases.texts(corpus, recipe.context, settings.texts, settings.common, key=key)
        console.print(f"{run}: {some}")
        own, course, points = analyse(settings, run, walked(settings, run, some), some, key)
        if "answers" not in own:
            console.print(f"{run}: fewer than {phase_snapshots.LEAST} snapshots of these steps, nothing said of them")
        seeds.append((course, points))
        for name, table in own.items():
            found.setdefault(name, []).append(table.select(pl.lit(run.name).alias("run"), pl.all()))
    if len(seeds) > 1:
        found["seeds"] = [phase_tables.seed_frame(seeds, key=keys.fold_in(key, "seeds"))]
    for name, parts in found.items():
        results.write_table(folder, f"phases_{name}", table := pl.concat(parts, how="diagonal_relaxed"))
        if name not in ("windows", "models"):
            console.print(tables.rich_table(table, name, 40))
    draw(folder, found["windows"][0].drop("run"), seeds[0], settings.run[0])
    console.print(f"tables and figures: {folder}/phases*")
    return folder


def walked(settings: Settings, run: Path, some: Texts) -> phases.Steps:
    stop = settings.stop or records.n_steps(run)
    folder = results.beside(run) / (f"phases-{settings.start:06d}" if settings.start else "phases")
    steps = phases.walk(run, folder, some, start=settings.start, stop=stop, every=settings.every)
    for _ in tables.watched(steps, stop - settings.start, "walking"):
        pass
    return phases.read(folder)


def analyse(
    settings: Settings, run: Path, steps: phases.Steps, some: Texts, key: keys.Key
) -> tuple[dict[str, pl.DataFrame], Course, Points]:
    """Tables by name, what was cut, and its change points; nothing of snapshots where there are too few."""
    units, stop = list(training.shapes(run)), int(steps.step[-1]) + 1
    windows = phase_tables.window_frame(steps, units, settings.window)
    found, course, points = phase_tables.frames(windows, key=key)
    _, recipe, corpus = training.load(run)
    tokens = batches.chunk(corpus.train, recipe.context).tokens
    datum = torch.stack([ids for *_, ids in training.order(recipe, len(tokens), settings.start, stop)])
    found["makers"] = phase_tables.maker_frame(steps, datum, found["segments"], units, tokens, corpus.vocab)
    there = [step for step in records.snapshots(run) if settings.start <= step <= stop]
    if len(there) < phase_snapshots.LEAST:
        return found, course, points
    chosen = {name: phase_snapshots.choose(there, settings.snapshots, name) for name in phase_snapshots.SPACINGS}
    return found | phase_snapshots.frames(run, chosen, some, windows, points), course, points


def draw(folder: Path, windows: pl.DataFrame, seed: tuple[Course, Points], run: Path) -> None:
    """Losses of the classes, and the measures of steps on one scale, with the change points."""
    _, recipe, corpus = training.load(run)
    per_epoch = training.epoch_length(corpus, recipe)
    course, points = seed
    own = windows.filter(pl.col("units") == ALL)
    losses = {name: (own["step"].to_torch(), own[name].to_torch()) for name in LOSSES}
    step, values = torch.from_numpy(course.step), torch.from_numpy(course.values)
    rest = {name: (step, values[:, i]) for i, name in enumerate(course.names) if name not in LOSSES}
    for name, series, label in (("losses", losses, "loss, nats"), ("steps", rest, "measure, standardised")):
        results.write_figure(folder, f"phases_{name}", plots.lines(series, label, per_epoch, marks=points.tolist()))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
