"""Ablating neurons, and what the model then predicts.

``zero`` is the post's zero-weight ablation, on the weights. ``Replacement`` is an ablation of the activation: what
meets the neuron's weights becomes other numbers: zero, a mean, or another datum's. Zeroing a column and replacing its
activation by 0 are the same. ``neurons.sweep`` ablates many neurons one at a time and gives the same predictions.

Source: the zero-weight ablation of *Training Process Transparency through Gradient Interpretability: Early Experiments
on Toy Language Models* (Krzyzanowski and Hubinger 2023); resample ablation of Geiger et al. 2021.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import keys, models
from devinterp_func.models import Config, Tap
from devinterp_func.neurons._activations import activations
from devinterp_func.neurons._neuron import Neuron, operation_of, require
from devinterp_func.tree import Params

Kind = Literal["zero", "mean", "resample"]


class Ablation(NamedTuple):
    """What takes the place of a neuron's activation."""

    kind: Kind = "zero"
    over: Int[Tensor, "m C"] | None = None  # tokens of the data that a mean is over; by default those ablated on
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
        which: neurons of any 2-D weight; none of them changes nothing.

    Raises:
        ValueError: no such neuron; what there is is named.

    >>> zero({"w": torch.ones(2, 2)}, Neuron("w", 0), Neuron("w", 1, "out"))["w"]
    tensor([[0., 1.],
            [0., 0.]])
    """
    shapes = {name: tuple(weight.shape) for name, weight in params.items()}
    ablated = params | {neuron.unit: params[require(shapes, neuron).unit].clone() for neuron in which}
    for neuron in which:
        ablated[neuron.unit].select(1 if neuron.axis == "in" else 0, neuron.index).zero_()
    return ablated


def replacements(
    params: Params, tokens: Int[Tensor, "n C"], config: Config, neurons: Sequence[Neuron], ablation: Ablation
) -> Float[Tensor, "n C G"] | None:
    """What each neuron's activation becomes; None where its weights are zeroed.

    Args:
        params, config: the model.
        tokens: of the data that the neurons are ablated on.
        neurons: G neurons.
        ablation: of which kind.

    Raises:
        ValueError: there is no such kind, or no layer has one of the neurons.
    """
    if ablation.kind not in get_args(Kind):
        raise ValueError(f"the ablation is {ablation.kind!r}; it must be one of {', '.join(get_args(Kind))}")
    if ablation.kind == "zero" or not neurons:
        return None
    columns = []
    for neuron in neurons:
        here = activations(params, tokens, config, neuron.unit, neuron.axis)[..., neuron.index]
        if ablation.kind == "resample":
            columns.append(resample(here, key=keys.fold_in(ablation.key, str(neuron))))
            continue
        over = ablation.over
        there = here if over is None else activations(params, over, config, neuron.unit, neuron.axis)[..., neuron.index]
        columns.append(mean(here, there))
    return torch.stack(columns, dim=-1)


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


def replace(params: Params, neuron: Neuron, values: Float[Tensor, "C"]) -> Tap:
    """The tap through which ``models.stream`` sees these activations of one datum instead of the neuron's.

    A column's activation a becomes c by adding (c − a) times the column to the output; a row's is the output itself.

    Raises:
        ValueError: no layer has such a neuron; what there is is named.
    """
    operation, index, weight = operation_of(params, neuron), neuron.index, params[neuron.unit]

    def tap(name: str, inputs: Tensor, output: Tensor) -> Tensor:
        if name != operation:
            return output
        if neuron.axis == "in":
            return output + (values - inputs[:, index])[:, None] * weight[:, index]
        here = torch.arange(len(weight), device=weight.device) == index
        return torch.where(here, values[:, None], output)

    return tap


# ---- predictions


@torch.no_grad()
def predictions(
    params: Params, tokens: Int[Tensor, "n C"], config: Config, replacement: Replacement | None = None
) -> Int[Tensor, "n C"]:
    """The likeliest next token at every position, without dropout; of equal logits the lowest id.

    Args:
        params: weights, whole or ablated.
        tokens: input tokens.
        config: the model.
        replacement: an activation to run with instead of a neuron's.

    Raises:
        ValueError: no layer has the replacement's neuron.
    """
    parts = [models.decode(params, h).argmax(1) for _, h in _streams(params, tokens, config, replacement)]
    return torch.cat(parts).view(tokens.shape)


def _streams(
    params: Params, tokens: Int[Tensor, "n C"], config: Config, replacement: Replacement | None
) -> Iterator[tuple[slice, Float[Tensor, "m d"]]]:
    """What the unembedding reads, block by block."""
    blocks = models.logit_blocks(tokens, config)
    if replacement is None:
        passes = models.forward(params, tokens, config, blocks=blocks)
    else:
        neuron, values = replacement.neuron, replacement.values.expand(tokens.shape)
        operation_of(params, neuron)  # an error before the work
        tap = partial(replace, params, neuron)
        passes = models.forward(params, tokens, config, blocks=blocks, tap=tap, extra=(values,))
    yield from ((part.rows, part.stream.flatten(0, 1)) for part in passes)
