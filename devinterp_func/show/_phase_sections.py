"""The phases of a training as a section of a run's report, from ``phases.py``."""

import os
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import torch
from markupsafe import Markup
from matplotlib.figure import Figure

from devinterp_func import credit
from devinterp_func.credit import Course
from devinterp_func.records import Run
from devinterp_func.show import page, plots, results, tables, words
from devinterp_func.show._written import literal
from devinterp_func.show.drawing import NARROW, WIDE
from devinterp_func.show.page import Section
from devinterp_func.stats import Points
from devinterp_func.text import Vocab

LEAD = (
    "How much the data of a step did, how they agree, what can be predicted by then; change points, and what they are "
    "worth. Past and decay, where the optimizer remembers or decays, are left out of these measures."
)
RAW = ("windows", "snapshots")  # tables that others sum up
DRAWN = (
    (tables.LOSSES, "loss, nats", "Losses of classes of positions"),
    (("effective sample size",), "share of all data", "Effective sample size of a window's steps"),
)


def sections(run: Run, folder: Path) -> list[Section]:
    """One section; none where the tables are not there.

    Args:
        run: the run, whose figures are drawn.
        folder: its results.
    """
    if not results.has_table(folder, "phases_windows"):
        return []
    windows = results.read_table(folder, "phases_windows", tables.WINDOWS)
    changes = results.read_table(folder, "phases_changes", tables.CHANGES)
    label = label_of(run, windows["run"].unique(maintain_order=True).to_list())
    chosen = pl.col("run") == label
    items = figures(windows.filter(chosen), changes.filter(chosen), run.steps_per_epoch)
    for name, kind in tables.PHASE_TABLES.items():
        if name not in RAW and results.has_table(folder, f"phases_{name}"):
            table = results.read_table(folder, f"phases_{name}", kind)
            table = with_text(table, run) if name == "makers" else table
            items.append(page.typed_table(table, kind, run.corpus.vocab, fold=12))
    return [Section("Phases", LEAD, items)]


def label_of(run: Run, labels: Sequence[str]) -> str:
    """The label that ends the run's path, the last written of several; else the first.

    Args:
        run: the run.
        labels: of ``tables.run_labels``, at least one.
    """
    path = os.path.realpath(run).replace(os.sep, "/")
    return next((label for label in reversed(labels) if f"/{path}".endswith(f"/{label}")), labels[0])


def figures(windows: pl.DataFrame, changes: pl.DataFrame, per_epoch: int | None = None) -> list[Markup]:
    """Losses of the classes and how many data make the steps, with the change points of all measures.

    Args:
        windows, changes: of one run.
        per_epoch: steps of an epoch, to mark epochs.
    """
    marks = change_steps(changes)
    drawn = []
    for names, label, caption in DRAWN:
        wide, narrow = (course_figure(windows, names, label, marks, per_epoch, width) for width in (WIDE, NARROW))
        below = f"{caption}; dotted, the change points of all measures together."
        drawn.append(page.figure(wide, below, f"{caption} over training", narrow))
    return drawn


def change_steps(changes: pl.DataFrame) -> list[float]:
    """The change points of all measures together, of one run."""
    [steps] = changes.filter(pl.col("series") == credit.ALL)["at steps"].to_list()
    return [float(step) for step in steps]


def course_figure(
    windows: pl.DataFrame,
    names: Sequence[str],
    label: str,
    marks: Sequence[float],
    per_epoch: int | None = None,
    width: float | int = WIDE,
) -> Figure:
    """Some measures of all units together over training.

    Args:
        windows: of one run.
        names: of the measures.
        label: of the values' axis.
        marks: steps to mark.
        per_epoch: steps of an epoch.
        width: inches.
    """
    whole = windows.filter(pl.col("units") == credit.ALL)
    series = {name: (whole["step"].to_torch(), whole[name].to_torch()) for name in names}
    return plots.lines(series, label, per_epoch, False, width, marks)


def step_figures(
    windows: pl.DataFrame, course: Course, points: Points, per_epoch: int | None = None
) -> dict[str, Figure]:
    """By file name: the losses of the classes, and the measures of steps on one scale, with the change points.

    Args:
        windows: of one run.
        course, points: what was cut, and where.
        per_epoch: steps of an epoch, to mark epochs.
    """
    marks, step, values = points.tolist(), torch.from_numpy(course.step).long(), torch.from_numpy(course.values)
    rest = {name: (step, values[:, i]) for i, name in enumerate(course.names) if name not in tables.LOSSES}
    return {
        "phases_losses": course_figure(windows, tables.LOSSES, "loss, nats", marks, per_epoch),
        "phases_steps": plots.lines(rest, "measure, standardised", per_epoch, marks=marks),
    }


def with_text(makers: pl.DataFrame, run: Run) -> pl.DataFrame:
    """The text of each phase's largest datum, and the units with their shares in one cell."""
    vocab: Vocab = run.corpus.vocab
    texts = [
        literal(words.words(run.data.tokens[datum].tolist(), vocab)) for datum in makers["largest datum"].to_list()
    ]
    pairs = zip(makers["units"].to_list(), makers["shares of the units"].to_list(), strict=True)
    shares = [[f"{unit} {share:.0%}" for unit, share in zip(*pair, strict=True)] for pair in pairs]
    told = makers.with_columns(
        pl.Series("units", shares, dtype=pl.List(pl.String)), pl.Series("its text", texts, dtype=pl.String)
    )
    return told.drop("shares of the units")
