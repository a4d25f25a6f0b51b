"""What the blocks of a page are made of."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import polars as pl
from markupsafe import Markup


class Section(NamedTuple):
    """A part of the page with an entry in its table of contents."""

    title: str
    lead: str = ""  # see ``prose``
    items: Sequence[Markup] = ()


class Word(NamedTuple):
    """A token of an excerpt; with ``after`` it is marked as ( text | after )."""

    text: str
    value: float = 0.0  # in [-1, 1]: how deep its background is
    after: str | None = None


class Excerpt(NamedTuple):
    """Tokens in their order, and where they are from."""

    words: Sequence[Word]
    source: str = ""


class Chip(NamedTuple):
    """A token by itself."""

    text: str
    flipped: bool = False  # marked, for ablation bears it out
    tip: str = ""


class Card(NamedTuple):
    """What there is to know about a neuron."""

    title: str
    facts: Mapping[str, object] = {}
    tokens: Sequence[Chip] = ()
    excerpts: Sequence[Excerpt] = ()
    flips: pl.DataFrame | None = None
    control: pl.DataFrame | None = None  # the same table without the attribution


class Cell(NamedTuple):
    """A table's cell as it is shown."""

    text: str
    chips: Sequence[str] = ()
    more: Sequence[str] = ()  # chips that a reader asks for
    share: float | None = None  # of the cell's width that a bar behind the text fills
    clamped: bool = False  # too long for three lines: the rest opens


class Column(NamedTuple):
    """A table's column as it is shown."""

    name: str
    tip: str
    look: str  # CSS classes
    cells: Sequence[Cell]
