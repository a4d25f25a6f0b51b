"""Frames as HTML tables."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import polars as pl
from markupsafe import Markup

from devinterp_func.show import schema, words
from devinterp_func.show._written import NONE, Format, formatter, is_missing, shown, writer
from devinterp_func.show.page._links import Links, fits, mention
from devinterp_func.show.page._templates import block
from devinterp_func.show.page._types import Cell, Column
from devinterp_func.show.schema import Table
from devinterp_func.text import Vocab

CHIPS = 10  # of a list, shown at first
MIDDLE, LONG = 24, 60  # characters from which on a column of texts is wider, and wide
CLAMPED = 110  # characters from which on a text takes more than the three lines of a row
LINES, NARROW_LINE, WIDE_LINE = 3, 23, 41  # of a row; characters of a line of chips where there are few, and many
MANY, PADDING = 5, 2.5  # chips from which on their column is wide; characters that a chip takes besides its own


def table(
    frame: pl.DataFrame,
    caption: str = "",
    formats: Mapping[str, Format] | None = None,
    tips: Mapping[str, str] | None = None,
    controls: Collection[str] = (),
    bars: Collection[str] = (),
    fold: int | None = 20,
    links: Links | None = None,
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
        links: where a neuron, datum, step, head or probe leads (``schema.SUBJECTS``: by the column's name); without it
            ``page`` settles that.

    Raises:
        ValueError: a column is named that the frame lacks.

    >>> str(table(pl.DataFrame({"token": ["<unk>"], "p": [0.25]}), formats={"p": ".0%"})).count("&lt;unk&gt;")
    1
    """
    subjects = {s.name: (kind, s.to_list()) for s in frame if (kind := schema.subject(s.name))}
    return _table(frame, caption, formats or {}, tips or {}, controls, bars, fold, subjects, links)


def typed_table(
    frame: pl.DataFrame,
    kind: Table,
    vocab: Vocab | None,
    caption: str | None = None,
    columns: Sequence[str] | None = None,
    bars: Collection[str] = (),
    fold: int | None = 20,
    links: Links | None = None,
) -> Markup:
    """A frame of ``schema.frame`` as ``table`` shows it: ids in words, meanings, formats and controls as its kind says.

    Args:
        frame: its rows.
        kind: what its columns are; columns that it does not know are shown as they are.
        vocab: of ``words.spell``.
        caption: in place of the kind's.
        columns: those to show, in order; by default all.
        bars, fold: of ``table``.
        links: of ``table``; also of tokens, by their ids.
    """
    chosen = frame if columns is None else frame.select(columns)
    of = {name: what for name in chosen.columns if (what := schema.subject(name, kind.columns.get(name)))}
    subjects = {name: (what, chosen[name].to_list()) for name, what in of.items()}
    shown_frame = words.spell(chosen, kind, vocab)
    known = {name: kind.columns[name] for name in shown_frame.columns if name in kind.columns}
    formats: dict[str, Format] = {name: column.format for name, column in known.items() if column.format}
    tips = {name: column.meaning for name, column in known.items() if column.meaning}
    controls = [name for name, column in known.items() if column.control]
    said = kind.caption if caption is None else caption
    return _table(shown_frame, said, formats, tips, controls, bars, fold, subjects, links)


def _table(
    frame: pl.DataFrame,
    caption: str,
    formats: Mapping[str, Format],
    tips: Mapping[str, str],
    controls: Collection[str],
    bars: Collection[str],
    fold: int | None,
    subjects: Mapping[str, tuple[str, list[Any]]],
    links: Links | None,
) -> Markup:
    """``table`` with what the values of some columns name: (kind, what each row's value stands for)."""
    _require_columns(frame, formats=formats, tips=tips, controls=controls, bars=bars)
    columns = []
    for series in frame:
        cells = _cells(series, formats.get(series.name), series.name in bars)
        if series.name in subjects:
            kind, values = subjects[series.name]
            cells = [_named(cell, kind, value, links) for cell, value in zip(cells, values, strict=True)]
        columns.append(Column(series.name, tips.get(series.name, ""), _look(series, series.name in controls), cells))
    return block("table", caption=caption, columns=columns, height=frame.height, fold=fold or frame.height)


def _look(series: pl.Series, control: bool) -> str:
    """CSS classes of a column."""
    longest = max((len(text) for text in series if text is not None), default=0) if series.dtype == pl.String else 0
    size = "long" if longest > LONG else "middle" if longest > MIDDLE else ""
    wide = series.dtype == pl.List and _line(series) == WIDE_LINE
    return " ".join(
        ["number"] * series.dtype.is_numeric() + [size] * bool(size) + ["many"] * wide + ["control"] * control
    )


def _cells(series: pl.Series, format_: Format | None, bar: bool) -> list[Cell]:
    write = writer(series) if format_ is None else formatter(format_)
    line = _line(series) if series.dtype == pl.List else 0
    cells = []
    for value in series.to_list():
        if isinstance(value, list):
            chips = [shown(v) for v in value]
            first = _first(chips, line)
            cells.append(Cell("", chips[:first], chips[first:]))
        elif is_missing(value):
            cells.append(Cell(NONE))
        else:
            text, share = write(value), min(max(float(value), 0.0), 1.0) if bar else None
            cells.append(Cell(text, share=share, clamped=len(text) > CLAMPED))
    return cells


def _line(lists: pl.Series) -> int:
    """Characters of a line of a column of chips, which is wide where there are many, or a long one."""
    chips = [list(map(shown, value)) for value in lists.to_list() if value is not None]
    wide = any(len(each) >= MANY or any(len(text) + PADDING > NARROW_LINE for text in each) for each in chips)
    return WIDE_LINE if wide else NARROW_LINE


def _first(chips: Sequence[str], line: int) -> int:
    """How many chips of a list are shown at first: all if they fit, else those that leave a line for the others."""
    if len(chips) <= CHIPS + 1 and _fitting(chips, line, LINES) == len(chips):
        return len(chips)
    return max(1, _fitting(chips[:CHIPS], line, LINES - 1))


def _fitting(chips: Sequence[str], line: int, lines: int) -> int:
    """How many chips fit in so many lines."""
    used, room = 1, float(line)
    for n, chip in enumerate(chips):
        size = len(chip) + PADDING
        if size > room:
            used, room = used + max(1, math.ceil(size / line)) - (room == line), float(line)
            size -= line * (math.ceil(size / line) - 1)
        if used > lines:
            return n
        room -= size
    return len(chips)


def _named(cell: Cell, kind: str, value: Any, links: Links | None) -> Cell:
    """A cell whose text, or whose chips, name something."""
    if not isinstance(value, list):
        return cell._replace(text=mention(kind, value, cell.text, links)) if fits(kind, value) else cell
    told = zip([*cell.chips, *cell.more], value, strict=True)
    chips = [mention(kind, one, text, links) if fits(kind, one) else text for text, one in told]
    return cell._replace(chips=chips[: len(cell.chips)], more=chips[len(cell.chips) :])


def _require_columns(frame: pl.DataFrame, **named: Collection[str]) -> None:
    for argument, names in named.items():
        for name in names:
            if name not in frame.columns:
                raise ValueError(f"{argument} names the column {name!r}; the frame has {', '.join(frame.columns)}")
