"""What recording a model of a given size would leave on the disk, counted without its weights; nothing is written.

    python experiments/plan.py gpt2-xl                               # one model, and what other settings would leave
    python experiments/plan.py pythia-70m gpt2 --steps 100000        # several
    python experiments/plan.py --out experiments/results/plan.md     # all that are known by name

The names are those of models.PUBLISHED, and post, the post's model; the path of a config.json of any causal model that
transformers knows does as well. For a run of your own: capture.py --plan.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl
import stage
import torch
import tyro

from devinterp_func import graph as graphs
from devinterp_func import models, optim, records
from devinterp_func.graph import Graph
from devinterp_func.models import Config
from devinterp_func.optim import Optimizer
from devinterp_func.records import Recording, RunBytes
from devinterp_func.show import schema, tables, terminal
from devinterp_func.training import Recipe

OPTIMIZERS: Mapping[str, Optimizer] = {"sgd": optim.sgd(), "momentum": optim.sgd(momentum=0.9), "adamw": optim.adamw()}
POST, WORDS = "post", 28_782
AS_RUN = {POST: (14_640, 20, 35), "gpt3": (95_367, 1_536, 2_048)}  # steps, data a step, tokens a datum


@dataclass(frozen=True)
class Settings:
    shapes: tyro.conf.Positional[tuple[str, ...]] = (POST, *models.PUBLISHED)
    """Names of models, or paths of a config.json. The post's model and GPT-3 are counted as they were trained."""
    steps: int = 1_000_000  # of the run
    batch_size: int = 512  # data a step
    context: int = 1024  # tokens a datum
    k: int = 1000  # outliers of each datum, or of each step
    snapshot_every: int = 10_000  # steps between two snapshots
    optimizer: Literal["sgd", "momentum", "adamw"] = "adamw"
    out: Path | None = None  # also write the tables there, as Markdown


def main(settings: Settings) -> None:
    rows, recording = [], Recording(settings.k, snapshot_every=settings.snapshot_every)
    for shape in terminal.watched(settings.shapes, len(settings.shapes), lambda shape: shape):
        graph, recipe, steps = counted(shape, settings)
        rows.append(tables.plan_cost_row(shape, graph, recipe, recording, steps))
    costs = schema.frame(tables.PLAN_COSTS, rows)
    found = {f"{tables.PLAN_COSTS.caption} k = {settings.k:,}, {settings.optimizer}.": costs}
    if len(rows) == 1:
        found[tables.PLAN_CHANGES.caption] = tables.plan_change_frame(graph, recipe, recording, steps)
    for title, table in found.items():
        terminal.console().print(written(table, title))
    if settings.out is not None:
        text = "\n\n".join(f"{title}\n\n{markdown(table)}" for title, table in found.items())
        records.install(settings.out, (text + "\n").encode(), replace=True)


def counted(shape: str, settings: Settings) -> tuple[Graph, Recipe, int]:
    """A model's graph, traced without its weights, how it is trained, and for how many steps."""
    model = models.transformer(Config(WORDS)) if shape == POST else models.outline(shape)
    steps, n, context = AS_RUN.get(shape, (settings.steps, settings.batch_size, settings.context))
    tokens = torch.zeros(context, dtype=torch.long)
    graph = graphs.of(model.loss, models.stand_ins(model), tokens, tokens)
    optimizer = optim.sgd() if shape == POST else OPTIMIZERS[settings.optimizer]
    return graph, Recipe(context=context, batch_size=n, optimizer=optimizer), steps


def say_sizes(graph: Graph, recipe: Recipe, recording: Recording, files: RunBytes, n_steps: int) -> None:
    """What a run would take, part by part, and what other settings would leave; for capture.py."""
    parts = tables.plan_size_frame(files, records.memory(graph, recipe, recording))
    changes = tables.plan_change_frame(graph, recipe, recording, n_steps)
    for kind, table in ((tables.PLAN_SIZES, parts), (tables.PLAN_CHANGES, changes)):
        terminal.console().print(written(table, kind.caption))


def written(table: pl.DataFrame, title: str = "") -> terminal.Columns:
    """A table with its bytes in words."""
    return terminal.rich_table(table, title, rows=50, formats=tables.PLAN_FORMATS)


def markdown(table: pl.DataFrame) -> str:
    """The same in Markdown."""
    columns = written(table).columns
    cells = zip(*(column.cells for column in columns), strict=True)
    lines = [[column.name for column in columns], ["---:" if column.is_number else "---" for column in columns], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
