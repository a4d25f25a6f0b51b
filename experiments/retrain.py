"""Is a credit true? Trains some steps again without the data most credited for a probe, and without others.

    python experiments/retrain.py runs/demo --start 488                               # the validation loss, 300 steps
    python experiments/retrain.py runs/demo --start 488 --probe loss --probe "bigram:of the"

Beside the credits: the norms of the data's deltas, and random draws. Measured are the probes and the loss on other
validation texts, after the same steps and after one more step on chosen data alone (without dropout). To help is to
lower a loss and to raise any other probe. Interrupted, the same command goes on; shares, draws and scores can be added.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import polars as pl
import torch
import tyro
from rich.console import Console

from devinterp_func import accounts, batches, keys, ledger, probes, records, results, retrain, tables, walks
from devinterp_func.probes import Probe
from devinterp_func.retrain import Amounts, Window
from devinterp_func.training import load
from devinterp_func.tree import Params

OTHERS = "loss, other texts"


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""
    start: int
    """First step; the run has a snapshot before it."""
    out: Path | None = None
    """Where the results go; by default beside the run, RUN-results."""
    probe: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A number to follow, named as for ledger.py; may be repeated. By default the loss."""
    steps: int = 300
    """So many steps are made again."""
    shares: tuple[float, ...] = (0.01, 0.05, 0.1)
    """Shares of all places in these steps' batches that are removed."""
    draws: int = 5
    """Random removals of each share."""
    scores: tuple[Literal["credit", "marginal", "start"], ...] = ("credit",)
    """Amounts of the ledger by which data are chosen; start is the gradient at the start."""
    tail_draws: int = 10
    """Random batches of one more step."""
    nodes: int = 3
    """Nodes of the quadrature."""
    texts: int = 20
    """Texts of each probe that takes texts."""
    others: int = 200
    """Other validation texts."""
    seed: int = 0
    """Of all draws."""


def main(settings: Settings) -> Path:
    console, run, folder = Console(), settings.run, results.beside(settings.run, settings.out)
    torch.set_num_threads(records.manifest(run)["threads"])  # the same bits need the same threads
    window = retrain.window(run, settings.start, settings.steps)
    stem = f"retrain_{window.start}_{window.stop}"
    origin = results.origin(run, settings)
    if results.is_done(folder, stem, origin):
        console.print(f"retraining: done before, in {folder}")
        return folder
    followed, amounts = credits(settings, window, folder / stem)
    names, key = [probe.name for probe in followed[:-1]], keys.Key(settings.seed, ("retrain",))
    scores = {
        f"{kind}, {name}": getattr(amounts, kind)[:, i] * (-1 if name == "loss" else 1)
        for kind in settings.scores
        for i, name in enumerate(names)
    } | {"norm": amounts.norm}
    wanted = retrain.choices(scores, settings.shares, settings.draws, key=key)
    intact = retrain.without(window)
    first, end = values(followed, window.params), values(followed, intact)
    change = {name: end[name] - first[name] for name in end}
    table = f"{stem}_outcomes"
    done = results.read_table(folder, table) if (folder / f"{table}.csv").exists() else None
    todo = retrain.missing(wanted, done)
    for choice in tables.watched(todo, len(todo), "training again"):
        removed = wanted[choice]
        found = effects(followed, retrain.without(window, removed), end)
        rows = retrain.outcome_frame(choice, int(removed.sum()), found)
        forecast = retrain.forecast_frame(removed, amounts, names)
        rows = rows.join(forecast, on="measured", how="left", maintain_order="left")
        done = rows if done is None else pl.concat([done, rows])
        results.write_table(folder, table, done)
    assert done is not None
    results.write_table(folder, stem, effect := retrain.effect_frame(done, change))
    results.write_table(folder, f"{stem}_tail", tail := tails(settings, window, followed, scores, amounts, intact, end))
    for name, amount in change.items():
        console.print(f"{name}: {first[name]:.5g} before step {window.start:,}, {amount:+.4g} at the end", markup=False)
    shown = ["measured", "score", "effect", "SDs"]
    console.print(tables.rich_table(effect.select("share", *shown), "effect of removing data", 60))
    console.print(tables.rich_table(tail.select(shown), "effect of one more step on chosen data", 60))
    results.finish(folder, stem, origin)
    return folder


def credits(settings: Settings, window: Window, folder: Path) -> tuple[list[Probe], Amounts]:
    """The probes, the last of them the loss on other texts; and what each datum did to the others."""
    config, recipe, corpus = load(settings.run)
    key, n = keys.Key(settings.seed, ("ledger",)), settings.texts
    followed = [accounts.parse(form, corpus, config, recipe, key=key, n=n) for form in settings.probe or ("loss",)]
    held = batches.chunk(corpus.valid, recipe.context)
    other = batches.take(held, keys.permutation(len(held.tokens), key=key)[n : n + settings.others])
    start = "start" in settings.scores
    what = {"walk": "retrain", "probes": [probe.name for probe in followed], "first order": start}
    what |= {name: getattr(settings, name) for name in ("steps", "nodes", "texts", "others", "seed")}
    steps = walks.walk(
        settings.run,
        folder,
        what,
        ledger.UNITS,
        lambda move, last: retrain.of_move(move, followed, settings.nodes, start=start),
        window.start,
        window.stop,
    )
    for _ in tables.watched(steps, settings.steps, "crediting"):
        pass
    return [*followed, probes.loss(*other, config, OTHERS)], Amounts(**walks.read(folder))


def tails(
    settings: Settings,
    window: Window,
    followed: list[Probe],
    scores: Mapping[str, torch.Tensor],
    amounts: Amounts,
    intact: Params,
    end: Mapping[str, float],
) -> pl.DataFrame:
    """One more step on the data with the highest and lowest scores, and on random ones."""
    patches = retrain.patches(scores, amounts.datum, settings.tail_draws, key=keys.Key(settings.seed, ("tail",)))
    parts = []
    for choice, ids in patches.items():
        params = retrain.patched(intact, ids, window)
        parts.append(retrain.outcome_frame(choice, len(ids), effects(followed, params, end)))
    return retrain.effect_frame(pl.concat(parts))


def values(followed: list[Probe], params: Params) -> dict[str, float]:
    with torch.no_grad():
        return {probe.name: float(probe.value(params)) for probe in followed}


def effects(followed: list[Probe], params: Params, end: Mapping[str, float]) -> dict[str, float]:
    return {name: value - end[name] for name, value in values(followed, params).items()}


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
