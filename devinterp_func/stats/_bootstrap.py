"""The one bootstrap: a statistic's interval from resampled rows, and rankings compared by it.

    interval = quantiles (1 − level)/2 and (1 + level)/2 of statistic(resample₁), statistic(resample₂), ...

where a resample has as many rows as the sample, drawn with replacement. Several samples of the same rows are resampled
together (paired).

Source: the percentile interval of Efron 1979, *Bootstrap methods: another look at the jackknife*.
"""

from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from devinterp_func import checks, keys

BLOCK = 2**21  # resampled rows at once
Label = TypeVar("Label", bound=Hashable)
Array = npt.NDArray[np.float64]


class Estimate(NamedTuple):
    """A statistic of n rows and its bootstrap interval over rows."""

    value: float
    low: float
    high: float
    n: int  # rows

    def __repr__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}] of {self.n}"


class Contrast(NamedTuple):
    """Score a against score b on the same neurons."""

    difference: Estimate  # mean a − mean b
    ratio: Estimate  # mean a / mean b


def bootstrap(
    statistic: Callable[..., Any],
    *samples: Tensor | npt.NDArray[Any],
    key: keys.Key | int,
    resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """A statistic of samples and its percentile bootstrap interval over their rows.

    Args:
        statistic: of float64 arrays as many as there are samples, taken over their last axis: it is called with shape
            (n,), and with (resamples, n) for many resamples at once; such as ``lambda x: np.median(x, -1)``.
        samples: each (n,), of the same n rows, which are resampled together.
        key: of the resampling.
        resamples: their number.
        level: of the interval.

    Returns:
        NaN as the interval of fewer than two rows, and as the value of none.

    Raises:
        ValueError: the samples have different numbers of rows, or resamples or level is out of range.

    >>> bootstrap(lambda x: x.mean(-1), torch.tensor([1.0, 2.0, 3.0, 4.0]), key=0)
    2.5 [1.5, 3.5] of 4
    """
    checks.integer("resamples", resamples, 1)
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must be between 0 and 1")
    rows = [np.asarray(sample, dtype=np.float64) for sample in samples]
    if not rows or any(x.ndim != 1 or len(x) != len(rows[0]) for x in rows):
        raise ValueError(f"the samples have shapes {[x.shape for x in rows]}; all must be (n,) with the same n")
    if (n := len(rows[0])) == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    value = float(statistic(*rows))
    if n == 1:
        return Estimate(value, np.nan, np.nan, 1)
    low, high = np.quantile(_resampled(statistic, rows, key, resamples), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n)


def share(true: Bool[Tensor, "G"], level: float = 0.95) -> Estimate:
    """The share of true ones and its interval, which says something also where none or all are.

    Args:
        true: of each row.
        level: of the interval.

    Source: Wilson 1927, *Probable inference, the law of succession, and statistical inference*.

    >>> share(torch.tensor([False] * 200))
    0 [0, 0.01885] of 200
    """
    n, k, z = len(true), int(true.sum()), NormalDist().inv_cdf((1 + level) / 2)
    if not n:
        return Estimate(np.nan, np.nan, np.nan, 0)
    middle, half = (k + z * z / 2) / (n + z * z), z / (n + z * z) * (k * (n - k) / n + z * z / 4) ** 0.5
    return Estimate(k / n, max(0.0, middle - half) if k else 0.0, min(1.0, middle + half) if k < n else 1.0, n)


def mean_average_precision(
    precision: Float[Tensor, "G"], *, key: keys.Key | int, resamples: int = 2000, level: float = 0.95
) -> Estimate:
    """Mean of ``average_precision`` over the neurons that have one.

    Args:
        precision: of each neuron; NaN is left out.
        key, resamples, level: of ``bootstrap``, over neurons.
    """
    return bootstrap(_mean, *_present(precision), key=key, resamples=resamples, level=level)


def compare_scores(
    a: Float[Tensor, "G"], b: Float[Tensor, "G"], *, key: keys.Key | int, resamples: int = 2000, level: float = 0.95
) -> Contrast:
    """Mean average precision of one score against another's, bootstrapped over neurons in pairs.

    Args:
        a, b: ``average_precision`` by two scores of the same neurons; neurons with a NaN are left out.
        key, resamples, level: of ``bootstrap``, over neurons.
    """
    pair = _present(a, b)
    return Contrast(
        bootstrap(lambda x, y: _mean(x) - _mean(y), *pair, key=key, resamples=resamples, level=level),
        bootstrap(lambda x, y: _mean(x) / _mean(y), *pair, key=key, resamples=resamples, level=level),
    )


def by_group(
    precision: Float[Tensor, "G"], groups: Sequence[Label], *, key: keys.Key | int, resamples: int = 2000
) -> dict[Label, Estimate]:
    """``mean_average_precision`` of each group of neurons, in order of first appearance.

    Args:
        precision: of each neuron.
        groups: the neurons' labels, such as ``units.label(neuron.unit)``.
        key, resamples: of ``bootstrap``, over the group's neurons.
    """
    members = {label: [i for i, other in enumerate(groups) if other == label] for label in dict.fromkeys(groups)}
    return {
        label: mean_average_precision(precision[rows], key=keys.fold_in(key, i), resamples=resamples)
        for i, (label, rows) in enumerate(members.items())
    }


def _mean(x: Array) -> Any:
    return x.mean(-1)


def _present(*precision: Float[Tensor, "G"]) -> Array:
    """Rows of average precisions, only of neurons that have one."""
    values = torch.stack(precision).double().numpy()
    return values[:, ~np.isnan(values).any(0)]


def _resampled(statistic: Callable[..., Any], rows: list[Array], key: keys.Key | int, resamples: int) -> Array:
    """The statistic of each resample, few enough at a time."""
    rng, n = keys.generator(key), len(rows[0])
    parts, size = [], max(1, BLOCK // n)
    for done in range(0, resamples, size):
        drawn = rng.integers(n, size=(min(size, resamples - done), n))
        parts.append(np.asarray(statistic(*(x[drawn] for x in rows)), dtype=np.float64))
    return np.concatenate(parts)
