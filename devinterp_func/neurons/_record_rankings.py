"""Rankings of tokens for neurons that the record alone gives: counts, targets beyond the inputs, growth of norms."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Num
from scipy import sparse
from torch import Tensor

from devinterp_func import stats
from devinterp_func.batches import Data

SMOOTH = 60  # occurrences added to each token's, so that those that occur once or twice do not come first
POST = "bag, relative frequency of c ≥ 20 (post)"


def record_rankings(
    counts: Mapping[str, Num[Tensor, "G V"]], reference: Int[Tensor, "V"]
) -> Iterator[tuple[str, Float[Tensor, "G V"]]]:
    """Every keyness statistic of every reading, and the post's ranking.

    Args:
        counts: reading -> token counts of the neurons, of ``neurons.distribution``.
        reference: of the training data.
    """
    bag = counts["bag"]
    yield POST, torch.where(bag >= 20, stats.relative_frequency(bag, reference), 0)
    for reading, count in counts.items():
        for statistic, score in stats.STATISTICS.items():
            yield f"{reading}, {statistic.replace('_', ' ')}", score(count, reference)


def expected_targets(input: Num[Tensor, "g V"], data: Data) -> Float64[Tensor, "g V"]:
    """How often each token would be the target, had it followed the input tokens as it does in the corpus.

        E[g, t] = Σ_i input[g, i] · P(t | i)        P(t | i) = pairs (i, t) / positions with input i

    Args:
        input: outliers of each neuron by the input token at their position.
        data: the training data, whose pairs of input and target are the corpus'.
    """
    V = input.shape[1]
    pairs = np.ones(data.tokens.numel()), (data.tokens.flatten().numpy(), data.targets.flatten().numpy())
    table = sparse.csr_matrix(pairs, shape=(V, V))
    often = np.asarray(table.sum(1)).ravel()
    return torch.from_numpy((table.T @ (input.double().numpy() / np.maximum(often, 1)).T).T.copy())


def given_input_rankings(
    target: Num[Tensor, "g V"], expected: Float64[Tensor, "g V"]
) -> Iterator[tuple[str, Float64[Tensor, "g V"]]]:
    """Targets that the neuron's outliers have more often than the input tokens there explain.

    Args:
        target: outliers of each neuron by target token.
        expected: of ``expected_targets``, from the same outliers.
    """
    for name, statistic in (("log likelihood", stats.log_likelihood), ("log odds", stats.log_odds)):
        scores = torch.zeros(target.shape, dtype=torch.float64)
        for row in expected.any(1).nonzero()[:, 0].tolist():
            scores[row] = statistic(target[row], expected[row])
        yield f"target given input, {name}", scores
    yield "target given input, share", target / (expected + SMOOTH)


def norm_rankings(
    amounts: Mapping[str, Float[Tensor, "G V"]], reference: Int[Tensor, "V"]
) -> Iterator[tuple[str, Float[Tensor, "G V"]]]:
    """What the tokens did to each neuron's squared norm: built it, or either way; in all, and as often as they occur.

    Per √occurrence a token that pulls either way at random is worth the same however frequent it is.

    Args:
        amounts: of each target token, of ``credit.NormGrowth``: credits and what there is in first order, by name.
        reference: counts of the training data.
    """
    often = reference + SMOOTH
    for kind, growth in amounts.items():
        for name, amount in ((kind, growth), (f"|{kind}|", growth.abs())):
            yield f"{name} by target", amount
            yield f"{name} by target, per √occurrence", amount / often.sqrt()
            yield f"{name} by target, per occurrence", amount / often
