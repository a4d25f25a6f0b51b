"""What attention heads attend to, as a table: a row for each pattern, head and snapshot."""

from typing import Any, NamedTuple

import polars as pl

from devinterp_func.credit.patterns import HeadAttention
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table, frame

HEADS = Table(
    "What each head attends to at every snapshot.",
    "heads.py",
    {
        "pattern": Column(NAME, "which keys are marked"),
        "head": Column(NAME, "layer and head, from 0"),
        "step": Column(INT, "before which the weights were looked at"),
        "queries": Column(INT, "that have a marked key"),
        "attention": Column(FLOAT, "to the marked keys, mean over these queries"),
        "by distance": Column(FLOAT, "to keys at the same distances, from other queries", control=True),
        "above": Column(FLOAT, "attention less its control"),
    },
    ("pattern", "head", "step"),
)


def head_rows(pattern: str, step: int, found: HeadAttention) -> list[dict[str, Any]]:
    """Rows of ``HEADS`` of all heads at a snapshot; no control where every query has a marked key.

    Args:
        pattern: its name.
        step: before which the weights are.
        found: of ``patterns.attention``.
    """
    n_layers, n_heads = found.value.shape
    rows = []
    for layer in range(n_layers):
        for head in range(n_heads):
            value, control, above = (float(x[layer, head]) for x in (found.value, found.control, found.above()))
            row = {"pattern": pattern, "head": f"{layer}.{head}", "step": step, "queries": found.queries}
            row |= {"attention": value, "by distance": control if control == control else None, "above": above}
            rows.append(row)
    return rows


def head_frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """The table of ``head_rows``."""
    return frame(HEADS, rows)


def farthest_heads(table: pl.DataFrame, step: int, most: int) -> pl.DataFrame:
    """Of each pattern the heads farthest above their control at a snapshot."""
    at = table.filter(pl.col("step") == step).sort("above", descending=True)
    return at.group_by("pattern", maintain_order=True).head(most)


class Rise(NamedTuple):
    """A head that came to attend to a pattern, between two snapshots."""

    pattern: str
    head: str
    start: int
    stop: int
    above: float  # how much farther above its control it is at the later one


def largest_rise(table: pl.DataFrame, steps: int) -> Rise | None:
    """Of all heads and patterns with a control, the largest rise above it between snapshots so many steps apart.

    Args:
        table: of ``HEADS``.
        steps: the most that may lie between the two; of equal rises the earliest and shortest.

    Returns:
        None where no two snapshots are so near each other, or no head with a control rises.
    """
    known = table.filter(pl.col("by distance").is_not_null()).select("pattern", "head", "step", "above")
    pairs = known.join(known, on=["pattern", "head"], suffix=" later").filter(
        pl.col("step later").is_between(pl.col("step") + 1, pl.col("step") + steps)
    )
    rises = pairs.with_columns(rise=pl.col("above later") - pl.col("above")).filter(pl.col("rise") > 0)
    for row in rises.sort("rise", "step", "step later", descending=[True, False, False]).head(1).iter_rows(named=True):
        return Rise(row["pattern"], row["head"], row["step"], row["step later"], row["rise"])
    return None
