"""Directions of the units beside weights and rotations, as a section of a run's report, from ``directions.py``."""

from pathlib import Path

import polars as pl

from devinterp_func.records import Run
from devinterp_func.show import page, results, tables
from devinterp_func.show._spans import one_span
from devinterp_func.show.page import Section

LEAD = """Can layers be read in other directions than the neurons'? Singular directions of what each unit gained, beside
its weights that changed most, and beside random rotations as the control: which tokens moved each. Amounts are of what
the data of the steps did: past and decay, where the optimizer remembers or decays, are in none of them."""
WORDS = "The tokens that moved each singular pair most, all their positions together."


def sections(run: Run, folder: Path) -> list[Section]:
    """One section; none where the tables are not there.

    Args:
        run: the run.
        folder: its results.
    """
    names = ("directions_units", "directions", "directions_tokens")
    if not all(results.has_table(folder, name) for name in names):
        return []
    kinds = (tables.DIRECTION_UNITS, tables.DIRECTIONS, tables.DIRECTION_TOKENS)
    units, pairs, tokens = (results.read_table(folder, *pair) for pair in zip(names, kinds, strict=True))
    (units, pairs, tokens), span = one_span([units, pairs, tokens])
    vocab, shown = run.corpus.vocab, pl.col("kind") == "singular"
    leading = tokens.filter(shown & (pl.col("reading") == "total")).drop("kind", "reading")
    items = [
        page.typed_table(units, tables.DIRECTION_UNITS, vocab, fold=12),
        page.typed_table(pairs, tables.DIRECTIONS, vocab, fold=8),
        page.typed_table(leading, tables.DIRECTION_TOKENS, vocab, WORDS, fold=8),
    ]
    return [Section("Directions", f"{LEAD} {span}".strip(), items)]
