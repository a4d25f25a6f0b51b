"""Change points of several series at once, and what they are worth: against smooth courses, and against chance.

Segments have constant means, least squares. The best segmentation into k of them is found exactly, by dynamic
programming (``ruptures``; Truong et al. 2020, *Selective review of offline change point detection methods*), k by BIC:

    BIC = Σ_m W log (RSS_m / W) + p log W        p = M k + 2 (k - 1) for segments, M k for polynomials

for W rows of M series and k segments, or k coefficients. A place counts as two parameters, else noise is cut too often
(much as in the modified BIC of Zhang and Siegmund 2007). A smooth drift is always cut into pieces, so polynomials in
log step are fitted beside and compared by the same measure. BIC takes residuals to be independent; where they are not,
it cuts too often.

Whether change points of several series, or of several runs, fall together is told by their distance to the nearest ones
in each other, beside that after each series' change points are rotated, or placed at random.
"""

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
import ruptures
from jaxtyping import Float

from devinterp_func import keys

MOST, LEAST = 10, 3  # segments; rows of one
Points = Float[np.ndarray, "_"]


class Cut(NamedTuple):
    """A segmentation, and how it compares."""

    rows: tuple[int, ...]  # at which a new segment begins
    segments: Float[np.ndarray, "most"]  # BIC of the best k segments, k from 1
    smooth: Float[np.ndarray, "most"]  # BIC of polynomials in log step with k coefficients

    def __repr__(self) -> str:
        better = "segments" if self.segments.min() < self.smooth.min() else "a smooth course"
        return f"Cut at {list(self.rows)}; {better} by {abs(self.segments.min() - self.smooth.min()):.1f} of BIC"


class Agreement(NamedTuple):
    """How near the change points of several series are to each other."""

    distance: float  # mean distance to the nearest one in each other series; NaN without two series that have any
    chance: float  # mean of the same over draws
    p: float  # share of draws that are as near


Null = Callable[[Points, tuple[float, float], int, np.random.Generator], Float[np.ndarray, "draws _"]]


def standardise(x: Float[np.ndarray, "W M"], names: Sequence[str]) -> Float[np.ndarray, "W M"]:
    """Each series with mean 0 and standard deviation 1, of its logarithm where it is positive throughout.

    Raises:
        ValueError: a series is constant, or not finite.
    """
    columns = []
    for name, column in zip(names, x.T, strict=True):
        if not np.isfinite(column).all() or column.max() == column.min():
            raise ValueError(f"{name} is constant, or not finite, over {len(column)} rows; leave it out")
        column = np.log(column) if (column > 0).all() else column
        columns.append((column - column.mean()) / column.std())
    return np.stack(columns, 1)


def cut(x: Float[np.ndarray, "W M"], step: Float[np.ndarray, "W"], most: int = MOST, least: int = LEAST) -> Cut:
    """The best segmentation of several series by BIC, and smooth courses beside it.

    Args:
        x: of ``standardise``.
        step: of each row, from 0 on.
        most: segments, and coefficients of a polynomial, at most; fewer where there are few rows.
        least: rows of a segment.

    Raises:
        ValueError: fewer rows than one segment and one more take.
    """
    W = len(x)
    if W <= least or most < 1:
        raise ValueError(f"{W} rows, at most {most} segments: it takes more than {least} rows, and 1 segment")
    search = ruptures.KernelCPD(kernel="linear", min_size=least).fit(x)  # exact for squared distances
    sizes = range(1, min(most, W // least) + 1)
    cuts = [tuple(int(row) for row in search.predict(n_bkps=k - 1)[:-1]) if k > 1 else () for k in sizes]
    M = x.shape[1]
    segments = np.array(
        [bic(x - segment_means(x, rows), M * k + 2 * (k - 1)) for k, rows in zip(sizes, cuts, strict=True)]
    )
    return Cut(
        cuts[int(segments.argmin())], segments, np.array([bic(x - smooth_course(x, step, k), M * k) for k in sizes])
    )


def segment_means(x: Float[np.ndarray, "W M"], rows: Sequence[int]) -> Float[np.ndarray, "W M"]:
    """Each segment's mean in place of its rows."""
    return np.concatenate([np.broadcast_to(part.mean(0), part.shape) for part in np.split(x, rows)])


def smooth_course(x: Float[np.ndarray, "W M"], step: Float[np.ndarray, "W"], k: int) -> Float[np.ndarray, "W M"]:
    """The polynomials in log (step + 1) with k coefficients that are nearest to the series."""
    place = np.log1p(step)
    place = 2 * (place - place.min()) / (place.max() - place.min()) - 1
    basis = np.polynomial.legendre.legvander(place, k - 1)
    return basis @ np.linalg.lstsq(basis, x, rcond=None)[0]


def bic(residual: Float[np.ndarray, "W M"], parameters: int) -> float:
    """BIC of a model with these residuals, each series having a variance of its own."""
    W = len(residual)
    variance = (residual**2).mean(0).clip(min=1e-12)  # of standardised series; a perfect fit has none left
    return float(W * np.log(variance).sum() + parameters * np.log(W))


# ---- do they fall together?


def agreement(
    sets: Sequence[Points], span: tuple[float, float], null: Null, *, key: keys.Key | int, draws: int = 999
) -> Agreement:
    """Mean distance of the change points of each series to the nearest ones in each other, and the same by chance.

    Args:
        sets: change points of each series, on any axis, such as steps or log steps.
        span: where on that axis there can be any.
        null: ``rotated_points`` or ``placed_points``.
        key: of the draws.
        draws: of them.
    """
    sets = [points for points in sets if len(points)]
    if len(sets) < 2:
        return Agreement(np.nan, np.nan, np.nan)
    rng = keys.generator(key)
    distance = float(_distance([points[None] for points in sets])[0])
    chance = _distance([null(points, span, draws, rng) for points in sets])
    near = int((chance <= distance + 1e-9).sum())
    return Agreement(distance, float(chance.mean()), (1 + near) / (1 + draws))


def rotated_points(
    points: Points, span: tuple[float, float], draws: int, rng: np.random.Generator
) -> Float[np.ndarray, "draws _"]:
    """All points moved by the same random amount, those that leave the span at its end coming in at its start."""
    low, high = span
    return low + (points - low + rng.uniform(0, high - low, (draws, 1))) % (high - low)


def placed_points(
    points: Points, span: tuple[float, float], draws: int, rng: np.random.Generator
) -> Float[np.ndarray, "draws _"]:
    """As many points, anywhere in the span."""
    return rng.uniform(*span, (draws, len(points)))


def _distance(sets: Sequence[Float[np.ndarray, "draws _"]]) -> Float[np.ndarray, "draws"]:
    each = [np.abs(a[:, :, None] - b[:, None, :]).min(2).mean(1) for a, b in permutations(sets, 2)]
    return np.mean(each, 0)
