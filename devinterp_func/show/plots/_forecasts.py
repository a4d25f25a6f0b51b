"""How far ahead scores foretell what retraining shows: rank correlation by horizon, in panels."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from torch import Tensor

from devinterp_func.show import drawing
from devinterp_func.show.drawing import CYCLE, INK, MUTED, RULE, WIDE

Forecasts = tuple[Float[Tensor, "H"], Float[Tensor, "H"], Float[Tensor, "H"], Float[Tensor, "H"]]
"""Horizons in steps, rank correlations, and the ends of their intervals."""


def forecast_panels(
    panels: Mapping[str, Mapping[str, Forecasts]], least: float, remarks: Mapping[str, str], width: float | int = WIDE
) -> Figure:
    """Rank correlation by horizon on a logarithmic axis, with intervals: panels of the same lines.

    Args:
        panels: title, such as a training -> line, such as a score -> its forecasts; every panel has the same lines.
        least: a correlation that is marked, such as one below which nothing is foretold.
        remarks: title -> a word under it.
        width: inches.
    """
    columns = min(len(panels), max(1, int(width / 2.3)))
    lines = -(-len(panels) // columns)
    names = list(next(iter(panels.values())))
    colours = dict(zip(names, CYCLE, strict=False))
    with drawing.sheet(width, 0.4 + 2.1 * lines) as figure:
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        for axes, (title, scores) in zip(grid.flat, panels.items(), strict=False):
            axes.set_title(f"{title}\n{remarks.get(title, '')}", color=INK, linespacing=1.4)
            axes.axhline(least, color=MUTED, linewidth=0.8, linestyle=":", zorder=0)
            axes.axhline(0, color=RULE, linewidth=0.6, zorder=0)
            for place, (name, forecasts) in enumerate(scores.items()):
                horizon, value, low, high = (x.numpy() for x in forecasts)
                at = horizon * 1.06 ** (place - (len(scores) - 1) / 2)  # beside each other, so that intervals show
                axes.vlines(at, low, high, color=colours[name], linewidth=1.4, alpha=0.55)
                axes.plot(at, value, "o-", color=colours[name], markersize=3.5, linewidth=1.2)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(np.unique(horizon).tolist()))
            axes.xaxis.set_major_formatter(FuncFormatter(drawing.thousands))
            axes.xaxis.set_minor_locator(NullLocator())
        grid[0, 0].set(ylim=(-0.65, 1.05), yticks=[-0.5, 0, 0.5, 1])
        figure.supxlabel("horizon: steps from the snapshot to where the probe is read", fontsize=9, color=MUTED)
        figure.supylabel("rank correlation with retraining", fontsize=9, color=MUTED)
        drawing.key(figure, colours)
    return figure
