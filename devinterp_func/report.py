"""One self-contained HTML file for people: light and dark, on a desk, on a phone, on paper.

Every block is a pure function from plain values to ``Markup``, a piece of HTML that is safe to put together with
others; ``page`` makes the whole file of them. Nothing is loaded from elsewhere (the page forbids it to itself), nothing
depends on the time or the place, so equal input gives an equal file. Whatever is not ``Markup`` is escaped. The HTML is
in ``templates/``; figures are inline SVG with real text, in the colours of the page.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import polars as pl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from devinterp_func import drawing

Format = str | Callable[[Any], str]  # a format specification such as ".1%", or a function

NONE = "–"
INLINE = re.compile(r"`([^`]+)`|\[([^\[\]]+)\]\((https?://[^\s()<>&]+)\)")  # code, or a link; in escaped text
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # characters that HTML forbids


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
    share: float | None = None  # of the cell's width that a bar behind the text fills


class Column(NamedTuple):
    """A table's column as it is shown."""

    name: str
    tip: str
    look: str  # CSS classes
    cells: Sequence[Cell]


# ---- the page and its blocks


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole file.

    Args:
        title, subtitle: of the page; the subtitle may be ``prose``.
        sections: in order; the table of contents lists them.

    >>> html = page("A run", "of `linear2`", [Section("Tokens", "Which & why.", [note("None yet.")])])
    >>> "<code>linear2</code>" in html, "Which &amp; why." in html
    (True, True)
    """
    anchors: list[str] = []
    for section in sections:
        slug = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") or "section"
        anchors.append(next(name for i in count(1) if (name := f"{slug}-{i}" if i > 1 else slug) not in anchors))
    template = _templates().get_template("page.html.jinja")
    entries = list(zip(anchors, sections, strict=True))
    html = template.render(title=title, subtitle=subtitle, entries=entries, light=drawing.LIGHT, dark=drawing.DARK)
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", html)


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
            " ".join(["number"] * series.dtype.is_numeric() + ["control"] * (series.name in controls)),
            _cells(series, formats.get(series.name), series.name in bars),
        )
        for series in frame
    ]
    return _block("table", caption=caption, columns=columns, height=frame.height, fold=fold or frame.height)


def figure(picture: Figure, caption: str, alt: str, narrow: Figure | None = None) -> Markup:
    """A matplotlib figure as inline SVG in the page's colours.

    Args:
        picture: of ``plots`` or any other.
        caption: below it; ``prose``.
        alt: what it shows, for those who cannot see it.
        narrow: the same, drawn for a phone (``width=drawing.NARROW``); without it the figure scrolls there.
    """
    variants = [picture] if narrow is None else [picture, narrow]
    return _block("figure", drawings=[drawing.svg(one, alt) for one in variants], caption=caption)


def facts(values: Mapping[str, object]) -> Markup:
    """Tiles of a name and a value; a pair (value, remark) has the remark in small print.

    >>> "14,640" in facts({"steps": 14640, "loss": (4.912, "nats")})
    True
    """
    pairs = [(name, v if isinstance(v, tuple) else (v, "")) for name, v in values.items()]
    return _block("facts", values=[(name, shown(value), remark) for name, (value, remark) in pairs])


def excerpts(texts: Sequence[Excerpt], caption: str = "") -> Markup:
    """Text with each token's value as the depth of its background, and changed predictions as ( before | after ).

    Raises:
        ValueError: a value is not in [-1, 1].
    """
    for text in texts:
        for word in text.words:
            if not -1 <= word.value <= 1:
                raise ValueError(f"the value of {word.text!r} is {word.value}; it must be in [-1, 1]")
    return _block("excerpts", texts=texts, caption=caption)


def cards(
    neurons: Sequence[Card],
    headings: tuple[str, str] = ("Flips on attributed data", "Control: random data"),
    formats: Mapping[str, Format] | None = None,
    tips: Mapping[str, str] | None = None,
    bars: Collection[str] = (),
) -> Markup:
    """Cards of neurons: facts, notable tokens, excerpts, and the flip table with its control beside it.

    Args:
        neurons: in order.
        headings: of the two tables.
        formats, tips, bars: of the two tables, as in ``table``.
    """

    def flips(frame: pl.DataFrame | None, heading: str) -> Markup | None:
        return None if frame is None else table(frame, heading, formats, tips, bars=bars, fold=8)

    shown_cards = [
        dict(
            title=card.title,
            facts=facts(card.facts) if card.facts else "",
            tokens=card.tokens,
            excerpts=excerpts(card.excerpts) if card.excerpts else "",
            tables=[t for t in (flips(card.flips, headings[0]), flips(card.control, headings[1])) if t is not None],
        )
        for card in neurons
    ]
    return _block("cards", cards=shown_cards)


def note(text: str) -> Markup:
    """A remark set apart; ``prose``."""
    return _block("note", text=text)


def details(summary: str, *items: Markup) -> Markup:
    """Blocks that are hidden until the reader asks for them."""
    return _block("details", summary=summary, items=items)


def prose(text: str) -> Markup:
    """Paragraphs (separated by empty lines) with `code` and [links](https://...); everything else is literal.

    >>> prose("Zero `w`: [the post](https://example.org), a < b")
    Markup('<p>Zero <code>w</code>: <a href="https://example.org">the post</a>, a &lt; b</p>')
    """
    if isinstance(text, Markup):
        return text
    parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    return Markup("").join(Markup("<p>{}</p>").format(Markup(INLINE.sub(_inline, str(escape(part))))) for part in parts)


def _inline(found: re.Match[str]) -> str:
    code, words, address = found.groups()
    return f"<code>{code}</code>" if code else f'<a href="{address}">{words}</a>'


# ---- numbers


def shown(value: object) -> str:
    """A value as a person would write it.

    >>> [shown(v) for v in (292800000, 0.0123456, -3.2e-9, True, None, float("nan"))]
    ['292,800,000', '0.0123', '−3.2×10⁻⁹', '✓', '–', '–']
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if isinstance(value, bool):
        return "✓" if value else ""
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    """Three significant digits."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}".replace("-", "−").replace("inf", "∞")
    if 1e-4 <= abs(value) < 1e7:
        return f"{value:,.{_decimals(value)}f}".replace("-", "−")
    digits, power = f"{value:.1e}".split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{digits.replace('-', '−')}×10{raised}"


def _decimals(value: float) -> int:
    return max(0, 2 - math.floor(math.log10(abs(value))))


def _cells(series: pl.Series, format_: Format | None, bar: bool) -> list[Cell]:
    write = _writer(series) if format_ is None else _formatter(format_)
    cells = []
    for value in series.to_list():
        if isinstance(value, list):
            cells.append(Cell("", chips=[shown(v) for v in value]))
        elif value is None or (isinstance(value, float) and math.isnan(value)):
            cells.append(Cell(NONE))
        else:
            cells.append(Cell(write(value), share=min(max(float(value), 0.0), 1.0) if bar else None))
    return cells


def _writer(series: pl.Series) -> Callable[[Any], str]:
    """For floats: the same decimals in a column, unless it spans too many orders of magnitude."""
    if not series.dtype.is_float():
        return shown
    sizes = [abs(v) for v in series.to_list() if v is not None and math.isfinite(v) and v != 0]
    if not sizes or max(sizes) > 1e4 * min(sizes) or not 1e-4 <= max(sizes) < 1e7:
        return _number
    decimals = max(_decimals(max(sizes)), _decimals(min(sizes)) - 2)  # three digits of the largest, one of the least
    return lambda v: f"{v:,.{decimals}f}".replace("-", "−") if math.isfinite(v) else _number(v)


def _formatter(format_: Format) -> Callable[[Any], str]:
    if callable(format_):
        return lambda v: str(format_(v))
    return lambda v: format(v, format_) if isinstance(v, str) else format(v, format_).replace("-", "−")


def _require_columns(frame: pl.DataFrame, **named: Collection[str]) -> None:
    for argument, names in named.items():
        for name in names:
            if name not in frame.columns:
                raise ValueError(f"{argument} names the column {name!r}; the frame has {', '.join(frame.columns)}")


# ---- templates


def _block(name: str, **values: object) -> Markup:
    macro = getattr(_templates().get_template("blocks.html.jinja").module, name)
    return Markup(macro(**values))


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = prose
    return environment
