"""Arrays as matplotlib figures, in one house style (``drawing``), for ``report`` or for a paper.

Every function draws a new ``Figure`` of a width in inches, ``drawing.NARROW`` for a phone; pyplot and the global
settings are left alone. Long series are drawn as means of bins and dense pictures as pixels, so that a figure takes
kilobytes.

Source of the activation figures: Figures 1-3 of *Training Process Transparency through Gradient Interpretability: Early
Experiments on Toy Language Models* (Krzyzanowski and Hubinger 2023).
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from devinterp_func import drawing
from devinterp_func.drawing import BLUE, CYCLE, GREEN, INK, MUTED, RULE, VERMILLION, WIDE

Kind = Literal["record", "baseline", "control"]
Series = tuple[Int[Tensor, "m"], Float[Tensor, "m"]]  # steps and values

KINDS: dict[Kind, str] = {"record": BLUE, "baseline": VERMILLION, "control": MUTED}


# ---- training


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
    counts: Int[Tensor, "bins units"], units: Sequence[str], steps_per_bin: int, width: float | int = WIDE
) -> Figure:
    """Which units the outliers lie in: each unit's share of a bin's outliers, and of all, beside the row.

    Args:
        counts: outliers of each unit in consecutive bins of steps; at least one bin.
        units: their names, layers.2.linear1.weight and so on; those of a layer stand together.
        steps_per_bin: steps of a bin.
        width: inches.
    """
    share = (counts.double() / counts.sum(1, keepdim=True).clamp(min=1)).T
    total = counts.double().sum(0) / counts.sum().clamp(min=1)
    highest = float(share.max()) or 1.0
    with drawing.sheet(width, 0.95 + 0.2 * len(units)) as figure:
        axes = figure.subplots()
        fade = LinearSegmentedColormap.from_list("fade", [(0.15, 0.5, 0.8, 0.0), (0.15, 0.5, 0.8, 1.0)])
        extent = (0, len(counts) * steps_per_bin, len(units) - 0.5, -0.5)
        image = axes.imshow(
            share.numpy(), fade, aspect="auto", interpolation="none", vmin=0, vmax=highest, extent=extent
        )
        layers, names = zip(*map(_split_unit, units), strict=True)
        axes.set_yticks(range(len(units)), names)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("steps")
        axes.xaxis.set_major_locator(drawing.ticks(7 if width >= 5 else 3))
        axes.xaxis.set_major_formatter(FuncFormatter(drawing.thousands))
        for row, whole in enumerate(total.tolist()):
            drawing.beside(axes, row, f"{whole:.1%}", INK)
            if row and layers[row] != layers[row - 1]:
                axes.axhline(row - 0.5, color=MUTED, linewidth=0.6)
        drawing.beside(axes, -1, "all", MUTED)
        bar = figure.colorbar(image, ax=axes, location="top", shrink=0.5, aspect=24, pad=0.02, anchor=(0, 0))
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


def lines(
    series: Mapping[str, Series],
    ylabel: str,
    per_epoch: int | None = None,
    markers: bool = False,
    width: float | int = WIDE,
    marks: Sequence[float] = (),
) -> Figure:
    """Courses over training, each named at its end: a bigram's entry, a correlation, a probe.

    Args:
        series: name -> (steps, values).
        ylabel: what the values are, with their unit.
        per_epoch: steps of an epoch, to mark epochs.
        markers: a dot at each value, for short series.
        width: inches.
        marks: steps to mark, such as change points.
    """
    with drawing.sheet(width, 2.8) as figure:
        axes, ends = figure.subplots(), {}
        for i, (name, (steps, values)) in enumerate(series.items()):
            colour = CYCLE[i % len(CYCLE)]
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
) -> Figure:
    """A probe over training, and below it what raised and what lowered it in each window, and the net of both.

    Credits are shown per step; windows beyond ``drawing.BINS`` are put together, and the highest 1 % of bands may leave
    the frame.

    Args:
        edges: steps at which the windows begin, and where the last one ends.
        value: of the probe before these steps.
        raised, lowered: sums of the positive and of the negative credits in each window; one window at least.
        name: of the probe.
        per_epoch: steps of an epoch, to mark epochs.
        width: inches.
    """
    kept = torch.linspace(0, len(raised), min(len(raised), drawing.BINS) + 1).round().long()
    at = edges[kept].numpy()
    up, down = (np.add.reduceat(x.double().numpy(), kept[:-1].numpy()) / np.diff(at) for x in (raised, lowered))
    with drawing.sheet(width, 3.9) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2]).tolist()
        top.plot(edges.numpy(), value.numpy(), color=INK)
        top.set(ylabel="value", xlim=(at[0], at[-1]))
        for amount, colour in ((up, BLUE), (down, VERMILLION)):
            bottom.stairs(amount, at, fill=True, color=colour, alpha=0.55, linewidth=0)
        bottom.stairs(up + down, at, color=INK, linewidth=1.2, baseline=None)
        bottom.axhline(0, color=MUTED, linewidth=0.6, zorder=0)
        low, high = np.quantile(down, 0.01), np.quantile(up, 0.99)
        margin = 0.08 * (high - low) or 0.1
        bottom.set(ylim=(low - margin, high + margin), xlabel="steps", ylabel="credit per step")
        bottom.xaxis.set_major_locator(drawing.ticks(7 if width >= 5 else 3))
        bottom.xaxis.set_major_formatter(FuncFormatter(drawing.thousands))
        if per_epoch:
            drawing.epochs([top, bottom], int(at[0]), int(at[-1]), per_epoch)
        last = f"{value[-1]:.3g}".replace("-", "−")
        drawing.label_ends(top, {f"{name} {last}": (float(value[-1]), INK)}, width)
        ends = {"raised it": (0.7 * high, BLUE), "net": (float(up[-1] + down[-1]), INK)}
        drawing.label_ends(bottom, ends | {"lowered it": (0.7 * low, VERMILLION)}, width)
    return figure


# ---- tokens and neurons


def activation_histograms(values: Mapping[str, Float[Tensor, "_"]], token: str, width: float | int = WIDE) -> Figure:
    """A neuron's activation on a token against that on other tokens (the post's Figures 1 and 2).

    A histogram a row, each to its own height, with its median. Exact zeros, a ReLU's rest, are left out of both and
    counted beside the row.

    Args:
        values: token -> activations at the positions with it, as ``activations.distribution`` gives them.
        token: the one in question.
        width: inches.

    Raises:
        ValueError: there are no values for the token.
    """
    return _ridges(values, token, "activation, by token", width)


def neighbours(values: Mapping[int, Float[Tensor, "m"]], neuron: int, width: float | int = WIDE) -> Figure:
    """The activations of a neuron and of those numbered next to it, on one token (the post's Figure 3).

    Args:
        values: neuron -> activations at the same positions, of ``activations.neighbours``.
        neuron: the one in question.
        width: inches.

    Raises:
        ValueError: there are no values for the neuron.
    """
    return _ridges({str(i): v for i, v in values.items()}, str(neuron), "activation, by neuron", width)


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
    """Skill of each score as a dot with its interval, a panel for each group of neurons.

    Args:
        names: of the scores, from top to bottom.
        value, low, high: estimates and their intervals; NaN is shown as –.
        groups: the panels' titles, a sublayer each.
        kinds: of each score: "record" (read off the training record), "baseline" (without it) or "control".
        xlabel: what is estimated.
        width: inches.
    """
    columns = min(len(groups), max(1, int((width - 1.4) / 1.9)))
    lines = -(-len(groups) // columns)
    colours = [KINDS[kind] for kind in kinds]
    with drawing.sheet(width, 0.7 + lines * (0.35 + 0.19 * len(names))) as figure:
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(groups) :]:
            axes.remove()
        estimates = torch.stack([value, low, high], -1).tolist()
        for axes, title, of in zip(grid.flat, groups, estimates, strict=False):
            axes.set_title(drawing.plain(title), color=INK)
            drawing.rows(axes, [drawing.plain(name, 30) for name in names])
            for row, (colour, (x, least, most)) in enumerate(zip(colours, of, strict=True)):
                axes.axhline(row, color=RULE, linewidth=0.5, zorder=0)
                axes.plot([least, most], [row, row], color=colour, linewidth=1.5, solid_capstyle="butt", alpha=0.6)
                axes.plot(x, row, "o", color=colour, markersize=4.5)
                drawing.beside(axes, row, "–" if math.isnan(x) else f"{x:.2f}", colour, indent=3)
            for text, colour in zip(axes.get_yticklabels(), colours, strict=False):  # only the first column has any
                text.set_color(colour)
        grid[0, 0].set_xlim(0, 1.05 * float(high.nan_to_num(0).max()) or 1)
        grid[0, 0].xaxis.set_major_locator(drawing.ticks(4))
        figure.supxlabel(xlabel, fontsize=9, color=MUTED)
        drawing.key(figure, {kind: KINDS[kind] for kind in dict.fromkeys(kinds)})
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
    """A share by group of neurons as bars, with the control's as a mark on each.

    Args:
        groups: their names, a sublayer each.
        share, control: in [0, 1]; NaN is shown as –.
        xlabel: what the share is of.
        width: inches.
    """
    with drawing.sheet(width, 0.85 + 0.24 * len(groups)) as figure:
        axes = figure.subplots()
        places = np.arange(len(groups))
        axes.barh(places, share.nan_to_num(0).numpy(), 0.62, color=BLUE, alpha=0.85)
        axes.plot(control.numpy(), places, "|", color=INK, markersize=11, markeredgewidth=1.6)
        drawing.rows(axes, [drawing.plain(group, 30) for group in groups])
        largest = torch.stack([share, control]).nan_to_num(0).amax(0).tolist()
        for y, (x, of) in enumerate(zip(largest, share.tolist(), strict=True)):
            words = "–" if math.isnan(of) else f"{of:.1%}"
            drawing.remark(axes, words, (x, y), (5, 0), va="center", color=INK)
        axes.set_xlim(0, 1.12 * max(largest, default=0) or 1)
        axes.xaxis.set_major_formatter(FuncFormatter(drawing.percent))
        axes.xaxis.set_major_locator(drawing.ticks(5))
        axes.set_xlabel(xlabel)
        drawing.key(figure, {"attributed": BLUE, "control": INK}, marks={"control": "|"})
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


def _ridges(values: Mapping[str, Float[Tensor, "_"]], chosen: str, xlabel: str, width: float | int) -> Figure:
    if chosen not in values:
        raise ValueError(f"there are no values for {chosen!r}, only for {', '.join(map(repr, values))}")
    active = {name: v[v != 0].double() for name, v in values.items()}
    edges, rests = _edges(list(active.values())), any(bool((v == 0).any()) for v in values.values())
    with drawing.sheet(width, 0.8 + 0.3 * len(values)) as figure:
        axes = figure.subplots()
        drawing.rows(axes, [drawing.token(name) for name in values])
        for row, (name, v) in enumerate(active.items()):
            colour = BLUE if name == chosen else MUTED
            height = torch.histogram(v.clamp(edges[0], edges[-1]), edges).hist
            top = row + 0.5 - 0.85 * height / height.max().clamp(min=1)
            axes.stairs(top.numpy(), edges.numpy(), baseline=row + 0.5, fill=True, color=colour, alpha=0.75)
            axes.axhline(row + 0.5, color=RULE, linewidth=0.6, zorder=0)
            axes.plot([float(v.median())] * 2 if len(v) else [], [row + 0.5, row - 0.35][: 2 * len(v)], color=INK)
            axes.get_yticklabels()[row].set_color(colour)
            drawing.beside(axes, row, f"{len(values[name]):,}", colour)
            if rests:
                zeros = float((values[name] == 0).double().mean().nan_to_num())
                drawing.beside(axes, row, f"{zeros:.0%}", colour, indent=56)
        drawing.beside(axes, -1, "positions", MUTED)
        drawing.beside(axes, -1, "at 0" if rests else "", MUTED, indent=56)
        axes.set(xlabel=xlabel, xlim=(float(edges[0]), float(edges[-1])), ylim=(len(values) - 0.4, -0.7))
        axes.spines["left"].set_visible(False)
    return figure


def _edges(rows: Sequence[Float[Tensor, "_"]], bins: int = 60) -> Float[Tensor, "edges"]:
    """Edges of bins over the middle 99.8 % of each row; the outermost bins hold the others too."""
    ranges = [np.quantile(v.numpy(), [0.001, 0.999]).tolist() for v in rows if len(v)]
    low, high = min((low for low, _ in ranges), default=0.0), max((high for _, high in ranges), default=1.0)
    return torch.linspace(low, high if high > low else low + 1, bins + 1, dtype=torch.float64)


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


def _split_unit(unit: str) -> tuple[str, str]:
    """Layer and short name: "layers.2.self_attn.in_proj_weight" -> ("2", "2 attn.in_proj")."""
    match = re.fullmatch(r"layers\.(\d+)\.(.+?)[._]weight", unit)
    return (match[1], f"{match[1]} {match[2].replace('self_attn', 'attn')}") if match else ("", drawing.plain(unit))
