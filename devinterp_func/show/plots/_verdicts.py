"""What ablations say of neurons: skill of rankings, flips beside their control, shares by sublayer."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from devinterp_func.show import drawing
from devinterp_func.show.drawing import BLUE, GREEN, INK, MUTED, RULE, VERMILLION, WIDE

Kind = Literal["record", "record and model", "baseline", "control"]

KINDS: dict[Kind, str] = {"record": BLUE, "record and model": GREEN, "baseline": VERMILLION, "control": MUTED}


def skill_bars(
    names: Sequence[str],
    value: Float[Tensor, "panels scores"],
    low: Float[Tensor, "panels scores"],
    high: Float[Tensor, "panels scores"],
    groups: Sequence[str],
    kinds: Sequence[Kind],
    xlabel: str = "mean average precision",
    width: float | int = WIDE,
) -> Figure:
    """Skill of each score as a dot with its interval, a panel for each group; the best baseline as a line across it.

    Args:
        names: of the scores, from top to bottom.
        value, low, high: estimates and their intervals; NaN is shown as –.
        groups: the panels' titles, a sublayer each.
        kinds: of each score: "record" (read off the training record), "record and model" (with the finished model's
            help), "baseline" (without the record) or "control".
        xlabel: what is estimated.
        width: inches.
    """
    columns = min(len(groups), max(1, int((width - 1.4) / 1.9)))
    lines = -(-len(groups) // columns)
    colours = [KINDS[kind] for kind in kinds]
    labels = [_row_label(name, width) for name in names]
    height = 0.07 + _height(labels)
    with drawing.sheet(width, 0.8 + lines * (0.35 + height * len(names))) as figure:
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(groups) :]:
            axes.remove()
        estimates = torch.stack([value, low, high], -1).tolist()
        for axes, title, of in zip(grid.flat, groups, estimates, strict=False):
            axes.set_title(drawing.plain(title, 30), color=INK)
            drawing.rows(axes, labels)
            best = _best([x for x, *_ in of], kinds)
            if best is not None:
                axes.axvline(of[best][0], color=KINDS["baseline"], linewidth=0.9, linestyle=":", zorder=0)
            for row, (colour, (x, least, most)) in enumerate(zip(colours, of, strict=True)):
                axes.axhline(row, color=RULE, linewidth=0.5, zorder=0)
                axes.plot([least, most], [row, row], color=colour, linewidth=1.5, solid_capstyle="butt", alpha=0.6)
                axes.plot(x, row, "o", color=colour, markersize=4.5)
                number = drawing.beside(axes, row, "–" if math.isnan(x) else f"{x:.2f}", colour, indent=3)
                number.set_fontweight("bold" if row == best else "normal")
            for text, colour in zip(axes.get_yticklabels(), colours, strict=False):  # only the first column has any
                text.set_color(colour)
        grid[0, 0].set_xlim(0, 1.05 * float(high.nan_to_num(0).max()) or 1)
        grid[0, 0].xaxis.set_major_locator(drawing.ticks(4))
        figure.supxlabel(xlabel, fontsize=9, color=MUTED)
        colour_of = {kind: KINDS[kind] for kind in dict.fromkeys(kinds)}
        best_of_all = {"best baseline": KINDS["baseline"]} if "baseline" in kinds else {}
        drawing.key(figure, colour_of | best_of_all, marks={"best baseline": "|"})
    return figure


def flips_scatter(
    attributed: Float[Tensor, "m"],
    control: Float[Tensor, "m"],
    tokens: Sequence[str],
    notable: Bool[Tensor, "m"],
    labels: int = 8,
    width: float | int = 4.6,
) -> Figure:
    """Flipped proportion of each token on attributed data against that on control data; notable tokens stand out.

    Args:
        attributed, control: proportions in [0, 1].
        tokens: their names.
        notable: which are notable.
        labels: how many of the tokens farthest above the diagonal are named, as far as names fit.
        width: inches.
    """
    with drawing.sheet(width, width) as figure:
        axes = figure.subplots()
        axes.axline((0, 0), slope=1, color=MUTED, linewidth=0.6)
        for chosen, colour in ((~notable, MUTED), (notable, BLUE)):
            dense = int(chosen.sum()) > 400
            look: Any = dict(color=colour, alpha=0.65, linewidths=0, rasterized=dense)
            axes.scatter(control[chosen].numpy(), attributed[chosen].numpy(), 20, **look)
        limit = 1.05 * max([0.05, *attributed.tolist(), *control.tolist()])
        axes.set(xlim=(-0.02 * limit, limit), ylim=(-0.02 * limit, limit), aspect="equal")
        axes.set(xlabel="flipped on control data", ylabel="flipped on attributed data")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(drawing.ticks(4))
            axis.set_major_formatter(FuncFormatter(drawing.percent))
        drawing.key(figure, {"notable": BLUE, "other": MUTED})
        _name_points(figure, axes, control, attributed, tokens, labels)
    return figure


def notable_share(
    groups: Sequence[str],
    share: Float[Tensor, "g"],
    control: Float[Tensor, "g"],
    xlabel: str = "share of flipped tokens that are notable",
    width: float | int = WIDE,
) -> Figure:
    """A share by group of neurons as bars, with the control's as a mark on each; both are written at the bar's end.

    Args:
        groups: their names, a sublayer each.
        share, control: in [0, 1]; NaN is shown as –.
        xlabel: what the share is of.
        width: inches.
    """
    labels = [_row_label(group, width) for group in groups]
    with drawing.sheet(width, 0.85 + (0.12 + _height(labels)) * len(groups)) as figure:
        axes = figure.subplots()
        places = np.arange(len(groups))
        axes.barh(places, share.nan_to_num(0).numpy(), 0.62, color=BLUE, alpha=0.85)
        axes.plot(control.numpy(), places, "|", color=INK, markersize=11, markeredgewidth=1.6)
        drawing.rows(axes, labels)
        ends = torch.stack([share, control]).nan_to_num(0).amax(0).tolist()  # past the bar, and past the mark on it
        for indent, values, colour in ((9, share, BLUE), (46, control, INK)):
            for row, (value, end) in enumerate(zip(values.tolist(), ends, strict=True)):
                drawing.beside(axes, row, "–" if math.isnan(value) else f"{value:.1%}", colour, indent, end)
        largest = torch.cat([share, control]).nan_to_num(0).tolist()
        axes.set_xlim(0, 1.05 * max(largest, default=0) or 1)
        axes.xaxis.set_major_formatter(FuncFormatter(drawing.percent))
        axes.xaxis.set_major_locator(drawing.ticks(5))
        axes.set_xlabel(xlabel)
        drawing.key(figure, {"attributed": BLUE, "control": INK}, marks={"control": "|"})
    return figure


def _row_label(name: str, width: float | int) -> str:
    return drawing.wrapped(name, 30) if width >= 5 else drawing.wrapped(name, 18, 3)


def _height(labels: Sequence[str]) -> float:
    """Inches of the tallest label."""
    return 0.12 * max((1 + label.count("\n") for label in labels), default=1)


def _best(values: Sequence[float], kinds: Sequence[Kind]) -> int | None:
    """The row of the highest baseline."""
    rows = [row for row, kind in enumerate(kinds) if kind == "baseline" and not math.isnan(values[row])]
    return max(rows, key=values.__getitem__, default=None)


def _name_points(figure: Figure, axes: Axes, x: Tensor, y: Tensor, names: Sequence[str], most: int) -> None:
    """Names at the points farthest above the diagonal, except where a name would cover one placed before."""
    taken: list[Any] = []
    figure.draw_without_rendering()
    for i in (y - x).argsort(descending=True, stable=True).tolist()[: 3 * most]:
        text = drawing.remark(axes, drawing.token(names[i]), (float(x[i]), float(y[i])), (5, 2), fontsize=8)
        box = text.get_window_extent()
        if len(taken) < most and not any(box.overlaps(other) for other in taken):
            taken.append(box)
        else:
            text.remove()
