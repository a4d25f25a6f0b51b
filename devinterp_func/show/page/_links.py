"""Names that lead somewhere: a neuron, datum, step, token, head, probe or section, and the place that tells of it.

A block that names one marks it (``mention``); where it leads is settled at once where the caller says so, and else when
the page is put together, which knows its own cards and sections.
"""

import re
from collections.abc import Callable, Sequence
from html import unescape
from urllib.parse import quote

from markupsafe import Markup, escape

Links = Callable[[str, object], str | None]
"""(kind, value) -> the address of what tells of it; None: nothing does."""
KINDS = ("neuron", "datum", "step", "token", "head", "probe", "section")
NUMBERS = ("datum", "step", "token")  # kinds whose values are whole numbers; those of the others are names
MENTION = re.compile(rf'<a data-({"|".join(KINDS)})="([^"]*)">(.*?)</a>', re.DOTALL)


def mention(kind: str, value: object, text: object = None, links: Links | None = None) -> Markup:
    """A name: a link where there is an address.

    Args:
        kind: of ``KINDS``.
        value: which one: a neuron's, head's or probe's name, a section's title, a datum's, step's or token's number.
        text: what stands there; by default the value.
        links: where it leads; without it the page that the block comes into settles that, and is the plain text if it
            knows no place.

    Raises:
        ValueError: the kind is unknown, or its values are numbers and this is none.

    >>> mention("head", "0.1", links=lambda kind, value: f"{kind}s.html#{value}")
    Markup('<a href="heads.html#0.1">0.1</a>')
    """
    if kind not in KINDS:
        raise ValueError(f"the kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    if not fits(kind, value):
        raise ValueError(f"the {kind} is {value!r}; it must be a {'whole number' if kind in NUMBERS else 'name'}")
    shown = escape(value if text is None else text)
    if links is None:
        return Markup('<a data-{}="{}">{}</a>').format(kind, value, shown)
    return _linked(links(kind, value), shown)


def source(datum: int, more: str = "") -> Markup:
    """Where an excerpt is from: a datum's name, and what follows it.

    >>> source(1234, ", attributed twice")
    Markup('<a data-datum="1234">datum 1,234</a>, attributed twice')
    """
    return mention("datum", datum, f"datum {datum:,}") + more


def fits(kind: str, value: object) -> bool:
    """Whether a value can be one of the kind: a whole number, or a name."""
    return isinstance(value, int) and not isinstance(value, bool) if kind in NUMBERS else isinstance(value, str)


def resolve(html: Markup, links: Links) -> Markup:
    """The same with every name that was left open as a link, or as plain text where there is no address."""

    def settled(found: re.Match[str]) -> str:
        kind, value, shown = found.groups()
        value = unescape(value)
        return str(_linked(links(kind, int(value) if kind in NUMBERS else value), Markup(shown)))

    return Markup(MENTION.sub(settled, str(html)))


def first_of(sources: Sequence[Links | None]) -> Links:
    """The first of several that has an address."""

    def address(kind: str, value: object) -> str | None:
        found = (links(kind, value) for links in sources if links is not None)
        return next((there for there in found if there is not None), None)

    return address


def anchor(kind: str, value: object) -> str:
    """The id of what tells of something on its own page.

    >>> anchor("neuron", "layers.0.linear1.weight:3")
    'neuron-layers.0.linear1.weight%3A3'
    """
    return f"{kind}-{quote(str(value), safe='', errors='replace')}"


def _linked(address: str | None, shown: Markup) -> Markup:
    return shown if address is None else Markup('<a href="{}">{}</a>').format(address, shown)
