"""Numbers that one can compute from the weights, each with its gradient: what a ledger splits over the data.

A probe is a pure function of the parameters, differentiable, with a scalar value. ``of`` makes one of any such
function; the others here are made by it, except ``loss``, whose gradient takes the fast way of
``per_example.capture``. None of them applies dropout. Of a model of ``models.autocast`` they are numbers of its
unrounded loss: one step changes a number by less than bfloat16 can tell.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad_and_value

from devinterp_func import checks, neurons, per_example
from devinterp_func.credit.patterns import Pattern, asked_queries
from devinterp_func.graph import Graph, at, decode, require_head, run, streams, unrounded
from devinterp_func.neurons import Neuron
from devinterp_func.tree import Params

Function = Callable[[Params], Tensor]


class Probe(NamedTuple):
    """A number that depends on the weights."""

    name: str
    value: Function
    value_and_grad: Callable[[Params], tuple[Float[Tensor, ""], Params]]
    data: tuple[Any, ...] | None = None  # whose mean loss it is; None of what is no loss of data

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


# ---- what the model says of data


def loss(
    graph: Graph, batch: tuple[Any, ...], name: str = "loss", buffer: Float[Tensor, "V nC"] | None = None
) -> Probe:
    """Mean loss of some data; of texts in nats, over all their positions.

    Args:
        graph: the model.
        batch: the data, each tensor with a leading n.
        name: of the probe.
        buffer: scratch of ``per_example.capture``: it spares an allocation at every call.
    """
    graph = unrounded(graph)

    def value_and_grad(params: Params) -> tuple[Tensor, Params]:
        captured = per_example.capture(graph, params, *batch, buffer=buffer)
        return captured.losses.mean(), captured.mean_grads

    def value(params: Params) -> Tensor:
        return per_example.data_losses(graph, params, *batch, buffer=buffer).mean()

    return Probe(name, value, value_and_grad, batch)


def log_probability(graph: Graph, prompt: Int[Tensor, "*m C"], token: int) -> Probe:
    """Log-probability of a token after a prompt, nats; after several prompts of one length its mean.

    Args:
        graph: the model, traced for texts of any length.
        prompt: its tokens; several prompts have a leading m.
        token: the next.

    Raises:
        ValueError: the token is not in the vocabulary, or the graph has no logits after every token of a text.
    """
    _check_token(graph, token)
    prompts = prompt.reshape(-1, prompt.shape[-1])
    own = _graph_of_prompts(unrounded(graph), prompts)
    node = require_head(own).stream.name

    def function(params: Params) -> Tensor:
        stream = run(own, params, (prompts,), [node])[node]
        last = stream.reshape(len(prompts), -1, own.width)[:, -1]
        return decode(own, params, last).log_softmax(-1)[:, token].mean()

    return of(f"log-probability of {token}", function)


def effect(graph: Graph, neuron: Neuron, token: int, batch: tuple[Any, ...]) -> Probe:
    """Mean logit of a token, or class, over all positions of some data, with the neuron less without it.

    Differentiable, and through the whole network: it reads early layers, which a logit effect does not.

    Args:
        graph: the model.
        neuron: whose weights are set to 0.
        token: whose logit.
        batch: the data, such as ``(tokens,)``.

    Raises:
        ValueError: the loss has no head, or the token is not in the vocabulary.
    """
    _check_token(graph, token)
    graph = unrounded(graph)
    rows, axis = require_head(graph).weight, 1 if neuron.axis == "in" else 0

    def mean(params: Params) -> Tensor:
        return (streams(graph, params, batch) @ params[rows][token]).mean()

    def function(params: Params) -> Tensor:
        weight = params[neuron.unit]
        kept = torch.ones(weight.shape[axis], dtype=weight.dtype, device=weight.device)
        kept[neuron.index] = 0
        without = (weight.movedim(axis, -1) * kept).movedim(-1, axis)
        return mean(params) - mean({**params, neuron.unit: without})

    return of(f"effect of {neuron} on {token}", function)


# ---- what the weights are


def squared_norm(neuron: Neuron) -> Probe:
    """Squared norm of a neuron's weights."""
    return of(f"squared norm of {neuron}", lambda params: (neurons.weights(params, neuron) ** 2).sum())


def bigram(graph: Graph, output: int, input: int) -> Probe:
    """An entry of the bigram decoder W_U W_Eᵀ.

    Raises:
        ValueError: the model has no embedding or no head, they are of different widths, or an id is out of range.
    """
    W_U, W_E = require_head(graph).weight, graph.embedding
    if W_E is None:
        raise ValueError("this model looks its example's first tensor up in no table, so it has no embedding")
    if graph.shapes[W_E][1] != graph.width:
        raise ValueError(
            f"{W_E} has {graph.shapes[W_E][1]} columns and {W_U} {graph.width}: no entry leads from one to the other"
        )
    for name, token, unit in (("output", output, W_U), ("input", input, W_E)):
        if checks.integer(name, token, 0) >= graph.shapes[unit][0]:
            raise ValueError(f"{name} is {token}; the rows of {unit} are 0..{graph.shapes[unit][0] - 1}")
    return of(f"bigram {input} → {output}", lambda params: params[W_U][output] @ params[W_E][input])


# ---- where heads attend


def attention(graph: Graph, batch: tuple[Any, ...], pattern: Pattern, layer: int, head: int) -> Probe:
    """Attention that a head gives to the marked keys, in the mean over the queries that have one.

    Args:
        graph: the model.
        batch: some data, such as ``(tokens,)``.
        pattern: the marked keys, such as ``brackets`` finds.
        layer, head: from 0; layers are counted by their attention.

    Raises:
        ValueError: no such layer or head, or no key is marked.
    """
    graph = unrounded(graph)
    _check_number("layer", layer, len(graph.attention))
    node = graph.attention[layer]
    shape = next(x.meta["val"].shape for x in graph.trace.nodes if x.name == node)
    _check_number("head", head, shape[:-2].numel())
    queries = asked_queries(pattern)

    def function(params: Params) -> Tensor:
        weights = run(graph, params, batch, [node])[node]
        weights = weights.reshape(len(weights), -1, *shape[-2:])[:, head]
        return (weights * pattern).sum(-1)[queries].mean()

    return of(f"attention of head {layer}.{head}", function)


# ---- checks


def _check_number(name: str, value: int, n: int) -> None:
    if not 0 <= value < n:
        where = f"it must be in 0..{n - 1}" if n else "this model has none with attention"
        raise ValueError(f"{name} is {value}; {where}")


def _check_token(graph: Graph, token: int) -> None:
    if not 0 <= token < graph.vocab_size:
        raise ValueError(f"token {token} is not in the vocabulary; ids are 0..{graph.vocab_size - 1}")


def _graph_of_prompts(graph: Graph, prompts: Int[Tensor, "m C"]) -> Graph:
    """The graph for texts as long as the prompts, if its head reads one row for each token, the last after the last.

    What else an example holds is not read; where it is as long as the text, such as targets, it stays so.
    """
    (text, _), *others = graph.example
    if len(text) != 1:
        raise ValueError(f"the first tensor of an example has shape {text}; that of a text would be (C,), its tokens")
    context = prompts.shape[-1]
    example = [prompts.new_zeros((context,) if shape == text else shape, dtype=dtype) for shape, dtype in others]
    own = at(graph, prompts[0], *example)
    rows = require_head(own).map.meta["val"].numel() // own.vocab_size
    if rows != context:
        raise ValueError(f"the model has logits at {rows} places of a prompt of {context} tokens; they must be as many")
    return own
