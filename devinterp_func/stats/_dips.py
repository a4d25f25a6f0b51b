"""A fall of one series that comes back, among the segments of its best segmentation; and what chance would find.

The dip of a series is the segment of ``stats.cut`` that lies deepest below both its sides:

    depth = min(highest segment before, highest segment after) − the segment's mean

0 where every segment has none higher on one side, as where the series only rises, or falls. It reaches over the
segments beside it that are nearer to its mean than to the lower rim.

The null hypothesis is a smooth course, polynomial in log step, with noise like the series' own: normal, of the same
variance and the same correlation from one row to the next. Noise of all rows has the dip itself in it, where there is
one, and finds as deep ones too often; noise of the rows outside the dip finds them too rarely, for that dip was the
deepest. The truth is between the two.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from devinterp_func import keys
from devinterp_func.stats._change_points import Points, cut, segment_means, smooth_course

MOST_CORRELATED = 0.95  # of noise from one row to the next: beyond it noise is a course of its own
Noise = Literal["all", "outside"]


class Dip(NamedTuple):
    """The deepest fall that comes back; means are of rows, ``before`` and ``after`` of all on that side."""

    first: int  # row
    stop: int  # row after the last
    depth: float  # 0 where there is no dip; then the rows are none, and the means NaN
    before: float
    inside: float
    after: float
    over_smooth: (
        float  # BIC by which the segments are preferred to the best smooth course, whether there is a dip or not
    )


def find_dip(x: Points, step: Points) -> Dip:
    """The dip of one series.

    Args:
        x: the series, W rows.
        step: of each row, from 0 on.

    Raises:
        ValueError: as ``cut``.
    """
    if x.max() == x.min():
        return Dip(0, 0, 0.0, np.nan, np.nan, np.nan, 0.0)
    found = cut(((x - x.mean()) / x.std())[:, None], step)
    over = float(found.smooth.min() - found.segments.min())
    edges = [0, *found.rows, len(x)]
    means = segment_means(x[:, None], found.rows)[edges[:-1], 0]
    inner = range(1, len(means) - 1)
    rims = {k: float(min(means[:k].max(), means[k + 1 :].max())) for k in inner}
    deepest = max(inner, key=lambda k: rims[k] - means[k], default=0)
    if not deepest or rims[deepest] <= means[deepest]:
        return Dip(0, 0, 0.0, np.nan, np.nan, np.nan, over)
    low, high, middle = deepest, deepest, (means[deepest] + rims[deepest]) / 2
    while low > 1 and means[low - 1] < middle:
        low -= 1
    while high < len(means) - 2 and means[high + 1] < middle:
        high += 1
    first, stop = edges[low], edges[high + 1]
    before, inside, after = (float(part.mean()) for part in np.split(x, [first, stop]))
    return Dip(first, stop, float(rims[deepest] - means[deepest]), before, inside, after, over)


def noise_courses(
    x: Points, step: Points, dip: Dip, noise: Noise, draws: int, *, key: keys.Key | int
) -> Float[np.ndarray, "draws W"]:
    """Smooth courses of a series with noise like its own.

    Args:
        x, step: of ``find_dip``.
        dip: of ``find_dip``, which is left out of course and noise where these are of the rows outside.
        noise: of all rows, or of those outside the dip.
        draws: how many.
        key: of the draws.
    """
    kept = np.ones(len(x), dtype=bool)
    if noise == "outside":
        kept[dip.first : dip.stop] = False
    found = cut(x[:, None], step)
    smooth = _smooth(x, step, kept, int(found.smooth.argmin()) + 1)
    scale, correlation = _noise(x - smooth, kept)
    rng, W = keys.generator(key), len(x)
    shocks, rows = rng.standard_normal((draws, W)), [scale * rng.standard_normal(draws)]
    for t in range(1, W):
        rows.append(correlation * rows[-1] + scale * np.sqrt(1 - correlation**2) * shocks[:, t])
    return smooth + np.stack(rows, 1)


def _smooth(x: Points, step: Points, kept: Bool[np.ndarray, "W"], k: int) -> Points:
    """The polynomial in log step with k coefficients, at most as the rows allow, nearest to the rows that are kept."""
    if kept.all():
        return smooth_course(x[:, None], step, k)[:, 0]
    place = np.log1p(step)
    place = 2 * (place - place.min()) / (place.max() - place.min()) - 1
    basis = np.polynomial.legendre.legvander(place, min(k, int(kept.sum())) - 1)
    return basis @ np.linalg.lstsq(basis[kept], x[kept], rcond=None)[0]


def _noise(rest: Points, kept: Bool[np.ndarray, "W"]) -> tuple[float, float]:
    """Standard deviation, and correlation from one row to the next, of the rows that are kept."""
    pairs = kept[:-1] & kept[1:]
    scale, (a, b) = float(rest[kept].std()), (rest[:-1][pairs], rest[1:][pairs])
    if not scale or len(a) < 3 or not a.std() or not b.std():
        return scale, 0.0
    return scale, float(np.clip(np.corrcoef(a, b)[0, 1], 0.0, MOST_CORRELATED))
