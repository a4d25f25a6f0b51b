"""Outliers as tables: the post's attribution table, and where they lie by unit, by parameter and over training."""

import math
from collections.abc import Iterable, Sequence

import polars as pl
import torch
from jaxtyping import Int
from torch import Tensor

from devinterp_func import units
from devinterp_func.neurons import OutlierCourse, OutlierRows
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table, frame, tokens
from devinterp_func.units import Shapes

SCRIPT = "attribute.py"
ATTRIBUTION = Table(
    "The attribution table's first rows (the post's Table 1), one an outlier.",
    SCRIPT,
    {
        "epoch": Column(INT, "from 0"),
        "batch": Column(INT, "of the epoch, from 0"),
        "datum in batch": Column(INT, "row of the batch, from 0"),
        "unit": Column(NAME),
        "flat index": Column(INT, "of the weight in its unit, row after row"),
        "delta": Column(FLOAT, "what the datum added to the weight"),
        "|delta|": Column(FLOAT),
        "datum": Column(INT, "its id: row of the training data"),
        "token position": Column(INT, "in the datum, where most of the delta comes from"),
    },
)
OUTLIER_UNITS = Table(
    "Outliers by unit.",
    SCRIPT,
    {
        "unit": Column(NAME),
        "weights": Column(INT, "of the unit"),
        "outliers": Column(INT),
        "share": Column(FLOAT, "of all outliers", format=".1%"),
        "outliers per weight": Column(FLOAT),
        "by epoch": Column(pl.List(pl.Int64), "outliers in each epoch, from epoch 0 on"),
    },
)
OUTLIER_COURSE = Table(
    "Outliers over training.",
    SCRIPT,
    {
        "first step": Column(INT, "of the bin"),
        "stop": Column(INT, "the first step after the bin"),
        "unit": Column(NAME),
        "outliers": Column(INT),
    },
)
PARAMETERS = Table(
    "The parameters that were outliers most often, of each unit.",
    SCRIPT,
    {
        "unit": Column(NAME),
        "flat index": Column(INT, "of the weight in its unit, row after row"),
        "outliers": Column(INT),
        "notable tokens": tokens("of the data that moved the weight, by the univariate heuristic"),
    },
)


def attribution_frame(rows: OutlierRows, shapes: Shapes) -> pl.DataFrame:
    """A row for each outlier, by step and datum.

    Args:
        rows: of ``neurons.outlier_rows``.
        shapes: the captured units.
    """
    unit, flat = units.places(shapes, rows.parameter)
    columns = {
        "epoch": rows.epoch.tolist(),
        "batch": rows.batch.tolist(),
        "datum in batch": rows.row.tolist(),
        "unit": _names(unit, shapes),
        "flat index": flat.tolist(),
        "delta": rows.delta.tolist(),
        "|delta|": rows.delta.abs().tolist(),
        "datum": rows.datum.tolist(),
        "token position": rows.position.tolist(),
    }
    return frame(ATTRIBUTION, columns)


def outlier_unit_frame(counts: Int[Tensor, "E P"], shapes: Shapes) -> pl.DataFrame:
    """Outliers of each unit: in all, as a share, per weight, and by epoch.

    Args:
        counts: of ``neurons.outlier_counts``.
        shapes: the captured units.
    """
    everything = max(1, int(counts.sum()))
    rows = []
    for unit, part in units.split(counts, shapes).items():
        weights, outliers = math.prod(shapes[unit]), int(part.sum())
        row = {"unit": unit, "weights": weights, "outliers": outliers, "share": outliers / everything}
        rows.append(row | {"outliers per weight": outliers / weights, "by epoch": part.sum(1).tolist()})
    return frame(OUTLIER_UNITS, rows)


def outlier_course_frame(course: OutlierCourse, shapes: Shapes) -> pl.DataFrame:
    """Outliers by bins of steps and unit.

    Args:
        course: of ``neurons.outliers_over_training``.
        shapes: the captured units.
    """
    edges = course.edges.tolist()
    rows = [
        {"first step": first, "stop": stop, "unit": unit, "outliers": outliers}
        for first, stop, counts in zip(edges, edges[1:], course.counts.tolist(), strict=False)
        for unit, outliers in zip(shapes, counts, strict=True)
    ]
    return frame(OUTLIER_COURSE, rows)


def read_course(table: pl.DataFrame) -> tuple[OutlierCourse, list[str]]:
    """The course that ``outlier_course_frame`` wrote, and its units in order."""
    names = table["unit"].unique(maintain_order=True).to_list()
    firsts = table["first step"].unique(maintain_order=True).to_list()
    edges = torch.tensor([*firsts, table["stop"].max() or 0])
    return OutlierCourse(edges, torch.tensor(table["outliers"].to_list()).view(len(firsts), len(names))), names


def parameter_frame(
    parameters: Int[Tensor, "m"], counts: Int[Tensor, "P"], shapes: Shapes, notable: Sequence[Iterable[int]]
) -> pl.DataFrame:
    """Parameters, how often they were outliers, and their notable tokens.

    Args:
        parameters: their numbers.
        counts: outliers of every parameter.
        shapes: the captured units.
        notable: token ids of each.
    """
    unit, flat = units.places(shapes, parameters)
    columns = {
        "unit": _names(unit, shapes),
        "flat index": flat.tolist(),
        "outliers": counts[parameters].tolist(),
        "notable tokens": [[int(i) for i in ids] for ids in notable],
    }
    return frame(PARAMETERS, columns)


def _names(unit: Int[Tensor, "m"], shapes: Shapes) -> list[str]:
    names = list(shapes)
    return [names[i] for i in unit.tolist()]
