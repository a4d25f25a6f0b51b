"""Is a ranking better than the frequency of what it should find explains? Average precision against matched tokens.

A neuron's relevant tokens are held against as many random ones of like frequency, under the same ranking. Where the
ranking says no more of these tokens than how often they occur, the two are exchangeable, and the p-value is uniform.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from devinterp_func import keys
from devinterp_func.stats._testing import permutation_p_values


def matched_p_values(
    scores: Float[Tensor, "G V"],
    relevant: Bool[Tensor, "G V"],
    strata: Int[Tensor, "V"],
    draws: int,
    *,
    key: keys.Key | int,
) -> Float64[Tensor, "G"]:
    """p-value of each ranking's average precision against random tokens of the same strata.

    Tied tokens are put in one random order for each neuron, which what was observed and what is drawn share.

    Args:
        scores: higher is ranked first.
        relevant: the truth.
        strata: labels of the tokens, such as ``(1 + reference).log2().long()``.
        draws: of as many tokens of each stratum as are relevant, all different.
        key: of the draws and of the order of ties; a neuron's number is folded in.

    Returns:
        (1 + draws as precise) / (1 + draws), never 0; NaN where no token is relevant.
    """
    found = torch.full((len(scores),), torch.nan, dtype=torch.float64)
    members = [(strata == label).nonzero()[:, 0].numpy() for label in strata.unique()]
    for row in relevant.any(1).nonzero()[:, 0].tolist():
        rng = keys.generator(keys.fold_in(key, row))
        ties = torch.from_numpy(rng.permutation(scores.shape[1]))
        order = ties[scores[row, ties].argsort(descending=True, stable=True)]
        rank = torch.empty_like(order)
        rank[order] = torch.arange(1, len(order) + 1)
        wanted = [int(relevant[row, tokens].sum()) for tokens in members]
        drawn = [_distinct(rng, tokens, m, draws) for tokens, m in zip(members, wanted, strict=True) if m]
        ranks = rank[torch.from_numpy(np.concatenate(drawn, 1))]
        observed = _precision(rank[relevant[row]][None])
        found[row] = permutation_p_values(observed, _precision(ranks)[:, None])[0]
    return found


def _precision(ranks: Int[Tensor, "d m"]) -> Float64[Tensor, "d"]:
    """Average precision of sets of m tokens by their ranks, all different."""
    return (torch.arange(1, ranks.shape[1] + 1) / ranks.sort(1).values.double()).mean(1)


def _distinct(rng: np.random.Generator, tokens: np.ndarray, m: int, draws: int) -> np.ndarray:
    """So many draws of m different tokens, every set as likely."""
    n = len(tokens)
    if m * m > n:  # two of a draw are often the same
        return tokens[np.argsort(rng.random((draws, n)), axis=1)[:, :m]]
    at = rng.integers(n, size=(draws, m))
    while len(again := np.nonzero((np.diff(np.sort(at, 1), axis=1) == 0).any(1))[0]):
        at[again] = rng.integers(n, size=(len(again), m))
    return tokens[at]
