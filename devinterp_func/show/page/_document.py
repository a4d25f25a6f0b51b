"""The whole file: sections in order, with a table of contents."""

import re
from collections.abc import Sequence
from itertools import count

from devinterp_func.show import drawing
from devinterp_func.show._written import literal
from devinterp_func.show.page._templates import templates
from devinterp_func.show.page._types import Section


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole file.

    Args:
        title, subtitle: of the page; the subtitle may be ``prose``.
        sections: in order; the table of contents lists them.

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
    entries = list(zip(anchors, sections, strict=True))
    colours = {"light": drawing.LIGHT, "dark": drawing.DARK, "depth": drawing.DEPTH}
    return literal(template.render(title=title, subtitle=subtitle, entries=entries, **colours))
