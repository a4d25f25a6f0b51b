"""Pearson's and Spearman's correlation of two series."""

import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor


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
