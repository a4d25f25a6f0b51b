"""Numbers that one can compute from the weights, each with its gradient: what a ledger splits over the data.

A probe is a pure function of the parameters, differentiable, with a scalar value. ``of`` makes one of any such
function; the others here are made by it, except ``loss``, whose gradient takes the fast way of
``per_example.capture``. None of them applies dropout.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad_and_value

from devinterp_func import checks, models, neurons, per_example, units
from devinterp_func.credit.patterns import Pattern, asked_queries
from devinterp_func.models import Config
from devinterp_func.neurons import Neuron
from devinterp_func.tree import Params

Function = Callable[[Params], Tensor]


class Probe(NamedTuple):
    """A number that depends on the weights."""

    name: str
    value: Function
    value_and_grad: Callable[[Params], tuple[Float[Tensor, ""], Params]]

    def __repr__(self) -> str:
        return f"Probe({self.name})"


def of(name: str, function: Function) -> Probe:
    """A probe of any pure, differentiable function of the parameters.

    >>> value, gradient = of("sum of squares", lambda params: (params["w"] ** 2).sum()).value_and_grad(
    ...     {"w": torch.tensor([1.0, 2.0])}
    ... )
    >>> value, gradient["w"]
    (tensor(5.), tensor([2., 4.]))
    """

    def value_and_grad(params: Params) -> tuple[Tensor, Params]:
        checks.gradients_allowed()
        gradient, value = grad_and_value(function)(params)
        return value, gradient

    return Probe(name, function, value_and_grad)


# ---- what the model says of texts


def loss(
    tokens: Int[Tensor, "n C"],
    targets: Int[Tensor, "n C"],
    config: Config,
    name: str = "loss",
    buffer: Float[Tensor, "V nC"] | None = None,
) -> Probe:
    """Mean loss over all positions of some texts, nats.

    Args:
        tokens, targets: of the texts.
        config: the model.
        name: of the probe.
        buffer: scratch of ``per_example.capture``: it spares an allocation at every call.
    """

    def value_and_grad(params: Params) -> tuple[Tensor, Params]:
        captured = per_example.capture(params, tokens, targets, config, buffer=buffer)
        return captured.losses.mean(), captured.mean_grads

    def value(params: Params) -> Tensor:
        return per_example.losses(params, tokens, targets, config, buffer).mean()

    return Probe(name, value, value_and_grad)


def log_probability(prompt: Int[Tensor, "C"], token: int, config: Config) -> Probe:
    """Log-probability of a token after a prompt, nats.

    Raises:
        ValueError: the token is not in the vocabulary.
    """
    _check_tokens(config, token)
    return of(
        f"log-probability of {token}",
        lambda params: models.apply(params, prompt, config)[-1].log_softmax(0)[token],
    )


def effect(neuron: Neuron, token: int, tokens: Int[Tensor, "n C"], config: Config) -> Probe:
    """Mean logit of a token over all positions of some texts, with the neuron less without it.

    Differentiable, and through the whole network: it reads early layers, which a logit effect does not.

    Raises:
        ValueError: the token is not in the vocabulary.
    """
    _check_tokens(config, token)

    def mean(params: Params) -> Tensor:
        return (models.streams(params, tokens, config) @ params[units.UNEMBEDDING][token]).mean()

    def function(params: Params) -> Tensor:
        weight = params[neuron.unit]
        kept = torch.ones(weight.shape[1 if neuron.axis == "in" else 0], dtype=weight.dtype, device=weight.device)
        kept[neuron.index] = 0
        without = weight * (kept if neuron.axis == "in" else kept[:, None])
        return mean(params) - mean({**params, neuron.unit: without})

    return of(f"effect of {neuron} on {token}", function)


# ---- what the weights are


def squared_norm(neuron: Neuron) -> Probe:
    """Squared norm of a neuron's weights."""
    return of(f"squared norm of {neuron}", lambda params: (neurons.weights(params, neuron) ** 2).sum())


def bigram(output: int, input: int) -> Probe:
    """An entry of the bigram decoder W_U W_Eᵀ.

    Raises:
        ValueError: an id is negative.
    """
    for name, token in (("output", output), ("input", input)):
        checks.integer(name, token, 0)
    return of(
        f"bigram {input} → {output}",
        lambda params: params[units.UNEMBEDDING][output] @ params[units.EMBEDDING][input],
    )


# ---- where heads attend


def attention(tokens: Int[Tensor, "n C"], pattern: Pattern, layer: int, head: int, config: Config) -> Probe:
    """Attention that a head gives to the marked keys, in the mean over the queries that have one.

    Args:
        tokens: some texts.
        pattern: the marked keys, such as ``brackets`` finds.
        layer, head: from 0.
        config: the model.

    Raises:
        ValueError: no such layer or head, or no key is marked.
    """
    for name, value, stop in (("layer", layer, config.n_layers), ("head", head, config.n_heads)):
        if not 0 <= value < stop:
            raise ValueError(f"{name} is {value}; it must be in 0..{stop - 1}")
    queries = asked_queries(pattern)

    def function(params: Params) -> Tensor:
        weights = models.attention_patterns(params, tokens, config)[:, layer, head]
        return (weights * pattern).sum(-1)[queries].mean()

    return of(f"attention of head {layer}.{head}", function)


def _check_tokens(config: Config, *tokens: int) -> None:
    for token in tokens:
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"token {token} is not in the vocabulary; ids are 0..{config.vocab_size - 1}")
