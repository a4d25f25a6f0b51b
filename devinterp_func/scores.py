"""Rankings of tokens for neurons, for ``skill`` to judge: from the training record, the finished model, or chance.

Every score is (G, V), higher where the neuron's ablation is thought to flip the token. Their kinds must not be mixed:

* record: token counts of the attributed data, by any reading (bag, target, input) and any keyness statistic; and what
  each target token added to the neuron's squared norm over training, where the steps were made again.
* record and model: among others "where it predicts", which reads at each outlier's position the token that the finished
  model predicts there: what an ablation there could flip.
* model: what the finished model alone gives: activations, logit effects, how often tokens are predicted.
* chance: random scores, and another neuron's.
"""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from devinterp_func import activations, keyness, keys, skill
from devinterp_func.transformer import Config
from devinterp_func.tree import Params

SMOOTH = 60  # occurrences added to each token's, so that those that occur once or twice do not come first

MOVED = "|logit effect × activation where predicted|, shrunk"
POST = "bag, relative frequency of c ≥ 20 (post)"


def of_record(
    counts: Mapping[str, Num[Tensor, "G V"]], reference: Int[Tensor, "V"]
) -> Iterator[tuple[str, Float[Tensor, "G V"]]]:
    """Every keyness statistic of every reading, and the post's ranking.

    Args:
        counts: reading -> token counts of the neurons, of ``attribution.distribution``.
        reference: of the training data.
    """
    bag = counts["bag"]
    yield POST, torch.where(bag >= 20, keyness.relative_frequency(bag, reference), 0)
    for reading, count in counts.items():
        for statistic, score in keyness.STATISTICS.items():
            yield f"{reading}, {statistic.replace('_', ' ')}", score(count, reference)


def of_growth(
    amounts: Mapping[str, Float[Tensor, "G V"]], reference: Int[Tensor, "V"]
) -> Iterator[tuple[str, Float[Tensor, "G V"]]]:
    """What the tokens did to each neuron's squared norm: built it, or either way; in all, and as often as they occur.

    Per √occurrence a token that pulls either way at random is worth the same however frequent it is.

    Args:
        amounts: of each target token, of ``growth.Account``: credits and what there is in first order, by name.
        reference: counts of the training data.
    """
    often = reference + SMOOTH
    for kind, growth in amounts.items():
        for name, amount in ((kind, growth), (f"|{kind}|", growth.abs())):
            yield f"{name} by target", amount
            yield f"{name} by target, per √occurrence", amount / often.sqrt()
            yield f"{name} by target, per occurrence", amount / often


def of_record_and_model(
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
        moved: of ``of_model`` under the name ``MOVED``.
    """
    share = predicted / (predictions + SMOOTH)
    yield "where it predicts, log likelihood", keyness.log_likelihood(predicted, predictions)
    yield "where it predicts, log odds", keyness.log_odds(predicted, predictions)
    yield "where it predicts, share", share
    yield "where it predicts, share × |logit effect|", share * effect.abs()
    yield "where it predicts, share × moved logit", share * moved
    yield "where it predicts and moved logit, rank product", skill.rank_product(share, moved)
    likely = keyness.log_likelihood(target, reference).clamp(min=0)
    yield "target, log likelihood × |logit effect|", likely * effect.abs()
    yield "target and where it predicts, rank product", skill.rank_product(likely, share)


def of_model(
    params: Params,
    tokens: Int[Tensor, "n C"],
    predictions: Int[Tensor, "n C"],
    config: Config,
    unit: str,
    reference: Int[Tensor, "V"],
) -> Iterator[tuple[str, Float[Tensor, "G V"]]]:
    """What the finished model says of all columns of a unit in the MLP.

    Args:
        params, config: the model.
        tokens: of some training data.
        predictions: of the model for them.
        unit: linear1 or linear2 of a layer.
        reference: counts of the training data.
    """
    width, effect = params[unit].shape[1], logit_effects(params, tokens, config, unit)
    by_input = activations.by_token(params, tokens, config, unit)
    by_prediction = activations.by_token(params, tokens, config, unit, labels=predictions)
    often = by_prediction.count.double()
    moved = (effect * by_prediction.mean.T).abs()  # of each token's logit, where it is the prediction
    yield "token frequency", skill.frequency(reference, width)
    yield "prediction frequency", often.expand(width, -1)
    yield "activations by input token", activations.selectivity(by_input)
    yield "activations by predicted token", activations.selectivity(by_prediction)
    yield "logit effect", effect
    yield "|logit effect|", effect.abs()
    yield "|logit effect| × √prediction frequency", effect.abs() * often.sqrt()
    yield "|logit effect × activation where predicted|", moved
    yield MOVED, moved * often / (often + 5)


def of_chance(best: Float[Tensor, "G V"], *, key: keys.Key | int) -> Iterator[tuple[str, Float[Tensor, "G V"]]]:
    """Random scores, and another neuron's."""
    yield "random", skill.random(*best.shape, key=key)
    if len(best) > 1:
        yield "another neuron's: where it predicts, share", skill.swapped(best, key=key)


def logit_effects(params: Params, tokens: Int[Tensor, "n C"], config: Config, unit: str) -> Float[Tensor, "G V"]:
    """What one unit of activity of each column adds to the logits, later layers left out.

    For linear2 it is ``neurons.logit_effect`` through the last norm2. A column of linear1 feeds hidden units: the share
    of positions at which each is above 0 in the data stands for the ReLU's slope.

    Args:
        params, config: the model.
        tokens: of some data.
        unit: linear1 or linear2 of a layer.

    Raises:
        ValueError: another unit.
    """
    layer, kind = unit.rpartition(".linear")[0], unit.rpartition(".linear")[2]
    if kind not in ("1.weight", "2.weight"):
        raise ValueError(f"{unit!r} is not in an MLP; units that are end in linear1.weight or linear2.weight")
    written = params[f"{layer}.linear2.weight"]
    if kind == "1.weight":
        hidden = activations.collect(params, tokens, config, f"{layer}.linear2.weight")
        slope = (hidden > 0).to(hidden.dtype).mean((0, 1))
        written = written @ (slope[:, None] * params[unit])
    gain = params[f"layers.{config.n_layers - 1}.norm2.weight"]
    return ((gain[:, None] * (written - written.mean(0))).T @ params["decoder.weight"].T).contiguous()
