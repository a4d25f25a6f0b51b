"""Phases of a training: what is cut into them, where, and which units and data make each.

A course is several measures over training, standardised; its change points are found for all measures together, for
each, and for what is left of them beside a smooth course (``stats.cut``).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import checks, stats
from devinterp_func.credit._coherence import TOP, Coherence
from devinterp_func.stats import Cut, Points

ALL = "all"
LESS_SMOOTH = "all, less a smooth course"
FEWEST_WINDOWS = stats.LEAST + 1  # that can be cut


class Course(NamedTuple):
    """What is cut into phases: standardised measures, a row a window."""

    names: list[str]
    step: Float[np.ndarray, "W"]  # first of each window
    values: Float[np.ndarray, "W M"]

    def span(self) -> tuple[float, float]:
        """First and last step at which there can be a change point."""
        return float(self.step[stats.LEAST]), float(self.step[-stats.LEAST])

    def __repr__(self) -> str:
        return f"Course of {len(self.names)} measures in {len(self.step)} windows"


class Maker(NamedTuple):
    """What makes a phase: shares of Σ_j ‖Δ_j‖² over its steps, Δ_j being what datum j did in the step it was in."""

    units: Float[Tensor, "U"]  # share of each unit
    top: float  # share of the top 1 % of data
    tokens: list[int]  # over-represented in those data, most first
    largest: int  # id of the datum with the largest share


def course(names: Sequence[str], step: Float[np.ndarray, "W"], values: Float[np.ndarray, "W M"]) -> Course:
    """The measures that are finite and not constant, standardised.

    Args:
        names: of the measures.
        step: first of each window, or snapshot.
        values: of the measures.

    Raises:
        ValueError: there is no such measure.
    """
    kept = [i for i, x in enumerate(values.T) if np.isfinite(x).all() and x.max() > x.min()]
    if not kept:
        raise ValueError(f"none of {', '.join(names)} is finite and changes; there is nothing to cut into phases")
    chosen = [names[i] for i in kept]
    return Course(chosen, step, stats.standardise(values[:, kept], chosen))


def require_windows(n_steps: int, width: int, every: int) -> None:
    """Refuses windows that are too few to be cut, or in some of which nothing is measured.

    Args:
        n_steps: steps in all.
        width: steps of a window.
        every: steps from one measurement to the next.

    Raises:
        ValueError: ... and which window would do.
    """
    checks.integer("window", width)
    if checks.integer("every", every) > width:
        raise ValueError(f"every is {every}; it must be at most the window, {width} steps")
    n, widest = n_steps // width, n_steps // FEWEST_WINDOWS
    if n < FEWEST_WINDOWS:
        smaller = f" and --every {widest}" if every > widest else ""
        remedy = f"--window {widest}{smaller} would do" if widest else f"at least {FEWEST_WINDOWS} steps are needed"
        raise ValueError(
            f"{n_steps} steps make {n} windows of {width}, and phases take at least {FEWEST_WINDOWS}: {remedy}"
        )


def cut_course(course: Course) -> dict[str, Cut]:
    """Change points of all measures together, of all less their smooth courses, and of each."""
    together = stats.cut(course.values, course.step)
    each = {name: stats.cut(course.values[:, [i]], course.step) for i, name in enumerate(course.names)}
    rest = course.values - stats.smooth_course(course.values, course.step, int(together.smooth.argmin()) + 1)
    return {ALL: together, LESS_SMOOTH: stats.cut(rest, course.step), **each}


def change_points(cut: Cut, course: Course) -> Points:
    """Steps at which a new phase begins."""
    return course.step[list(cut.rows)]


def makers(
    steps: Coherence,
    datum: Int[Tensor, "S n"],
    tokens: Int[Tensor, "N C"] | None,
    vocab_size: int,
    spans: Sequence[tuple[int, int]],
    most: int = 8,
) -> list[Maker]:
    """What makes each phase: units, the top 1 % of data, and what these have in common.

    Their tokens are those over-represented against all the phase's data, by ``stats.log_odds``.

    Args:
        steps: of a replay, stacked.
        datum: the ids of their data.
        tokens: of all training data; None where they are no text.
        vocab_size: V; of no account without tokens.
        spans: first step of each phase, and of the next.
        most: so many tokens at most.
    """
    start, made = int(steps.step[0]), []
    for first, stop in spans:
        rows = slice(first - start, stop - start)
        square, ids = steps.square[rows].double(), datum[rows].flatten()
        unit, share = square.sum((0, 2)) / square.sum(), square.sum(1).flatten() / square.sum()
        top = share.topk(max(1, round(TOP * len(share))))
        of_top = ids[top.indices]
        typical = [] if tokens is None else _typical(tokens[of_top], tokens[ids], vocab_size, most)
        made.append(Maker(unit, float(top.values.sum()), typical, int(of_top[0])))
    return made


def _typical(tokens: Int[Tensor, "m C"], among: Int[Tensor, "n C"], vocab_size: int, most: int) -> list[int]:
    """The tokens over-represented in some texts against those among which they are."""
    counts, reference = (torch.bincount(x.flatten(), minlength=vocab_size) for x in (tokens, among))
    score = stats.log_odds(counts, reference)
    return [v for v in score.topk(min(most, vocab_size)).indices.tolist() if score[v] > 0]
