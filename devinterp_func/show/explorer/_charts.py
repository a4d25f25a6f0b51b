"""Figures that answer to the pointer: a course over steps, whose numbers and axes a script can read from the page."""

import json
from collections.abc import Mapping

from jaxtyping import Float, Int
from markupsafe import Markup
from matplotlib.figure import Figure
from torch import Tensor

from devinterp_func.show import page, plots
from devinterp_func.show.drawing import NARROW, WIDE

POINTS = 240  # of a series, at most: what can be told apart


def course(
    series: Mapping[str, tuple[Int[Tensor, "m"], Float[Tensor, "m"]]],
    ylabel: str,
    caption: str,
    *,
    per_epoch: int | None = None,
    marks: tuple[float, ...] = (),
    to: str = "",
    brush: str = "",
) -> Markup:
    """Numbers over steps; where the pointer is their values are told, and a click opens the step there.

    Args:
        series: name -> (steps, values), POINTS each at most.
        ylabel: what the values are, with their unit.
        caption: below it.
        per_epoch: steps of an epoch, to mark epochs.
        marks: steps to mark.
        to: address of a step's page with ``{}`` for its number.
        brush: address of a page that takes ``start`` and ``stop``: a dragged span opens it.
    """
    figures = [plots.lines(series, ylabel, per_epoch, width=width, marks=marks) for width in (WIDE, NARROW)]
    return hovering(figures[0], figures[1], series, caption, f"{ylabel} over steps", to=to, brush=brush)


def hovering(
    wide: Figure,
    narrow: Figure,
    series: Mapping[str, tuple[Int[Tensor, "m"], Float[Tensor, "m"]]],
    caption: str,
    alt: str,
    *,
    to: str = "",
    brush: str = "",
) -> Markup:
    """A figure whose numbers are told where the pointer is.

    Args:
        wide, narrow: the figure for a desk and for a phone, steps along its first axes.
        series: the numbers that are told, as of ``course``.
        caption, to, brush: of ``course``.
        alt: what it shows, for those who cannot see it.
    """
    drawn = page.figure(wide, caption, alt, narrow)
    told = {name: [steps.tolist(), [round(v, 6) for v in values.tolist()]] for name, (steps, values) in series.items()}
    axes = [axes_of(figure) for figure in (wide, narrow)]
    data = json.dumps({"axes": axes, "series": told, "to": to, "brush": brush})
    return Markup('<div class="hover" data-hover="{}">{}</div>').format(data, drawn)


def axes_of(figure: Figure) -> dict[str, list[float]]:
    """Where a figure's first axes are, as shares of its width and height from its top left, and their limits."""
    axes = figure.axes[0]
    box = axes.get_position()
    shares = [round(float(v), 4) for v in (box.x0, 1 - box.y1, box.x1, 1 - box.y0)]
    return {"box": shares, "x": [float(v) for v in axes.get_xlim()], "y": [float(v) for v in axes.get_ylim()]}
