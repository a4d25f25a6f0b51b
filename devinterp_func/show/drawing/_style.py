"""The house style of figures: colours, and an empty sheet to draw on."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure

WIDE, NARROW = 7.4, 3.7  # inches: a page's column, a phone
BINS = 240  # of a long series

LIGHT = {
    **dict(paper="#ffffff", ink="#1c2126", muted="#5b6570", rule="#d5dade"),
    **dict(blue="#0072b2", vermillion="#d55e00", green="#009e73"),
    **dict(purple="#cc79a7", orange="#e69f00", sky="#56b4e9"),
}
DARK = {
    **dict(paper="#14171a", ink="#e4e7ea", muted="#9aa4ae", rule="#343b42"),
    **dict(blue="#4ba3e3", vermillion="#f08445", green="#2dc39a"),
    **dict(purple="#de9fc3", orange="#eeb63c", sky="#8fd0f5"),
}
DEPTH = {"light": 0.62, "dark": 0.5}  # of a token's deepest background, so that its text keeps a contrast of 4.5
INK, MUTED, RULE = LIGHT["ink"], LIGHT["muted"], LIGHT["rule"]
BLUE, VERMILLION, GREEN = LIGHT["blue"], LIGHT["vermillion"], LIGHT["green"]
CYCLE = [BLUE, VERMILLION, GREEN, LIGHT["purple"], LIGHT["orange"], LIGHT["sky"]]
STYLE: dict[str, Any] = {
    **{"font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8},
    **{"font.family": ["DejaVu Sans"], "text.parse_math": False, "axes.formatter.use_mathtext": False},
    **{"text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": MUTED, "axes.titlelocation": "left"},
    **{"xtick.color": MUTED, "ytick.color": MUTED, "xtick.major.size": 3, "ytick.major.size": 3},
    **{"axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.linewidth": 1.5},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none", "figure.facecolor": "none"},
    **{"svg.fonttype": "none", "svg.hashsalt": "devinterp_func", "savefig.transparent": True},
}


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's defaults with ``STYLE``, whatever the global settings are; they come back afterwards."""
    with style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from"
        )  # a token in another script: the reader's font has it
        yield


@contextmanager
def sheet(width: float | int, height: float | int) -> Iterator[Figure]:
    """An empty figure of so many inches to draw on, laid out for good afterwards."""
    with house_style():
        figure = Figure((width, height), layout="constrained")
        yield figure
        engine = figure.get_layout_engine()
        assert engine is not None
        for _ in range(2):  # the first layout may change which ticks there are
            engine.execute(figure)
        figure.set_layout_engine("none")
