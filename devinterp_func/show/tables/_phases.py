"""The phases of a run as tables: measures in windows of steps, their change points, what differs between phases.

Every table has a column ``run``, by ``run_labels``; a run's rows are replaced together.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from devinterp_func import bigram, credit, keys, stats, units
from devinterp_func.credit import Course, WindowMeasures
from devinterp_func.records import RunPath
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table, frame, tokens
from devinterp_func.stats import Cut, Points

LOSSES = tuple(f"loss, {name}" for name in bigram.CLASSES)
STEPWISE = {
    "size": Column(FLOAT, "‖Δ‖ of a step, mean"),
    "alignment": Column(FLOAT, "cosine of a step and the one before, mean"),
    "coherence": Column(
        FLOAT, "‖Δ‖² ÷ Σ_j ‖Δ_j‖²: as many as the data of a step where all pull alike, 1 at right angles"
    ),
    "effective sample size": Column(FLOAT, "as a share of the number of data", format=".1%"),
    "top 1 % of data": Column(FLOAT, "their share of the way", format=".1%"),
}
RUN = {"run": Column(NAME)}
KEY = ("run",)
LOSS_COLUMNS = {name: Column(FLOAT, "mean over held-out positions of this class, nats") for name in LOSSES}
WINDOWS = Table(
    "Measures of the steps in windows, by groups of units.",
    "phases.py",
    RUN | {"units": Column(NAME), "step": Column(INT, "first of the window")} | STEPWISE | LOSS_COLUMNS,
    KEY,
)
CHANGES = Table(
    "Change points of each measure, and by how much BIC prefers the segments to one, and to the best smooth course.",
    "phases.py",
    RUN
    | {
        "series": Column(NAME),
        "change points": Column(INT),
        "at steps": Column(pl.List(pl.Int64), "at which a new phase begins", subject="step"),
        "over one segment": Column(FLOAT, "BIC: more than 0 is in favour of segments"),
        "over a smooth course": Column(FLOAT, "BIC: more than 0 is in favour of segments", control=True),
    },
    KEY,
)
MODELS = Table(
    "BIC by the number of segments, and of coefficients of a smooth course; less is better.",
    "phases.py",
    RUN | {"k": Column(INT), "segments": Column(FLOAT), "polynomial": Column(FLOAT, control=True)},
    KEY,
)
AGREEMENT = {
    "axis": Column(NAME, "on which distances are taken: phases may well grow longer as training goes on"),
    "series": Column(INT, "that have change points"),
    "distance": Column(FLOAT, "mean distance of change points to the nearest ones in each other series"),
    "chance": Column(FLOAT, "mean of the same over random draws", control=True),
    "p": Column(FLOAT, "share of draws that are as near", format="p"),
}
COINCIDENCE = Table(
    "Do the change points of single measures coincide? Chance: each series' points rotated.",
    "phases.py",
    RUN | AGREEMENT,
    KEY,
)
SEGMENTS = Table(
    "Means of each phase.",
    "phases.py",
    RUN
    | {"phase": Column(INT, "from 0"), "from": Column(INT, "first step"), "to": Column(INT, "first of the next phase")}
    | STEPWISE
    | LOSS_COLUMNS,
    KEY,
)
MAKERS = Table(
    "What makes each phase: units and data with most of its Σ‖Δ‖², tokens over-represented in those data.",
    "phases.py",
    RUN
    | {
        "phase": Column(INT, "from 0"),
        "units": Column(pl.List(pl.String), "with the largest shares"),
        "shares of the units": Column(pl.List(pl.Float64)),
        "share of the top 1 %": Column(FLOAT, "of data", format=".1%"),
        "over-represented": tokens("in the top 1 % of data, against all of the phase"),
        "largest datum": Column(INT, "id of the datum with the largest share"),
    },
    KEY,
)
SEEDS = Table(
    "Do the change points of several runs agree? Chance: as many points placed at random.",
    "phases.py",
    {"runs": Column(pl.List(pl.String))} | AGREEMENT,
    ("axis",),
)


def run_labels(runs: Sequence[RunPath]) -> list[str]:
    """What tells runs apart: as many of the last parts of their paths as it takes, the same number for all.

    Raises:
        ValueError: a run is given twice.

    >>> run_labels(["/data/seed0/run", "/data/seed1/run"]), run_labels(["/data/demo"])
    (['seed0/run', 'seed1/run'], ['demo'])
    """
    paths = [os.path.realpath(run) for run in runs]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise ValueError(f"{twice[0]} is given {len(twice)} times; runs are compared with others, not with themselves")
    parts = [[part for part in path.split(os.sep) if part] for path in paths]
    for many in range(1, max(map(len, parts), default=0) + 1):
        labels = ["/".join(part[-many:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return paths


def unit_groups(names: Sequence[str]) -> dict[str, list[int]]:
    """Units put together: all, each layer, and each kind of map in all layers.

    >>> unit_groups(["layers.0.linear1.weight", "layers.1.linear1.weight", "decoder.bias"])
    {'all': [0, 1, 2], 'layer 0': [0], 'layer 1': [1], 'linear1': [0, 1]}
    """
    groups: dict[str, list[int]] = {credit.ALL: list(range(len(names)))}
    inside = [(i, name) for i, name in enumerate(names) if units.is_in_layer(name)]
    for i, name in inside:
        groups.setdefault(f"layer {units.layer(name)}", []).append(i)
    for i, name in inside:
        groups.setdefault(units.kind(name), []).append(i)
    return groups


def window_frame(run: str, measured: WindowMeasures, groups: Sequence[str]) -> pl.DataFrame:
    """The measures in windows of steps, by groups of units; the losses stand beside the first group.

    Args:
        run: its label.
        measured: of ``credit.measure_windows``.
        groups: names of its groups.
    """
    stepwise = (measured.size, measured.alignment, measured.coherence, measured.effective, measured.top)
    rows = []
    for g, group in enumerate(groups):
        for w, step in enumerate(measured.step.tolist()):
            values = [float(x[w, g]) for x in stepwise]
            losses = measured.loss[w].tolist() if g == 0 else [None] * len(LOSSES)
            row: dict[str, object] = {"run": run, "units": group, "step": step}
            rows.append(row | dict(zip((*STEPWISE, *LOSSES), (*values, *losses), strict=True)))
    return frame(WINDOWS, rows)


def phase_course(measured: WindowMeasures) -> Course:
    """The course of all units together and of the losses."""
    stepwise = (measured.size, measured.alignment, measured.coherence, measured.effective, measured.top)
    values = np.concatenate([measured.loss.numpy(), np.stack([x[:, 0].numpy() for x in stepwise], 1)], 1)
    return credit.course([*LOSSES, *STEPWISE], measured.step.double().numpy(), values)


def change_frame(run: str, cuts: Mapping[str, Cut], course: Course) -> pl.DataFrame:
    """Each series' change points, and by how much BIC prefers its segments to one, and to the best smooth course."""
    rows = []
    for name, cut in cuts.items():
        points = [int(step) for step in credit.change_points(cut, course)]
        row: dict[str, object] = {"run": run, "series": name, "change points": len(points), "at steps": points}
        row["over one segment"] = float(cut.segments[0] - cut.segments.min())
        rows.append(row | {"over a smooth course": float(cut.smooth.min() - cut.segments.min())})
    return frame(CHANGES, rows)


def model_frame(run: str, cut: Cut) -> pl.DataFrame:
    """BIC of the models of each size: k segments, and polynomials in log step with k coefficients; less is better."""
    sizes = enumerate(zip(cut.segments.tolist(), cut.smooth.tolist(), strict=True), 1)
    return frame(MODELS, [{"run": run, "k": k, "segments": a, "polynomial": b} for k, (a, b) in sizes])


def coincidence_frame(run: str, cuts: Mapping[str, Cut], course: Course, *, key: keys.Key | int) -> pl.DataFrame:
    """Whether the change points of single measures fall together, beside each series' points rotated."""
    points = [credit.change_points(cuts[name], course) for name in course.names]
    rows = _agreement(points, course.span(), stats.rotated_points, key)
    return frame(COINCIDENCE, [{"run": run} | row for row in rows])


def segment_frame(windows: pl.DataFrame, cut: Cut) -> pl.DataFrame:
    """What differs between phases: mean measures of all units together in each.

    Args:
        windows: of ``window_frame``, of one run.
        cut: of all measures together.
    """
    whole = windows.filter(pl.col("units") == credit.ALL)
    borders, first = [0, *cut.rows, len(whole)], whole["step"].to_list()
    ends = [*first, 2 * first[-1] - first[-2] if len(first) > 1 else first[-1]]  # the last window is as wide
    rows = []
    for phase, (a, b) in enumerate(zip(borders[:-1], borders[1:], strict=True)):
        means = whole[a:b].select(pl.col(*STEPWISE, *LOSSES).mean()).row(0, named=True)
        rows.append({"run": whole["run"][0], "phase": phase, "from": first[a], "to": ends[b]} | means)
    return frame(SEGMENTS, rows)


def maker_frame(run: str, made: Sequence[credit.Maker], names: Sequence[str], most: int = 4) -> pl.DataFrame:
    """What makes each phase.

    Args:
        run: its label.
        made: of ``credit.makers``.
        names: of the units.
        most: so many units.
    """
    rows = []
    for phase, maker in enumerate(made):
        largest = maker.units.argsort(descending=True, stable=True)[:most]
        row: dict[str, object] = {"run": run, "phase": phase, "units": [names[u] for u in largest.tolist()]}
        row |= {"shares of the units": maker.units[largest].tolist(), "share of the top 1 %": maker.top}
        rows.append(row | {"over-represented": maker.tokens, "largest datum": maker.largest})
    return frame(MAKERS, rows)


def seed_frame(seeds: Mapping[str, tuple[Course, Points]], *, key: keys.Key | int) -> pl.DataFrame:
    """Whether the change points of several runs fall together, beside as many placed at random.

    Args:
        seeds: by run's label: what was cut, and its change points.
        key: of the draws.
    """
    spans = [course.span() for course, _ in seeds.values()]
    span = max(low for low, _ in spans), min(high for _, high in spans)
    rows = _agreement([points for _, points in seeds.values()], span, stats.placed_points, key)
    return frame(SEEDS, [{"runs": list(seeds)} | row for row in rows])


def _agreement(
    sets: Sequence[Points], span: tuple[float, float], null: stats.Null, key: keys.Key | int
) -> list[dict[str, object]]:
    """In steps, and in log steps: phases may well grow longer as training goes on."""
    rows = []
    for axis, logged in (("steps", False), ("log steps", True)):
        ends, *scaled = (np.log1p(x) if logged else x for x in (np.array(span), *sets))
        agreement = stats.agreement(scaled, (float(ends[0]), float(ends[1])), null, key=key)
        rows.append({"axis": axis, "series": len([x for x in sets if len(x)]), **agreement._asdict()})
    return rows
