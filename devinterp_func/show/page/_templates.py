"""The HTML templates, and prose as HTML."""

import re
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

FOLDER = Path(__file__).parent.parent / "templates"
INLINE = re.compile(r"`([^`]+)`|\[([^\[\]]+)\]\((https?://[^\s()<>&]+)\)")  # code, or a link; in escaped text


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


def block(name: str, **values: object) -> Markup:
    """A macro of blocks.html.jinja with its values."""
    macro = getattr(templates().get_template("blocks.html.jinja").module, name)
    return Markup(macro(**values))


@cache
def templates() -> jinja2.Environment:
    """Where the HTML is; all values are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = prose
    return environment
