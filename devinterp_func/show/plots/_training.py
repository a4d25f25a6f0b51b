"""A run's training: its losses, and where its outliers lie."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from devinterp_func import units
from devinterp_func.show import drawing
from devinterp_func.show.drawing import BLUE, CYCLE, GREEN, INK, MUTED, WIDE


def loss_curve(
    loss: Float[Tensor, "T"],
    per_epoch: int,
    evaluations: Mapping[int, Mapping[str, float]],
    clip: Float[Tensor, "T"] | None = None,
    width: float | int = WIDE,
) -> Figure:
    """The training loss with the range of its middle 80 %, evaluations by split, and the clip coefficient below.

    Args:
        loss: of each step's batch, nats; the first fall may leave the frame, and the start is told instead.
        per_epoch: steps of an epoch.
        evaluations: steps made -> split -> loss.
        clip: of each step, in (0, 1].
        width: inches.
    """
    heights = [3, 1] if clip is not None else [3]
    with drawing.sheet(width, 0.2 + 0.85 * sum(heights)) as figure:
        panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0].tolist()
        top = panels[0]
        ends = {"train": (drawing.band(top, loss, BLUE), BLUE)}
        _frame_losses(top, loss, evaluations)
        splits = dict.fromkeys(split for losses in evaluations.values() for split in losses)
        for split, colour in zip(splits, CYCLE[1:], strict=False):
            points = sorted((step, losses[split]) for step, losses in evaluations.items() if split in losses)
            inside = np.array([point for point in points if point[1] <= top.get_ylim()[1]]).reshape(-1, 2)
            top.plot(*inside.T, "o-", color=colour, markersize=3.5, linewidth=1, clip_on=False)
            ends[split] = (points[-1][1], colour)
        drawing.label_ends(top, {f"{name} {y:.2f}": (y, colour) for name, (y, colour) in ends.items()}, width)
        top.set(ylabel="loss, nats", xlim=(0, len(loss)))
        if clip is not None:
            drawing.band(panels[1], clip, GREEN)
            panels[1].set(ylabel="clip", ylim=(0, 1.05), yticks=[0, 0.5, 1])
        drawing.epochs(panels, 0, len(loss), per_epoch)
        panels[-1].xaxis.set_major_locator(drawing.ticks(7 if width >= 5 else 3))
        panels[-1].set_xlabel("steps")
    return figure


def outliers_over_training(
    counts: Int[Tensor, "bins units"], names: Sequence[str], n_steps: int, width: float | int = WIDE
) -> Figure:
    """Which units the outliers lie in: each unit's share of a bin's outliers, and of all, beside the row.

    Args:
        counts: outliers of each unit in bins of like length, from step 0 on; at least one bin.
        names: of the units; those of a layer stand together.
        n_steps: steps that the bins hold together.
        width: inches.
    """
    share = (counts.double() / counts.sum(1, keepdim=True).clamp(min=1)).T
    total = counts.double().sum(0) / counts.sum().clamp(min=1)
    highest = float(share.max()) or 1.0
    with drawing.sheet(width, 1.1 + 0.2 * max(len(names), 3)) as figure:
        axes = figure.subplots()
        fade = LinearSegmentedColormap.from_list("fade", [(0.15, 0.5, 0.8, 0.0), (0.15, 0.5, 0.8, 1.0)])
        extent = (0, n_steps, len(names) - 0.5, -0.5)
        image = axes.imshow(
            share.numpy(), fade, aspect="auto", interpolation="none", vmin=0, vmax=highest, extent=extent
        )
        layers = [units.layer(name) if units.is_in_layer(name) else None for name in names]
        axes.set_yticks(range(len(names)), [_row_label(name) for name in names])
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("steps")
        axes.xaxis.set_major_locator(drawing.ticks(7 if width >= 5 else 3))
        axes.xaxis.set_major_formatter(FuncFormatter(drawing.thousands))
        for row, whole in enumerate(total.tolist()):
            drawing.beside(axes, row, f"{whole:.1%}", INK)
            if row and layers[row] != layers[row - 1]:
                axes.axhline(row - 0.5, color=MUTED, linewidth=0.6)
        drawing.beside(axes, -1, "all", MUTED)
        bar = figure.colorbar(
            image, ax=axes, location="top", shrink=0.5, aspect=36 if width >= 5 else 24, pad=0.02, anchor=(0, 0)
        )
        bar.outline.set_visible(False)
        bar.set_ticks([0, highest], labels=["0", f"{highest:.0%} of a bin"])
        bar.ax.tick_params(length=0)
    return figure


def concentration(counts: Mapping[str, Int[Tensor, "_"]], width: float | int = WIDE) -> Figure:
    """How few parameters carry the outliers: counts in descending order, both axes logarithmic; a dot at half of them.

    Args:
        counts: name -> outliers of each parameter; parameters without outliers are not drawn.
        width: inches.
    """
    with drawing.sheet(width, 3.0) as figure:
        axes, halves = figure.subplots(), {}
        axes.set(xscale="log", yscale="log", xlabel="parameters, by outliers", ylabel="outliers of the parameter")
        for i, (name, values) in enumerate(counts.items()):
            ordered, colour = values[values > 0].sort(descending=True).values, CYCLE[i % len(CYCLE)]
            if not len(ordered):
                continue
            ranks = np.unique(np.geomspace(1, len(ordered), 160).round().astype(np.int64))
            axes.plot(ranks, ordered.numpy()[ranks - 1], color=colour)
            half = int((2 * ordered.cumsum(0) >= ordered.sum()).nonzero()[0])
            axes.plot(half + 1, int(ordered[half]), "o", color=colour, markersize=5)
            halves[f"{drawing.plain(name)}: half in {(half + 1) / len(values):.2%}"] = colour
        drawing.log_ticks(axes)
        for row, (text, colour) in enumerate(reversed(halves.items())):  # below falling curves there is room
            drawing.remark(axes, text, (0, 0), (8, 6 + 12 * row), xycoords="axes fraction", color=colour)
    return figure


def _frame_losses(axes: Axes, loss: Float[Tensor, "T"], evaluations: Mapping[int, Mapping[str, float]]) -> None:
    """Limits that hold all but the first 2 % of training, of which the start is told."""
    begin = len(loss) // 50
    late = [x for x in loss[begin:].tolist() if math.isfinite(x)] or [0.0]
    later = [x for step, losses in evaluations.items() if step > begin for x in losses.values() if math.isfinite(x)]
    low, high = np.quantile(late, [0.001, 0.999])
    low, high = min([low, *later]), max([high, *later])
    margin = 0.06 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)
    if loss[0] > high + margin:
        drawing.remark(axes, f"↑ {loss[0]:.1f} at the start", (0, 1), (14, -1), xycoords="axes fraction", va="top")


def _row_label(unit: str) -> str:
    """Layer and kind; a bias says that it is one."""
    is_bias = unit == units.weight_and_bias(units.operation(unit))[1]
    return drawing.plain(units.label(unit)) + " bias" * is_bias
