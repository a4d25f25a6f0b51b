"""Net changes of the bigram decoder: the largest of all pairs, exactly, and those of the corpus' pairs."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from devinterp_func.bigram._corpus import PairCounts, Pairs, seen_pairs
from devinterp_func.bigram._correlations import centre
from devinterp_func.bigram._decoder import entries
from devinterp_func.bigram._follow import spaced
from devinterp_func.bigram._search import top_shifts
from devinterp_func.bigram._units import decoder_matrices
from devinterp_func.graph import Graph
from devinterp_func.tree import Params

RANKED = ("all pairs", "all pairs, centred", "the corpus' pairs, centred")


class NetChange(NamedTuple):
    """A pair's entry of W_UE before and after a span."""

    ranked: str  # among which pairs it is one of the largest: in ``RANKED``
    output: int
    input: int
    before: float
    after: float


def net_changes(
    graph: Graph, before: Params, after: Params, counts: PairCounts, least: int, most: int = 15, each: int = 2
) -> Iterator[NetChange]:
    """The largest changes of W_UE between two sets of weights: among all V² pairs exactly, and among the corpus' pairs.

    Args:
        graph: the model.
        before, after: its weights.
        counts: of the training text.
        least: how often a pair must occur to be counted as the corpus'.
        most, each: as in ``largest_shifts``.
    """
    whole = [*decoder_matrices(graph, before), *decoder_matrices(graph, after)]
    centred = [centre(x, n) for x, n in zip(whole, (counts.second, counts.first) * 2, strict=True)]
    for ranked, (U, E, new_U, new_E) in zip(RANKED, (whole, centred, centred), strict=True):
        if ranked == RANKED[-1]:
            pairs = seen_pairs(counts, least)
            change = entries(*pairs, new_U, new_E) - entries(*pairs, U, E)
            pairs = pairs.take(change.abs().argsort(descending=True, stable=True).cpu())
        else:
            top = top_shifts(U, E, new_U - U, new_E - E, k=min(40 * most, len(U) ** 2))
            pairs = Pairs(top.output.cpu(), top.input.cpu())
        pairs = pairs.take(torch.tensor(spaced(pairs, most, each), dtype=torch.int64))
        columns = (*pairs, entries(*pairs, U, E), entries(*pairs, new_U, new_E))
        for row in zip(*(column.tolist() for column in columns), strict=True):
            yield NetChange(ranked, *row)
