"""Frames as tables for a terminal: columns that do not fit beside the first one come below; nothing is cut off."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import polars as pl
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from devinterp_func.show._written import LEAST_P, Format, formatter, is_missing, literal

NARROWEST = 24  # characters, of a column whose text may be folded
GAP = 3  # between columns


class Column(NamedTuple):
    """A column of a ``Columns``: its header, its cells, and how it is set."""

    name: str
    cells: Sequence[str]
    is_number: bool

    @property
    def least(self) -> int:
        """Characters that it needs at least."""
        longest = max(map(cell_len, [*self.cells, *self.name.split()]), default=1)
        return max(1, longest if self.is_number else min(longest, NARROWEST))

    @property
    def most(self) -> int:
        """Characters that it takes where there is room."""
        return max(self.least, *map(cell_len, [*self.cells, self.name]))


class Columns(NamedTuple):
    """A table that loses nothing on a narrow terminal: what does not fit beside the first column comes below.

    Texts are folded, never cut; numbers stay whole.
    """

    title: str
    columns: Sequence[Column]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        for number, part in enumerate(self.parts(options.max_width)):
            table = Table(title=Text(literal(self.title)) if not number else None, title_justify="left")
            table.box, table.pad_edge, table.show_edge = box.SIMPLE_HEAD, False, False
            spare = options.max_width - _width(part)
            for column in part:
                given = min(spare, column.most - column.least)
                spare -= given
                justify: Literal["right", "left"] = "right" if column.is_number else "left"
                header, width = Text(literal(column.name)), column.least + given
                table.add_column(header, justify=justify, overflow="fold", width=width)
            for cells in zip(*(column.cells for column in part), strict=True):
                table.add_row(*map(Text, cells))
            yield table

    def parts(self, width: int) -> list[list[Column]]:
        """The columns side by side as far as they fit, the first one in each part."""
        first, *others = self.columns
        parts = [[first]]
        for column in others:
            if _width([*parts[-1], column]) > width and len(parts[-1]) > 1:
                parts.append([first])
            parts[-1].append(column)
        return parts


def rich_table(
    frame: pl.DataFrame,
    title: str = "",
    rows: int = 20,
    width: int = 40,
    formats: Mapping[str, Format] | None = None,
) -> Columns:
    """A frame's first rows, in words.

    Args:
        frame: its column names are the header.
        title: above it.
        rows: how many rows; where there are more, the title says so.
        width: characters of a text; longer ones are cut between words, so that a name stays whole.
        formats: column -> format; a column without one gets three significant digits.
    """
    more = f" (the first {rows:,} of {frame.height:,} rows)" if frame.height > rows else ""
    columns = []
    for series in frame.head(rows):
        written = (formats or {}).get(series.name)
        cells = ["" if is_missing(v) else _cell(v, width, written) for v in series.to_list()]
        columns.append(Column(series.name, cells, series.dtype.is_numeric()))
    return Columns(title + more, columns)


def _cell(value: object, width: int, format_: Format | None) -> str:
    words = [_value(v, None) for v in value] if isinstance(value, list) else _value(value, format_).split(" ")
    text, taken = literal(" ".join(words)), 1
    if len(text) <= width:
        return text
    while taken < len(words) and len(" ".join(words[: taken + 1])) < width:
        taken += 1
    return literal(" ".join(words[:taken]) + "…" * (taken < len(words)))


def _value(value: object, format_: Format | None) -> str:
    """A value in characters that every stream takes."""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float) and format_ in (None, "p"):
        return f"< {LEAST_P:.0e}" if format_ == "p" and value < LEAST_P else f"{value:.3g}"
    if format_ is not None:
        return formatter(format_)(value).replace("−", "-")
    return f"{value:,}" if isinstance(value, int) else str(value)


def _width(part: Sequence[Column]) -> int:
    return sum(column.least + GAP for column in part) - GAP
