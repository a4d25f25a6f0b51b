"""What a few snapshots alone tell of a training: losses, norms and ways, and change points among them.

Between two snapshots a change may be anywhere: the change points found can at best be as near as half the gap.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import stats, tree
from devinterp_func.credit._phases import Course, course
from devinterp_func.stats import Cut, Points
from devinterp_func.tree import Params

Spacing = Literal["even", "log"]
SPACINGS: tuple[Spacing, ...] = ("even", "log")
FEWEST_SNAPSHOTS = 4  # that can be cut


class SnapshotMeasures(NamedTuple):
    """What m snapshots tell; movement and turn are NaN where there is no snapshot before, or none before that."""

    step: Int[Tensor, "m"]
    norm: Float[Tensor, "m"]  # of the weights
    moved: Float[Tensor, "m"]  # ‖change since the snapshot before‖ per step
    turn: Float[Tensor, "m"]  # cosine of that change and the one before it
    loss: Float[Tensor, "m c"]


class Answer(NamedTuple):
    """A change point of the full record and what the snapshots say of it; distances in steps."""

    full: int
    nearest: int | None  # change point found from the snapshots; None where there is none at all
    distance: float | None
    at_best: float  # distance to the nearest snapshot inside
    by_chance: float | None  # mean distance if as many change points were any of the snapshots inside


class Likeness(NamedTuple):
    """How near a course drawn through few points comes to the full one."""

    correlation: float
    detrended: float  # the same after the straight line in log step is taken off both
    missed: float  # root mean square difference


def choose_snapshots(snapshots: Sequence[int], m: int, spacing: Spacing) -> list[int]:
    """At most m of the snapshots, first and last among them, spaced evenly ("even") or by growing gaps ("log").

    Raises:
        ValueError: fewer than 4 snapshots, or m below 4.

    >>> choose_snapshots(range(0, 1001, 100), 4, "even"), choose_snapshots(range(0, 1001, 100), 4, "log")
    ([0, 300, 700, 1000], [0, 100, 300, 1000])
    """
    if min(m, len(snapshots)) < FEWEST_SNAPSHOTS:
        raise ValueError(
            f"{m} of {len(snapshots)} snapshots are asked for; phases take at least {FEWEST_SNAPSHOTS} of as many"
        )
    at = np.array(snapshots, dtype=np.float64)
    even, log = np.linspace(at[0], at[-1], m), np.r_[at[0], np.geomspace(at[1], at[-1], m - 1)]
    wanted = even if spacing == "even" else log
    return sorted({snapshots[int(np.abs(at - x).argmin())] for x in wanted})


def measure_snapshots(
    weights: Iterable[tuple[int, Params]], units: Sequence[str], losses: Callable[[Params], Float[Tensor, "c"]]
) -> SnapshotMeasures:
    """What weights alone tell: losses, and of some units' weights the norm, movement a step, and its turn.

    Args:
        weights: step, and the weights before it, in order.
        units: whose weights.
        losses: what the model can predict.
    """
    rows: list[tuple[int, float, float, float]] = []
    measured, last, way = [], None, None
    for step, params in weights:
        chosen = {name: params[name].double() for name in units}
        moved = turn = float("nan")
        if last is not None:
            before, way = way, tree.sub(chosen, last)
            moved = float(tree.norm(way)) / (step - rows[-1][0])
            if before is not None:
                turn = float(tree.dot(way, before) / (tree.norm(way) * tree.norm(before)))
        rows.append((step, float(tree.norm(chosen)), moved, turn))
        measured.append(losses(params).double().cpu())
        last = chosen
    steps, norms, moves, turns = zip(*rows, strict=True)
    norm, movement, turning = (torch.tensor(column, dtype=torch.float64) for column in (norms, moves, turns))
    return SnapshotMeasures(torch.tensor(steps), norm, movement, turning, torch.stack(measured))


def snapshot_course(measured: SnapshotMeasures, loss_names: Sequence[str]) -> Course:
    """What is cut into phases: a row for each gap between two snapshots, with means of the measures at its ends."""
    ends = torch.cat([measured.loss, measured.norm[:, None]], 1)
    values = torch.cat([(ends[:-1] + ends[1:]) / 2, measured.moved[1:, None]], 1)
    return course([*loss_names, "norm", "moved per step"], measured.step[:-1].double().numpy(), values.numpy())


def snapshot_cut(course: Course) -> Cut:
    """Change points of all measures together; a segment may be a single gap, and there are at most three cuts."""
    return stats.cut(course.values, course.step, most=4, least=1)


def snapshot_answers(full: Points, few: Points, snapshots: Sequence[int]) -> list[Answer]:
    """Each change point of the full record, the nearest one found from the snapshots, and what could be hoped for.

    Args:
        full: change points of the full record.
        few: those found from the snapshots.
        snapshots: at least three, in order.
    """
    inside, answers = np.array(snapshots[1:-1], dtype=np.float64), []
    draws = [np.array(drawn) for drawn in combinations(inside, len(few))] if len(few) else []
    for step in full.tolist():
        at_best, nearest = float(np.abs(inside - step).min()), None
        distance = by_chance = None
        if len(few):
            nearest = int(few[np.abs(few - step).argmin()])
            distance = abs(nearest - step)
            by_chance = float(np.mean([np.abs(drawn - step).min() for drawn in draws]))
        answers.append(Answer(int(step), nearest, distance, at_best, by_chance))
    return answers


def course_likeness(
    step: Float[np.ndarray, "W"],
    full: Float[np.ndarray, "W"],
    known: Float[np.ndarray, "m"],
    values: Float[np.ndarray, "m"],
) -> Likeness:
    """How the course drawn through a few points, straight in log step between them, goes with the full one.

    Any two falling courses go together; so the correlation is also given after a straight line in log step is taken
    off both.

    Args:
        step, full: the full course.
        known, values: the few points.
    """
    drawn = np.interp(np.log1p(step), np.log1p(known), values)
    both = np.stack([full, drawn], 1)
    detrended = both - stats.smooth_course(both, step, 2)
    return Likeness(_correlation(both), _correlation(detrended), float(np.sqrt(np.mean((full - drawn) ** 2))))


def _correlation(both: Float[np.ndarray, "W 2"]) -> float:
    return float(np.corrcoef(both.T)[0, 1]) if (both.std(0) > 0).all() else float("nan")
