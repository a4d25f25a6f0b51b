"""Is a ranking better than the frequency of what it should find explains? Average precision against matched tokens.

A neuron's relevant tokens are held against as many random ones of like frequency, under the same ranking. Where the
ranking says no more of these tokens than how often they occur, the two are exchangeable, and the p-value is uniform.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from devinterp_func import keys

BLOCK = 2**21  # ranks looked at once


def matched_p_values(
    scores: Float[Tensor, "G V"],
    relevant: Bool[Tensor, "G V"],
    strata: Int[Tensor, "V"],
    draws: int,
    *,
    key: keys.Key | int,
    enough: int | None = None,
) -> Float64[Tensor, "G"]:
    """p-value of each ranking's average precision against random tokens of the same strata.

    Tied tokens are put in one random order for each neuron, which what was observed and what is drawn share.

    Args:
        scores: higher is ranked first.
        relevant: the truth.
        strata: labels of the tokens, such as ``(1 + reference).log2().long()``.
        draws: at most so many, of as many tokens of each stratum as are relevant, all different.
        key: of the draws and of the order of ties; a neuron's number is folded in.
        enough: stop at the draw at which so many are as precise, the d-th: p is then enough / d (Besag and Clifford
            1991, *Sequential Monte Carlo p-values*). By default all draws are made.

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
        some = [(tokens, m) for tokens, m in zip(members, wanted, strict=True) if m]
        drawn = (
            torch.from_numpy(np.concatenate([_distinct(rng, tokens, m, n) for tokens, m in some], 1))
            for n in _sizes(draws, max(len(tokens) for tokens, _ in some))
        )
        observed = _precision(rank[relevant[row]][None])
        found[row] = _p_value((_precision(rank[tokens]) >= observed for tokens in drawn), draws, enough)
    return found


def _p_value(as_precise: Iterator[Bool[Tensor, "d"]], draws: int, enough: int | None) -> float:
    """The p-value from whether each draw is as precise, a few draws at a time; see ``matched_p_values``."""
    total = before = 0
    for part in as_precise:
        if enough is not None and total + int(part.sum()) >= enough:
            return enough / (before + 1 + int(part.nonzero()[enough - total - 1]))
        total, before = total + int(part.sum()), before + len(part)
    return (1 + total) / (1 + draws)


def _sizes(draws: int, most: int) -> Iterator[int]:
    """So many draws in growing parts, for early ends, each of which takes little memory."""
    size = 50
    while draws:
        size = min(draws, max(1, min(size, BLOCK // most)))
        yield size
        draws, size = draws - size, 2 * size


def _precision(ranks: Int[Tensor, "d m"]) -> Float64[Tensor, "d"]:
    """Average precision of sets of m tokens by their ranks, all different."""
    return (torch.arange(1, ranks.shape[1] + 1) / ranks.sort(1).values.double()).mean(1)


def _distinct(rng: np.random.Generator, tokens: np.ndarray, m: int, draws: int) -> np.ndarray:
    """So many draws of m different tokens, every set as likely: what is drawn twice is drawn anew once."""
    n = len(tokens)
    if 2 * m > n:  # most of a draw would be drawn again and again
        return tokens[np.argsort(rng.random((draws, n)), axis=1)[:, :m]]
    at, rows = rng.integers(n, size=(draws, m)), np.arange(draws)
    while len(rows):
        some = np.sort(at[rows], 1)
        again = np.zeros(some.shape, dtype=bool)
        again[:, 1:] = some[:, 1:] == some[:, :-1]
        some[again] = rng.integers(n, size=int(again.sum()))
        at[rows], rows = some, rows[again.any(1)]
    return tokens[at]
