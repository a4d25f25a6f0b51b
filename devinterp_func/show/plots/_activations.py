"""Activations as a histogram a row, after the post's Figures 1-3."""

import math
from collections.abc import Mapping

from matplotlib.figure import Figure

from devinterp_func.neurons import Histogram
from devinterp_func.show import drawing
from devinterp_func.show.drawing import BLUE, INK, MUTED, RULE, WIDE


def activation_histograms(values: Mapping[str, Histogram], token: str, width: float | int = WIDE) -> Figure:
    """A neuron's activation on a token against that on other tokens (the post's Figures 1 and 2).

    A histogram a row, each to its own height, with its median. Exact zeros, a ReLU's rest, are left out of both and
    counted beside the row.

    Args:
        values: token -> activations at the positions with it, ``neurons.histograms`` of ``activations_on``.
        token: the one in question.
        width: inches.

    Raises:
        ValueError: there are no values for the token.
    """
    return _ridges(values, token, "activation, by token", width)


def neighbours(values: Mapping[int, Histogram], neuron: int, width: float | int = WIDE) -> Figure:
    """The activations of a neuron and of those numbered next to it, on one token (the post's Figure 3).

    Args:
        values: neuron -> activations at the same positions, ``neurons.histograms`` of ``activations_of_neighbours``.
        neuron: the one in question.
        width: inches.

    Raises:
        ValueError: there are no values for the neuron.
    """
    return _ridges({str(i): v for i, v in values.items()}, str(neuron), "activation, by neuron", width)


def _ridges(values: Mapping[str, Histogram], chosen: str, xlabel: str, width: float | int) -> Figure:
    if chosen not in values:
        raise ValueError(f"there are no values for {chosen!r}, only for {', '.join(map(repr, values))}")
    edges, rests = values[chosen].edges.numpy(), any(h.zeros for h in values.values())
    with drawing.sheet(width, 0.8 + 0.3 * len(values)) as figure:
        axes = figure.subplots()
        drawing.rows(axes, [drawing.token(name) for name in values])
        for row, (name, h) in enumerate(values.items()):
            colour = BLUE if name == chosen else MUTED
            top = row + 0.5 - 0.85 * h.counts / h.counts.max().clamp(min=1)
            axes.stairs(top.numpy(), edges, baseline=row + 0.5, fill=True, color=colour, alpha=0.75)
            axes.axhline(row + 0.5, color=RULE, linewidth=0.6, zorder=0)
            if not math.isnan(h.median):
                axes.plot([h.median] * 2, [row + 0.5, row - 0.35], color=INK)
            axes.get_yticklabels()[row].set_color(colour)
            drawing.beside(axes, row, f"{h.n:,}", colour)
            if rests:
                drawing.beside(axes, row, f"{h.zeros / max(h.n, 1):.0%}", colour, indent=56)
        drawing.beside(axes, -1, "positions", MUTED)
        drawing.beside(axes, -1, "at 0" if rests else "", MUTED, indent=56)
        axes.set(xlabel=xlabel, xlim=(float(edges[0]), float(edges[-1])), ylim=(len(values) - 0.4, -0.7))
        axes.spines["left"].set_visible(False)
    return figure
