"""The whole file: sections in order, with a table of contents."""

import re
from collections.abc import Sequence
from html import unescape
from itertools import count

from markupsafe import Markup, escape

from devinterp_func.show import drawing
from devinterp_func.show._written import literal
from devinterp_func.show.page._links import Links, first_of, resolve
from devinterp_func.show.page._templates import templates
from devinterp_func.show.page._types import Section

CARD = re.compile(r'<article class="card" id="([^"]*)">\s*<h3><a data-neuron="([^"]*)">')

PLACE = re.compile(r'<span class="place"></span>')


def page(
    title: str, subtitle: str, sections: Sequence[Section], links: Links | None = None, numbered: bool = False
) -> str:
    """The whole file.

    Args:
        title, subtitle: of the page; the subtitle may be ``prose``.
        sections: in order; the table of contents lists them.
        links: where neurons, data, steps, tokens, heads and probes lead, (kind, value) -> address; a neuron for which
            it has none leads to its card on this page.
        numbered: whether sections, and in each its figures, tables and excerpts that have a caption, are numbered.

    >>> from devinterp_func.show.page import note
    >>> html = page("A run", "of `linear2`", [Section("Tokens", "Which & why.", [note("None yet.")])])
    >>> "<code>linear2</code>" in html, "Which &amp; why." in html
    (True, True)
    """
    anchors: list[str] = []
    for section in sections:
        slug = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") or "section"
        anchors.append(next(name for i in count(1) if (name := f"{slug}-{i}" if i > 1 else slug) not in anchors))
    template = templates().get_template("page.html.jinja")
    each = zip(anchors, sections, strict=True)
    entries = [_entry(anchor, section, i if numbered else None) for i, (anchor, section) in enumerate(each, start=1)]
    colours = {"light": drawing.LIGHT, "dark": drawing.DARK, "depth": drawing.DEPTH}
    html = template.render(title=title, subtitle=subtitle, entries=entries, **colours)
    places = {
        ("section", section.title): f"#{name}" for name, section in zip(anchors[::-1], sections[::-1], strict=True)
    }
    places |= {("neuron", unescape(name)): f"#{unescape(id)}" for id, name in CARD.findall(html)}
    return literal(resolve(Markup(html), first_of([links, lambda *name: places.get(name)])))


def _entry(anchor: str, section: Section, number: int | None) -> tuple[str, Markup, Section]:
    """A section's anchor, its number, and the section with those of its figures and tables: 2, 2.1, 2.2."""
    places = count(1)

    def place(found: re.Match[str]) -> str:
        return str(_place(f"{number}.{next(places)}", number))

    items = [Markup(PLACE.sub("" if number is None else place, str(escape(item)))) for item in section.items]
    return anchor, _place(str(number), number), section._replace(items=items)


def _place(text: str, number: int | None) -> Markup:
    return Markup("") if number is None else Markup('<span class="place">{}</span>').format(text)
