"""How well a ranking of tokens predicts what ablation truly flips: average precision, and whether two scores differ.

For each of G neurons a score ranks all V tokens; relevant are those that the neuron's ablation flips
(``truly_flips``). A neuron's average precision is the mean, over its relevant tokens, of the precision at that token's
rank:

    AP = 1/R · Σ_{v relevant} (relevant tokens ranked no lower than v) / (tokens ranked no lower than v)

where tied tokens count as if in random order: AP is the exact mean over their permutations. A score is a (G, V) array,
higher where the token is thought more affected; it may come from a training record, from weights or from activations.
Estimates are means over neurons with a bootstrap interval over neurons (Efron 1979).

Source of the mean over ties: McSherry and Najork 2008, *Computing information retrieval performance measures
efficiently in the presence of tied scores*.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BLOCK = 2**21  # scores ranked at once


class Ranks(NamedTuple):
    """Rows in descending order, each entry with its group of ties: the entries [first, last) of its row."""

    order: Int[Tensor, "G V"]
    first: Int[Tensor, "G V"]
    last: Int[Tensor, "G V"]


def average_precision(scores: Float[Tensor, "G V"], relevant: Bool[Tensor, "G V"]) -> Float[Tensor, "G"]:
    """Average precision of each neuron's ranking, the mean over all orders of tied tokens; float64.

    Args:
        scores: higher is ranked first; every token takes part.
        relevant: the truth.

    Returns:
        In (0, 1]; NaN where no token is relevant.

    Raises:
        ValueError: a score is NaN; neuron and token are named.

    >>> average_precision(torch.tensor([[0.9, 0.1, 0.5], [0.0, 0.0, 0.0]]), torch.tensor([[True, True, False]] * 2))
    tensor([0.8333, 0.8056], dtype=torch.float64)
    """
    if bool((bad := scores.isnan()).any()):
        row, token = bad.nonzero()[0].tolist()
        raise ValueError(f"the score of token {token} for neuron {row} is NaN; scores must be numbers, or infinite")
    return torch.cat([_average_precision(*part) for part in _blocks(scores, relevant)])


def precision_at(scores: Float[Tensor, "P N"], truth: Bool[Tensor, "P N"], ks: Sequence[int]) -> Float[Tensor, "P K"]:
    """The share of true ones among the k highest scores of each row; of equal scores the earlier.

    Raises:
        ValueError: a k is not in 1..N.

    >>> precision_at(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[True, True, False]]), [1, 2])
    tensor([[1.0000, 0.5000]], dtype=torch.float64)
    """
    if bad := [k for k in ks if not 1 <= k <= scores.shape[1]]:
        raise ValueError(f"k is {bad[0]}; it must be in 1..{scores.shape[1]}")
    hits = truth.gather(1, scores.argsort(dim=1, descending=True, stable=True)).double()
    return torch.stack([hits[:, :k].mean(1) for k in ks], dim=1)


def rank_product(*scores: Float[Tensor, "G V"]) -> Float[Tensor, "G V"]:
    """One score from several: minus the mean log of the ranks from the top, so that a low rank anywhere costs.

        S[v] = −1/m · Σ_m ln((rank from the top of v by score m) / V)

    Source: the rank product (Breitling et al. 2004).
    """
    return -sum((_depth(score).log_() for score in scores), torch.zeros(())) / len(scores)


# ---- helpers


def _average_precision(scores: Float[Tensor, "G V"], relevant: Bool[Tensor, "G V"]) -> Float[Tensor, "G"]:
    order, first, last = _ranks(scores)
    hits = torch.nn.functional.pad(relevant.gather(1, order).cumsum(1), (1, 0))  # hits[:, r]: among the r first
    above, within = hits.gather(1, first), hits.gather(1, last) - hits.gather(1, first)
    size, rank = (last - first).double(), torch.arange(1, scores.shape[1] + 1)
    # Given that a relevant token has this rank, the entries of its group before it are a random draw of the others.
    before = above + (rank - first - 1) * (within - 1) / (size - 1).clamp(min=1)
    return (within / size * (before + 1) / rank).sum(1) / hits[:, -1]


def _depth(scores: Float[Tensor, "G V"]) -> Float[Tensor, "G V"]:
    """Share of tokens ranked above each, ties (and itself) counting half; float32 in (0, 1)."""
    return torch.cat([_depth_of(part) for (part,) in _blocks(scores)])


def _depth_of(scores: Float[Tensor, "G V"]) -> Float[Tensor, "G V"]:
    order, first, last = _ranks(scores)
    depth = (first + last).float() / (2 * scores.shape[1])
    return torch.empty_like(depth).scatter_(1, order, depth)


def _ranks(scores: Float[Tensor, "G V"]) -> Ranks:
    value, order = scores.sort(dim=1, descending=True)
    size = scores.shape[1]
    rank = torch.arange(size).expand_as(order)
    starts = torch.ones_like(value, dtype=torch.bool)
    starts[:, 1:] = value[:, 1:] != value[:, :-1]
    ends = torch.ones_like(starts)
    ends[:, :-1] = starts[:, 1:]
    first = torch.where(starts, rank, 0).cummax(1).values
    last = torch.where(ends, rank + 1, size).flip(1).cummin(1).values.flip(1)
    return Ranks(order, first, last)


def _blocks(*arrays: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of all arrays, few enough at a time."""
    rows = max(1, BLOCK // arrays[0].shape[1])
    return zip(*(array.split(rows) for array in arrays), strict=True)
