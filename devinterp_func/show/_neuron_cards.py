"""Neurons as cards of a run's report: facts, notable tokens, flipped predictions, flips beside their control."""

from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import Markup

from devinterp_func import neurons
from devinterp_func.records import Run
from devinterp_func.show import page, results, tables, words
from devinterp_func.show._written import p_value
from devinterp_func.show.page import Card, Chip, Excerpt, Word

ABLATIONS = {"mean": "its mean over random data", "resample": "that on another datum, drawn at random"}
ROWS, CHIPS, QUOTED = 12, 24, 4  # of the flip tables; notable tokens; excerpts


def cards(run: Run, folder: Path, names: list[str]) -> Markup:
    """Cards of neurons.

    Args:
        run: the run.
        folder: its results, of ``attribute.py`` and ``ablate.py``.
        names: of the neurons, in order.
    """
    kinds = {"neurons": tables.NEURONS, "verdicts": tables.VERDICTS, "views": tables.VIEWS}
    of_one = {name: results.read_table(folder, name, kind) for name, kind in kinds.items()}
    flips = results.read_table(folder, "flips", tables.FLIPS)
    excerpts = results.read_table(folder, "flip_excerpts", tables.FLIP_EXCERPTS)
    made = []
    for name in names:
        rows = {kind: table.row(by_predicate=pl.col("neuron") == name, named=True) for kind, table in of_one.items()}
        quoted = excerpts.filter(pl.col("neuron") == name).head(QUOTED)
        shown = flips.filter((pl.col("neuron") == name) & (pl.col("count") >= neurons.LEAST_COUNT))
        made.append(card(run, rows, shown.sort("proportion", descending=True, maintain_order=True), quoted))
    return page.cards(made, formats=dict.fromkeys(("proportion", "random neurons"), ".1%"), bars=["proportion"])


def card(run: Run, rows: dict[str, dict[str, Any]], flips: pl.DataFrame, excerpts: pl.DataFrame) -> Card:
    """One neuron's card.

    Args:
        run: the run.
        rows: its rows of the tables of neurons, verdicts and views.
        flips: its rows of the flip table.
        excerpts: flipped predictions.
    """
    vocab, about, verdict, view = run.corpus.vocab, rows["neurons"], rows["verdicts"], rows["views"]
    flipped = verdict["flipped"], f"random neurons: {verdict['flipped, random neurons']}"
    facts: dict[str, object] = {"outliers": about["outliers"], "data": about["data"]}
    facts |= {
        "p": p_value(verdict["p"]),
        "p, like frequency": p_value(verdict["p, like frequency"]),
        "flipped tokens": flipped,
    }
    active = f"above 0 at {view['share active']:.0%} of positions"
    facts["mean activation"] = (view["mean activation"], active)
    facts |= {
        what: words.words(view[what], vocab)
        for what in ("most active on", "logits raised", "logits lowered")
        if view[what]
    }
    both = set(verdict["both"])
    chips = [Chip(page.mention("token", id, vocab.tokens[id]), id in both) for id in verdict["notable tokens"][:CHIPS]]
    often = Excerpt(
        [Word(word) for word in vocab.decode(run.data.tokens[view["datum"]])],
        page.source(view["datum"], f", attributed {page.times(view['times'])}"),
    )
    texts = [often, *(excerpt(run, row) for row in excerpts.iter_rows(named=True))]
    spelled = words.spell(flips, tables.FLIPS, vocab).head(ROWS)
    control = spelled.select(
        "token",
        pl.col("random data: proportion").alias("proportion"),
        pl.col("random data: count").alias("count"),
        pl.col("random neurons: proportion").alias("random neurons"),
    )
    shown = spelled.select("token", "proportion", "count", "flips", "notable")
    return Card(about["neuron"], facts, chips, texts, shown, control)


def excerpt(run: Run, row: dict[str, Any]) -> Excerpt:
    """A flipped prediction in its text.

    Args:
        run: the run.
        row: of ``tables.FLIP_EXCERPTS``.
    """
    tokens = run.data.tokens[row["datum"]]
    flip = neurons.excerpt_at(tokens, row["datum"], row["position"], row["before"], row["after"])
    told = words.flip_excerpt(flip, run.corpus.vocab)
    leading, following = (["…"] * cut for cut in told.cut)
    parts = [Word(word) for word in (*leading, *told.before)], [Word(word) for word in (*told.following, *following)]
    return Excerpt([*parts[0], Word(told.marked, after=told.beside), *parts[1]], page.source(row["datum"]))
