"""How well scores foretell what removals did: in rank, in size, against each other, and up to which horizon.

A score of a visit has the sign of the probe's derivative by its weight; those of what is removed together add up:

    predicted[d, p] = −Σ_{(s, j) removed by d, s < horizon} score[p, s, j]

The linear datamodeling score (LDS; Park et al. 2023, *TRAK: Attributing Model Behavior at Scale*, eq. 6) is Spearman's
correlation of predicted and measured effects over random subsets, its mean over queries, here probes. Of single visits
or data the same number is the leave-one-out correlation. Beside the rank the size: the slope of the regression of
measured on predicted effects through the origin is 1 where sizes are foretold, less where they are overrated.

Intervals are percentile bootstraps over removals, and over probes where there are several, both resampled crosswise
(Owen 2007, *The pigeonhole bootstrap*); all scores see the same resamples, so differences of two are paired.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float
from torch import Tensor

from devinterp_func import checks, keys, stats
from devinterp_func.credit._bank import Bank

REFERENCE = "influence"
BELOW = 0.5  # a rank correlation under which a score is said to foretell little
_BLOCK = 2**21  # resampled numbers at once
Array = npt.NDArray[np.float64]


class Judged(NamedTuple):
    """How well a score foretells what removals did to some probes by a horizon; intervals are of 95 %."""

    score: str
    horizon: int
    rank: stats.Estimate  # Spearman's correlation over removals, its mean over probes
    linear: stats.Estimate  # Pearson's
    slope: stats.Estimate  # of measured on predicted effects, through the origin; 1 where sizes are right
    behind: stats.Estimate  # the reference's rank less this one's, in pairs; NaN without a reference

    def __repr__(self) -> str:
        return f"Judged {self.score} at {self.horizon}: rank {self.rank}, slope {self.slope.value:.3g}"


class Reach(NamedTuple):
    """The horizon at which a score's rank correlation first falls below a bound, and its 95 % interval.

    0 where it is below at the first horizon already, infinite where it is not at the last; NaN of fewer than
    two removals.
    """

    value: float
    low: float
    high: float


def predicted_effects(
    scores: Float[Tensor, "P S n"], removed: Bool[Tensor, "D T n"], horizon: int
) -> Float[Tensor, "D P"]:
    """What removals are predicted to do to each probe: minus the scores of what they take from the first steps.

    Args:
        scores: of as many steps as the horizon has, or more.
        removed: the same.
        horizon: steps.

    Raises:
        ValueError: scores or removals are of fewer steps, or of batches of another size.

    >>> import torch
    >>> scores, removed = torch.tensor([[[1.0, 2.0], [4.0, 8.0]]]), torch.tensor([[[True, False], [False, True]]])
    >>> predicted_effects(scores, removed, 1), predicted_effects(scores, removed, 2)
    (tensor([[-1.]], dtype=torch.float64), tensor([[-9.]], dtype=torch.float64))
    """
    for name, given in (("scores", scores), ("removals", removed)):
        if given.shape[1] < horizon or given.shape[2] != scores.shape[2]:
            wanted = f"at least {horizon} steps of {scores.shape[2]} data"
            raise ValueError(f"{name} are of {given.shape[1]} steps of {given.shape[2]} data; they must be of {wanted}")
    chosen = removed[:, :horizon].double().flatten(1)
    return -(chosen @ scores[:, :horizon].double().flatten(1).T)


def judge(
    bank: Bank,
    horizon: int,
    scores: Mapping[str, Float[Tensor, "P S n"]],
    *,
    reference: str = REFERENCE,
    key: keys.Key | int,
    resamples: int = 2000,
) -> list[Judged]:
    """How well each score foretells what a bank's removals did by a horizon.

    Removals that take nothing from the first ``horizon`` steps are left out: all scores foretell their 0.

    Args:
        bank: of removals.
        horizon: one of its.
        scores: name -> scores by visit, each of the bank's probes and of at least ``horizon`` steps.
        reference: the score that the others are held against.
        key: of the bootstrap.
        resamples: of it.

    Returns:
        Of each score, in their order. Values are NaN where a score or all effects are the same for all removals.

    Raises:
        ValueError: the bank has no such horizon, or scores are of other probes or too few steps.
    """
    touched = bank.touched(horizon)
    found = {
        name: _resampled(bank, horizon, touched, own, key, resamples)
        for name, own in _checked(bank, horizon, scores).items()
    }
    n, rank = int(touched.sum()), found[reference][0] if reference in found else None
    judged = []
    for name, (ranks, linear, slopes) in found.items():
        behind = np.full_like(ranks, np.nan) if rank is None else rank - ranks
        judged.append(Judged(name, horizon, *(_estimate(x, n) for x in (ranks, linear, slopes, behind))))
    return judged


def reach(
    bank: Bank,
    scores: Mapping[int, Float[Tensor, "P S n"]],
    *,
    below: float = BELOW,
    key: keys.Key | int,
    resamples: int = 2000,
) -> Reach:
    """At which horizon a score's rank correlation first falls below a bound.

    Between the last horizon at which it does not and the first at which it does, it is taken to fall in a straight line
    over the logarithm of the horizon. Every resample is of the same removals at all horizons.

    Args:
        bank: of removals.
        scores: horizon -> the score's values for it.
        below: the bound.
        key, resamples: of the bootstrap.

    Raises:
        ValueError: as ``judge``, or there are no horizons.
    """
    horizons = sorted(scores)
    if not horizons:
        raise ValueError("there are no horizons; give scores of at least one")
    touched, each = bank.touched(horizons[0]), []
    if int(touched.sum()) < 2:
        return Reach(np.nan, np.nan, np.nan)
    for horizon in horizons:
        own = _checked(bank, horizon, {"score": scores[horizon]})["score"]
        each.append(_resampled(bank, horizon, touched, own, key, resamples)[0])
    falls = _falls(np.log(horizons), np.stack(each), below)
    low, high = np.quantile(falls[1:], [0.025, 0.975], method="nearest")
    return Reach(float(falls[0]), float(low), float(high))


def _falls(logs: Array, ranks: Array, below: float) -> Array:
    """Of (H, R) ranks the horizon at which each column first falls below; 0 and infinity beyond the ends."""
    under = ~(ranks >= below)
    first = np.where(under.any(0), under.argmax(0), len(logs))
    found = np.where(first == 0, 0.0, np.inf)
    inside = (first > 0) & (first < len(logs))
    after, column = first[inside], np.flatnonzero(inside)
    high, low = ranks[after - 1, column], np.nan_to_num(ranks[after, column], nan=below - 1)
    part = (high - below) / (high - low)
    found[inside] = np.exp(logs[after - 1] + part * (logs[after] - logs[after - 1]))
    return found


def _checked(bank: Bank, horizon: int, scores: Mapping[str, Float[Tensor, "P S n"]]) -> dict[str, Float[Tensor, "D P"]]:
    """Each score's predictions."""
    if horizon not in bank.horizons:
        raise ValueError(f"horizon is {horizon}; the bank has {', '.join(map(str, bank.horizons))}")
    probes = bank.intact.shape[1]
    for name, own in scores.items():
        if len(own) != probes:
            raise ValueError(f"the score {name!r} is of {len(own)} probes; the bank's are {probes}")
    return {name: predicted_effects(own, bank.removed, horizon) for name, own in scores.items()}


def _resampled(
    bank: Bank, horizon: int, touched: Bool[Tensor, "D"], predicted: Float[Tensor, "D P"], key: keys.Key | int, n: int
) -> tuple[Array, Array, Array]:
    """Rank correlation, Pearson's and slope, means over probes: first of the sample itself, then of each resample."""
    measured = bank.effect[:, bank.horizons.index(horizon)]
    x, y = (one[touched].T.contiguous().numpy() for one in (predicted, measured))
    if x.shape[1] < 2:
        none = np.full(1, np.nan)
        return none, none, none
    statistics: list[Callable[[Array, Array], Array]] = [stats.rank_correlations, stats.correlations, _slopes]
    parts: list[list[Array]] = [[], [], []]
    for rows, columns in _crossed(x.shape[0], x.shape[1], key, checks.integer("resamples", n)):
        drawn = x[rows, columns], y[rows, columns]
        for part, statistic in zip(parts, statistics, strict=True):
            part.append(statistic(*drawn).mean(-1))
    ranks, linear, slopes = (np.concatenate(part) for part in parts)
    return ranks, linear, slopes


def _crossed(P: int, D: int, key: keys.Key | int, resamples: int) -> Iterator[tuple[Any, Any]]:
    """Which rows and columns a resample has, blocks of resamples at once: first the sample itself."""
    yield np.arange(P)[None, :, None], np.arange(D)[None, None, :]
    rng, size = keys.generator(key), max(1, _BLOCK // (P * D))
    for done in range(0, resamples, size):
        some = min(size, resamples - done)
        yield rng.integers(P, size=(some, P, 1)), rng.integers(D, size=(some, 1, D))


def _slopes(x: Array, y: Array) -> Array:
    """Of the regression of y on x through the origin."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = (x * y).sum(-1) / (x * x).sum(-1)
    return found


def _estimate(values: Array, n: int) -> stats.Estimate:
    """The sample's value, and the interval of its resamples that have one."""
    drawn = values[1:][~np.isnan(values[1:])]
    if n < 2 or np.isnan(values[0]) or not len(drawn):
        return stats.Estimate(float(values[0]), np.nan, np.nan, n)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return stats.Estimate(float(values[0]), float(low), float(high), n)
