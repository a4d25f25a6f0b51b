"""What of the corpus' unigrams and bigrams the weights hold: a bigram decoder's entries against the log-odds.

With U = W_U and E = W_E times the model's ``embedding_scale``, the entry ⟨U_b, E_a⟩ is the direct path's logit of b
after a: straight from the embedding to the unembedding. It leaves out the positions, the layer norms, attention, the
MLPs and the unembedding's bias. With E_a the stream after the single token a it is the whole model's. An entry carries
also how common b is, and an amount that softmax does not see; ``centre`` takes the corpus' mean off both sides and
leaves what is the pair's own.

Beside each correlation stand those after the pairs' input tokens are shuffled, which keeps both tokens' frequencies.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import keys, stats
from devinterp_func.bigram._corpus import PairCounts, Pairs, pair_log_odds, seen_pairs, shuffled_pairs, unseen_pairs
from devinterp_func.bigram._decoder import Matrix, entries
from devinterp_func.bigram._units import decoder_matrices, embedding_scale
from devinterp_func.graph import Graph, at, decode, require_head, streams
from devinterp_func.tree import Params

TOKENS = "tokens that occur"
SEEN, SEEN_AND_UNSEEN = "pairs of the corpus", "these and unseen pairs"


class Fit(NamedTuple):
    """How x goes with y, and how it does after shuffles."""

    pearson: float
    spearman: float
    slope: float  # of x over y
    shuffled_pearson: float  # mean over shuffles
    shuffled_spearman: float
    shuffled_largest: float  # the largest |Pearson| of them


class Correlation(NamedTuple):
    """A measure of the weights against the corpus."""

    measure: str  # "unembedding bias", "mean logit", "mean of the direct path", or a path's name
    among: str  # ``TOKENS``, against log frequency; or a set of pairs, against log-odds
    n: int  # tokens or pairs
    fit: Fit


# ---- the weights


def centre(x: Matrix, weight: Int[Tensor, "V"]) -> Matrix:
    """Rows less their mean, in which row i counts ``weight[i]`` times."""
    share = (weight.double() / weight.sum()).to(x.device)
    return x - (share @ x.double()).to(x.dtype)


@torch.no_grad()
def one_token(graph: Graph, params: Params) -> Matrix:
    """What the unembedding reads after each token of the vocabulary alone, without dropout."""
    alone, (_, W_E) = _of_one_token(graph), decoder_matrices(graph, params)
    tokens = torch.arange(graph.vocab_size, dtype=graph.example[0][1], device=W_E.device)
    return streams(alone, params, (tokens[:, None],))[:, 0]


def _of_one_token(graph: Graph) -> Graph:
    """The graph for texts of one token: every tensor of the example that is as long as the text becomes that short."""
    length = graph.example[0][0]
    shapes = [((1, *shape[1:]) if shape[:1] == length else shape, dtype) for shape, dtype in graph.example]
    return at(graph, *(torch.zeros(shape, dtype=dtype) for shape, dtype in shapes))


@torch.no_grad()
def mean_logit(graph: Graph, params: Params, tokens: Int[Tensor, "n C"]) -> Float[Tensor, "V"]:
    """Mean logit of each token over all positions of some data, without dropout."""
    mean = streams(graph, params, (tokens,)).mean((0, 1), keepdim=True)
    return decode(graph, params, mean[0])[0]


def paths(graph: Graph, params: Params, counts: PairCounts) -> Iterator[tuple[str, Matrix, Matrix]]:
    """Name, U and E of the paths from a token to the next one's logit: direct, direct and centred, the whole model."""
    U, W_E = decoder_matrices(graph, params)
    E = W_E * embedding_scale(graph)
    yield "direct path", U, E
    yield "direct path, centred", centre(U, counts.second), centre(E, counts.first)
    yield "whole model, centred", centre(U, counts.second), centre(one_token(graph, params), counts.first)


# ---- how they go together


def pair_sets(counts: PairCounts, least: int, unseen: int, *, key: keys.Key | int) -> dict[str, Pairs]:
    """The pairs to correlate: those that occur at least so often, and these with some that never occur.

    Args:
        counts: of the training text.
        least: of ``seen_pairs``.
        unseen: of ``unseen_pairs``.
        key: of their draw.
    """
    seen, never = seen_pairs(counts, least), unseen_pairs(counts, unseen, key=key)
    both = Pairs(*(torch.cat(column) for column in zip(seen, never, strict=True)))
    return {SEEN: seen, SEEN_AND_UNSEEN: both}


def correlations(
    graph: Graph,
    params: Params,
    counts: PairCounts,
    sets: Mapping[str, Pairs],
    tokens: Int[Tensor, "n C"],
    *,
    key: keys.Key | int,
) -> Iterator[Correlation]:
    """How some weights go with the corpus' unigrams and bigrams.

    A model without a bias of the unembedding has no measure of that.

    Args:
        graph: the model.
        params: its weights.
        counts: of the training text.
        sets: name -> pairs, such as ``pair_sets``.
        tokens: some data, over whose positions logits are averaged.
        key: of the shuffles.

    Raises:
        ValueError: the model has no bigram decoder, or the data do not fit it.
    """
    W_U, W_E = decoder_matrices(graph, params)
    bias = require_head(graph).bias
    share = (counts.first.to(W_E.dtype) / counts.first.sum()).to(W_E.device)
    mean_E = (share[None] @ W_E)[0]
    measures = {"unembedding bias": params[bias]} if bias is not None else {}
    measures |= {
        "mean logit": mean_logit(graph, params, tokens),
        "mean of the direct path": W_U @ mean_E * embedding_scale(graph),
    }
    for name, x in measures.items():
        yield Correlation(name, TOKENS, int((counts.second > 0).sum()), fit_tokens(x, counts.second, key=key))
    for name, U, E in paths(graph, params, counts):
        for among, pairs in sets.items():
            fit = fit_pairs(U, E, pairs, pair_log_odds(counts, pairs), key=key)
            yield Correlation(name, among, len(pairs.output), fit)


def fit_pairs(
    U: Matrix, E: Matrix, pairs: Pairs, y: Float[Tensor, "p"], *, key: keys.Key | int, draws: int = 10
) -> Fit:
    """Entries ⟨U_output, E_input⟩ against y, and the same for ``shuffled_pairs``."""
    shuffles = [shuffled_pairs(pairs, key=keys.fold_in(key, draw)) for draw in range(draws)]
    return _fit(entries(*pairs, U, E).cpu(), [entries(*shuffled, U, E).cpu() for shuffled in shuffles], y)


def fit_tokens(x: Float[Tensor, "V"], n: Int[Tensor, "V"], *, key: keys.Key | int, draws: int = 10) -> Fit:
    """A number of each token against log n, over the tokens that occur; the control shuffles tokens."""
    occurs = n > 0
    x = x.cpu()[occurs].double()
    shuffles = [x[keys.permutation(len(x), key=keys.fold_in(key, draw))] for draw in range(draws)]
    return _fit(x, shuffles, n[occurs].double().log())


def _fit(x: Float[Tensor, "p"], shuffles: list[Tensor], y: Float[Tensor, "p"]) -> Fit:
    if len(x) < 3:
        raise ValueError(f"there are {len(x)} pairs or tokens to correlate; there must be at least 3")
    centred = y.double() - y.double().mean()
    slope = float((centred @ x.double()) / (centred @ centred))
    pearson = torch.tensor([stats.correlation(shuffled, y) for shuffled in shuffles])
    spearman = torch.tensor([stats.rank_correlation(shuffled, y) for shuffled in shuffles])
    means = float(pearson.mean()), float(spearman.mean()), float(pearson.abs().max())
    return Fit(stats.correlation(x, y), stats.rank_correlation(x, y), slope, *means)
