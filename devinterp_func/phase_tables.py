"""The phases of a run as tables: measures in windows of steps, their change points, what differs between phases."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import changes, keyness, keys, phases
from devinterp_func.changes import Cut, Points
from devinterp_func.phases import Steps
from devinterp_func.vocabulary import Vocab

LOSSES = tuple(f"loss, {name}" for name in phases.CLASSES)
STEPWISE = ("size", "alignment", "coherence", "effective data", "top 1 % of data")
ALL = "all"


class Course(NamedTuple):
    """What is cut into phases: standardised measures, a row a window."""

    names: list[str]
    step: Float[np.ndarray, "W"]  # first of each window
    values: Float[np.ndarray, "W M"]

    def span(self) -> tuple[float, float]:
        """First and last step at which there can be a change point."""
        return float(self.step[changes.LEAST]), float(self.step[-changes.LEAST])

    def __repr__(self) -> str:
        return f"Course of {len(self.names)} measures in {len(self.step)} windows"


def groups(units: Sequence[str]) -> dict[str, list[int]]:
    """Units put together: all, each layer, and each kind of map in all layers.

    >>> groups(["layers.0.linear1.weight", "layers.1.linear1.weight"])
    {'all': [0, 1], 'layer 0': [0], 'layer 1': [1], 'linear1': [0, 1]}
    """
    found: dict[str, list[int]] = {ALL: list(range(len(units)))}
    parts = [re.fullmatch(r"layers\.(\d+)\.(?:self_attn\.)?(\w+?)[._]?(?:weight|bias)", unit) for unit in units]
    for group in (1, 2):
        for i, part in enumerate(parts):
            if part:
                found.setdefault(f"layer {part[1]}" if group == 1 else part[2], []).append(i)
    return found


def window_frame(steps: Steps, units: Sequence[str], window: int) -> pl.DataFrame:
    """The measures in windows of steps, by groups of units; the last window is left out if it is not full.

    Size and alignment are means over the steps; coherence is of the sums; effective data and the share of the top 1 %
    are of all the window's data, the first as a share of their number. Losses are means over where they were measured.

    Raises:
        ValueError: the walk is shorter than one window.
    """
    W = len(steps.step) // window
    if W < 1:
        raise ValueError(f"the window is {window} steps; the walk has {len(steps.step)}")
    rows = []
    for group, chosen in groups(units).items():
        own = steps.pooled(chosen)
        size, alignment = own.size()[:, 0], own.alignment()[:, 0]
        part = own.along[:, 0] / size.clamp(min=torch.finfo(size.dtype).tiny)[:, None]
        for w in range(W):
            at = slice(w * window, (w + 1) * window)
            square = own.square[at, 0]
            row: dict[str, object] = {"units": group, "step": int(steps.step[at.start]), "size": float(size[at].mean())}
            row |= {"alignment": float(alignment[at].nanmean()), "coherence": float(own.along[at].sum() / square.sum())}
            row["effective data"] = float(phases.effective(square.flatten())) / square.numel()
            row["top 1 % of data"] = phases.top_share(part[at].flatten())
            losses = steps.loss[at].nanmean(0).tolist() if group == ALL else [None] * len(LOSSES)
            rows.append(row | dict(zip(LOSSES, losses, strict=True)))
    return pl.DataFrame(rows, infer_schema_length=None)


def frames(windows: pl.DataFrame, *, key: keys.Key | int) -> tuple[dict[str, pl.DataFrame], Course, Points]:
    """Tables by name, what was cut, and the change points of all measures together.

    Args:
        windows: of ``window_frame``.
        key: of the draws by which change points of single measures are rotated.
    """
    found = course(windows)
    made = cuts(found)
    each = [points(made[name], found) for name in found.names]
    named = {"windows": windows, "changes": change_frame(made, found), "models": model_frame(made[ALL])}
    named["coincidence"] = _agreement_frame(each, found.span(), changes.rotated, key)
    return named | {"segments": segment_frame(windows, made[ALL])}, found, points(made[ALL], found)


def course(windows: pl.DataFrame, measures: Sequence[str] = (*LOSSES, *STEPWISE)) -> Course:
    """The measures of all units together, those that are finite and not constant."""
    own = windows.filter(pl.col("units") == ALL) if "units" in windows.columns else windows
    table = own.select(measures).to_numpy().astype(np.float64)
    kept = [i for i, x in enumerate(table.T) if np.isfinite(x).all() and x.max() > x.min()]
    names = [measures[i] for i in kept]
    return Course(names, own["step"].to_numpy().astype(np.float64), changes.standard(table[:, kept], names))


def cuts(found: Course) -> dict[str, Cut]:
    """Change points of all measures together, of each, and of all less their smooth courses."""
    together = changes.cut(found.values, found.step)
    each = {name: changes.cut(found.values[:, [i]], found.step) for i, name in enumerate(found.names)}
    rest = found.values - changes.smooth(found.values, found.step, int(together.smooth.argmin()) + 1)
    return {ALL: together, "all, less a smooth course": changes.cut(rest, found.step), **each}


def points(cut: Cut, found: Course) -> Points:
    """Steps at which a new phase begins."""
    return found.step[list(cut.rows)]


def change_frame(made: Mapping[str, Cut], found: Course) -> pl.DataFrame:
    """Each series' change points, and by how much BIC prefers its segments to one, and to the best smooth course."""
    rows = []
    for name, cut in made.items():
        steps = ", ".join(f"{step:.0f}" for step in points(cut, found))
        row: dict[str, object] = {"series": name, "change points": len(cut.rows), "at steps": steps}
        row |= {"over one segment": float(cut.segments[0] - cut.segments.min())}
        rows.append(row | {"over a smooth course": float(cut.smooth.min() - cut.segments.min())})
    return pl.DataFrame(rows)


def model_frame(cut: Cut) -> pl.DataFrame:
    """BIC of the models of each size: k segments, and polynomials in log step with k coefficients; less is better."""
    rows = zip(cut.segments.tolist(), cut.smooth.tolist(), strict=True)
    return pl.DataFrame([{"k": k, "segments": a, "polynomial": b} for k, (a, b) in enumerate(rows, 1)])


def segment_frame(windows: pl.DataFrame, cut: Cut) -> pl.DataFrame:
    """What differs between phases: mean measures of all units together in each."""
    own = windows.filter(pl.col("units") == ALL).drop("units")
    borders, first = [0, *cut.rows, len(own)], own["step"]
    width = int(first[1] - first[0]) if len(own) > 1 else 0
    rows = []
    for phase, (a, b) in enumerate(zip(borders[:-1], borders[1:], strict=True), 1):
        means = own[a:b].select(pl.exclude("step").mean()).row(0, named=True)
        rows.append({"phase": phase, "from": int(first[a]), "to": int(first[b - 1]) + width, **means})
    return pl.DataFrame(rows)


def maker_frame(
    steps: Steps,
    datum: Int[Tensor, "S n"],
    segments: pl.DataFrame,
    units: Sequence[str],
    tokens: Int[Tensor, "N C"],
    vocab: Vocab,
    most: int = 8,
) -> pl.DataFrame:
    """What makes each phase: the units and the data with most of its Σ_j ‖Δ_j‖², and what these data have in common.

    The tokens are those over-represented in the top 1 % of its data against all its data, by ``keyness.log_odds``.

    Args:
        steps: of a walk.
        datum: the ids of their data.
        segments: of ``segment_frame``.
        units: the captured units.
        tokens: of all training data.
        vocab: the vocabulary.
        most: so many tokens at most, and half as many units.
    """
    rows, start, V = [], int(steps.step[0]), len(vocab)
    for phase, first, stop in segments.select("phase", "from", "to").iter_rows():
        at = slice(first - start, stop - start)
        square, ids = steps.square[at].double(), datum[at].flatten()
        unit, own = square.sum((0, 2)) / square.sum(), square.sum(1).flatten() / square.sum()
        top = own.topk(max(1, round(phases.TOP * len(own))))
        counts, reference = (torch.bincount(tokens[x].flatten(), minlength=V) for x in (ids[top.indices], ids))
        score = keyness.log_odds(counts, reference)
        typical = [v for v in score.topk(min(most, V)).indices.tolist() if score[v] > 0]
        row = {"phase": phase, "from": first, "to": stop, "share of the top 1 %": float(top.values.sum())}
        row["units"] = ", ".join(
            f"{units[u]} {unit[u]:.2f}" for u in unit.argsort(descending=True)[: most // 2].tolist()
        )
        row["over-represented"] = " ".join(vocab.decode(typical))
        rows.append(row | {"largest": " ".join(vocab.decode(tokens[ids[top.indices[0]]]))})
    return pl.DataFrame(rows)


def seed_frame(seeds: Sequence[tuple[Course, Points]], *, key: keys.Key | int) -> pl.DataFrame:
    """Whether the change points of several runs fall together, beside as many placed at random.

    Args:
        seeds: what was cut in each run, and its change points.
        key: of the draws.
    """
    spans = [course.span() for course, _ in seeds]
    span = max(low for low, _ in spans), min(high for _, high in spans)
    return _agreement_frame([points for _, points in seeds], span, changes.placed, key)


def _agreement_frame(
    sets: Sequence[Points], span: tuple[float, float], null: changes.Null, key: keys.Key | int
) -> pl.DataFrame:
    """In steps, and in log steps: phases may well grow longer as training goes on."""
    rows = []
    for axis, logged in (("steps", False), ("log steps", True)):
        ends, *scaled = (np.log1p(x) if logged else x for x in (np.array(span), *sets))
        found = changes.agreement(scaled, (float(ends[0]), float(ends[1])), null, key=key)
        rows.append({"axis": axis, "series": len([x for x in sets if len(x)]), **found._asdict()})
    return pl.DataFrame(rows)
