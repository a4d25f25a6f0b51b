"""How far ahead can it be said what a datum changed? Influence against retraining, by horizon and learning rate.

    python experiments/horizons.py --out experiments/results/influence             # half an hour
    python experiments/horizons.py --out runs/few --recipes "sgd 1" --start 50 --draws 10 --horizons 5 20

For each recipe a small model of the post's kind (dropout, clipping) is trained on planted text to a snapshot, and from
there many times on without random places of the batches; a probe is read after each horizon. Ends in one figure: the
rank correlation of what the influences foretell with what retraining shows, by horizon, for each learning rate.
Interrupted, the same command goes on; recipes, draws and horizons can be added.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import banks
import polars as pl
import stage
import torch
from jaxtyping import Bool
from matplotlib.figure import Figure
from torch import Tensor

from devinterp_func import batches, checks, credit, keys, models, optim, text, training
from devinterp_func import graph as graphs
from devinterp_func.credit import Influences, Window, probes
from devinterp_func.credit.probes import Probe
from devinterp_func.models import Config
from devinterp_func.optim import Schedule
from devinterp_func.show import plots, results, terminal
from devinterp_func.show.schema import FLOAT, NAME, Column, Table, frame
from devinterp_func.training import Recipe

RATES = ("sgd 5", "sgd 2", "sgd 1", "sgd 0.5", "sgd 0.2", "adamw 0.001")
OTHERS = ("credit", "at_start", "norm", "random")
DRAWN = ("influence", "credit", "random")  # in the figure
DRAWN_PROBE = "loss"
SHOWN = ("setting", "horizon", "score", "rank", "rank low", "rank high", "slope", "growth")
REACH = Table(
    "How far influences foretell: the horizon at which their rank correlation with retraining falls below 0.5.",
    "horizons.py",
    {
        "recipe": Column(NAME, "optimizer and learning rate"),
        "probe": Column(NAME),
        "score": Column(NAME),
        "reach": Column(FLOAT, "steps; 0: below it at the first horizon; infinite: not at the last", format=".0f"),
        "low": Column(FLOAT, "of its 95 % bootstrap interval over removals", format=".0f"),
        "high": Column(FLOAT, "of its 95 % bootstrap interval over removals", format=".0f"),
        "horizons": Column(pl.List(pl.Int64), "that were looked at, steps"),
        "effect": Column(pl.List(pl.Float64), "of a removal at each: standard deviation over removals"),
        "growth": Column(
            pl.List(pl.Float64), "of the derivative by the weights, from each horizon back to the snapshot"
        ),
        "metasmoothness": Column(pl.List(pl.Float64), "of the steps up to each horizon"),
    },
    ("recipe", "probe", "score"),
)


@dataclass(frozen=True)
class Settings:
    out: Path = Path("runs/horizons")  # where tables, figure and retrainings go
    recipes: tuple[str, ...] = RATES  # optimizer and learning rate
    start: int = 300  # the snapshot: so many steps are trained before
    horizons: tuple[int, ...] = (10, 30, 100, 300)  # steps from there to where the probes are read
    draws: int = 40  # random removals
    share: float = 0.05  # of all places in the batches: what a removal takes
    width: int = 32  # of the model
    layers: int = 2  # of the model
    dropout: float = 0.2  # of the model
    seed: int = 0  # of text, weights, order and draws


class Study(NamedTuple):
    """A recipe's window, what is read at its horizons, and what is removed."""

    name: str
    window: Window
    probes: list[Probe]
    removals: Bool[Tensor, "D S n"]


def main(settings: Settings) -> Path:
    check(settings)
    horizons = sorted(set(settings.horizons))
    for name in terminal.watched(settings.recipes, len(settings.recipes), "retraining"):
        for kind, rows in rows_of(study(name, settings), settings, horizons).items():
            results.add_rows(settings.out, kind, TABLES[kind], rows)
    judged, reach = (results.read_table(settings.out, kind, TABLES[kind]) for kind in TABLES)
    results.write_figure(settings.out, "horizons", figure(judged, reach, DRAWN_PROBE))
    terminal.console().print(terminal.rich_table(judged.select(SHOWN), banks.JUDGED.caption, 200))
    terminal.console().print(
        terminal.rich_table(reach.select("recipe", "probe", "score", "reach", "low", "high"), REACH.caption, 60)
    )
    return settings.out


def study(name: str, settings: Settings) -> Study:
    """Planted text, and a small model trained on it to the snapshot."""
    corpus = text.planted(key=settings.seed)
    steps = settings.start + max(settings.horizons)
    recipe = recipe_of(name, Recipe(epochs=steps, n_steps=steps, seed=settings.seed))
    sizes: dict[str, Any] = {"d_model": settings.width, "d_hidden": settings.width, "n_heads": 2}
    model = models.transformer(Config(len(corpus.vocab), n_layers=settings.layers, dropout=settings.dropout, **sizes))
    data = batches.chunk(corpus.train, recipe.context)
    params = training.initial(model, recipe)
    graph = graphs.of(model.loss, params, *batches.example(data, 0))
    state = recipe.optimizer.init(params)
    for move in training.moves(graph, params, data, recipe, stop=settings.start):
        params, state = move.after, move.state
    window = Window(graph, params, state, data, recipe, settings.start, steps)
    key, datum = keys.Key(settings.seed, ("horizons",)), credit.window_data(window)
    drawn = [credit.draw_removal(datum, "subset", i, share=settings.share, key=key) for i in range(settings.draws)]
    first, second = next(iter(text.planted_bigrams(corpus.vocab).items()))
    held_out = tuple(batches.chunk(corpus.valid, recipe.context))
    followed = [probes.loss(graph, held_out), probes.bigram(graph, second, first)._replace(name="bigram")]
    return Study(name, window, followed, torch.stack(drawn))


def recipe_of(name: str, recipe: Recipe) -> Recipe:
    """A recipe of an optimizer and a constant learning rate."""
    kind, rate = name.split()
    optimizer = optim.sgd() if kind == "sgd" else optim.adamw(weight_decay=0.1)
    return replace(recipe, lr=float(rate), schedule=Schedule(), optimizer=optimizer)


def rows_of(one: Study, settings: Settings, horizons: Sequence[int]) -> dict[str, pl.DataFrame]:
    """Both tables' rows of a recipe."""
    slug, key = results.slug(one.name), keys.Key(settings.seed, ("bootstrap",))
    bank = banks.fill(settings.out, f"bank-{slug}", one.window, one.probes, horizons, one.removals)
    others = banks.kept(
        settings.out, f"scores-{slug}", lambda: credit.window_scores(one.window, one.probes, OTHERS, m=1)
    )
    influences = {horizon: influences_of(one, settings.out, horizon) for horizon in horizons}
    smooth = banks.kept(settings.out, f"smoothness-{slug}", lambda: smoothness_of(one.window, horizons, settings))
    judged, reaches = list[pl.DataFrame](), list[dict[str, Any]]()
    for p, probe in enumerate(one.probes):
        own = banks.of_probe(bank, p)
        scores = {h: {"influence": influences[h]["scores"], **others} for h in horizons}
        growth = {h: float(influences[h]["growth"][p]) for h in horizons}
        for h in horizons:
            found = credit.judge(own, h, {name: x[[p]] for name, x in scores[h].items()}, key=key)
            judged.append(banks.judged_frame(f"{one.name}, {probe.name}", found, growth[h], h))
        for score in ("influence", "credit"):
            reach = credit.reach(own, {h: scores[h][score][[p]] for h in horizons}, key=key)
            row: dict[str, Any] = {"recipe": one.name, "probe": probe.name, "score": score, "horizons": list(horizons)}
            row |= {"reach": reach.value, "low": reach.low, "high": reach.high, "growth": list(growth.values())}
            row |= {"metasmoothness": [float(smooth[str(h)]) for h in horizons]}
            reaches.append(row | {"effect": own.effect[..., 0].std(0).tolist()})
    rows = [{name: row[name] for name in REACH.columns} for row in reaches]
    return {"horizons": pl.concat(judged), "reach": frame(REACH, rows)}


def smoothness_of(window: Window, horizons: Sequence[int], settings: Settings) -> dict[str, Tensor]:
    """Metasmoothness by horizon."""
    found = credit.metasmoothness(window, horizons, share=settings.share, key=keys.Key(settings.seed, ("smoothness",)))
    return {str(h): torch.tensor(value) for h, value in zip(horizons, found, strict=True)}


def influences_of(one: Study, folder: Path, horizon: int) -> dict[str, Tensor]:
    """Influences on the probes at a horizon, and how the derivative grew back to the snapshot."""

    def make() -> dict[str, Tensor]:
        window = one.window._replace(stop=one.window.start + horizon)
        found: Influences = credit.window_influences(window, one.probes)
        return {"scores": found.scores(), "growth": found.growth()[0]}

    return banks.kept(folder, f"influences-{results.slug(one.name)}-{horizon}", make)


TABLES = {"horizons": banks.JUDGED, "reach": REACH}


def figure(judged: pl.DataFrame, reach: pl.DataFrame, probe: str) -> Figure:
    """Horizon against rank correlation, a panel for each recipe."""
    panels: dict[str, dict[str, plots.Forecasts]] = {}
    for recipe in dict.fromkeys(reach["recipe"]):
        own = judged.filter(pl.col("setting") == f"{recipe}, {probe}").sort("horizon")
        for score in DRAWN:
            part = own.filter(pl.col("score") == score)
            columns = [
                torch.tensor(part[name].to_list(), dtype=torch.float64)
                for name in ("horizon", "rank", "rank low", "rank high")
            ]
            panels.setdefault(recipe, {})[score] = (columns[0], columns[1], columns[2], columns[3])
    asked = reach.filter(pl.col("probe") == probe, pl.col("score") == "influence")
    return plots.forecast_panels(
        panels, credit.BELOW, {row["recipe"]: remark(row) for row in asked.iter_rows(named=True)}
    )


def remark(row: Mapping[str, Any]) -> str:
    """Where a recipe's influences end to foretell."""
    last = row["horizons"][-1]
    low, high = (f"{x:,.0f}" if math.isfinite(x) else f"beyond {last:,}" for x in (row["low"], row["high"]))
    if not math.isfinite(row["reach"]):
        return "above 0.5 at all horizons"
    if not row["reach"]:
        return f"below 0.5 at {row['horizons'][0]:,} steps already"
    return f"below 0.5 from {row['reach']:,.0f} steps on [{low}, {high}]"


def check(settings: Settings) -> None:
    """Refuses what would fail after the training."""
    for name in ("draws", "width", "layers"):
        checks.integer(f"--{name}", getattr(settings, name))
    checks.integer("--start", settings.start, least=0)
    credit.require_share(settings.share)
    if not settings.recipes or not settings.horizons:
        raise ValueError("--recipes or --horizons is empty; give at least one of each")
    for horizon in settings.horizons:
        checks.integer("--horizons", horizon)
    for name in settings.recipes:
        kind, _, rate = name.partition(" ")
        if kind not in ("sgd", "adamw") or not _positive(rate):
            raise ValueError(f'--recipes has {name!r}; a recipe is an optimizer and its rate, such as "sgd 1"')


def _positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
