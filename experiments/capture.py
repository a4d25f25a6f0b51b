"""Train the language model and record what every datum did to every captured weight at every step.

    python experiments/capture.py                                                   # demo: a minute or two, no download
    python experiments/capture.py --corpus wikitext2 --preset post --out runs/post  # the post's run: an hour or two

Interrupted or killed, the same command goes on where it stopped, and the run directory ends up the same, bit for bit.
"""

import dataclasses
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from devinterp_func import batches, outliers, per_example, recording, records, tables, text, training
from devinterp_func.training import Recipe
from devinterp_func.transformer import Config

PRESETS: dict[str, tuple[dict[str, Any], Recipe]] = {
    "demo": (
        {"d_model": 64, "n_heads": 4, "d_hidden": 64},
        Recipe(epochs=1, n_steps=400, k=100, snapshot_every=100, lr=4.0),
    ),
    "post": ({}, Recipe()),
}


@dataclass(frozen=True)
class Settings:
    """Options left at None take the preset's value."""

    corpus: str = "python_docs"
    """wikitext2, python_docs, planted, or the path of a UTF-8 text file."""
    preset: Literal["demo", "post"] = "demo"
    """demo: a small model, 400 steps. post: the post's 12.27 M parameters and five epochs."""
    out: Path = Path("runs/demo")
    """The run directory: new, or one that the same command began."""
    seed: int = 0
    """Fixes initial weights, order of the data and dropout."""
    epochs: int | None = None
    """Passes over the training data."""
    steps: int | None = None
    """Stop after so many steps in all."""
    k: int | None = None
    """Outliers recorded for each datum, or each step."""
    per: Literal["datum", "step"] | None = None
    """Whether k counts for each datum or for the step as a whole."""
    units: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Name pattern of captured units, such as 'layers.*.weight'; may be repeated. Default: the layers' 2-D weights."""
    factors: bool = False
    """Also record the factors of every per-datum gradient (about 17 MB a step in the post's model)."""
    snapshot_every: int | None = None
    """Steps between two snapshots of the weights; a replay starts from one."""
    device: str = "cpu"
    """cpu, or cuda."""
    threads: int | None = None
    """CPU threads; the same bits come out only for the same number. Default: torch's choice."""
    check_law: bool = False
    """At every step form all deltas again and measure how far their sum misses the update."""


def recipe_of(settings: Settings) -> Recipe:
    given: dict[str, Any] = {"epochs": settings.epochs, "n_steps": settings.steps, "k": settings.k}
    given |= {"per": settings.per, "snapshot_every": settings.snapshot_every, "units": settings.units or None}
    chosen = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(PRESETS[settings.preset][1], seed=settings.seed, factors=settings.factors, **chosen)


def main(settings: Settings) -> None:
    prepare(settings)
    console = Console()
    corpus = text.load(settings.corpus)
    config, recipe = Config(len(corpus.vocab), **PRESETS[settings.preset][0]), recipe_of(settings)
    print_plan(console, settings, corpus, config, recipe)
    residual, began = 0.0, time.perf_counter()
    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}")]
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("")
        for now in recording.record(
            settings.out, corpus, config, recipe, device=settings.device, check_law=settings.check_law
        ):
            residual = max(residual, now.residual)
            speed = f"{progress.tasks[task].speed or math.nan:.2f} steps/s"
            line = f"loss {now.record.loss.mean():.3f}  {speed}  {now.bytes / 1e6:.0f} MB"
            progress.update(task, description=line, completed=now.done, total=now.n_steps)
    seconds = time.perf_counter() - began
    if seconds > 1 and now:
        console.print(f"{seconds:.1f} s, of these {now.writing / seconds:.2%} waiting for the disk")
    if settings.check_law:
        console.print(f"shifts of the data miss the weights' update by at most {residual:.1e} of it")
    print_summary(console, settings.out)


def print_summary(console: Console, run: Path) -> None:
    """Verifies the run and says what it holds, how training went, and what moved the weights most at the end."""
    console.print(f"[bold]{run}[/bold] {records.verify(run)}")
    curve = training.curve(run)
    console.print(
        f"training loss {tables.sparkline(curve.loss)}", tables.loss_table(curve, records.read_evaluations(run))
    )
    last = records.read(run, records.n_steps(run) - 1)
    _, recipe, corpus = training.load(run)
    data = batches.chunk(corpus.train, recipe.context)
    console.print(f"The largest shifts that single data made in step {last.step}:")
    largest = outliers.of_step(last.outliers, 5)
    console.print(tables.shift_table(largest, last.datum, training.shapes(run), data, corpus.vocab))


def prepare(settings: Settings) -> None:
    """Process-wide switches belong to the script, not to the library."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.device != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def print_plan(console: Console, settings: Settings, corpus: text.Corpus, config: Config, recipe: Recipe) -> None:
    """Expected steps, bytes and time, from two steps made for the purpose and thrown away."""
    data = batches.chunk(corpus.train, recipe.context)
    n_steps = training.schedule_length(recipe, len(data.tokens))
    params = {name: w.to(settings.device) for name, w in training.initial(config, recipe).items()}
    trial = training.steps(params, data, config, recipe, stop=2)
    next(trial)
    began = time.perf_counter()
    _, sample = next(trial)
    seconds = time.perf_counter() - began
    step_bytes = recording.n_bytes(sample)
    snapshots = (n_steps // recipe.snapshot_every + 2) * sum(w.nbytes for w in params.values())
    size = n_steps * step_bytes + snapshots
    captured = sum(params[name].numel() for name in per_example.choose(params, training.units_of(recipe)))
    console.print(
        f"[bold]{corpus}[/bold]\n{sum(w.numel() for w in params.values()):,} parameters, {captured:,} captured"
    )
    console.print(f"{n_steps:,} steps of {recipe.batch_size} data, about {n_steps * seconds / 60:.1f} minutes,")
    console.print(f"about {size / 1e9:.2f} GB in {settings.out}")
    free = shutil.disk_usage(next(p for p in settings.out.absolute().parents if p.exists())).free
    if size > free:
        console.print(f"[bold red]only {free / 1e9:.2f} GB are free there[/bold red]")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
