"""What a table holds: its columns' types and meaning, told once, for the file, the terminal and the page.

Tables hold ids and numbers. A column of token ids is marked as one, and becomes words where a person reads
(``words.spell``). A table without rows keeps its columns and their types.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import polars as pl

INT, FLOAT, BOOL, NAME = pl.Int64(), pl.Float64(), pl.Boolean(), pl.String()
IDS = pl.List(pl.Int64)
SUBJECTS = {  # column -> what its values name, whichever table it is in: a page may tell more of each
    "neuron": "neuron",
    "datum": "datum",
    "largest datum": "datum",
    "step": "step",
    "head": "head",
    "probe": "probe",
}


class Column(NamedTuple):
    """A column."""

    dtype: pl.DataType | type[pl.DataType]
    meaning: str = ""  # shown where the header is pointed at
    token: bool = False  # holds ids of tokens, one or a list
    format: str | None = None  # a format specification such as ".1%", or "p" for a p-value
    control: bool = False  # what the others are held against
    subject: str | None = None  # what its values name, such as "datum"; by default as ``subject`` says


class Table(NamedTuple):
    """A kind of table."""

    caption: str
    script: str  # that writes it, such as "attribute.py"
    columns: Mapping[str, Column]
    key: tuple[str, ...] = ()  # columns that tell rows apart: new rows take the place of old ones with the same


def token(meaning: str = "") -> Column:
    """A column of token ids."""
    return Column(INT, meaning, token=True)


def tokens(meaning: str = "") -> Column:
    """A column of lists of token ids."""
    return Column(IDS, meaning, token=True)


def subject(name: str, column: Column | None = None) -> str | None:
    """What a column's values name: a neuron, datum, step, token, head or probe; None where they name nothing.

    Args:
        name: of the column.
        column: what its table says of it.

    >>> subject("neuron"), subject("output", token("after it")), subject("delta")
    ('neuron', 'token', None)
    """
    if column is not None and (column.subject or column.token):
        return column.subject or "token"
    return SUBJECTS.get(name)


def frame(table: Table, rows: Iterable[Mapping[str, Any]] | Mapping[str, Any]) -> pl.DataFrame:
    """A frame of a table's columns, in their order and types, also without rows.

    Args:
        table: the kind of table.
        rows: a mapping a row, or a sequence a column.

    Raises:
        ValueError: the columns are others than the table's, or a value is not of its column's type.

    >>> frame(Table("", "", {"step": Column(INT), "loss": Column(FLOAT)}), [])
    shape: (0, 2)
    ┌──────┬──────┐
    │ step ┆ loss │
    │ ---  ┆ ---  │
    │ i64  ┆ f64  │
    ╞══════╪══════╡
    └──────┴──────┘
    """
    schema = {name: column.dtype for name, column in table.columns.items()}
    columns = dict(rows) if isinstance(rows, Mapping) else _columns(list(rows), list(schema))
    if wrong := columns.keys() ^ schema.keys():
        raise ValueError(f"the columns {sorted(wrong)} are missing or unknown; the table has {list(schema)}")
    return pl.DataFrame([_typed(name, columns[name], dtype) for name, dtype in schema.items()])


def require(found: pl.DataFrame, table: Table, where: object) -> None:
    """Refuses a frame whose columns are others than the table's.

    Raises:
        ValueError: naming the columns that differ.
    """
    wanted = pl.Schema({name: column.dtype for name, column in table.columns.items()})
    if dict(found.schema) != dict(wanted):
        differing = sorted(n for n in {*found.columns, *wanted} if found.schema.get(n) != wanted.get(n))
        raise ValueError(f"{where}: the columns {differing} are not as this version writes them")


def _typed(name: str, values: Any, dtype: Any) -> pl.Series:
    """A column; polars would make null, or a whole number, of what does not fit."""
    plain = [_plain(value) for value in values]
    column = pl.Series(name, plain, dtype=dtype, strict=False)
    lost = [v for v, kept in zip(plain, column.to_list(), strict=True) if not _same(v, kept)]
    if lost:
        raise ValueError(f"{name!r} holds {column.dtype}; {lost[0]!r} is not one")
    return column


def _plain(value: Any) -> Any:
    """A number of torch or numpy, or a list of them, as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


def _same(value: Any, kept: Any) -> bool:
    if isinstance(kept, list) and hasattr(value, "__len__"):
        return len(kept) == len(value) and all(_same(a, b) for a, b in zip(value, kept, strict=True))
    return value is kept or value == kept or value != value  # NaN is none of both


def _columns(rows: list[Mapping[str, Any]], names: list[str]) -> dict[str, list[Any]]:
    if not rows:
        return {name: [] for name in names}
    if wrong := [row for row in rows if row.keys() != rows[0].keys()]:
        raise ValueError(f"a row has the columns {list(wrong[0])}, another {list(rows[0])}; all must have the same")
    return {name: [row[name] for row in rows] for name in rows[0]}
