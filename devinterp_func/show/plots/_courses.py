"""Courses over training: lines of any measure, and a probe above its credits."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from devinterp_func.show import drawing
from devinterp_func.show.drawing import BLUE, CYCLE, INK, MUTED, VERMILLION, WIDE

Series = tuple[Int[Tensor, "m"], Float[Tensor, "m"]]  # steps and values


def lines(
    series: Mapping[str, Series],
    ylabel: str,
    per_epoch: int | None = None,
    markers: bool = False,
    width: float | int = WIDE,
    marks: Sequence[float] = (),
    log: bool = False,
) -> Figure:
    """Courses over training, each named at its end: a bigram's entry, a correlation, a probe.

    Args:
        series: name -> (steps, values).
        ylabel: what the values are, with their unit.
        per_epoch: steps of an epoch, to mark epochs.
        markers: a dot at each value, for short series.
        width: inches.
        marks: steps to mark, such as change points.
        log: values on a logarithmic scale; those that are not positive leave a gap.
    """
    with drawing.sheet(width, 2.8) as figure:
        axes, ends = figure.subplots(), {}
        for i, (name, (steps, values)) in enumerate(series.items()):
            colour = CYCLE[i % len(CYCLE)]
            if log:  # drawn as powers of ten, so that names at the ends keep their distances
                values = values.double().log10().masked_fill(values <= 0, torch.nan)
            axes.plot(steps.numpy(), values.numpy(), "o-" if markers else "-", color=colour, markersize=3.5)
            if len(steps):
                ends[name] = (float(values[-1]), colour)
        for step in marks:
            axes.axvline(step, color=INK, linewidth=0.8, linestyle=":", zorder=0)
        axes.margins(x=0.01)
        low, high = axes.get_ylim()
        if low < 0 < high:
            axes.axhline(0, color=MUTED, linewidth=0.6, zorder=0)
        axes.set(xlabel="steps", ylabel=ylabel)
        if log:
            drawing.powers(axes)
        axes.xaxis.set_major_locator(drawing.ticks(7 if width >= 5 else 3))
        axes.xaxis.set_major_formatter(FuncFormatter(drawing.thousands))
        if per_epoch:
            ends_at = [int(steps[i]) for steps, _ in series.values() if len(steps) for i in (0, -1)] or [0]
            drawing.epochs([axes], min(ends_at), max(ends_at), per_epoch)
        drawing.label_ends(axes, ends, width)
    return figure


def credit_bands(
    edges: Int[Tensor, "edges"],
    value: Float[Tensor, "edges"],
    raised: Float[Tensor, "windows"],
    lowered: Float[Tensor, "windows"],
    name: str,
    per_epoch: int | None = None,
    width: float | int = WIDE,
    rest: Float[Tensor, "windows"] | None = None,
) -> Figure:
    """A probe over training, and below it what raised and what lowered it in each window, and the net of all.

    Credits are shown per step; windows beyond ``drawing.BINS`` are put together, and the highest 1 % of bands may leave
    the frame.

    Args:
        edges: steps at which the windows begin, and where the last one ends.
        value: of the probe before these steps.
        raised, lowered: sums of the positive and of the negative credits in each window; one window at least.
        name: of the probe.
        per_epoch: steps of an epoch, to mark epochs.
        width: inches.
        rest: past and decay in each window, drawn where there are any.
    """
    kept = torch.linspace(0, len(raised), min(len(raised), drawing.BINS) + 1).round().long()
    at = edges[kept].numpy()
    up, down = (np.add.reduceat(x.double().numpy(), kept[:-1].numpy()) / np.diff(at) for x in (raised, lowered))
    beside = np.zeros_like(up)
    if rest is not None and bool(rest.any()):
        beside = np.add.reduceat(rest.double().numpy(), kept[:-1].numpy()) / np.diff(at)
    net = up + down + beside
    with drawing.sheet(width, 3.9) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2]).tolist()
        top.plot(edges.numpy(), value.numpy(), color=INK)
        top.set(ylabel="value", xlim=(at[0], at[-1]))
        for amount, colour in ((up, BLUE), (down, VERMILLION)):
            bottom.stairs(amount, at, fill=True, color=colour, alpha=0.55, linewidth=0)
        bottom.stairs(net, at, color=INK, linewidth=1.2, baseline=None)
        if beside.any():
            bottom.stairs(beside, at, color=MUTED, linewidth=1.2, linestyle="--", baseline=None)
        bottom.axhline(0, color=MUTED, linewidth=0.6, zorder=0)
        drawn = [beside] if beside.any() else []
        low, high = np.quantile(np.r_[(down, *drawn)], 0.01), np.quantile(np.r_[(up, *drawn)], 0.99)
        margin = 0.08 * (high - low) or 0.1
        bottom.set(ylim=(low - margin, high + margin), xlabel="steps", ylabel="credit per step")
        bottom.xaxis.set_major_locator(drawing.ticks(7 if width >= 5 else 3))
        bottom.xaxis.set_major_formatter(FuncFormatter(drawing.thousands))
        if per_epoch:
            drawing.epochs([top, bottom], int(at[0]), int(at[-1]), per_epoch)
        last = f"{value[-1]:.3g}".replace("-", "−")
        drawing.label_ends(top, {f"{name} {last}": (float(value[-1]), INK)}, width)
        ends = {"raised it": (0.7 * high, BLUE), "net": (float(net[-1]), INK)}
        drawing.label_ends(bottom, ends | {"lowered it": (0.7 * low, VERMILLION)}, width)
    return figure
