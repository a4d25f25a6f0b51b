"""Frames as HTML tables."""

from collections.abc import Collection, Mapping, Sequence

import polars as pl
from markupsafe import Markup

from devinterp_func.show import words
from devinterp_func.show._written import NONE, Format, formatter, is_missing, shown, writer
from devinterp_func.show.page._templates import block
from devinterp_func.show.page._types import Cell, Column
from devinterp_func.show.schema import Table
from devinterp_func.text import Vocab

CHIPS = 10  # of a list, shown at first
LONG = 60  # characters from which on a column of texts is wide


def table(
    frame: pl.DataFrame,
    caption: str = "",
    formats: Mapping[str, Format] | None = None,
    tips: Mapping[str, str] | None = None,
    controls: Collection[str] = (),
    bars: Collection[str] = (),
    fold: int | None = 20,
) -> Markup:
    """A frame; numbers to the right in three significant digits, a list's elements as chips, no value as –.

    Args:
        frame: its column names are the header.
        caption: above it; ``prose``.
        formats: column -> format; a column without one gets as many decimals as its largest value needs, and more
            where its least would read 0.
        tips: column -> what it means, shown at the header and listed below.
        controls: columns set apart as controls.
        bars: columns of values in [0, 1] with a bar behind each.
        fold: rows shown at first; None for all.

    Raises:
        ValueError: a column is named that the frame lacks.

    >>> str(table(pl.DataFrame({"token": ["<unk>"], "p": [0.25]}), formats={"p": ".0%"})).count("&lt;unk&gt;")
    1
    """
    formats, tips = formats or {}, tips or {}
    _require_columns(frame, formats=formats, tips=tips, controls=controls, bars=bars)
    columns = [
        Column(
            series.name,
            tips.get(series.name, ""),
            _look(series, series.name in controls),
            _cells(series, formats.get(series.name), series.name in bars),
        )
        for series in frame
    ]
    return block("table", caption=caption, columns=columns, height=frame.height, fold=fold or frame.height)


def typed_table(
    frame: pl.DataFrame,
    kind: Table,
    vocab: Vocab | None,
    caption: str | None = None,
    columns: Sequence[str] | None = None,
    bars: Collection[str] = (),
    fold: int | None = 20,
) -> Markup:
    """A frame of ``schema.frame`` as ``table`` shows it: ids in words, meanings, formats and controls as its kind says.

    Args:
        frame: its rows.
        kind: what its columns are; columns that it does not know are shown as they are.
        vocab: of ``words.spell``.
        caption: in place of the kind's.
        columns: those to show, in order; by default all.
        bars, fold: of ``table``.
    """
    shown_frame = words.spell(frame if columns is None else frame.select(columns), kind, vocab)
    known = {name: kind.columns[name] for name in shown_frame.columns if name in kind.columns}
    formats: dict[str, Format] = {name: column.format for name, column in known.items() if column.format}
    tips = {name: column.meaning for name, column in known.items() if column.meaning}
    controls = [name for name, column in known.items() if column.control]
    return table(shown_frame, kind.caption if caption is None else caption, formats, tips, controls, bars, fold)


def _look(series: pl.Series, control: bool) -> str:
    """CSS classes of a column."""
    long = series.dtype == pl.String and max((len(text) for text in series if text is not None), default=0) > LONG
    return " ".join(["number"] * series.dtype.is_numeric() + ["long"] * long + ["control"] * control)


def _cells(series: pl.Series, format_: Format | None, bar: bool) -> list[Cell]:
    write = writer(series) if format_ is None else formatter(format_)
    cells = []
    for value in series.to_list():
        if isinstance(value, list):
            chips = [shown(v) for v in value]
            first = CHIPS if len(chips) > CHIPS + 1 else len(chips)
            cells.append(Cell("", chips[:first], chips[first:]))
        elif is_missing(value):
            cells.append(Cell(NONE))
        else:
            cells.append(Cell(write(value), share=min(max(float(value), 0.0), 1.0) if bar else None))
    return cells


def _require_columns(frame: pl.DataFrame, **named: Collection[str]) -> None:
    for argument, names in named.items():
        for name in names:
            if name not in frame.columns:
                raise ValueError(f"{argument} names the column {name!r}; the frame has {', '.join(frame.columns)}")
