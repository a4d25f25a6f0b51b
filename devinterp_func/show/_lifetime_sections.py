"""What data did beyond their own steps: a section of a run's report for each probe, from ``lifetime.py``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import Markup

from devinterp_func.records import Run
from devinterp_func.show import page, results, tables, words
from devinterp_func.show.page import Excerpt, Section, Word

LEAD = """An optimizer with a memory carries a datum's gradient on into later steps. A lifetime is what a datum did to a
probe in its own step and in all later ones of the span; its present credit is the part of its own step alone.
Lifetimes, weight decay and what the memory brought along from before the span add up to the probe's change; what the
quadrature misses is given. The lifetimes of a span's last steps are cut short by its end."""
TEXTS = {
    "raised": "The texts whose lifetimes raised it most. Blue raised it, orange lowered it.",
    "lowered": "The texts whose lifetimes lowered it most. Blue raised it, orange lowered it.",
}
CHANGED = """The texts that change place most between present credit and lifetime, of those that either has among its
first or last hundred. Place 1 raised the probe most, the last place lowered it most."""


def sections(run: Run, folder: Path) -> list[Section]:
    """One of all probes' books, and one of each probe's texts; none where the tables are not there.

    Args:
        run: the run, whose words are shown.
        folder: its results.
    """
    if not results.has_table(folder, "lifetimes"):
        return []
    books, texts = (results.read_table(folder, name, kind) for name, kind in tables.LIFETIME_TABLES.items())
    vocab = run.corpus.vocab
    shown = books.drop("nodes", "texts", "seed")
    found = [Section("Lifetimes", LEAD, [page.typed_table(shown, tables.LIFETIMES, vocab)])]
    for row in books.iter_rows(named=True):
        key = pl.all_horizontal(pl.col(name) == row[name] for name in tables.LEDGER_KEY)
        found.append(_probe_section(run, row, texts.filter(key)))
    return found


def _probe_section(run: Run, row: dict[str, Any], texts: pl.DataFrame) -> Section:
    span = f"Steps {row['start']:,} to {row['stop']:,}"
    lead = f"{span}; {row['nodes']} nodes of the quadrature; texts of seed {row['seed']}."
    change = row["at the end"] - row["at the start"]
    facts = {
        "change": (page.shown(change), f"from {page.shown(row['at the start'])} to {page.shown(row['at the end'])}"),
        "lifetimes": (page.shown(row["lifetimes"]), f"of which present: {page.shown(row['present'])}"),
        "decay": (page.shown(row["decay"]), "weight decay's"),
        "entering": (page.shown(row["entering"]), "earlier data's"),
        "rank correlation": (f"{row['rank correlation']:.2f}", "of present credit and lifetime, in the median step"),
    }
    return Section(f"Lifetimes: {row['probe']}", lead, [page.facts(facts), *_texts(run, texts)])


def _texts(run: Run, texts: pl.DataFrame, most: int = 6) -> Iterator[Markup]:
    for why, caption in TEXTS.items():
        rows = texts.filter((pl.col("why") == why) & (pl.col("rank") <= most)).sort("rank")
        if len(rows):
            yield page.excerpts([_excerpt(run, row) for row in rows.iter_rows(named=True)], caption)
    changed = texts.filter(pl.col("why") == "changed place").sort("rank")
    if len(changed):
        said = pl.Series("text", [str(_plain(run, row)) for row in changed.iter_rows(named=True)], dtype=pl.String)
        columns = ["datum", "steps", "present", "lifetime", "present place", "lifetime place", "data"]
        shown = changed.select(columns).with_columns(said)
        yield page.typed_table(shown, tables.LIFETIME_TEXTS, run.corpus.vocab, CHANGED)


def _excerpt(run: Run, row: dict[str, Any]) -> Excerpt:
    """A text with its lifetime credits; its colours are relative to its largest."""
    tokens, targets = (run.corpus.vocab.decode(x[row["datum"]]) for x in run.data)
    largest = max(map(abs, row["credits"])) or 1.0
    coloured = [Word(word, amount / largest) for word, amount in zip(targets, row["credits"], strict=True)]
    place = f"place {row['lifetime place']:,}, by present credit {row['present place']:,}, of {row['data']:,}"
    return Excerpt([Word(tokens[0]), *coloured], page.source(row["datum"], f": {page.shown(row['lifetime'])}; {place}"))


def _plain(run: Run, row: dict[str, Any]) -> words.Excerpt:
    tokens, targets = (x[row["datum"]] for x in run.data)
    return words.excerpt(tokens, targets, row["position"], run.corpus.vocab)
