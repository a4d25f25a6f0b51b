"""Unigrams and bigrams of the corpus: how often each pair of tokens follows each other, and its log-odds.

log-odds(b | a) = log (p(b | a) / p(b))        p(b | a) = (n_ab + α p(b)) / (n_a + α)
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import checks, keys
from devinterp_func.bigram._decoder import check_pairs

ALPHA = 1.0


class PairCounts(NamedTuple):
    """How often each pair of tokens follows each other in a stream."""

    number: Int[Tensor, "m"]  # input · V + output of the m different pairs, ascending
    times: Int[Tensor, "m"]  # that each of them occurs
    first: Int[Tensor, "V"]  # how often a token is followed by any
    second: Int[Tensor, "V"]  # how often it follows any

    def __repr__(self) -> str:
        return f"PairCounts of {int(self.times.sum()):,} pairs, {len(self.number):,} of them different"


class Pairs(NamedTuple):
    """Output and input tokens: the output follows the input."""

    output: Int[Tensor, "p"]
    input: Int[Tensor, "p"]

    def __repr__(self) -> str:
        return f"{len(self.output):,} pairs"

    def take(self, places: Int[Tensor, "q"] | slice) -> "Pairs":
        """Some of them."""
        return Pairs(self.output[places], self.input[places])


def count_pairs(stream: Int[Tensor, "T"], vocab_size: int) -> PairCounts:
    """Counts of neighbours.

    Args:
        stream: the training text.
        vocab_size: V.

    Raises:
        ValueError: it has fewer than two tokens, or one that is not in 0..V − 1.

    >>> counts = count_pairs(torch.tensor([2, 1, 2, 1]), 3)
    >>> counts.number.tolist(), counts.times.tolist()  # 1 -> 2 once, 2 -> 1 twice
    ([5, 7], [1, 2])
    """
    if len(stream) < 2:
        raise ValueError(f"the stream has {len(stream)} tokens; it must have at least 2")
    checks.token_ids("the stream's tokens", stream, vocab_size)
    first, second = stream[:-1].long(), stream[1:].long()
    number, times = (first * vocab_size + second).unique(return_counts=True)
    return PairCounts(number, times, first.bincount(minlength=vocab_size), second.bincount(minlength=vocab_size))


def pair_counts(counts: PairCounts, pairs: Pairs) -> Int[Tensor, "p"]:
    """How often each output token follows its input token."""
    V = len(counts.first)
    check_pairs(*pairs, V)
    wanted = pairs.input.long() * V + pairs.output
    at = torch.searchsorted(counts.number, wanted).clamp(max=len(counts.number) - 1)
    return torch.where(counts.number[at] == wanted, counts.times[at], 0)


def pair_log_odds(counts: PairCounts, pairs: Pairs, alpha: float = ALPHA) -> Float[Tensor, "p"]:
    """log (p(output | input) / p(output)) of each pair, nats.

    Args:
        counts: of ``count_pairs``.
        pairs: any pairs, also such as never occur.
        alpha: pseudo-counts given to p(output | input), spread as p(output).
    """
    alpha = checks.positive("alpha", alpha)
    n, n_input = pair_counts(counts, pairs), counts.first[pairs.input.long()]
    p = counts.second.clamp(min=1)[pairs.output.long()].double() / counts.second.sum()
    return ((n / p + alpha) / (n_input.double() + alpha)).log()


def seen_pairs(counts: PairCounts, least: int = 20) -> Pairs:
    """The pairs that occur at least so often, in ascending order of input, then output."""
    return _pairs(counts.number[counts.times >= checks.integer("least", least)], counts)


def characteristic_pairs(counts: PairCounts, m: int, least: int = 20) -> Pairs:
    """The m pairs with the largest n_ab · log-odds, their share of the neighbours' mutual information."""
    seen = seen_pairs(counts, least)
    share = pair_counts(counts, seen) * pair_log_odds(counts, seen)
    return seen.take(share.argsort(descending=True, stable=True)[:m])


def unseen_pairs(counts: PairCounts, m: int, *, key: keys.Key | int) -> Pairs:
    """At most m different pairs that never occur, of tokens drawn independently as often as they occur."""
    rng, V = keys.generator(key), len(counts.first)
    input, output = (
        torch.from_numpy(rng.choice(V, 4 * m, p=(n.double() / n.sum()).numpy())) for n in (counts.first, counts.second)
    )
    drawn = (input * V + output).unique()
    drawn = drawn[pair_counts(counts, _pairs(drawn, counts)) == 0]
    return _pairs(drawn[keys.permutation(len(drawn), key=keys.fold_in(key, "choice"))[:m]], counts)


def shuffled_pairs(pairs: Pairs, *, key: keys.Key | int) -> Pairs:
    """The same output and input tokens, shuffled, which keeps the frequencies of both."""
    return pairs._replace(input=pairs.input[keys.permutation(len(pairs.input), key=key)])


def _pairs(number: Int[Tensor, "m"], counts: PairCounts) -> Pairs:
    V = len(counts.first)
    return Pairs(number % V, number // V)
