"""What each head attends to over training, and where that changed most: from the table that ``heads.py`` makes."""

from typing import NamedTuple

import polars as pl

from devinterp_func.show import tables
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table, frame

JUMPS = Table(
    "Between which snapshots it changed most.",
    "heads.py",
    {
        "pattern": Column(NAME),
        "from": Column(INT, "the snapshot before", subject="step"),
        "to": Column(INT, "the snapshot after", subject="step"),
        "before": Column(FLOAT, "attention above control"),
        "after": Column(FLOAT, "attention above control"),
        "change": Column(FLOAT),
    },
)


class Jump(NamedTuple):
    """A row of ``JUMPS``."""

    pattern: str
    start: int
    stop: int
    before: float
    after: float
    change: float


def head_course(site: Site, head: str | None = None) -> pl.DataFrame | None:
    """Attention on each pattern, its control, and how far above it, at all snapshots; None if no script measured it.

    Args:
        site: of ``open``.
        head: of this one; by default of all.
    """
    table = site.table("heads", tables.HEADS)
    return table if table is None or head is None else table.filter(pl.col("head") == head)


def head_jumps(site: Site, head: str) -> pl.DataFrame:
    """Of each pair of neighbouring snapshots the change of attention above control, largest first (type ``JUMPS``)."""
    rows, found = head_course(site, head), []
    for (pattern,), part in () if rows is None else rows.group_by("pattern", maintain_order=True):
        steps, above = part.sort("step").select("step", "above")
        for i in range(1, len(steps)):
            ends = {"before": above[i - 1], "after": above[i], "change": above[i] - above[i - 1]}
            found.append({"pattern": pattern, "from": steps[i - 1], "to": steps[i]} | ends)
    return frame(JUMPS, found).sort(pl.col("change").abs(), descending=True, maintain_order=True)


def heads_in_order(site: Site) -> pl.DataFrame | None:
    """Of each head and pattern the row of the snapshot at which it is farthest above its control.

    The farthest first; those that have no control come last. None if it was not measured.
    """
    rows = head_course(site)
    if rows is None:
        return None
    order = [pl.col("by distance").is_null(), -pl.col("above"), pl.col("step")]
    return rows.sort(order, maintain_order=True).unique(["pattern", "head"], keep="first", maintain_order=True)
