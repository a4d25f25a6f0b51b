"""Names and numbers as a figure writes them."""

import math
import textwrap


def thousands(value: float, _: int | None = None) -> str:
    """A tick's number.

    >>> thousands(14640.0), thousands(0.5)
    ('14,640', '0.5')
    """
    return f"{value:,.0f}" if value == round(value) else f"{value:g}"


def percent(value: float, _: int | None = None) -> str:
    """A tick's share.

    >>> percent(0.25), percent(0.025)
    ('25%', '2.5%')
    """
    return f"{round(100 * value, 6):g}%"


def token(text: str) -> str:
    """A token as a label; a mark that would look like dirt stands in quotes.

    >>> token("york"), token(",")
    ('york', '“,”')
    """
    return plain(text) if any(c.isalnum() for c in text) else f"“{plain(text)}”"


def plain(text: str, most: int = 22) -> str:
    """Text in one line of at most so many characters.

    >>> plain("one\\ntwo"), plain("antidisestablishmentarianism")
    ('one�two', 'antidisestablishmenta…')
    """
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return line if len(line) <= most else line[: most - 1] + "…"


def wrapped(text: str, most: int = 30, lines: int = 2) -> str:
    """Text in lines of at most so many characters; it is cut only where it takes more lines than there is room for.

    >>> wrapped("where it predicts and moved logit, rank product")
    'where it predicts and moved\\nlogit, rank product'
    """
    return textwrap.fill(plain(text, most * lines), most, max_lines=lines, placeholder="…")


def finite(value: float, otherwise: float = 0.0) -> float:
    """The value, unless it is NaN or infinite."""
    return value if math.isfinite(value) else otherwise
