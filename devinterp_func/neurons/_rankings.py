"""Rankings of tokens for neurons, for ``stats.average_precision``: from the record, the finished model, or chance.

Every score is (G, V), higher where the neuron's ablation is thought to flip the token. Their kinds must not be mixed:

* record: token counts of the attributed data, by any reading (bag, target, input) and any keyness statistic; and what
  each target token added to the neuron's squared norm over training, where the steps were made again.
* record and model: among others "where it predicts", which reads at each outlier's position the token that the finished
  model predicts there: what an ablation there could flip.
* model: what the finished model alone gives: activations, logit effects, how often tokens are predicted.
* chance: random scores, and another neuron's.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from devinterp_func import keys, stats
from devinterp_func.graph import Graph
from devinterp_func.neurons._activations import activations_by_token, selectivity
from devinterp_func.neurons._logit_effect import input_axis, logit_effects
from devinterp_func.tree import Params


class Material(NamedTuple):
    """What the rankings of a unit's neurons are made from."""

    graph: Graph
    params: Params
    tokens: Int[Tensor, "n C"]  # some training data
    predicted: Int[Tensor, "n C"]  # the finished model's predictions for them
    reference: Int[Tensor, "V"]  # counts of the training data
    predictions: Int[Tensor, "V"]  # how often each token is predicted over the data where that was looked up


Ranking = tuple[str, str, Float[Tensor, "g V"]]
"""What it is made from, its name, and the scores."""


def rankings(
    material: Material,
    unit: str,
    columns: Int[Tensor, "g"],
    counts: Mapping[str, Num[Tensor, "g V"]],
    predicted: Num[Tensor, "g V"],
    norms: Mapping[str, Float[Tensor, "g V"]],
    *,
    key: keys.Key | int,
) -> Iterator[Ranking]:
    """All rankings of tokens for some inputs of an MLP's unit; how many there are, ``n_rankings`` says.

    Args:
        material: what they are made from.
        unit: the MLP's input or output projection in a layer.
        columns: of the unit; rows where it is stored (in, out).
        counts: reading -> token counts of these neurons.
        predicted: outliers of these neurons by the token that the finished model predicts at their position.
        norms: what the tokens did to the neurons' squared norms, for ``norm_rankings``.
        key: of the rankings by chance.
    """
    m = material
    effect = logit_effects(m.graph, m.params, (m.tokens,), unit).cpu()[columns]
    of_unit = model_rankings(m.graph, m.params, m.tokens, m.predicted, unit, m.reference)
    model = {name: scores[columns] for name, scores in of_unit}
    kinds: dict[str, Iterable[tuple[str, Tensor]]] = {
        "record": chain(record_rankings(counts, m.reference), norm_rankings(norms, m.reference)),
        "record and model": joint_rankings(
            predicted, counts["target"], m.reference, m.predictions, effect, model[MOVED]
        ),
        "model": model.items(),
        "chance": chance_rankings(predicted / (m.predictions + SMOOTH), key=key),
    }
    for kind, ranked in kinds.items():
        yield from ((kind, name, scores) for name, scores in ranked)


def n_rankings(n_columns: int, n_norms: int = 0) -> int:
    """How many ``rankings`` there are for so many columns, with so many amounts of norms."""
    return 1 + 3 * len(stats.STATISTICS) + 6 * n_norms + 8 + 9 + (2 if n_columns > 1 else 1)


def frequency_scores(reference: Int[Tensor, "V"], n_neurons: int) -> Float[Tensor, "G V"]:
    """The baseline that ranks tokens by how often they occur, for every neuron alike."""
    return reference.double().expand(n_neurons, -1)


def random_scores(n_neurons: int, vocab_size: int, *, key: keys.Key | int) -> Float[Tensor, "G V"]:
    """The baseline that knows nothing."""
    return keys.uniform((n_neurons, vocab_size), 0.0, 1.0, key=key)


def swapped_scores(scores: Float[Tensor, "G V"], *, key: keys.Key | int) -> Float[Tensor, "G V"]:
    """The control for what a score says of tokens, not of neurons: every neuron gets another neuron's scores.

    Args:
        scores: of at least two neurons.
        key: of the exchange, one random cycle through all neurons.
    """
    cycle = keys.permutation(len(scores), key=key)
    return scores[cycle.roll(1)[cycle.argsort()]]


SMOOTH = 60  # occurrences added to each token's, so that those that occur once or twice do not come first

MOVED = "|logit effect × activation where predicted|, shrunk"
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


def joint_rankings(
    predicted: Num[Tensor, "G V"],
    target: Num[Tensor, "G V"],
    reference: Int[Tensor, "V"],
    predictions: Int[Tensor, "V"],
    effect: Float[Tensor, "G V"],
    moved: Float[Tensor, "G V"],
) -> Iterator[tuple[str, Float[Tensor, "G V"]]]:
    """What the record says with the finished model's help.

    Args:
        predicted: outliers of each neuron by the token that the finished model predicts at their position.
        target: the same by target token.
        reference: counts of the training data.
        predictions: how often each token is predicted over all training data.
        effect: of ``logit_effects``.
        moved: of ``model_rankings`` under the name ``MOVED``.
    """
    share = predicted / (predictions + SMOOTH)
    yield "where it predicts, log likelihood", stats.log_likelihood(predicted, predictions)
    yield "where it predicts, log odds", stats.log_odds(predicted, predictions)
    yield "where it predicts, share", share
    yield "where it predicts, share × |logit effect|", share * effect.abs()
    yield "where it predicts, share × moved logit", share * moved
    yield "where it predicts and moved logit, rank product", stats.rank_product(share, moved)
    likely = stats.log_likelihood(target, reference).clamp(min=0)
    yield "target, log likelihood × |logit effect|", likely * effect.abs()
    yield "target and where it predicts, rank product", stats.rank_product(likely, share)


def model_rankings(
    graph: Graph,
    params: Params,
    tokens: Int[Tensor, "n C"],
    predictions: Int[Tensor, "n C"],
    unit: str,
    reference: Int[Tensor, "V"],
) -> Iterator[tuple[str, Float[Tensor, "G V"]]]:
    """What the finished model says of all inputs of a unit in the MLP.

    Args:
        graph, params: the model.
        tokens: of some training data.
        predictions: of the model for them.
        unit: an MLP's input or output projection.
        reference: counts of the training data.
    """
    effect, axis = logit_effects(graph, params, (tokens,), unit).cpu(), input_axis(graph, unit)
    width = len(effect)
    by_input = activations_by_token(graph, params, (tokens,), unit, axis)
    by_prediction = activations_by_token(graph, params, (tokens,), unit, axis, labels=predictions)
    often = by_prediction.count.double()
    moved = (effect * by_prediction.mean.T).abs()  # of each token's logit, where it is the prediction
    yield "token frequency", frequency_scores(reference, width)
    yield "prediction frequency", often.expand(width, -1)
    yield "activations by input token", selectivity(by_input)
    yield "activations by predicted token", selectivity(by_prediction)
    yield "logit effect", effect
    yield "|logit effect|", effect.abs()
    yield "|logit effect| × √prediction frequency", effect.abs() * often.sqrt()
    yield "|logit effect × activation where predicted|", moved
    yield MOVED, moved * often / (often + 5)


def chance_rankings(best: Float[Tensor, "G V"], *, key: keys.Key | int) -> Iterator[tuple[str, Float[Tensor, "G V"]]]:
    """Random scores, and another neuron's."""
    yield "random", random_scores(*best.shape, key=key)
    if len(best) > 1:
        yield "another neuron's: where it predicts, share", swapped_scores(best, key=key)
