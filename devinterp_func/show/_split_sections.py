"""What moved the weights: present, past and decay as a section of a run's report, from ``attribute.py``'s table."""

from pathlib import Path

import polars as pl

from devinterp_func.records import Run
from devinterp_func.show import page, plots, results, tables, words
from devinterp_func.show.drawing import CYCLE, NARROW, WIDE
from devinterp_func.show.page import Section

TITLE = "What moved the weights"
LEAD = """Every change is the sum of what the step's own data did (present), of what data of earlier steps did through
the optimizer's memory (past), and of weight decay. A share is along the change: the part's inner product with the
change over the change's squared size. The three add up to 100 %; one that works against the change is negative."""
ALL_PRESENT = """All of every change is what the step's own data did (present): this optimizer remembers nothing, and
no weight decays."""
OVER = "Shares of the change of all weights together over training, in bins of steps."
BY_KIND = f"The present share of the {len(CYCLE)} kinds of units that changed most."
BY_UNIT = "All units, over the whole training."
KINDS = "Kinds of units, over the whole training."
ALL, NUMBERS = pl.lit("all").alias("kind"), pl.exclude("kind")


def sections(run: Run, folder: Path) -> list[Section]:
    """One section; none where there is something to show, and no table of it.

    Args:
        run: the run.
        folder: its results.
    """
    optimizer = words.training_words(run.manifest["recipe"])
    if words.all_is_present(run.manifest["recipe"]):
        return [Section(TITLE, f"{ALL_PRESENT} Trained with {optimizer}.")]
    if not results.has_table(folder, "split_course"):
        return []
    course = tables.with_kinds(results.read_table(folder, "split_course", tables.SPLIT_COURSE))
    items = []
    for (name, series), caption in zip(_series(course).items(), (OVER, BY_KIND), strict=True):
        wide, narrow = (plots.lines(series, name, run.steps_per_epoch, width=width) for width in (WIDE, NARROW))
        items.append(page.figure(wide, caption, f"{name} over training", narrow))
    formats = {name: column.format for name, column in tables.SPLIT_SHARES.columns.items() if column.format}
    kinds = tables.split_shares(course, ["kind"])
    units = tables.split_shares(course, ["unit", "dimensions"])
    items.append(page.table(pl.concat([tables.split_shares(course, []).select(ALL, NUMBERS), kinds]), KINDS, formats))
    items.append(page.details("By unit", page.typed_table(units, tables.SPLIT_SHARES, None, BY_UNIT)))
    return [Section(TITLE, f"{LEAD} Trained with {optimizer}.", items)]


def _series(course: pl.DataFrame) -> dict[str, dict[str, plots.Series]]:
    """What the two figures show: name of the values -> series."""
    together = tables.split_shares(course, ["first step"])
    steps, filled = together["first step"].to_torch(), together.fill_null(float("nan"))
    parts = {part: (steps, filled[part].to_torch()) for part in tables.PARTS}
    most = tables.split_shares(course, ["kind"]).sort("change", descending=True)["kind"][: len(CYCLE)]
    shares, by_kind = tables.split_shares(course, ["kind", "first step"]), {}
    for kind in most:
        rows = shares.filter(pl.col("kind") == kind)
        by_kind[kind] = rows["first step"].to_torch(), rows["present"].fill_null(float("nan")).to_torch()
    return {"share of the change": parts, "present share": by_kind}


def present_words(run: Run, folder: Path) -> str:
    """What part of the change outliers, attributions and tallies read, for the section that begins with them."""
    if words.all_is_present(run.manifest["recipe"]):
        return ""
    said = "Outliers, attributions and tallies read present shares, what each step's own data did"
    if results.has_table(folder, "split_course"):
        course = results.read_table(folder, "split_course", tables.SPLIT_COURSE)
        captured = course.filter(pl.col("unit").is_in(list(run.shapes)))
        share = tables.split_shares(captured, [])["present"][0]
        said += f": {share:.1%} of the captured units' change, along it" if share is not None else ""
    return f"{said}. Past and decay are not in them."
