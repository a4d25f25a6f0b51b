"""How numbers and foreign text are written, on the terminal as on the page."""

import math
import re
from collections.abc import Callable
from typing import Any

import polars as pl

Format = str | Callable[[Any], str]  # a format specification such as ".1%", "p" for a p-value, or a function
NONE = "–"
UNITS = {"ZB": 1e21, "EB": 1e18, "PB": 1e15, "TB": 1e12, "GB": 1e9, "MB": 1e6, "KB": 1e3, "B": 1}
LEAST_P = 1e-300  # below it a p-value's own floating point is no longer to be trusted
CONTROLS = re.compile(  # orders, not letters; and halves of letters, which no file can hold
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def literal(text: object) -> str:
    """A text without the characters that a terminal or a page would obey, or cannot hold; tabs and line ends stay.

    >>> literal("\\x1b[31mred"), literal("a\\tb")
    ('�[31mred', 'a\\tb')
    """
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", str(text))


def slug(text: str) -> str:
    """A text as part of a file name that a person can read.

    >>> slug("head:0.1 bracket"), slug("next:the first => episode")
    ('head-0.1-bracket', 'next-the-first-episode')
    """
    return re.sub(r"[^\w.]+", "-", text.lower()).strip("-.") or "unnamed"


def times(n: int) -> str:
    """How often.

    >>> times(1), times(2), times(1234)
    ('once', 'twice', '1,234 times')
    """
    return {1: "once", 2: "twice"}.get(n, f"{n:,} times")


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """A number of things.

    >>> counted(1, "step"), counted(0, "step"), counted(2, "datum", "data")
    ('1 step', '0 steps', '2 data')
    """
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def n_bytes(size: int | float) -> str:
    """So many bytes.

    >>> n_bytes(882e9), n_bytes(476_914), n_bytes(12)
    ('882 GB', '477 KB', '12 B')
    """
    unit = next((unit for unit in UNITS if size >= UNITS[unit]), "B")
    return f"{shown(float(size) / UNITS[unit])} {unit}" if unit != "B" else f"{size:.0f} B"


def shown(value: object) -> str:
    """A value as a person would write it.

    >>> [shown(v) for v in (292800000, 0.0123456, -3.2e-9, True, None, float("nan"))]
    ['292,800,000', '0.0123', '−3.2×10⁻⁹', '✓', '–', '–']
    """
    if is_missing(value):
        return NONE
    if isinstance(value, bool):
        return "✓" if value else ""
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    return number(value) if isinstance(value, float) else str(value)


def is_missing(value: object) -> bool:
    """Whether there is no value: None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def number(value: float) -> str:
    """Three significant digits."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}".replace("-", "−").replace("inf", "∞")
    if 1e-4 <= abs(value) < 1e7:
        return f"{value:,.{_decimals(value)}f}".replace("-", "−")
    digits, power = f"{value:.1e}".split("e")
    return f"{digits.replace('-', '−')}×{_power_of_ten(int(power))}"


def p_value(value: float) -> str:
    """A p-value is never 0.

    >>> p_value(0.0), p_value(0.0321)
    ('< 10⁻³⁰⁰', '0.0321')
    """
    return f"< {_power_of_ten(-300)}" if value < LEAST_P else number(value)


def writer(series: pl.Series) -> Callable[[Any], str]:
    """For a column of floats: the same decimals in all, unless it spans too many orders of magnitude."""
    if not series.dtype.is_float():
        return shown
    sizes = [abs(v) for v in series.to_list() if v is not None and math.isfinite(v) and v != 0]
    if not sizes or max(sizes) > 1e4 * min(sizes) or not 1e-4 <= max(sizes) < 1e7:
        return number
    decimals = max(_decimals(max(sizes)), _decimals(min(sizes)) - 2)  # three digits of the largest, one of the least
    return lambda v: f"{v:,.{decimals}f}".replace("-", "−") if math.isfinite(v) else number(v)


def formatter(format_: Format) -> Callable[[Any], str]:
    """A format as a function; what is not 0 is never written as 0.

    >>> [formatter(".1%")(x) for x in (0.25, 0.0, 0.0003, -0.0003)]
    ['25.0%', '0.0%', '< 0.1%', '> −0.1%']
    """
    if callable(format_):
        return lambda v: str(format_(v))
    return p_value if format_ == "p" else lambda v: _by_specification(v, format_)


def _by_specification(value: Any, specification: str) -> str:
    text = format(value, specification)
    if isinstance(value, str):
        return text
    if value and not re.search(r"[1-9a-z]", text):  # only zeros are left of it
        least = re.sub(r"0(?=\D*$)", "1", text)
        text = f"> {least}" if value < 0 else f"< {least}"
    return text.replace("-", "−")


def _power_of_ten(power: int) -> str:
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _decimals(value: float) -> int:
    return max(0, 2 - math.floor(math.log10(abs(value))))
