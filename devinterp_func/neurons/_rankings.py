"""Rankings of tokens for neurons, for ``stats.average_precision``: from the record, the finished model, or chance.

Every score is (G, V), higher where the neuron's ablation is thought to flip the token. Their kinds must not be mixed:

* record: token counts of the attributed data, by any reading (bag, target, input) and any keyness statistic; targets
  beyond what the input tokens there explain; and what each target token added to the neuron's squared norm over
  training, where the steps were made again.
* record and model: among others "where it predicts", which reads at each outlier's position the token that the finished
  model predicts there: what an ablation there could flip.
* model: what the finished model alone gives: activations, logit effects, how often tokens are predicted.
* chance: random scores, and another neuron's.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import NamedTuple

from jaxtyping import Float, Int, Num
from torch import Tensor

from devinterp_func import keys, stats
from devinterp_func.graph import Graph, has_operation, hidden_maps, writes_stream
from devinterp_func.neurons._activations import activations_by_token, selectivity
from devinterp_func.neurons._logit_effect import logit_effects
from devinterp_func.neurons._neuron import Axis, input_axis
from devinterp_func.neurons._record_rankings import (
    SMOOTH,
    given_input_rankings,
    norm_rankings,
    record_rankings,
)
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
    index: Int[Tensor, "g"],
    counts: Mapping[str, Num[Tensor, "g V"]],
    predicted: Num[Tensor, "g V"],
    norms: Mapping[str, Float[Tensor, "g V"]],
    *,
    key: keys.Key | int,
    axis: Axis = "in",
    expected: Float[Tensor, "g V"] | None = None,
) -> Iterator[Ranking]:
    """All rankings of tokens for some neurons of a unit; how many there are, ``n_rankings`` says.

    Args:
        material: what they are made from.
        unit: of a linear map.
        index: of the neurons in the unit.
        counts: reading -> token counts of these neurons.
        predicted: outliers of these neurons by the token that the finished model predicts at their position.
        norms: what the tokens did to the neurons' squared norms, for ``norm_rankings``.
        key: of the rankings by chance.
        axis: columns or rows.
        expected: of ``expected_targets``, for ``given_input_rankings``; None for none of these.
    """
    m, effect, moved = material, None, None
    if has_effect(m.graph, unit, axis):
        effect = logit_effects(m.graph, m.params, (m.tokens,), unit).cpu()
    model = {
        name: scores[index]
        for name, scores in model_rankings(
            m.graph, m.params, m.tokens, m.predicted, unit, m.reference, axis=axis, effect=effect
        )
    }
    if effect is not None:
        effect, moved = effect[index], model[MOVED]
    given = () if expected is None else given_input_rankings(counts["target"], expected)
    kinds: dict[str, Iterable[tuple[str, Tensor]]] = {
        "record": chain(record_rankings(counts, m.reference), given, norm_rankings(norms, m.reference)),
        "record and model": joint_rankings(predicted, counts["target"], m.reference, m.predictions, effect, moved),
        "model": model.items(),
        "chance": chance_rankings(predicted / (m.predictions + SMOOTH), key=key),
    }
    for kind, ranked in kinds.items():
        yield from ((kind, name, scores) for name, scores in ranked)


def n_rankings(n_neurons: int, n_norms: int = 0, effects: bool = True, expected: bool = False) -> int:
    """How many ``rankings`` there are for so many neurons, with so many amounts of norms, and with what else."""
    of_record = 1 + 3 * len(stats.STATISTICS) + 6 * n_norms + (3 if expected else 0)
    return of_record + (8 + 9 if effects else 4 + 4) + (2 if n_neurons > 1 else 1)


def has_effect(graph: Graph, unit: str, axis: Axis) -> bool:
    """Whether ``logit_effects`` says what these neurons do to the logits."""
    maps = hidden_maps(graph)
    inside = unit in (*maps, *maps.values()) or (has_operation(graph, unit) and writes_stream(graph, unit))
    return inside and axis == input_axis(graph, unit)


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


MOVED = "|logit effect × activation where predicted|, shrunk"


def joint_rankings(
    predicted: Num[Tensor, "G V"],
    target: Num[Tensor, "G V"],
    reference: Int[Tensor, "V"],
    predictions: Int[Tensor, "V"],
    effect: Float[Tensor, "G V"] | None,
    moved: Float[Tensor, "G V"] | None,
) -> Iterator[tuple[str, Float[Tensor, "G V"]]]:
    """What the record says with the finished model's help.

    Args:
        predicted: outliers of each neuron by the token that the finished model predicts at their position.
        target: the same by target token.
        reference: counts of the training data.
        predictions: how often each token is predicted over all training data.
        effect: of ``logit_effects``; None where there is none, and no ranking that takes it.
        moved: of ``model_rankings`` under the name ``MOVED``; None with that.
    """
    share = predicted / (predictions + SMOOTH)
    likely = stats.log_likelihood(target, reference).clamp(min=0)
    yield "where it predicts, log likelihood", stats.log_likelihood(predicted, predictions)
    yield "where it predicts, log odds", stats.log_odds(predicted, predictions)
    yield "where it predicts, share", share
    if effect is not None and moved is not None:
        yield "where it predicts, share × |logit effect|", share * effect.abs()
        yield "where it predicts, share × moved logit", share * moved
        yield "where it predicts and moved logit, rank product", stats.rank_product(share, moved)
        yield "target, log likelihood × |logit effect|", likely * effect.abs()
    yield "target and where it predicts, rank product", stats.rank_product(likely, share)


def model_rankings(
    graph: Graph,
    params: Params,
    tokens: Int[Tensor, "n C"],
    predictions: Int[Tensor, "n C"],
    unit: str,
    reference: Int[Tensor, "V"],
    *,
    axis: Axis = "in",
    effect: Float[Tensor, "G V"] | None,
) -> Iterator[tuple[str, Float[Tensor, "G V"]]]:
    """What the finished model says of all neurons of a unit.

    Args:
        graph, params: the model.
        tokens: of some training data.
        predictions: of the model for them.
        unit: of a linear map.
        reference: counts of the training data.
        axis: columns or rows.
        effect: of ``logit_effects``; None where there is none, and no ranking that takes it.
    """
    by_input = activations_by_token(graph, params, (tokens,), unit, axis)
    by_prediction = activations_by_token(graph, params, (tokens,), unit, axis, labels=predictions)
    often, width = by_prediction.count.double(), by_input.mean.shape[1]
    yield "token frequency", frequency_scores(reference, width)
    yield "prediction frequency", often.expand(width, -1)
    yield "activations by input token", selectivity(by_input)
    yield "activations by predicted token", selectivity(by_prediction)
    if effect is None:
        return
    moved = (effect * by_prediction.mean.T).abs()  # of each token's logit, where it is the prediction
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
