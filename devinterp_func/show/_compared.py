"""What every topic of a comparison of runs shares: a run's tables, cells, and steps that all runs have."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from devinterp_func.show import results
from devinterp_func.show._training_words import all_is_present
from devinterp_func.show.schema import Table

AT_MOST = 8  # steps at which a course is compared


class Side(NamedTuple):
    """One of the runs that are compared."""

    label: str
    folder: Path  # with its tables
    manifest: Mapping[str, Any]
    evaluations: pl.DataFrame | None  # of the run itself; None where only its results are there

    def has(self, name: str) -> bool:
        """Whether a table is there."""
        return results.has_table(self.folder, name)

    def read(self, name: str, kind: Table, columns: Sequence[str]) -> pl.DataFrame:
        """A table, of whatever version, as long as it has the columns that are compared.

        Raises:
            ValueError: it lacks some; the message names the script to run.
        """
        found = results.read_table(self.folder, name)
        if lacking := [column for column in columns if column not in found.columns]:
            raise ValueError(f"{self.folder / name}.parquet lacks {lacking}; run experiments/{kind.script} again")
        return found

    @property
    def all_is_present(self) -> bool:
        """Whether the optimizer neither remembers nor decays."""
        return all_is_present(self.manifest["recipe"])


class Cell(NamedTuple):
    """What a run's measure is."""

    value: float | None
    low: float | None
    high: float | None
    said: str


NOT_MEASURED = Cell(None, None, None, "not measured")


def cell(value: float | None, format_: str, control: float | None = None, extra: str = "") -> Cell:
    """A number, its control in brackets."""
    if value is None:
        return Cell(None, None, None, f"none{extra}")
    beside = "" if control is None else f" ({signed(control, format_)})"
    return Cell(float(value), None, None, f"{signed(value, format_)}{beside}{extra}")


def within(value: float | None, low: float | None, high: float | None, format_: str, extra: str = "") -> Cell:
    """A number and its interval."""
    if value is None or low is None or high is None:
        return cell(value, format_, extra=extra)
    ends = ", ".join(signed(end, format_) for end in (low, high))
    return Cell(float(value), float(low), float(high), f"{signed(value, format_)} [{ends}]{extra}")


def signed(value: float, format_: str) -> str:
    """A number with a true minus, and none before what rounds to 0."""
    text = format(value, format_).replace("%", " %")
    return text.replace("-", "−") if any(digit in text for digit in "123456789ni") else text.replace("-", "")


def common(
    those: Sequence[Side], name: str, kind: Table, where: pl.Expr, geometric: bool = False, most: int | None = AT_MOST
) -> list[int]:
    """Steps of a table that all runs which have it share, thinned, first and last among them.

    Args:
        those: the runs.
        name, kind: of the table, which has a column ``step``.
        where: which of its rows.
        geometric: more of them early.
        most: so many; None for all.
    """
    steps = [set(s.read(name, kind, ["step"]).filter(where)["step"]) for s in those if s.has(name)]
    shared = sorted(set.intersection(*steps)) if steps else []
    if most is None or len(shared) <= most:
        return shared
    if not geometric:
        return [shared[i] for i in np.linspace(0, len(shared) - 1, most).round().astype(int)]
    early = max(1, next(step for step in shared if step > 0))
    wanted = np.geomspace(early, shared[-1], most)
    return sorted({shared[int(np.abs(np.array(shared) - at).argmin())] for at in wanted})
