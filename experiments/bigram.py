"""Follow the bigram decoder W_UE = W_U W_Eᵀ through a run: which next tokens each step makes likelier after which.

    python experiments/bigram.py runs/demo --stop 100                  # the first 100 steps
    python experiments/bigram.py runs/demo --correlations-only         # about a second a snapshot
    python experiments/bigram.py runs/demo --start 300 --stop 340 --pair "of the" --k 20

Without --stop the whole run is walked, in about the time it took to train. Where every row of both tables moves in
each step, through momentum, AdamW or weight decay, finding the largest shifts takes longer than the step, and the
walk two to four times the training; --search-every 10 looks for them in every tenth step and follows its pairs in
all. A shift is split into what the step's own texts did (present), what earlier ones did through the optimizer's
memory (past), and weight decay. Interrupted, the same command goes on where it stopped. All of it is about the direct
path, from the embedding straight to the unembedding, without positions, layer norms, attention and MLPs; the
correlations have the whole model after a single token beside it.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import stage
import tyro

from devinterp_func import bigram, checks, keys, records
from devinterp_func.bigram import Followed, PairCounts
from devinterp_func.show import _bigram_sections, results, tables, terminal, words


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""
    out: Path | None = None
    """Where the results go; by default beside the run, RUN-results."""
    start: int = 0
    """First step of the walk."""
    stop: int | None = None
    """Step to stop before; by default as far as the run is recorded. Later it may be larger."""
    k: int = 100
    """Largest shifts kept of each step."""
    search_every: int = 1
    """The largest shifts are looked for in steps that this divides; the pairs followed are in all."""
    pair: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A bigram to follow, such as "new york"; may be repeated. By default six of the most characteristic."""
    group: int = 100
    """How many characteristic bigrams, and how many of the same tokens shuffled, are followed in the mean."""
    every: int = 10
    """Steps from one row to the next in the table of time courses."""
    least: int = 20
    """How often a pair must occur to be counted among the corpus' bigrams."""
    unseen: int = 10_000
    """Pairs that never occur, drawn as often as their tokens do, for the correlations."""
    seed: int = 0
    """Of the draws."""
    correlations_only: bool = False
    """Only the correlations at the snapshots, without a walk."""


def main(settings: Settings) -> Path:
    work = stage.start("bigram", settings)
    counts = bigram.count_pairs(work.run.corpus.train, work.run.graph.vocab_size)
    followed = check(settings, work.run, counts)
    if work.done:
        return work.folder
    if followed:
        walk(settings, work, followed, counts)
    correlate(settings, work, counts)
    for name, figure in _bigram_sections.figures(work.run, work.folder).items():
        results.write_figure(work.folder, name, figure)
    return work.finish()


def check(settings: Settings, run: records.Run, counts: PairCounts) -> Followed | None:
    """The pairs to follow, None without a walk; says before any work what is wrong with the settings or the model."""
    bigram.decoder_units(run.graph)
    for name, least in dict(k=1, search_every=1, group=0, every=1, least=1, unseen=0, seed=0).items():
        checks.integer(f"--{name.replace('_', '-')}", getattr(settings, name), least)
    if len(bigram.seen_pairs(counts, settings.least).output) < 3:
        raise ValueError(f"fewer than 3 pairs of tokens occur {settings.least} times; choose a smaller --least")
    if settings.correlations_only:
        own = ("start", "stop", "k", "search_every", "pair", "group", "every")
        walking = [f for f in fields(settings) if f.name in own]
        if ignored := [f"--{f.name.replace('_', '-')}" for f in walking if getattr(settings, f.name) != f.default]:
            raise ValueError(f"{', '.join(ignored)}: of a walk, and --correlations-only makes none")
        return None
    start, stop = run.span(settings.start, settings.stop)
    if -start % settings.search_every >= stop - start:
        raise ValueError(f"--search-every {settings.search_every} divides no step from {start} to {stop - 1}")
    if settings.k > (most := run.graph.vocab_size**2):
        raise ValueError(f"--k is {settings.k}; there are {most} pairs of tokens")
    if wrong := [text for text in settings.pair if len(text.split()) != 2]:
        raise ValueError(f'--pair {wrong[0]!r} must be two tokens with a blank between them, such as "of the"')
    named = [tuple(map(run.corpus.vocab.index, text.split())) for text in settings.pair]
    key = keys.Key(settings.seed, ("bigram", "control"))
    return bigram.follow(counts, named, settings.group, settings.least, key=key)


def walk(settings: Settings, work: stage.Stage, followed: Followed, counts: PairCounts) -> None:
    run, (start, stop) = work.run, work.run.span(settings.start, settings.stop)
    name, pairs = _bigram_sections.stem(start), followed.pairs._asdict()
    given: dict[str, Any] = {"start": start, "stop": stop, "k": settings.k, "every": settings.search_every}
    steps = bigram.shifts(run, work.folder / name, **given, **pairs)
    for _ in terminal.watched(steps, stop - start, "walking"):
        pass
    shifts = records.read_walk(work.folder / name, bigram.Shifts)
    key, chosen = keys.Key(settings.seed, ("bigram", "spans")), (settings.every, settings.least)
    for what, table in tables.bigram_walk_frames(run, shifts, followed, counts, *chosen, key=key):
        work.save(f"{name}_{what}", table)
        if what == "spans":
            shown = table.select("from step", "to step", "median of the largest", "^towards the .*$", "outputs")
            work.show(words.spell(shown, tables.BIGRAM_SPANS, run.corpus.vocab), "the largest shifts, by span")
        if what == "causes":
            work.show(table, "where they come from: shares along them", kind=tables.BIGRAM_CAUSES)


def correlate(settings: Settings, work: stage.Stage, counts: PairCounts) -> None:
    chosen, snapshots = {"least": settings.least, "unseen": settings.unseen}, work.run.snapshots
    origin = {"run": work.run.manifest["digest"], "snapshots": snapshots, "seed": settings.seed, **chosen}
    if results.is_done(work.folder, "bigram_correlations", origin):
        return
    key = keys.Key(settings.seed, ("bigram", "correlations"))
    table = work.save("bigram_correlations", tables.run_correlation_frame(work.run, counts, **chosen, key=key))
    results.finish(work.folder, "bigram_correlations", origin)
    last = table.filter(pl.col("step") == snapshots[-1]).select("measure", "among", "spearman", "spearman, shuffled")
    work.show(last, f"weights and corpus before step {snapshots[-1]:,}")


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
