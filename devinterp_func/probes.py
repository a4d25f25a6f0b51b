"""Numbers that one can compute from the weights, each with its gradient: what a ledger splits over the data.

A probe is a pure function of the parameters, differentiable, with a scalar value. ``of`` makes one of any such
function; the others here are made by it, but for ``loss``, whose gradient takes the fast way of
``per_example.capture``. None of them applies dropout.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.func import grad_and_value, vmap

from devinterp_func import neurons, per_example, transformer
from devinterp_func.neurons import Neuron
from devinterp_func.transformer import Config
from devinterp_func.tree import Params

Function = Callable[[Params], Tensor]
Pattern = Bool[Tensor, "n C C"]  # of each text: which keys (last) each query (middle) is to attend to


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


def logit(prompt: Int[Tensor, "C"], token: int, config: Config, against: int | None = None) -> Probe:
    """Logit of a token after a prompt, less that of another token if one is given.

    Raises:
        ValueError: a token is not in the vocabulary.
    """
    _check_tokens(config, token, *([] if against is None else [against]))

    def function(params: Params) -> Tensor:
        logits = transformer.apply(params, prompt, config)[-1]
        return logits[token] if against is None else logits[token] - logits[against]

    return of(f"logit of {token}" if against is None else f"logit of {token} less that of {against}", function)


def log_probability(prompt: Int[Tensor, "C"], token: int, config: Config) -> Probe:
    """Log-probability of a token after a prompt, nats.

    Raises:
        ValueError: the token is not in the vocabulary.
    """
    _check_tokens(config, token)
    return of(
        f"log-probability of {token}",
        lambda params: transformer.apply(params, prompt, config)[-1].log_softmax(0)[token],
    )


def effect(neuron: Neuron, token: int, tokens: Int[Tensor, "n C"], config: Config) -> Probe:
    """Mean logit of a token over all positions of some texts, with the neuron less without it.

    Differentiable, and through the whole network: it reads early layers, which a logit effect does not.

    Raises:
        ValueError: the token is not in the vocabulary.
    """
    _check_tokens(config, token)

    def mean(params: Params) -> Tensor:
        residual = vmap(lambda text: transformer.hidden(params, text, config))(tokens)
        return (residual @ params["decoder.weight"][token]).mean()

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


def logit_effect(neuron: Neuron, token: int) -> Probe:
    """What a unit of the neuron's activity adds to a token's logit along the direct path: ``neurons.logit_effect``."""
    return of(f"logit effect of {neuron} on {token}", lambda params: neurons.logit_effect(params, neuron)[token])


def bigram(output: int, input: int) -> Probe:
    """An entry of the bigram decoder W_U W_Eᵀ."""
    return of(
        f"bigram {input} → {output}",
        lambda params: params["decoder.weight"][output] @ params["embedding.weight"][input],
    )


def direction(unit: str, u: Float[Tensor, "o"], v: Float[Tensor, "i"]) -> Probe:
    """uᵀ W v: the weight between a direction of a unit's output and one of its input, in any basis."""
    return of(f"direction in {unit}", lambda params: u @ params[unit] @ v)


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
    queries = asked(pattern)

    def function(params: Params) -> Tensor:
        weights = vmap(lambda text: heads(params, text, config)[layer, head])(tokens)
        return (weights * pattern).sum(-1)[queries].mean()

    return of(f"attention of head {layer}.{head}", function)


def asked(pattern: Pattern) -> Bool[Tensor, "n C"]:
    """The queries that have a marked key.

    Raises:
        ValueError: none has.
    """
    queries = pattern.any(-1)
    if not bool(queries.any()):
        raise ValueError("the pattern marks no key in any of the texts; nothing can be attended to")
    return queries


def heads(params: Params, tokens: Int[Tensor, "C"], config: Config) -> Float[Tensor, "L h C C"]:
    """Attention patterns of all heads of all layers on one text: layer, head, query, key."""
    found: dict[str, Tensor] = {}

    def tap(name: str, inputs: Tensor, output: Tensor) -> Tensor:
        if name.endswith("in_proj"):
            found[name] = transformer.attention_weights(output, config.n_heads)[0]
        return output

    transformer.hidden(params, tokens, config, tap=tap)
    return torch.stack([found[f"layers.{i}.self_attn.in_proj"] for i in range(config.n_layers)])


def previous_token(tokens: Int[Tensor, "n C"]) -> Pattern:
    """Each query's own last token.

    >>> previous_token(torch.tensor([[7, 8, 9]]))[0].nonzero().tolist()
    [[1, 0], [2, 1]]
    """
    n, C = tokens.shape
    return torch.ones(C - 1, dtype=torch.bool).diag(-1).expand(n, C, C)


def same_token(tokens: Int[Tensor, "n C"]) -> Pattern:
    """Earlier places of the query's token.

    >>> same_token(torch.tensor([[7, 8, 7]]))[0].nonzero().tolist()
    [[2, 0]]
    """
    return (tokens[:, :, None] == tokens[:, None, :]).tril(-1)


def induction(tokens: Int[Tensor, "n C"]) -> Pattern:
    """Places right after earlier ones of the query's token.

    >>> induction(torch.tensor([[7, 8, 9, 7]]))[0].nonzero().tolist()
    [[3, 1]]
    """
    same = same_token(tokens)
    return torch.cat([torch.zeros_like(same[..., :1]), same[..., :-1]], dim=-1).tril(-1)


def brackets(tokens: Int[Tensor, "n C"], opening: int, closing: int) -> Pattern:
    """The opening bracket that each closing one closes, nesting counted; brackets without a partner mark nothing.

    >>> brackets(torch.tensor([[1, 5, 1, 2, 2]]), opening=1, closing=2)[0].nonzero().tolist()
    [[3, 2], [4, 0]]
    """
    pattern = torch.zeros(*tokens.shape, tokens.shape[1], dtype=torch.bool)
    for text, row in enumerate(tokens.tolist()):
        open_at: list[int] = []
        for place, token in enumerate(row):
            if token == opening:
                open_at.append(place)
            elif token == closing and open_at:
                pattern[text, place, open_at.pop()] = True
    return pattern


def _check_tokens(config: Config, *tokens: int) -> None:
    for token in tokens:
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"token {token} is not in the vocabulary; ids are 0..{config.vocab_size - 1}")
