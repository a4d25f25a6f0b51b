"""The house style of figures: colours, pieces that ``plots`` draws with, and figures as SVG for ``report``.

A figure is drawn between the settings that ``house_style`` makes, which come back afterwards; pyplot is never asked.
Colours are Okabe and Ito's, which colour-blind readers can tell apart; a page swaps those of ``LIGHT`` for those of
``DARK``. Curves carry their names beside them. Long series are drawn as means of bins.

Source of the palette: Okabe and Ito 2008, *Color Universal Design*.
"""

import hashlib
import io
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from torch import Tensor

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
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


# ---- SVG


def svg(drawing: Figure, alt: str) -> Markup:
    """A figure as an SVG element to stand in a page.

    Text stays text, house colours become CSS variables (--blue; for text --blue-text), ids are the figure's own, and
    coordinates have no more digits than can be seen.

    Args:
        drawing: of ``plots`` or any other.
        alt: what it shows, for those who cannot see it.
    """
    buffer, nothing = io.BytesIO(), dict.fromkeys(["Date", "Creator", "Format", "Type"])
    with house_style():
        drawing.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", buffer.getvalue().decode())
    prefix = f"f{hashlib.sha256(f'{alt}{text}'.encode()).hexdigest()[:8]}-"
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', text))
    root = _without(ElementTree.fromstring(text), "style", "metadata")
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        named = ((name.rpartition("}")[2], value) for name, value in element.items())
        attributes = {name: value for name, value in named if name != "id" or value in used}
        element.attrib = {name: _attribute(element.tag, name, v, prefix) for name, v in attributes.items()}
        element.text, element.tail = element.text if element.tag in ("text", "tspan") else None, None
    width = float(root.attrib.pop("width").removesuffix("pt")) / 72
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alt}
    root.attrib["style"] = f"--width:{width:.3g}in"
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _attribute(tag: str, name: str, value: str, prefix: str) -> str:
    """An attribute with fewer digits, the page's colours and prefixed ids."""
    if name == "id":
        return prefix + value
    if name == "href":
        return re.sub(r"^#", f"#{prefix}", re.sub(r"\s+", "", value))
    if name == "style":
        value = re.sub(r"font-family:[^;]*(?:; *|$)", "", value)
        for colour, code in LIGHT.items():
            value = value.replace(code, f"var(--{colour}{'-text' if tag == 'text' else ''})")
        value = re.sub("#000000", "var(--ink)", value)
        return re.sub(r"([:;]) ", r"\1", value)
    if name in ("d", "x", "y", "width", "height", "transform"):
        value = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), value)
        return " ".join(value.split())
    return value.replace("url(#", f"url(#{prefix}")


def _without(root: ElementTree.Element, *tags: str) -> ElementTree.Element:
    """The tree less elements of these tags; a style in it would be the whole page's."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in tags:
                parent.remove(child)
    return root


# ---- curves


def band(axes: Axes, values: Float[Tensor, "T"], colour: str) -> float:
    """Means of bins and the range of the middle 80 % in each; gives the last mean."""
    parts = np.array_split(values.double().numpy(), min(BINS, len(values)))
    sizes = np.array([len(part) for part in parts])
    middle = sizes.cumsum() - sizes / 2
    low, high = np.array([np.quantile(part, [0.1, 0.9]) for part in parts]).T
    means = [float(part.mean()) for part in parts]
    axes.fill_between(middle, low, high, color=colour, alpha=0.22, linewidth=0)
    axes.plot(middle, means, color=colour, linewidth=1.2)
    return means[-1]


def epochs(panels: Sequence[Axes], start: int, stop: int, per_epoch: int) -> None:
    """Thin lines where epochs end between two steps, and their numbers on top where there is room."""
    first = start // per_epoch + 1
    borders = [start, *range(first * per_epoch, stop, per_epoch), stop] if start < stop else [start]
    for axes in panels:
        axes.xaxis.set_major_formatter(FuncFormatter(thousands))
        for border in borders[1:-1] if len(borders) <= 50 else ():
            axes.axvline(border, color=RULE, linewidth=0.6, zorder=0)
    top: Any = dict(textcoords="offset points", color=MUTED, fontsize=8, xycoords=panels[0].get_xaxis_transform())
    if 1 < len(borders) <= 11:
        for epoch, (a, b) in enumerate(pairwise(borders), start=first):
            panels[0].annotate(str(epoch), ((a + b) / 2, 1), (0, 4), ha="center", **top)
        panels[0].annotate("epoch", (0, 1), (-4, 4), ha="right", **top | {"xycoords": "axes fraction"})


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, str]], width: float | int) -> None:
    """Names beside the right edge, at the height of each curve's end as far as they do not touch.

    Args:
        axes: with their limits set.
        ends: name -> last value, colour.
        width: of the figure, inches.
    """
    low, high = axes.get_ylim()
    most = 34 if width >= 5 else 17
    names = [textwrap.fill(plain(name, 60), most, max_lines=2, placeholder="…") for name in ends]
    gap = 9 * 1.4 * max((name.count("\n") + 1 for name in names), default=1)
    gap *= (high - low) / (axes.bbox.height * 72 / axes.get_figure(root=True).dpi)  # type: ignore[union-attr]
    places = spread([min(max(finite(y, high), low), high) for y, _ in ends.values()], gap)
    for name, (_, colour), place in zip(names, ends.values(), places, strict=True):
        axes.text(1.015, place, name, transform=axes.get_yaxis_transform(), va="center", color=colour, fontsize=8.5)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The places moved as little as leaves at least a gap between any two, in the same order (least squares).

    >>> spread([0.0, 0.1, 5.0], gap=1.0)
    [-0.45, 0.55, 5.0]
    """
    order = sorted(range(len(places)), key=places.__getitem__)
    blocks: list[tuple[float, int]] = []  # mean of place - rank · gap over a run that touches, and the run's length
    for rank, i in enumerate(order):
        block = (places[i] - rank * gap, 1)
        while blocks and blocks[-1][0] > block[0]:
            (a, n), (b, m) = blocks.pop(), block
            block = ((a * n + b * m) / (n + m), n + m)
        blocks.append(block)
    means = [mean for mean, size in blocks for _ in range(size)]
    moved = {i: round(mean + rank * gap, 12) for rank, (i, mean) in enumerate(zip(order, means, strict=True))}
    return [moved[i] for i in range(len(places))]


# ---- words


def key(figure: Figure, colours: Mapping[str, str], marks: Mapping[str, str] | None = None) -> None:
    """What the colours mean, in one line on top."""
    axes = figure.axes[0]
    look = {"linestyle": "none", "markersize": 6}
    handles = [
        axes.plot([], [], marker=(marks or {}).get(name, "o"), color=colour, label=name, **look)[0]  # type: ignore[arg-type]
        for name, colour in colours.items()
    ]
    spacing: Any = {"handletextpad": 0.1, "columnspacing": 1.2, "handlelength": 1.2}
    labels: Any = {"labelcolor": list(colours.values()), "fontsize": 8.5, "frameon": False}
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), **spacing, **labels)


def rows(axes: Axes, names: Sequence[str]) -> None:
    """Names for the rows 0, 1, ... from the top down."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def beside(axes: Axes, row: int, text: str, colour: str, indent: int = 6) -> None:
    """A word to the right of a row."""
    look: Any = {"va": "center", "fontsize": 8, "color": colour}
    axes.annotate(text, (1, row), (indent, 0), axes.get_yaxis_transform(), "offset points", **look)


def remark(axes: Axes, text: str, at: tuple[float | int, float | int], offset: tuple[int, int], **look: Any) -> Text:
    """A word at a point."""
    return axes.annotate(plain(text, 60), at, offset, textcoords="offset points", **{"fontsize": 8.5, **look})


def ticks(most: int) -> MaxNLocator:
    """Where to mark an axis: at most so many round intervals."""
    return MaxNLocator(most, steps=[1, 2, 2.5, 5, 10])


def log_ticks(axes: Axes) -> None:
    """Whole numbers at the powers of ten."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(thousands))
        axis.set_minor_locator(NullLocator())


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


def finite(value: float, otherwise: float = 0.0) -> float:
    """The value, unless it is NaN or infinite."""
    return value if math.isfinite(value) else otherwise
