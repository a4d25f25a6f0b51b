"""What removing credited data did, as a section of a run's report, from ``retrain.py``."""

from pathlib import Path

import polars as pl

from devinterp_func.records import Run
from devinterp_func.show import page, results, tables
from devinterp_func.show.page import Section

LEAD = """Is a credit true? The same steps retrained without the data that were credited most, without those that moved
the weights most, and without random ones: drawn from all, from some, or from those as large; and one more step on
chosen data alone. The optimizer's memory goes on from what is left of the data."""


def sections(run: Run, folder: Path) -> list[Section]:
    """One section; none where the tables are not there.

    Args:
        run: the run.
        folder: its results.
    """
    shown = {"retrain": tables.REMOVALS, "retrain_controls": tables.REMOVAL_CONTROLS, "retrain_tail": tables.PATCHES}
    items = [
        page.typed_table(_distance_first(results.read_table(folder, name, kind)), kind, run.corpus.vocab, fold=12)
        for name, kind in shown.items()
        if results.has_table(folder, name)
    ]
    return [Section("Retrained without credited data", LEAD, items)] if items else []


def _distance_first(table: pl.DataFrame) -> pl.DataFrame:
    """How far an effect lies from chance stands beside it, where a narrow page has room."""
    distance = [name for name in ("control", "SDs", "SDs low", "SDs high") if name in table.columns]
    at = table.columns.index("effect") + 1
    return table.select(*table.columns[:at], *distance, *(name for name in table.columns[at:] if name not in distance))
