"""What makes a phase of few data, and what lasts? The same steps without some data, or by another recipe.

    python experiments/phase_causes.py runs/demo --start 40 --stop 80 --phrase "=" --without  # without texts with it
    python experiments/phase_causes.py runs/demo --start 40 --stop 80 --top 40 60       # without the longest of steps
    python experiments/phase_causes.py runs/demo --stop 60 --warmup 40 --max-norm inf   # another rate; no clipping
    python experiments/phase_causes.py runs/demo --stop 60 --seeds 1 2                  # other weights, order, dropout

Beside every removal as many others, at random; beside that of the largest also random ones whose norms add up to as
much. Each step is measured as phases.py measures it, whose replay is read, or made first. Interrupted, the same command
goes on after the last change that was done.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import phases
import polars as pl
import stage
import torch
import tyro
from jaxtyping import Bool
from torch import Tensor

from devinterp_func import batches, checks, credit, keys, per_example, records, training, tree
from devinterp_func.credit import Circumstances, Coherence, Window
from devinterp_func.records import Run
from devinterp_func.show import results, tables, terminal
from devinterp_func.training import Recipe
from devinterp_func.tree import Params

SHOWN = ("change", "draw", "step", "clip", "effective", "within steps", "kind, of Σ‖Δ‖²", "loss, bigram")


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]  # the run directory
    stop: int  # step to stop before
    out: Path | None = None  # where the results go; by default beside the run, RUN-results
    start: int = 0  # first step that is made in another way
    phrase: str = ""  # tokens, such as "= =": the texts in which they follow each other are told apart
    without: bool = False  # without these texts
    top: tuple[int, int] | None = None  # of these steps, from and to, without the data with the longest deltas
    share: float = 0.01  # so many of them
    draws: int = 1  # random removals beside each
    warmup: int | None = None  # with so many steps of warm-up
    lr: float | None = None  # with another learning rate
    max_norm: float | None = None  # clipped to another norm
    seeds: tuple[int, ...] = ()  # from step 0, with other seeds: initial weights, order of the data, dropout
    window: int = 20  # steps that are put together
    every: int = 20  # steps from one measurement of the losses to the next; at most the window
    texts: int = 60  # validation texts whose losses are measured, and as many that have the phrase
    common: int = 100  # how many tokens count as common
    seed: int = 0  # of the draws


class Change(NamedTuple):
    """A training that differs from the run's."""

    name: str
    draw: int
    recipe: Recipe
    removed: Bool[Tensor, "S n"] | None = None


def main(settings: Settings) -> Path:
    run = records.open(settings.run)
    check(settings, run)
    start, stop, names = settings.start, settings.stop, list(run.shapes)
    about = "-".join(f"{name}-{getattr(settings, name)}" for name in ("window", "every", "texts", "common", "seed"))
    stem = f"phase_causes-{start}-{stop}-{about}"
    work = stage.start(stem, settings, run=run, family="phase_causes-")
    if work.done:
        return work.folder
    kind, losses = tables.kind_of(run, phrase_of(settings, run)), losses_of(settings, run)
    label, of_kind = tables.run_labels([settings.run])[0], bool(settings.phrase)
    intact = as_it_was(settings, run)

    def add(change: Change, steps: Coherence, beside: Circumstances) -> tuple[pl.DataFrame, pl.DataFrame]:
        windows = credit.beside_windows(steps, beside, kind, settings.window)
        loss = steps.loss[: len(windows.shares.step) * settings.window].double()
        means = loss.view(len(windows.shares.step), settings.window, -1).nanmean(1).tolist()
        told = change.name, change.draw, 0 if change.removed is None else int(change.removed.sum()), start
        sums, key = credit.step_sums(steps, beside.datum != credit.NONE), keys.Key(settings.seed, ("dips",))
        found = tables.changed_dip_frame(label, told, tables.dips(sums, settings.window, key=key), settings.window)
        own = tables.changed_frame(label, told, windows, names, means, of_kind)
        return (
            results.add_rows(work.folder, f"{stem}-dips", tables.CHANGED_DIPS, found),
            results.add_rows(work.folder, f"{stem}-steps", tables.CHANGED_STEPS, own),  # an interrupted call's stay
        )

    found, made = add(Change("as it was", 0, run.recipe), *intact)
    done = set(made.select("change", "draw").iter_rows())
    todo = [change for change in changes(settings, run, kind, intact) if (change.name, change.draw) not in done]
    origin = credit.window_from(run, start, stop)
    for change in terminal.watched(todo, len(todo), "changed trainings"):
        window = begun(origin, run, change.recipe)
        changed = credit.change(window, run.recording.units, losses, settings.every, change.removed)
        found, made = add(change, changed.steps, changed.beside)
    work.add("phases_changed", tables.CHANGED_STEPS, made)
    work.add("phases_changed_dips", tables.CHANGED_DIPS, found)
    work.show(made.select(SHOWN), tables.CHANGED_STEPS.caption, 60)
    work.show(found.drop("run"), tables.CHANGED_DIPS.caption, 60, kind=tables.CHANGED_DIPS)
    return work.finish()


def begun(origin: Window, run: Run, recipe: Recipe) -> Window:
    """The window by another recipe; with another seed, from its own initial weights."""
    if recipe.seed == run.recipe.seed:
        return origin._replace(recipe=recipe)
    params = training.initial(run.model, recipe)
    return origin._replace(recipe=recipe, params=params, state=recipe.optimizer.init(params))


def check(settings: Settings, run: Run) -> None:
    """All that can be seen before the work."""
    stage.require_text(run)
    start, stop = run.span(settings.start, settings.stop)
    checks.integer("--texts", settings.texts)
    checks.integer("--draws", settings.draws, least=0)
    credit.require_share(settings.share)
    if stop - start < checks.integer("--window", settings.window):
        raise ValueError(f"steps {start} to {stop} are fewer than a window of {settings.window}")
    if checks.integer("--every", settings.every) > settings.window:
        raise ValueError(f"--every is {settings.every}; it must be at most the window, {settings.window} steps")
    if settings.top is not None and not start <= settings.top[0] < settings.top[1] <= stop:
        raise ValueError(f"--top is {settings.top[0]} {settings.top[1]}; it must be within steps {start} to {stop}")
    if settings.seeds and start:
        raise ValueError(f"--start is {start}; another seed begins with step 0")
    if settings.without and not phrase_of(settings, run):
        raise ValueError("--without leaves out the texts with a phrase; give --phrase, or no --without")
    if not (settings.without or settings.top or recipes(settings, run)):
        raise ValueError("nothing is changed; give --without, --top, --warmup, --lr, --max-norm or --seeds")


def phrase_of(settings: Settings, run: Run) -> list[int]:
    return [run.corpus.vocab.index(token) for token in settings.phrase.split()]


def losses_of(settings: Settings, run: Run) -> Callable[[Params], Tensor]:
    """The losses that phases.py measures, and that of held-out texts with the phrase."""
    classes = phases.losses_of(phase_settings(settings), run, keys.Key(settings.seed, ("phases",)))
    held_out, phrase = run.split("valid"), phrase_of(settings, run)
    rows = credit.contains_phrase(held_out, phrase).nonzero()[:, 0] if phrase else torch.zeros(0, dtype=torch.int64)
    rows = rows[keys.permutation(len(rows), key=keys.Key(settings.seed, ("kind",)))[: settings.texts]]
    texts = batches.take(tuple(held_out), rows)

    def losses(params: Params) -> Tensor:
        nothing = torch.full((1,), torch.nan, dtype=torch.float64)
        own = per_example.losses(run.graph, params, *texts).double().mean()[None] if len(rows) else nothing
        return torch.cat([classes(params), own])

    return losses


def phase_settings(settings: Settings) -> phases.Settings:
    same = {name: getattr(settings, name) for name in ("window", "every", "texts", "common", "seed")}
    return phases.Settings((settings.run,), **same)


def as_it_was(settings: Settings, run: Run) -> tuple[Coherence, Circumstances]:
    """The run's own steps, from the replay of phases.py; the loss of held-out texts with the phrase is not in it."""
    own = phase_settings(settings)
    classes = phases.losses_of(own, run, keys.Key(settings.seed, ("phases",)))
    whole = phases.replayed(own, run, classes, 0, settings.stop)
    steps = tree.map(lambda x: x[settings.start :], whole)
    unknown = torch.full_like(steps.loss[:, :1], torch.nan)
    steps = steps._replace(loss=torch.cat([steps.loss, unknown], 1))
    return steps, credit.run_circumstances(run, settings.start, settings.stop)


def recipes(settings: Settings, run: Run) -> dict[str, Recipe]:
    """The other recipes, by name."""
    recipe, found = run.recipe, {}
    if settings.warmup is not None:
        schedule = replace(recipe.schedule, warmup=settings.warmup)
        found[f"warm-up of {settings.warmup} steps"] = replace(recipe, schedule=schedule)
    if settings.lr is not None:
        found[f"learning rate {settings.lr:g}"] = replace(recipe, lr=settings.lr)
    if settings.max_norm is not None:
        found[f"clipped to a norm of {settings.max_norm:g}"] = replace(recipe, max_norm=settings.max_norm)
    found |= {f"seed {seed}": replace(recipe, seed=seed) for seed in settings.seeds}
    return found


def changes(
    settings: Settings, run: Run, kind: Bool[Tensor, "N"], intact: tuple[Coherence, Circumstances]
) -> list[Change]:
    """All that is to be made."""
    found = [Change(name, 0, recipe) for name, recipe in recipes(settings, run).items()]
    steps, beside = intact
    norm, start = steps.square.sum(1).sqrt(), settings.start
    everywhere, ones = torch.ones_like(norm, dtype=torch.bool), torch.ones_like(norm)

    def beside_random(name: str, removed: Tensor, among: Tensor, amounts: Tensor, what: str) -> list[Change]:
        total = float(amounts[removed].sum(dtype=torch.float64))
        key = keys.Key(settings.seed, ("phase causes", name, what))
        drawn = (
            credit.as_much_at_random(amounts, among, total, key=keys.fold_in(key, draw))
            for draw in range(settings.draws)
        )
        return [Change(f"{what}: {name}", draw, run.recipe, one) for draw, one in enumerate(drawn)]

    if settings.without:
        name, removed = f"without texts with {settings.phrase}", kind[beside.datum]
        found.append(Change(name, 0, run.recipe, removed))
        found += beside_random(name, removed, everywhere, ones, "as many at random")
    if settings.top:
        first, stop = (step - start for step in settings.top)
        within = torch.zeros_like(everywhere)
        within[first:stop] = True
        removed = torch.zeros_like(within)
        removed[first:stop] = credit.top_mask(norm[first:stop], settings.share)
        name = f"without the longest {settings.share:.3g} of steps {settings.top[0]} to {settings.top[1]}"
        found.append(Change(name, 0, run.recipe, removed))
        for amounts, what in ((ones, "as many at random"), (norm, "as long in all at random")):
            found += beside_random(name, removed, within & ~removed, amounts, what)
    return found


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
