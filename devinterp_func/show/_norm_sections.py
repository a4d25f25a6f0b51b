"""What built the neurons: the growth of their squared norms as a section of a run's report, from ``norms.py``."""

from pathlib import Path

import polars as pl

from devinterp_func.records import Run
from devinterp_func.show import page, results, tables, words
from devinterp_func.show._spans import one_span
from devinterp_func.show.page import Section
from devinterp_func.text import Vocab

LEAD = """The growth of every neuron's squared norm, split over the tokens of the steps' data. In first order a large
part of it belongs to no token; credits leave nothing but past, what earlier data did through the optimizer's memory,
and decay, which belong to no token of the steps."""
NEURONS = "Neurons that grew most and least, with the target tokens that built them and wore them down."


def sections(run: Run, folder: Path) -> list[Section]:
    """One section; none where the tables are not there.

    Args:
        run: the run.
        folder: its results.
    """
    if not all(results.has_table(folder, name) for name in ("norms_units", "norms_neurons", "norms_tokens")):
        return []
    kinds = (tables.NORM_UNITS, tables.NORM_NEURONS, tables.NORM_TOKENS)
    names = ("norms_units", "norms_neurons", "norms_tokens")
    units, neurons, tokens = (results.read_table(folder, *pair) for pair in zip(names, kinds, strict=True))
    vocab = run.corpus.vocab
    told = neurons.join(token_words(tokens, vocab), on=["from", "to", "neuron"], how="left", maintain_order="left")
    (units, told), span = one_span([_with_what_there_is(units), _with_what_there_is(told.drop("axis"))])
    first = [name for name in ("from", "to", "neuron", "growth", "built by", "worn down by") if name in told.columns]
    items = [
        page.typed_table(units, tables.NORM_UNITS, vocab, fold=12),
        page.typed_table(told.select(*first, pl.exclude(first)), tables.NORM_NEURONS, vocab, NEURONS, fold=12),
    ]
    return [Section("What built the neurons", f"{LEAD} {span}".strip(), items)]


def _with_what_there_is(table: pl.DataFrame) -> pl.DataFrame:
    """The table without past or decay, where there was none."""
    return table.drop([name for name in ("past", "decay") if not (table[name] != 0).any()])


def token_words(tokens: pl.DataFrame, vocab: Vocab, reading: str = "target") -> pl.DataFrame:
    """Each neuron's tokens of either effect, with their amounts, as a list for the eye.

    Args:
        tokens: of ``tables.norm_token_frame``.
        vocab: the vocabulary.
        reading: which of the readings.
    """
    spelled = words.spell(tokens.filter(pl.col("reading") == reading), tables.NORM_TOKENS, vocab)
    pairs = spelled.select("token", "amount").iter_rows()
    shown = [f"{word} " + f"{amount:+.2g}".replace("-", "−") for word, amount in pairs]
    listed = spelled.with_columns(pl.Series("shown", shown, dtype=pl.String)).sort("rank", maintain_order=True)
    columns = [
        pl.col("shown").filter(pl.col("effect") == effect).alias(name)
        for effect, name in (("built", "built by"), ("worn down", "worn down by"))
    ]
    return listed.group_by("from", "to", "neuron", maintain_order=True).agg(columns)
