"""One self-contained HTML file for people: light and dark, on a desk, on a phone, on paper.

Every block is a pure function from plain values to ``Markup``, a piece of HTML that is safe to put together with
others; ``page`` makes the whole file of them. Nothing is loaded from elsewhere (the page forbids it to itself), nothing
depends on the time or the place, so equal input gives an equal file. Whatever is not ``Markup`` is escaped. The HTML is
in ``templates/``; figures are inline SVG with real text, in the colours of the page.
"""

from devinterp_func.show._written import NONE, Format, counted, n_bytes, shown, times
from devinterp_func.show.page._blocks import cards, details, excerpts, facts, figure, findings, links, note
from devinterp_func.show.page._document import page
from devinterp_func.show.page._links import Links, mention, resolve, source
from devinterp_func.show.page._table import table, typed_table
from devinterp_func.show.page._templates import prose
from devinterp_func.show.page._types import Card, Chip, Excerpt, Section, Word

__all__ = [
    "Card",
    "Chip",
    "Excerpt",
    "Format",
    "Links",
    "NONE",
    "Section",
    "Word",
    "cards",
    "counted",
    "details",
    "excerpts",
    "facts",
    "figure",
    "findings",
    "links",
    "mention",
    "n_bytes",
    "note",
    "page",
    "prose",
    "resolve",
    "shown",
    "source",
    "table",
    "times",
    "typed_table",
]
