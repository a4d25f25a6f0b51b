"""Where the outliers lie, over training, by unit and by parameter: a section of a run's report, of ``attribute.py``."""

from pathlib import Path

import polars as pl
import torch

from devinterp_func import units
from devinterp_func.records import Run
from devinterp_func.show import _split_sections, page, plots, results, tables, words
from devinterp_func.show.drawing import NARROW, WIDE
from devinterp_func.show.page import Section

FREQUENT, HEAD = 5, 40  # of each unit the most frequent parameters; of the attribution table the first rows


def sections(run: Run, folder: Path) -> list[Section]:
    """One section; none where the tables are not there.

    Args:
        run: the run, of any data.
        folder: its results.
    """
    if not results.has_table(folder, "outlier_units"):
        return []
    vocab, shapes = words.vocab_of(run), run.shapes
    course, names = tables.read_course(results.read_table(folder, "outlier_course", tables.OUTLIER_COURSE))
    n_steps = int(course.edges[-1])
    heat = [plots.outliers_over_training(course.counts, names, n_steps, width=width) for width in (WIDE, NARROW)]
    counts = results.read_arrays(folder, "outliers", "attribute.py")["by_parameter"]
    curves: dict[str, list[torch.Tensor]] = {}
    for unit, part in units.split(counts, shapes).items():
        curves.setdefault(units.kind(unit), []).append(part)
    by_kind = {kind: torch.cat(parts) for kind, parts in curves.items()}
    concentration = [plots.concentration(by_kind, width) for width in (WIDE, NARROW)]
    by_unit = results.read_table(folder, "outlier_units", tables.OUTLIER_UNITS)
    n_epochs = max(map(len, by_unit["by epoch"].to_list()), default=0)
    epochs = [pl.col("by epoch").list.get(i).alias(f"epoch {i}") for i in range(n_epochs)]
    shown = by_unit.select(pl.exclude("by epoch"), *epochs)
    head = results.read_table(folder, "attribution", tables.ATTRIBUTION)
    frequent = results.read_table(folder, "parameters", tables.PARAMETERS)
    frequent = frequent if run.is_text else frequent.drop("notable tokens")
    items = [
        page.figure(heat[0], "Share of each bin's outliers by unit, over training.", "Heat map", narrow=heat[1]),
        page.typed_table(shown, tables.OUTLIER_UNITS, vocab, "Outliers by unit and epoch.", bars=["share"]),
        page.figure(
            concentration[0],
            "Outliers of each parameter, most frequent first, by kind of unit.",
            "Log-log curves",
            narrow=concentration[1],
        ),
        page.details(
            "The most frequent parameters, and the attribution table's first rows",
            page.typed_table(frequent.group_by("unit", maintain_order=True).head(FREQUENT), tables.PARAMETERS, vocab),
            page.typed_table(head.head(HEAD), tables.ATTRIBUTION, vocab),
        ),
    ]
    lead = f"The weights that each datum moved most. {_split_sections.present_words(run, folder)}".strip()
    return [Section("Outliers", lead, items)]
