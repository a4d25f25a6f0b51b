"""What a few snapshots show of a run's phases: their change points beside those of the full record, and their courses.

Between two snapshots a change may be anywhere: the change points found can at best be as near as half the gap.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
import polars as pl
from jaxtyping import Float

from devinterp_func import changes, phase_tables, phases, records, training, tree
from devinterp_func.changes import Cut, Points
from devinterp_func.phase_tables import LOSSES, Course
from devinterp_func.phases import Texts
from devinterp_func.rundir import Run
from devinterp_func.transformer import Config
from devinterp_func.tree import Params

WEIGHTS = ("norm", "moved a step")
SPACINGS = ("even", "log")
LEAST = 4  # snapshots, for a course to be cut


def choose(snapshots: Sequence[int], m: int, spacing: str) -> list[int]:
    """At most m of the snapshots, first and last among them, spaced evenly ("even") or by growing gaps ("log").

    Raises:
        ValueError: fewer than 4 snapshots, or m below 4.

    >>> choose(range(0, 1001, 100), 4, "even"), choose(range(0, 1001, 100), 4, "log")
    ([0, 300, 700, 1000], [0, 100, 300, 1000])
    """
    if min(m, len(snapshots)) < LEAST:
        raise ValueError(f"{m} of {len(snapshots)} snapshots are asked for; phases take at least {LEAST}")
    at = np.array(snapshots, dtype=np.float64)
    even, log = np.linspace(at[0], at[-1], m), np.r_[at[0], np.geomspace(at[1], at[-1], m - 1)]
    wanted = even if spacing == "even" else log
    return sorted({snapshots[int(np.abs(at - x).argmin())] for x in wanted})


def frames(
    run: Run, chosen: Mapping[str, Sequence[int]], some: Texts, windows: pl.DataFrame, full: Points
) -> dict[str, pl.DataFrame]:
    """Tables by name: what the snapshots say, how near their change points come, how near their courses.

    Args:
        run: the run.
        chosen: spacing -> snapshots, of ``choose``.
        some: texts whose losses are measured.
        windows: of ``phase_tables.window_frame``: the full record.
        full: its change points.
    """
    config, units = training.load(run)[0], list(training.shapes(run))
    found: dict[str, list[pl.DataFrame]] = {"snapshots": [], "answers": [], "courses": []}
    for spacing, steps in chosen.items():
        weights = ((step, records.read_params(run, step)) for step in steps)
        measured = measure_frame(weights, units, some, config)
        few = course(measured)
        answers = answer_frame(full, phase_tables.points(cut(few), few), steps)
        for name, table in zip(found, (measured, answers, course_frame(windows, measured)), strict=True):
            found[name].append(table.select(pl.lit(spacing).alias("spacing"), pl.all()))
    return {name: pl.concat(parts, how="diagonal_relaxed") for name, parts in found.items()}


def measure_frame(
    weights: Iterable[tuple[int, Params]], units: Sequence[str], some: Texts, config: Config
) -> pl.DataFrame:
    """What weights alone tell: losses, and of the captured units' weights the norm, movement a step, and its turn.

    Args:
        weights: step, and the weights before it, in order.
        units: the captured units.
        some: texts whose losses are measured.
        config: the model.
    """
    rows, last, way = list[dict[str, object]](), None, None
    for step, params in weights:
        own = {name: params[name].double() for name in units}
        row: dict[str, object] = {"step": step, "norm": float(tree.norm(own)), "moved a step": None, "turn": None}
        if last is not None:
            before, way = way, tree.sub(own, last[1])
            row["moved a step"] = float(tree.norm(way)) / (step - last[0])
            if before is not None:
                row["turn"] = float(tree.dot(way, before) / (tree.norm(way) * tree.norm(before)))
        last = step, own
        rows.append(row | dict(zip(LOSSES, phases.class_losses(params, some, config).tolist(), strict=True)))
    return pl.DataFrame(rows, infer_schema_length=None)


def course(measured: pl.DataFrame) -> Course:
    """What is cut into phases: a row for each gap between two snapshots, with means of the measures at its ends."""
    ends = (*LOSSES, "norm")
    means = measured.select("step", *((pl.col(name) + pl.col(name).shift(-1)) / 2 for name in ends))
    gaps = means.with_columns(measured["moved a step"].shift(-1)).head(-1)
    return phase_tables.course(gaps, (*LOSSES, *WEIGHTS))


def cut(found: Course) -> Cut:
    """Change points of all measures together; a segment may be a single gap, and there are at most three cuts."""
    return changes.cut(found.values, found.step, most=4, least=1)


def answer_frame(full: Points, few: Points, snapshots: Sequence[int]) -> pl.DataFrame:
    """Each change point of the full record, the nearest one found from the snapshots, and what could be hoped for.

    "at best" is the distance to the nearest snapshot inside, "by chance" the mean distance if as many change points as
    were found were any of these snapshots; both, like "off by", in steps.
    """
    inside, rows = np.array(snapshots[1:-1], dtype=np.float64), []
    draws = [np.array(some) for some in combinations(inside, len(few))] if len(few) else []
    for step in full.tolist():
        row: dict[str, object] = {"full record": int(step), "from snapshots": None, "off by": None}
        row |= {"at best": float(np.abs(inside - step).min()), "by chance": None}
        if len(few):
            nearest = few[np.abs(few - step).argmin()]
            row |= {"from snapshots": int(nearest), "off by": abs(float(nearest) - step)}
            row["by chance"] = float(np.mean([np.abs(some - step).min() for some in draws]))
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


def course_frame(windows: pl.DataFrame, measured: pl.DataFrame) -> pl.DataFrame:
    """For each class of losses, how the course drawn through the snapshots goes with that of the full record.

    Linear in log step between snapshots. Any two falling courses go together; so the correlation is also given after
    the straight line in log step is taken off both. "misses" is the root mean square difference, nats.
    """
    own, rows = windows.filter(pl.col("units") == phase_tables.ALL), []
    for name in LOSSES:
        part = own.select("step", name).drop_nulls().drop_nans()
        if len(part) < 3:
            continue
        step = part["step"].to_numpy().astype(np.float64)
        known = measured.select("step", name).to_numpy().astype(np.float64)
        drawn = np.interp(np.log1p(step), np.log1p(known[:, 0]), known[:, 1])
        both = np.stack([part[name].to_numpy(), drawn], 1)
        row: dict[str, object] = {"measure": name, "correlation": _correlation(both)}
        row["less a line in log step"] = _correlation(both - changes.smooth(both, step, 2))
        rows.append(row | {"misses": float(np.sqrt(np.mean((both[:, 0] - drawn) ** 2)))})
    return pl.DataFrame(rows, infer_schema_length=None)


def _correlation(both: Float[np.ndarray, "W 2"]) -> float:
    return float(np.corrcoef(both.T)[0, 1]) if (both.std(0) > 0).all() else float("nan")
