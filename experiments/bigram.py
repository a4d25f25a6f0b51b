"""Follow the bigram decoder W_UE = W_U W_Eᵀ through a run: which next tokens each step makes likelier after which.

    python experiments/bigram.py runs/demo                          # the whole run
    python experiments/bigram.py runs/post --stop 2928              # its first epoch: about as long as it took to train
    python experiments/bigram.py runs/post --correlations-only      # a second a snapshot

Interrupted, the same command goes on where it stopped. What was found at every step is in RUN-results/bigram, tables
and figures beside it. All of it is about the direct path, from the embedding straight to the unembedding: it leaves out
positions, layer norms, attention and MLPs; the correlations have the whole model after a single token beside it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import polars as pl
import torch
import tyro
from rich.console import Console

from devinterp_func import (
    batches,
    bigram_corpus,
    bigram_report,
    bigram_tables,
    bigram_walk,
    keys,
    records,
    results,
    tables,
    training,
    walks,
)
from devinterp_func.bigram_corpus import Counts, Pairs
from devinterp_func.text import Vocab


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
    pair: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A bigram to follow, such as "new york"; may be repeated. By default six of the most characteristic."""
    group: int = 100
    """How many characteristic bigrams, and how many of the same tokens put together anew, are followed in the mean."""
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
    console, run, folder = Console(), settings.run, results.beside(settings.run, settings.out)
    torch.set_num_threads(records.manifest(run)["threads"])  # the same bits need the same threads
    config, recipe, corpus = training.load(run)
    per_epoch = training.epoch_length(corpus, recipe)
    found = bigram_corpus.counts(corpus.train, config.vocab_size)
    correlate(settings, folder, found, console)
    if not settings.correlations_only:
        pairs, groups = followed(settings, found, corpus.vocab)
        walk(settings, folder, pairs)
        tabulate(settings, folder, pairs, groups, found, console)
    for name, drawing in bigram_report.figures(folder, settings.start, per_epoch).items():
        results.write_figure(folder, name, drawing)
    console.print(f"tables and figures: {folder}/bigram*")
    return folder


def followed(settings: Settings, found: Counts, vocab: Vocab) -> tuple[Pairs, dict[str, slice]]:
    """The pairs to follow: those of each group, and under "" those to show one by one."""
    common = bigram_corpus.characteristic(found, settings.group, settings.least)
    control = bigram_corpus.exchanged(common, key=keys.Key(settings.seed, ("bigram", "control")))
    chosen = [[vocab.index(word) for word in text.split()] for text in settings.pair]
    if wrong := [text for text, ids in zip(settings.pair, chosen, strict=True) if len(ids) != 2]:
        raise ValueError(f"--pair {wrong[0]!r} must be two tokens with a blank between them")
    if not chosen:
        rare = bigram_tables.spaced(*common, most=6, each=1)
        chosen = [[int(common.input[i]), int(common.output[i])] for i in rare]
    input, output = torch.tensor(chosen).T
    sizes = [len(common.output), len(control.output), len(output)]
    ends = torch.tensor(sizes).cumsum(0).tolist()
    names = ("bigrams of the corpus", "their tokens, exchanged", "")
    groups = {name: slice(end - size, end) for name, size, end in zip(names, sizes, ends, strict=True)}
    pairs = [torch.cat(column) for column in zip(common, control, (output, input), strict=True)]
    return Pairs(*pairs), groups


def walk(settings: Settings, folder: Path, pairs: Pairs) -> None:
    stop = settings.stop or records.n_steps(settings.run)
    steps = bigram_walk.walk(
        settings.run,
        folder / bigram_report.stem(settings.start),
        start=settings.start,
        stop=stop,
        k=settings.k,
        **pairs._asdict(),
    )
    for _ in tables.watched(steps, stop - settings.start, "walking"):
        pass


def correlate(settings: Settings, folder: Path, found: Counts, console: Console) -> None:
    """Correlations at every snapshot there is."""
    run, snapshots = settings.run, records.snapshots(settings.run)
    chosen = {"least": settings.least, "unseen": settings.unseen, "seed": settings.seed}
    origin = {"run": records.manifest(run)["digest"], "snapshots": snapshots, "settings": chosen}
    if results.is_done(folder, "bigram_correlations", origin):
        return
    config, recipe, corpus = training.load(run)
    key = keys.Key(settings.seed, ("bigram", "correlations"))
    common, never = bigram_corpus.seen(found, settings.least), bigram_corpus.unseen(found, settings.unseen, key=key)
    both = Pairs(torch.cat([common.output, never.output]), torch.cat([common.input, never.input]))
    sets = {f"at least {settings.least} times": common, "these and some that never occur": both}
    tokens = batches.chunk(corpus.valid, recipe.context).tokens[:256]
    rows: list[dict[str, object]] = []
    for step in tables.watched(snapshots, len(snapshots), "correlations"):
        params = records.read_params(run, step)
        rows += bigram_tables.correlation_rows(step, params, found, sets, tokens, config, key=key)
    frame = pl.DataFrame(rows)
    results.write_table(folder, "bigram_correlations", frame)
    results.finish(folder, "bigram_correlations", origin)
    last = frame.filter(pl.col("step") == snapshots[-1]).drop("step")
    console.print(
        tables.rich_table(
            last.select("measure", "among", "spearman", "null_spearman"),
            f"weights and corpus before step {snapshots[-1]:,}",
        )
    )


def tabulate(
    settings: Settings, folder: Path, pairs: Pairs, groups: dict[str, slice], found: Counts, console: Console
) -> None:
    """Everything that is read off the walk, and the net changes over its phases."""
    run, name = settings.run, bigram_report.stem(settings.start)
    _, recipe, corpus = training.load(run)
    data, vocab = batches.chunk(corpus.train, recipe.context), corpus.vocab
    shifts = bigram_walk.read(folder / name)
    stop = int(shifts.step[-1]) + 1
    spans = bigram_tables.phases(settings.start, stop, training.epoch_length(corpus, recipe))
    key = keys.Key(settings.seed, ("bigram", "phases"))
    summary = bigram_tables.phase_frame(shifts, spans, found, vocab, key=key)
    results.write_table(folder, f"{name}_largest", bigram_tables.largest_frame(shifts, spans, data, found, vocab))
    results.write_table(folder, f"{name}_phases", summary)
    results.write_table(folder, f"{name}_sizes", bigram_tables.size_frame(shifts, settings.every))
    courses = bigram_tables.course_frame(shifts, groups, pairs, vocab, settings.every)
    results.write_table(folder, f"{name}_courses", courses)
    passed = [step for step in records.snapshots(run) if settings.start < step <= stop]
    params = ((step, records.read_params(run, step)) for step in passed)
    results.write_table(folder, f"{name}_checks", checks := bigram_tables.check_frame(shifts, params, pairs))
    shown = summary.select("steps", "median of the largest", "in the corpus", "towards the log-odds", "outputs")
    console.print(tables.rich_table(shown, "the largest shifts of all steps, by phase"))
    console.print(tables.rich_table(checks, "entries at the snapshots against the sum of shifts"))
    origin = {"run": records.manifest(run)["digest"], "steps": spans, "settings": {"least": settings.least}}
    if not results.is_done(folder, f"{name}_net", origin):
        nets, before = [], walks.weights(run, settings.start)
        for span in tables.watched(spans, len(spans), "net changes"):
            after = walks.weights(run, span[1])
            nets.append(bigram_tables.net_frame(before, after, span, found, vocab, settings.least))
            before = after
        results.write_table(folder, f"{name}_net", pl.concat(nets))
        results.finish(folder, f"{name}_net", origin)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
