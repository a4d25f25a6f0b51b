"""The house style of figures: colours, pieces that ``plots`` draws with, and figures as SVG for ``page``.

A figure is drawn between the settings that ``house_style`` makes, which come back afterwards; pyplot is never asked.
Colours are Okabe and Ito's, which colour-blind readers can tell apart; a page swaps those of ``LIGHT`` for those of
``DARK``. Curves carry their names beside them. Long series are drawn as means of bins.

Source of the palette: Okabe and Ito 2008, *Color Universal Design*.
"""

from devinterp_func.show.drawing._pieces import (
    band,
    beside,
    epochs,
    key,
    label_ends,
    log_ticks,
    powers,
    remark,
    rows,
    spread,
    ticks,
)
from devinterp_func.show.drawing._style import (
    BINS,
    BLUE,
    CYCLE,
    DARK,
    DEPTH,
    GREEN,
    INK,
    LIGHT,
    MUTED,
    NARROW,
    RULE,
    VERMILLION,
    WIDE,
    house_style,
    sheet,
)
from devinterp_func.show.drawing._svg import svg
from devinterp_func.show.drawing._text import finite, percent, plain, thousands, token, wrapped

__all__ = [
    "BINS",
    "BLUE",
    "CYCLE",
    "DARK",
    "DEPTH",
    "GREEN",
    "INK",
    "LIGHT",
    "MUTED",
    "NARROW",
    "RULE",
    "VERMILLION",
    "WIDE",
    "band",
    "beside",
    "epochs",
    "finite",
    "house_style",
    "key",
    "label_ends",
    "log_ticks",
    "percent",
    "plain",
    "powers",
    "remark",
    "rows",
    "sheet",
    "spread",
    "svg",
    "thousands",
    "ticks",
    "token",
    "wrapped",
]
