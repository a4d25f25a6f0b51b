"""What moved the weights, as tables: the parts of the units' changes over training; and losses on held-out data."""

from collections.abc import Mapping, Sequence

import polars as pl

from devinterp_func import units
from devinterp_func.records import SplitCourse
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table, frame

PARTS = ("present", "past", "decay")
VECTORS = "biases and norms"
MEANINGS = {
    "present": "what the step's own data did",
    "past": "what data of earlier steps did, through the optimizer's memory",
    "decay": "what weight decay did",
}
PRODUCTS = {
    part: Column(FLOAT, f"{said}: inner product with the change; the three add up to its squared size")
    for part, said in MEANINGS.items()
}
SIZES = {f"{part}: size": Column(FLOAT, "root mean square of its norm") for part in PARTS}
BIN = {"first step": Column(INT, "of the bin"), "stop": Column(INT, "the first step after the bin")}
UNIT = {"unit": Column(NAME), "dimensions": Column(INT, "of the unit: 2 is a matrix")}
SPLIT_COURSE = Table(
    "What the changes of all units were made of, over training: means over the steps of a bin.",
    "attribute.py",
    BIN | UNIT | PRODUCTS | SIZES,
)
SPLIT_SHARES = Table(
    "What the changes were made of.",
    "attribute.py",
    UNIT
    | {"change": Column(FLOAT, "of a step, root mean square of its norm")}
    | {part: Column(FLOAT, f"{MEANINGS[part]}: share along the change", format=".1%") for part in PARTS}
    | {f"{part} ÷ change": Column(FLOAT, "root mean squares of the norms", format=".2f") for part in PARTS},
)
EVALUATIONS = Table(
    "Losses on held-out data.",
    "attribute.py",
    {
        "step": Column(INT, "steps made"),
        "epochs": Column(FLOAT, "of training made"),
        "split": Column(NAME, "valid or test"),
        "loss": Column(FLOAT, "mean over positions, nats"),
    },
)


def split_course_frame(course: SplitCourse, dimensions: Mapping[str, int]) -> pl.DataFrame:
    """The parts of the units' changes by bins of steps.

    Args:
        course: of ``records.split_course``.
        dimensions: of all units of the model, in the record's order.
    """
    edges, sizes, along = (x.tolist() for x in (course.edges, *course.sizes))
    rows: list[dict[str, object]] = []
    for first, stop, size_of, along_of in zip(edges, edges[1:], sizes, along, strict=False):
        for (unit, ndim), size, products in zip(dimensions.items(), size_of, along_of, strict=True):
            row: dict[str, object] = {"first step": first, "stop": stop, "unit": unit, "dimensions": ndim}
            rows.append(row | dict(zip((*PRODUCTS, *SIZES), (*products, *size), strict=True)))
    return frame(SPLIT_COURSE, rows)


def split_shares(course: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Each part's share along the change, and its size beside the change's; rows put together weigh by their changes.

    Args:
        course: of ``split_course_frame``, or with further columns to group by, such as of ``with_kinds``.
        by: columns whose values tell groups apart; ``()`` puts everything together.

    Returns:
        ``by``, the change, three shares that add up to 1 (null where nothing changed), and three sizes ÷ the change's.
    """
    steps = pl.col("stop") - pl.col("first step")
    sums = [(pl.col(part) * steps).sum() for part in PARTS]
    squares = [(pl.col(f"{part}: size") ** 2 * steps).sum().alias(f"{part} ÷ change") for part in PARTS]
    many = steps.sum() / pl.col("unit").n_unique()  # steps that the rows are of
    grouped = course.group_by(*by, maintain_order=True).agg(*sums, *squares, many.alias("steps"))
    whole = pl.sum_horizontal(*PARTS)
    known = pl.when(whole > 0)
    return grouped.select(
        *by,
        (whole / pl.col("steps")).clip(0).sqrt().alias("change"),
        *(known.then(pl.col(part) / whole).alias(part) for part in PARTS),
        *(known.then((pl.col(f"{part} ÷ change") / whole).sqrt()).alias(f"{part} ÷ change") for part in PARTS),
    )


def with_kinds(course: pl.DataFrame) -> pl.DataFrame:
    """With a column ``kind``: what a matrix is in its layer; biases and norms are one kind."""
    kinds = {unit: units.kind(unit) for unit in course["unit"].unique()}
    named = pl.col("unit").replace_strict(kinds, return_dtype=pl.String)
    return course.with_columns(pl.when(pl.col("dimensions") < 2).then(pl.lit(VECTORS)).otherwise(named).alias("kind"))


def evaluation_frame(evaluations: Mapping[int, Mapping[str, float]], per_epoch: int) -> pl.DataFrame:
    """Losses on held-out data.

    Args:
        evaluations: steps made -> split -> loss in nats, of ``records.read_evaluations``.
        per_epoch: steps of an epoch.
    """
    rows = [
        {"step": step, "epochs": step / per_epoch, "split": split, "loss": loss}
        for step, losses in sorted(evaluations.items())
        for split, loss in losses.items()
    ]
    return frame(EVALUATIONS, rows)
