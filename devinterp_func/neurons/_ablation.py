"""Ablating neurons, and what the model then predicts.

``zero`` is the post's zero-weight ablation, on the weights. ``Replacement`` is an ablation of the activation: what
meets the neuron's weights becomes other numbers: zero, a mean, or another datum's. Zeroing an input's weights and
replacing its activation by 0 are the same. ``neurons.sweep`` ablates many neurons one at a time and gives the same
predictions.

Source: the zero-weight ablation of *Training Process Transparency through Gradient Interpretability: Early Experiments
on Toy Language Models* (Krzyzanowski and Hubinger 2023); resample ablation of Geiger et al. 2021.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import keys
from devinterp_func.graph import (
    LOGITS,
    Graph,
    Replace,
    by_size,
    check_batch,
    decode,
    forward,
    largest,
    logit_blocks,
    n_positions,
    require_head,
)
from devinterp_func.neurons._activations import activations
from devinterp_func.neurons._neuron import Neuron, dimension, operation_of, require
from devinterp_func.tree import Params

Kind = Literal["zero", "mean", "resample"]


class Ablation(NamedTuple):
    """What takes the place of a neuron's activation."""

    kind: Kind = "zero"
    over: tuple[Any, ...] | None = None  # the data that a mean is over; by default those ablated on
    key: keys.Key | int = 0  # of the draw of other data; the neuron is folded in

    def __repr__(self) -> str:
        return f"Ablation({self.kind})"


class Replacement(NamedTuple):
    """What a neuron's activation becomes at every position: of a column what enters it, of a row what it gives."""

    neuron: Neuron
    values: Float[Tensor, "..."]  # (n, C), or broadcast to it

    def __repr__(self) -> str:
        return f"Replacement({self.neuron} by {list(self.values.shape)} values, mean {self.values.mean():.4g})"


# ---- ablations


def zero(params: Params, *which: Neuron) -> Params:
    """Parameters with the neurons' weights set to 0; biases stay, so that a row still gives its bias.

    Args:
        params: weights; they are left as they are, and shared where nothing changes.
        which: neurons of any units, columns and rows as they are stored; none of them changes nothing.

    Raises:
        ValueError: no such neuron; what there is is named.

    >>> zero({"w": torch.ones(2, 2)}, Neuron("w", 0), Neuron("w", 1, "out"))["w"]
    tensor([[0., 1.],
            [0., 0.]])
    """
    shapes = {name: tuple(weight.shape) for name, weight in params.items()}
    ablated = params | {neuron.unit: params[require(shapes, neuron).unit].clone() for neuron in which}
    for neuron in which:
        ablated[neuron.unit].select(dimension(neuron.axis), neuron.index).zero_()
    return ablated


def replacements(
    graph: Graph, params: Params, batch: tuple[Any, ...], neurons: Sequence[Neuron], ablation: Ablation
) -> list[Float[Tensor, "n _"]] | None:
    """What each neuron's activation becomes; None where its weights are zeroed.

    Args:
        graph, params: the model.
        batch: the data that the neurons are ablated on.
        neurons: any, of units with one operation.
        ablation: of which kind.

    Returns:
        A tensor (n, C) each, C being the positions of the neuron's operation.

    Raises:
        ValueError: there is no such kind, or a neuron is of no operation.
    """
    if ablation.kind not in get_args(Kind):
        raise ValueError(f"the ablation is {ablation.kind!r}; it must be one of {', '.join(get_args(Kind))}")
    if ablation.kind == "zero":
        return None
    found = []
    for neuron in neurons:
        here = activations(graph, params, batch, neuron.unit, neuron.axis)[..., neuron.index]
        if ablation.kind == "resample":
            found.append(resample(here, key=keys.fold_in(ablation.key, str(neuron))))
            continue
        over = ablation.over
        there = here if over is None else activations(graph, params, over, neuron.unit, neuron.axis)[..., neuron.index]
        found.append(mean(here, there))
    return found


def mean(activation: Float[Tensor, "n C"], over: Float[Tensor, "m C"] | None = None) -> Float[Tensor, "n C"]:
    """The mean activation, at every position.

    Args:
        activation: a neuron's, as ``neurons.activations(...)[..., neuron.index]`` gives it.
        over: the neuron's activation on the data that the mean is over; the same by default.

    >>> mean(torch.tensor([[1.0, 3.0]]))
    tensor([[2., 2.]])
    """
    return (activation if over is None else over).mean().expand_as(activation)


def resample(activation: Float[Tensor, "n C"], *, key: keys.Key | int) -> Float[Tensor, "n C"]:
    """For each datum the activation on another, drawn at random, position for position (Geiger et al. 2021).

    >>> resample(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), key=0)
    tensor([[3., 4.],
            [1., 2.]])
    """
    n = len(activation)
    shift = torch.from_numpy(keys.generator(key).integers(1, max(n, 2), n))
    return activation[((torch.arange(n) + shift) % max(n, 1)).to(activation.device)]


# ---- predictions


@torch.no_grad()
def predictions(
    graph: Graph, params: Params, batch: tuple[Any, ...], replacement: Replacement | None = None
) -> Int[Tensor, "n C"]:
    """The likeliest class at every position that the head reads, without dropout; of equal logits the lowest.

    Args:
        graph: the model; for language models a class is the next token.
        params: weights, whole or ablated.
        batch: data; may be cut short, such as ``(tokens,)``.
        replacement: an activation to run with instead of a neuron's.

    Raises:
        ValueError: the model has no head; or the replacement's neuron is of no operation, or of the head itself.
    """
    found = [decode(graph, params, h.flatten(0, 1)).argmax(1) for h in _streams(graph, params, batch, replacement)]
    return torch.cat(found).view(-1, n_positions(graph))


def _streams(
    graph: Graph, params: Params, batch: tuple[Any, ...], replacement: Replacement | None
) -> Iterator[Float[Tensor, "b C d"]]:
    """What the head reads, block by block."""
    n = len(check_batch(graph, batch)[0])
    replace, values = (None, None) if replacement is None else _replace(graph, replacement, n)
    for part in forward(graph, params, batch, blocks=blocks(graph, n), replace=replace, values=values):
        assert part.stream is not None
        yield part.stream


def _replace(graph: Graph, replacement: Replacement, n: int) -> tuple[Replace, Float[Tensor, "n _"]]:
    """A replacement as ``graph.forward`` takes it."""
    neuron, own = replacement.neuron, operation_of(graph, replacement.neuron)
    if own.node is require_head(graph).map:
        raise ValueError(f"{neuron} is of the head, whose activations are not replaced; zero its weights instead")
    side = own.side(neuron.axis)
    x, lay = (own.x, own.read) if side == "inputs" else (own.node, own.write)
    positions = lay(torch.empty(1, *x.meta["val"].shape, device="meta")).shape[1]
    return Replace(neuron.unit, side, neuron.index), replacement.values.expand(n, positions)


def blocks(graph: Graph, n: int, copies: int = 1) -> list[slice]:
    """n data a few at a time: their logits, and ``copies`` of the largest activation, take little memory."""
    size, room = logit_blocks(graph, n)[0].stop, 2 * LOGITS // (copies * largest(graph))
    return by_size(n, max(1, min(size, room)))
