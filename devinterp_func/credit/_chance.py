"""How an effect stands beside those of random choices."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special
from scipy import stats as distributions

Interval = tuple[float, float]


class Distance(NamedTuple):
    """How far an effect lies from those of random draws, in their standard deviations."""

    value: float
    low: float
    high: float


def difference_interval(effect: float, chance: Sequence[float]) -> Interval | None:
    """95 % interval of an effect minus the mean of all random draws, where one training scatters as the draws do.

    Student's t, of one new draw: where it lies on one side of 0, a draw's effect is so far from their mean in one of 20
    cases. None for fewer than two draws.

    >>> tuple(round(x, 3) for x in difference_interval(12.0, [1.0, 3.0]))
    (-12.008, 32.008)
    """
    if len(chance) < 2:
        return None
    away, half = effect - float(np.mean(chance)), _half_width(chance, 1 + 1 / len(chance))
    return away - half, away + half


def mean_interval(chance: Sequence[float]) -> Interval | None:
    """95 % interval of the mean of random draws (Student's t); None for fewer than two.

    >>> tuple(round(x, 3) for x in mean_interval([1.0, 3.0]))
    (-10.706, 14.706)
    """
    if len(chance) < 2:
        return None
    mean, half = float(np.mean(chance)), _half_width(chance, 1 / len(chance))
    return mean - half, mean + half


def _half_width(chance: Sequence[float], variances: float) -> float:
    """Of a 95 % interval (Student's t) of what has so many times the draws' variance."""
    return float(distributions.t.ppf(0.975, len(chance) - 1) * np.std(chance, ddof=1) * variances**0.5)


def distance_from_chance(effect: float, chance: Sequence[float]) -> Distance | None:
    """How many standard deviations of random draws an effect lies from their mean, with the exact 95 % interval.

    The draws are taken to be normal, the effect as given: the interval is of the noncentral t distribution. None for
    fewer than two draws, and where all are equal.
    """
    x, root = np.array(chance), len(chance) ** 0.5
    if len(x) < 2 or not x.std():
        return None
    value = float((effect - x.mean()) / x.std(ddof=1))
    low, high = (float(special.nctdtrinc(len(x) - 1, p, root * value)) / root for p in (0.975, 0.025))
    return Distance(value, low, high)
