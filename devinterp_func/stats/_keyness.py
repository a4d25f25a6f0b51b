"""Which tokens are notable in attributed data: their counts against the reference, and the choice of the most typical.

Attributed counts say how often each of V tokens occurs in data attributed to a parameter or neuron, with multiplicity
or weighted, (..., V); reference counts say the same of the whole training set, (V,). ``_statistics`` has the seven
statistics by which tokens are ranked.

Source: the token distributions of *Training Process Transparency through Gradient Interpretability: Early
Experiments on Toy Language Models* (Krzyzanowski and Hubinger 2023), which compared the first five statistics and chose
``univariate_heuristic``; what it did not try names its own source.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Int64, Num
from torch import Tensor

from devinterp_func import checks
from devinterp_func.stats._statistics import (
    STATISTICS,
    Reference,
    Scores,
    TokenCounts,
    by_rows,
    ratio,
    relative_frequency,
    row_total,
)

Ids = Int[Tensor, "n"]


class Comparison(NamedTuple):
    """Attributed against reference counts (the post's Tables 2 and 3)."""

    count: TokenCounts  # type: ignore[assignment]  # a tuple's own method
    frequency: Scores  # p, 0 where nothing is attributed
    reference_frequency: Scores  # q
    relative_frequency: Scores  # p / q

    def __repr__(self) -> str:
        occur, over = (self.count > 0).sum(-1), (self.relative_frequency > 1).sum(-1)
        return f"Comparison{list(self.count.shape)}(tokens that occur: {occur.tolist()}, over: {over.tolist()})"


def token_counts(stream: Int[Tensor, "L"], vocab_size: int) -> Int64[Tensor, "V"]:
    """How often each token occurs in a stream; of the training stream, what attributed tokens are compared with.

    Raises:
        ValueError: a token is not in 0..V - 1.

    >>> token_counts(torch.tensor([2, 0, 2]), 4)
    tensor([1, 0, 2, 0])
    """
    checks.token_ids("the stream", stream, vocab_size)
    return torch.bincount(stream, minlength=vocab_size)


def compare(attributed_counts: TokenCounts, reference_counts: Reference) -> Comparison:
    """Count, frequency, reference frequency and relative frequency of every token.

    Args:
        attributed_counts: of one distribution, or of many at once; integers or weights.
        reference_counts: of the whole training set.

    Raises:
        ValueError: the numbers of tokens differ, a count is negative or not finite, the reference is empty, or a token
            is attributed that it does not have; so do all statistics.

    >>> compare(torch.tensor([3, 1, 0]), torch.tensor([30, 40, 30])).relative_frequency
    tensor([2.5000, 0.6250, 0.0000], dtype=torch.float64)
    """
    relative = relative_frequency(attributed_counts, reference_counts)
    frequency = by_rows(lambda rows: ratio(rows, row_total(rows)), attributed_counts)
    expected = reference_counts.double() / reference_counts.double().sum()
    return Comparison(attributed_counts, frequency, expected.expand_as(frequency), relative)


def univariate_heuristic(
    attributed_counts: Num[Tensor, "V"], reference_counts: Reference, c: int | float = 20, d: int = 100, f: int = 3
) -> Ids:
    """The post's univariate token selection heuristic, for one distribution.

    Of the tokens with count ≥ c, take the d of highest relative frequency; of these, the f of highest count.

    Args:
        attributed_counts, reference_counts: as in ``compare``, but of one distribution.
        c, d, f: by default the post's values; its published code has 20, 200 and 5.

    Returns:
        At most f token ids by descending count; all ties by ascending id.

    Raises:
        ValueError: as ``compare``, or c, d or f is out of range.

    >>> univariate_heuristic(torch.tensor([50, 40, 30, 9]), torch.tensor([99, 40, 20, 1]), c=10, d=2, f=1)
    tensor([1])
    """
    if not (c > 0 and d >= 1 and f >= 1):
        raise ValueError(f"c, d and f are {c}, {d} and {f}; c must be above 0, d and f at least 1")
    relative = relative_frequency(attributed_counts, reference_counts)
    typical = rank_tokens(relative, attributed_counts >= c)[:d]
    return rank_tokens(attributed_counts, as_set(typical, len(relative)))[:f]


def notable_tokens(
    attributed_counts: Num[Tensor, "V"],
    reference_counts: Reference,
    statistic: str,
    top: int,
    least_count: int | float = 1,
) -> Ids:
    """The over-represented tokens that score highest by a statistic, best first, of one distribution.

    Args:
        attributed_counts, reference_counts: as in ``compare``, but of one distribution.
        statistic: a name in ``STATISTICS``.
        top: at most so many.
        least_count: of a token.

    >>> notable_tokens(torch.tensor([3, 1, 0]), torch.tensor([30, 40, 30]), "log_likelihood", top=2)
    tensor([0])
    """
    over = relative_frequency(attributed_counts, reference_counts) > 1
    return rank_tokens(
        keyness(attributed_counts, reference_counts, statistic), over & (attributed_counts >= least_count)
    )[:top]


def rank_tokens(scores: Num[Tensor, "V"], eligible: Bool[Tensor, "V"]) -> Ids:
    """Ids of the eligible tokens by descending score, ties by ascending id."""
    ids = eligible.nonzero().squeeze(1)
    return ids[scores[ids].argsort(descending=True, stable=True)]


def as_set(ids: Ids, vocab_size: int) -> Bool[Tensor, "V"]:
    """The set of these tokens, as a mask; that of several concatenated is their union.

    >>> as_set(torch.tensor([2, 0, 2]), 4)
    tensor([ True, False,  True, False])
    """
    return torch.zeros(vocab_size, dtype=torch.bool, device=ids.device).index_fill_(0, ids, True)


def keyness(attributed_counts: TokenCounts, reference_counts: Reference, statistic: str) -> Scores:
    """A statistic by name.

    Raises:
        ValueError: as ``compare``, or there is no such statistic; the message names those that there are.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"{statistic!r} is no statistic; there are {', '.join(STATISTICS)}")
    return STATISTICS[statistic](attributed_counts, reference_counts)
