"""The whole post: train and record, attribute, ablate, compare, report. Goes on where it stopped, at every stage.

    python experiments/reproduce.py                                                        # four minutes, no download
    python experiments/reproduce.py --corpus wikitext2 --preset post --run runs/post       # the post's run: two hours
    python experiments/reproduce.py --corpus wikitext2 --preset modern --run runs/modern   # the same with AdamW

The demo also follows the head that rises fastest: which texts made it, and what it would be without them. The report is
RUN-results/report.html, one file to open in a browser.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ablate
import activations
import attribute
import capture
import heads
import influence
import ledger
import lifetime
import norms
import polars as pl
import report
import retrain
import skill
import stage

from devinterp_func import records, show
from devinterp_func.records import Run
from devinterp_func.show import results, tables
from devinterp_func.show.tables import Rise

SMALL: dict[str, dict[str, Any]] = {
    "attribute": {"parameters": 50, "neurons": 3},
    "ablate": {"data": 300},
    "skill": {"data": 150, "seen": 500, "pointed": 20},
    "activations": {"data": 500},
}
SENTENCES = 4  # of those that the report begins with
SPAN = 40  # the most steps in which a head's rise is followed
NEXT = "next:for => example"  # the second number of the demo's ledger, where both are words
WITHOUT = 0.05  # share of these steps' texts that is left out
PLACES = {  # where a head of each pattern looks
    "previous": "the token before",
    "same": "earlier places of the same token",
    "induction": "what followed the same token before",
    "bracket": 'the "(" that a ")" closes',
}


@dataclass(frozen=True)
class Settings:
    corpus: str = "python_help"
    """wikitext2, python_docs, python_help, planted, or the path of a UTF-8 text file."""
    preset: Literal["demo", "post", "modern"] = "demo"
    """demo: a small model and small samples. post: the post's model, five epochs. modern: the same with AdamW."""
    run: Path = Path("runs/demo")
    """The run directory: new, or one that the same command began."""
    out: Path | None = None
    """Where the results go; by default beside the run, RUN-results."""
    steps: int | None = None
    """Stop training after so many steps."""
    threads: int | None = None
    """CPU threads."""


def main(settings: Settings) -> Path:
    given = {"corpus": settings.corpus, "preset": settings.preset, "steps": settings.steps, "threads": settings.threads}
    capture.main(capture.Settings(out=settings.run, **given))  # type: ignore[arg-type]
    demo = settings.preset == "demo"
    small, said = (SMALL, a_heads_life(settings)) if demo else ({}, "")
    for script in (attribute, ablate, skill, activations):
        script.main(script.Settings(run=settings.run, out=settings.out, **small.get(script.__name__, {})))
    if demo:
        norms.main(norms.Settings(run=settings.run, out=settings.out))
    written = report.main(report.Settings(run=settings.run, out=settings.out))
    run = records.open(settings.run)
    for sentence in show.summary(run, results.beside(run, settings.out))[:SENTENCES]:
        stage.say(f"\n{sentence.replace('`', '')}")
    if said:
        stage.say(f"\n{said}")
    return written


def a_heads_life(settings: Settings) -> str:
    """Finds the head that rises fastest, which texts raised it, and what it would be without them; says so."""
    where: dict[str, Any] = {"run": settings.run, "out": settings.out}
    folder = heads.main(heads.Settings(**where))
    rise = tables.largest_rise(results.read_table(folder, "heads", tables.HEADS), SPAN)
    run = records.open(settings.run)
    if rise is None:
        return "No head came to attend to anything farther than its control does."
    followed: tuple[str, ...] = (probe_of(rise), NEXT if {"for", "example"} <= set(run.corpus.vocab.tokens) else "loss")
    texts: dict[str, Any] = {"texts": min(40, len(run.split("valid").tokens) - 1)}
    span: dict[str, Any] = {"start": rise.start, "stop": rise.stop}
    again: dict[str, Any] = {"start": rise.start, "steps": rise.stop - rise.start, "shares": (WITHOUT,)}
    ledger.main(ledger.Settings(**where, **span, **texts, probe=followed))
    lifetime.main(lifetime.Settings(**where, **span, **texts, probe=followed[:1]))
    influence.main(influence.Settings(**where, **span, **texts, probe=followed[:1], tried=30, draws=5))
    both: dict[str, Any] = {"scores": ("credit", "influence"), "tail_draws": 3}
    retrain.main(retrain.Settings(**where, **again, **both, **texts, probe=followed[:1]))
    return finding(run, folder, rise)


def probe_of(rise: Rise) -> str:
    return f"head:{rise.head} {rise.pattern}"


def finding(run: Run, folder: Path, rise: Rise) -> str:
    """What was found about a head, with its controls, in words."""
    own = results.read_table(folder, "heads", tables.HEADS).filter(head=rise.head, pattern=rise.pattern)
    before, after = (own.row(by_predicate=pl.col("step") == step, named=True) for step in (rise.start, rise.stop))
    removed, probe = results.read_table(folder, "retrain", tables.REMOVALS), probe_of(rise)
    removed = removed.filter(pl.col("share") == WITHOUT, pl.col("from") == rise.start, measured=probe, to=rise.stop)
    by = {score: removed.row(by_predicate=pl.col("score") == score, named=True) for score in removed["score"]}
    chosen, chance = by[f"credit, {probe}"], by["random"]
    change = chosen["effect"] / chosen["of the change"]
    gone, none, *interval = (-x / change for x in (chosen["effect"], *(chance[c] for c in ("effect", "high", "low"))))
    low, high = sorted(interval)
    return (
        f"Head {rise.head} came to look at {PLACES[rise.pattern]}, in steps {rise.start} to {rise.stop} of "
        f"{run.n_steps} (pass {rise.start // run.steps_per_epoch + 1} over its texts).\n"
        f"Its attention there rose from {before['attention']:.2f} to {after['attention']:.2f}; to other tokens as far "
        f"away it went from {before['by distance']:.2f} to {after['by distance']:.2f} (control).\n"
        f"Retrained without the {WITHOUT:.0%} of these steps' texts that were credited most, {gone:.0%} of the rise is "
        f"gone;\nwithout as many random texts, {none:.0%} [{low:.0%}, {high:.0%}] "
        f"(control, {retrain.Settings.draws} draws)."
    )


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
