"""What a page consists of besides tables: figures, facts, excerpts, cards, notes."""

from collections.abc import Collection, Mapping, Sequence

import polars as pl
from markupsafe import Markup
from matplotlib.figure import Figure

from devinterp_func.show import drawing
from devinterp_func.show._written import Format, shown
from devinterp_func.show.page._links import Links, anchor, mention
from devinterp_func.show.page._table import table
from devinterp_func.show.page._templates import block
from devinterp_func.show.page._types import Card, Excerpt


def figure(picture: Figure, caption: str, alt: str, narrow: Figure | None = None) -> Markup:
    """A matplotlib figure as inline SVG in the page's colours.

    Args:
        picture: of ``plots`` or any other.
        caption: below it; ``prose``.
        alt: what it shows, for those who cannot see it.
        narrow: the same, drawn for a phone (``width=drawing.NARROW``); without it the figure scrolls there.
    """
    variants = [picture] if narrow is None else [picture, narrow]
    return block("figure", drawings=[drawing.svg(one, alt) for one in variants], caption=caption)


def facts(values: Mapping[str, object]) -> Markup:
    """Tiles of a name and a value; a pair (value, remark) has the remark in small print.

    >>> "14,640" in facts({"steps": 14640, "loss": (4.912, "nats")})
    True
    """
    pairs = [(name, v if isinstance(v, tuple) else (v, "")) for name, v in values.items()]
    return block("facts", values=[(name, shown(value), remark) for name, (value, remark) in pairs])


def excerpts(texts: Sequence[Excerpt], caption: str = "") -> Markup:
    """Text with each token's value as the depth of its background, and changed predictions as ( before | after ).

    Raises:
        ValueError: a value is not in [-1, 1].
    """
    for text in texts:
        for word in text.words:
            if not -1 <= word.value <= 1:
                raise ValueError(f"the value of {word.text!r} is {word.value}; it must be in [-1, 1]")
    return block("excerpts", texts=texts, caption=caption)


def cards(
    neurons: Sequence[Card],
    headings: tuple[str, str] = ("Flips on attributed data", "Control: random data"),
    formats: Mapping[str, Format] | None = None,
    tips: Mapping[str, str] | None = None,
    bars: Collection[str] = (),
    links: Links | None = None,
) -> Markup:
    """Cards of neurons: facts, notable tokens, excerpts, and the flip table with its control beside it.

    Args:
        neurons: in order.
        headings: of the two tables.
        formats: of the two tables, as in ``table``; a column may be in one of them alone.
        tips, bars: of the two tables, as in ``table``.
        links: where names lead, as in ``table``; on a ``page`` a neuron leads to its card.
    """

    def flips(frame: pl.DataFrame | None, heading: str) -> Markup | None:
        if frame is None:
            return None
        known = {name: written for name, written in (formats or {}).items() if name in frame.columns}
        made = table(frame, heading, known, tips, bars=bars, fold=8, links=links)
        return Markup(made.replace('<span class="place"></span>', ""))  # a card is one thing: its parts have no numbers

    shown_cards = [
        dict(
            title=mention("neuron", card.title, links=links),
            anchor=anchor("neuron", card.title),
            facts=facts(card.facts) if card.facts else "",
            tokens=card.tokens,
            excerpts=excerpts(card.excerpts) if card.excerpts else "",
            tables=[t for t in (flips(card.flips, headings[0]), flips(card.control, headings[1])) if t is not None],
        )
        for card in neurons
    ]
    return block("cards", cards=shown_cards)


def findings(found: Sequence[tuple[str, str | None]]) -> Markup:
    """What was found, in sentences.

    Args:
        found: each sentence (``prose``), and the title of the page's section that it is from, which it leads to.
    """
    named = [(text, None if section is None else mention("section", section)) for text, section in found]
    return block("findings", found=named)


def note(text: str) -> Markup:
    """A remark set apart; ``prose``."""
    return block("note", text=text)


def details(summary: str, *items: Markup) -> Markup:
    """Blocks that are hidden until the reader asks for them."""
    return block("details", summary=summary, items=items)


def links(found: Sequence[Markup]) -> Markup:
    """Links below each other."""
    return block("links", links=found)
