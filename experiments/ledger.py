"""What built a number? Splits every step's change of some probes over the data and token positions that caused it.

    python experiments/ledger.py runs/demo                                              # the validation loss
    python experiments/ledger.py runs/demo --probe "bigram:of the" --probe "head:2.1 bracket"

Probes: loss; next:WORDS => WORD (its log-probability); bigram:WORD WORD; norm:NEURON; effect:NEURON WORD;
head:LAYER.HEAD PATTERN, where the pattern is previous, same, induction or bracket. Interrupted, the same command goes
on where it stopped. Credits add up to what the probe really did; their sign is that of the probe's change.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import polars as pl
import torch
import tyro
from rich.console import Console

from devinterp_func import accounts, batches, keys, ledger, ledger_report, records, results, tables, training, walks


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""
    out: Path | None = None
    """Where the results go; by default beside the run, RUN-results."""
    probe: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A number to follow; may be repeated. By default the loss."""
    start: int = 0
    """First step."""
    stop: int | None = None
    """Step to stop before; by default as far as the run is recorded. Later it may be larger."""
    nodes: int = 3
    """Nodes of the quadrature: gradients of each probe a step, besides that at its end."""
    texts: int = 20
    """Texts of each probe that takes texts."""
    every: int = 10
    """Steps from one row to the next in the table of time courses."""
    seed: int = 0
    """Of the draw of texts."""


def main(settings: Settings) -> Path:
    console, run, folder = Console(), settings.run, results.beside(settings.run, settings.out)
    torch.set_num_threads(records.manifest(run)["threads"])  # the same bits need the same threads
    config, recipe, corpus = training.load(run)
    key = keys.Key(settings.seed, ("ledger",))
    forms = settings.probe or ("loss",)
    followed = [accounts.parse(form, corpus, config, recipe, key=key, n=settings.texts) for form in forms]
    names, data = [probe.name for probe in followed], batches.chunk(corpus.train, recipe.context)
    chosen = [*names, settings.start, settings.nodes, settings.texts, settings.seed]
    stem = f"ledger-{hashlib.sha256(repr(chosen).encode()).hexdigest()[:8]}"  # one folder for each choice
    start, stop = walks.span(run, settings.start, settings.stop)
    steps = ledger.walk(run, folder / stem, followed, start=start, stop=stop, m=settings.nodes)
    for _ in tables.watched(steps, stop - start, "walking"):
        pass
    entries, names = accounts.once(ledger.read(folder / stem), names)
    course = accounts.course_frame(entries, names, settings.every)
    results.write_table(folder, f"{stem}_courses", course)
    results.write_table(folder, f"{stem}_texts", texts := accounts.text_frame(entries, names, data, corpus.vocab))
    results.write_table(folder, f"{stem}_tokens", tokens := accounts.token_frame(entries, names, data, corpus.vocab))
    results.write_table(folder, f"{stem}_inputs", inputs := accounts.input_frame(entries, names, data, corpus.vocab))
    results.write_table(folder, f"{stem}_excerpts", accounts.excerpt_frame(entries, names, data, corpus.vocab))
    per_epoch = training.epoch_length(corpus, recipe)
    for i, name in enumerate(names):
        results.write_figure(folder, f"{stem}_{i}", ledger_report.course_figure(course, name, per_epoch))
        own = pl.col("probe") == name
        missed = float(entries.residual()[:, i].abs().sum() / entries.change()[:, i].abs().sum())
        console.print(
            f"\n{name}: {float(entries.before[0, i]):.4g} before step {start:,}, {float(entries.after[-1, i]):.4g} "
            f"before step {start + len(entries.step):,}; its books miss {missed:.2%} of Σ|Δf|",
            markup=False,
        )
        shown = course.filter(own).drop("probe").gather_every(max(1, len(course.filter(own)) // 12))
        console.print(tables.rich_table(shown, "over training", 14))
        shown = texts.filter(own).select("credit", "steps", "text")
        console.print(tables.rich_table(shown, "most credited texts, of either sign", 20, width=300))
        console.print(tables.rich_table(tokens.filter(own).drop("probe"), "by target token", 30))
        console.print(tables.rich_table(inputs.filter(own).drop("probe"), "by input token, either way", 10))
    console.print(f"tables and figures: {folder}/{stem}*", markup=False)
    return folder


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
