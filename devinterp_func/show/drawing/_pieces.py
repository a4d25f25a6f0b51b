"""Pieces that figures are put together from: bands, epochs, names beside curves and rows, legends, ticks."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from torch import Tensor

from devinterp_func.show._written import shown
from devinterp_func.show.drawing._style import BINS, MUTED, RULE
from devinterp_func.show.drawing._text import finite, plain, thousands, wrapped

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
    """Thin lines where epochs end between two steps, and their numbers, from 0, on top where there is room."""
    first = start // per_epoch
    borders = [start, *range((first + 1) * per_epoch, stop, per_epoch), stop] if start < stop else [start]
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
    names = [wrapped(plain(name, 90), most, 3) for name in ends]
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


def beside(axes: Axes, row: int, text: str, colour: str, indent: int = 6, at: float | None = None) -> Text:
    """A word to the right of a row, or of a place on it."""
    look: Any = {"va": "center", "fontsize": 8, "color": colour}
    where, by = ((1, row), axes.get_yaxis_transform()) if at is None else ((at, row), "data")
    return axes.annotate(text, where, (indent, 0), by, "offset points", **look)


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


def powers(axes: Axes) -> None:
    """Round numbers on an upright axis whose values are logarithms to the base ten."""
    low, high = axes.get_ylim()
    if high - low < 1.5:
        even = np.asarray(ticks(5).tick_values(10**low, 10**high))
        places = np.log10(even[even > 0])
    else:
        places = np.arange(np.ceil(low), high, np.ceil((high - low) / 6))
    places = places[(low <= places) & (places <= high)]
    values = [float(f"{10**place:.3g}") for place in places.tolist()]
    axes.set_yticks(places, [thousands(v) if 1e-4 < v < 1e7 else shown(v) for v in values])
