"""Pearson's and Spearman's correlation of two series, or of many pairs at once."""

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

Array = npt.NDArray[np.float64]


def correlation(x: Float[Tensor, "p"], y: Float[Tensor, "p"]) -> float:
    """Pearson's; NaN where one of them is constant.

    >>> round(correlation(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0])), 3)
    0.982
    """
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    return float((x @ y) / ((x @ x) * (y @ y)).sqrt())


def rank_correlation(x: Float[Tensor, "p"], y: Float[Tensor, "p"]) -> float:
    """Spearman's: Pearson's of the ranks, ties sharing their mean rank."""
    return correlation(*(torch.from_numpy(rankdata(z.numpy())) for z in (x, y)))


def correlations(x: Array, y: Array) -> Array:
    """Pearson's over the last axis of arrays, such as a bootstrap's resamples; NaN where one of a pair is constant.

    >>> correlations(np.array([[1.0, 2.0, 4.0], [1.0, 1.0, 1.0]]), np.array([1.0, 2.0, 3.0])).round(3)
    array([0.982,   nan])
    """
    constant = (x == x[..., :1]).all(-1) | (y == y[..., :1]).all(-1)
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.where(constant, np.nan, found)


def rank_correlations(x: Array, y: Array) -> Array:
    """Spearman's over the last axis."""
    return correlations(rankdata(x, axis=-1), rankdata(y, axis=-1))
