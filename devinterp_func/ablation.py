"""Switching neurons off: which predictions flip, where in the text, and by how much losses and probabilities change.

``zero`` is the post's zero-weight ablation, on the weights. ``Replacement`` is an ablation of the activation: what
meets the neuron's weights becomes other numbers: zero, a mean, or another datum's. Zeroing a column and replacing its
activation by 0 are the same. ``sweeps`` ablates many neurons at once and gives the same predictions.

Source: the zero-weight ablation of *Training Process Transparency through Gradient Interpretability: Early Experiments
on Toy Language Models* (Krzyzanowski and Hubinger 2023).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.func import vmap

from devinterp_func import keys, neurons, transformer, tree
from devinterp_func.neurons import Neuron
from devinterp_func.transformer import Config, Tap
from devinterp_func.tree import Params
from devinterp_func.vocabulary import Vocab

LOGITS = 2**23  # formed at once


class Replacement(NamedTuple):
    """A neuron's activation at every position, not its own: of a column what enters it, of a row what it gives."""

    neuron: Neuron
    values: Float[Tensor, "..."]  # (n, C), or broadcast to it

    def __repr__(self) -> str:
        return f"Replacement({self.neuron} by {list(self.values.shape)} values, mean {self.values.mean():.4g})"


class Flips(NamedTuple):
    """A row for each token that is a prediction before or after, most flips first, ties by token id."""

    token: Int[Tensor, "m"]
    proportion: Float[Tensor, "m"]  # flips / count
    count: Int[Tensor, "m"]  # type: ignore[assignment]  # positions where the token is the prediction before or after
    flips: Int[Tensor, "m"]  # those of them where before and after differ
    notable: Bool[Tensor, "m"]

    def __repr__(self) -> str:
        return f"Flips({int((self.flips > 0).sum())} of {len(self.token)} predicted tokens flip)"


class Excerpt(NamedTuple):
    """A flipped prediction in its datum; token ids."""

    datum: int  # row of the data
    position: int
    leading: tuple[int, ...]  # the tokens up to the position, from which the next is predicted
    before: int
    after: int
    following: tuple[int, ...]  # the datum's own tokens after the position; the first is the true next one
    cut: tuple[bool, bool] = (False, False)  # whether the datum goes on, on the left and on the right

    def text(self, vocab: Vocab) -> str:
        """``… leading ( before | after ) following …``."""
        before, after = vocab.decode([self.before, self.after])
        words = [*vocab.decode(self.leading), "(", before, "|", after, ")", *vocab.decode(self.following)]
        return " ".join(["…"] * self.cut[0] + words + ["…"] * self.cut[1])


class Outcomes(NamedTuple):
    """What the model makes of every position; or, of ``effects``, by how much that changes."""

    loss: Float[Tensor, "n C"]  # cross entropy of the target, nats
    target: Float[Tensor, "n C"]  # the target's probability
    chosen: Float[Tensor, "n C k"]  # the chosen tokens' probabilities

    def __repr__(self) -> str:
        return f"Outcomes{list(self.loss.shape)}(mean loss {self.loss.mean():.4g}, target {self.target.mean():.4g})"


class TokenMeans(NamedTuple):
    """Means of ``Outcomes`` over the positions with the same label; a row for each label there is, ascending."""

    token: Int[Tensor, "m"]
    count: Int[Tensor, "m"]  # type: ignore[assignment]  # a tuple's own method
    loss: Float[Tensor, "m"]
    target: Float[Tensor, "m"]
    chosen: Float[Tensor, "m k"]

    def __repr__(self) -> str:
        return f"TokenMeans({len(self.token)} tokens at {int(self.count.sum()):,} positions)"


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
    found = params | {neuron.unit: params[neurons.require(shapes, neuron).unit].clone() for neuron in which}
    for neuron in which:
        found[neuron.unit].select(1 if neuron.axis == "in" else 0, neuron.index).zero_()
    return found


def mean(activation: Float[Tensor, "n C"], over: Float[Tensor, "m C"] | None = None) -> Float[Tensor, "n C"]:
    """The mean activation, at every position.

    Args:
        activation: a neuron's, as ``activations.collect(...)[..., neuron.index]`` gives it.
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
    step = torch.from_numpy(keys.generator(key).integers(1, max(n, 2), n))
    return activation[((torch.arange(n) + step) % max(n, 1)).to(activation.device)]


def replace(params: Params, neuron: Neuron, values: Float[Tensor, "C"]) -> Tap:
    """The tap through which ``transformer.hidden`` sees these activations of one datum instead of the neuron's own.

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


def operation_of(params: Params, neuron: Neuron) -> str:
    """The name under which ``transformer.hidden`` taps the neuron's unit.

    Raises:
        ValueError: no layer has such a neuron; what there is is named.
    """
    layers = {name: tuple(weight.shape) for name, weight in params.items() if name.startswith("layers.")}
    unit = neurons.require(layers, neuron).unit
    return unit[: -len("_weight")]  # or ".weight": the inverse of transformer.weight_and_bias


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
        replacement: an activation to run with instead of a neuron's own.

    Raises:
        ValueError: no layer has the replacement's neuron.
    """
    parts = [decode(params, h).argmax(1) for _, h in _residuals(params, tokens, config, replacement)]
    return torch.cat(parts).view(tokens.shape)


def blocks(tokens: Int[Tensor, "n C"], config: Config) -> list[slice]:
    """The data a few at a time, so that their logits fit in ``LOGITS``; one block with none where there are no data."""
    size = max(1, LOGITS // (config.vocab_size * tokens.shape[1]))
    return [slice(start, start + size) for start in range(0, max(len(tokens), 1), size)]


def decode(params: Params, residual: Float[Tensor, "m d"]) -> Float[Tensor, "m V"]:
    """Logits of the residual stream at m positions, all V at once."""
    return torch.addmm(params["decoder.bias"], residual, params["decoder.weight"].T)


def _residuals(
    params: Params, tokens: Int[Tensor, "n C"], config: Config, replacement: Replacement | None
) -> Iterator[tuple[slice, Float[Tensor, "m d"]]]:
    """What the decoder reads, block by block."""
    if replacement is None:
        run = vmap(lambda example: transformer.hidden(params, example, config))
        yield from ((rows, run(tokens[rows]).flatten(0, 1)) for rows in blocks(tokens, config))
        return
    neuron, values = replacement.neuron, replacement.values.expand(tokens.shape)
    operation_of(params, neuron)  # an error before the work

    def replaced(example: Int[Tensor, "C"], values: Float[Tensor, "C"]) -> Float[Tensor, "C d"]:
        return transformer.hidden(params, example, config, tap=replace(params, neuron, values))

    for rows in blocks(tokens, config):
        yield rows, vmap(replaced)(tokens[rows], values[rows]).flatten(0, 1)


# ---- what changed


def flips(before: Int[Tensor, "*p"], after: Int[Tensor, "*p"], vocab_size: int, notable: Iterable[int] = ()) -> Flips:
    """Counts predictions and those that flipped, token by token.

    A position counts once for its prediction, or, where it flipped, once for that before and once for that after: the
    counts add up to the positions and the flipped positions, the flips to twice the latter.

    Args:
        before, after: predictions of the intact and of the ablated model.
        vocab_size: V.
        notable: ids of notable tokens, which are marked.

    >>> flips(torch.tensor([1, 1, 2]), torch.tensor([1, 2, 2]), vocab_size=3)
    Flips(2 of 2 predicted tokens flip)
    """
    flipped = before != after
    count = torch.bincount(before.flatten(), minlength=vocab_size)
    count += torch.bincount(after[flipped], minlength=vocab_size)
    flip = torch.bincount(torch.cat([before[flipped], after[flipped]]), minlength=vocab_size)
    token = flip.argsort(descending=True, stable=True)
    token = token[count[token] > 0]
    marked = torch.zeros(vocab_size, dtype=torch.bool, device=before.device)
    marked[torch.tensor(list(notable), dtype=torch.int64, device=before.device)] = True
    return Flips(token, flip[token].double() / count[token], count[token], flip[token], marked[token])


def excerpts(
    tokens: Int[Tensor, "n C"],
    before: Int[Tensor, "n C"],
    after: Int[Tensor, "n C"],
    width: int = 7,
    of: Iterable[int] | None = None,
) -> Iterator[Excerpt]:
    """The flipped predictions in context, by datum and position; never across a datum's border.

    Args:
        tokens: input tokens.
        before, after: predictions of the intact and of the ablated model.
        width: tokens on either side, as far as the datum has them.
        of: only flips from or to one of these tokens.
    """
    flipped = before != after
    if of is not None:
        wanted = torch.tensor(list(of), dtype=torch.int64, device=tokens.device)
        flipped = flipped & (torch.isin(before, wanted) | torch.isin(after, wanted))
    for datum, position in flipped.nonzero().tolist():
        start, middle, stop = max(0, position + 1 - width), position + 1, position + 1 + width
        row, pair = tokens[datum].tolist(), (int(before[datum, position]), int(after[datum, position]))
        cut = (start > 0, stop < len(row))
        yield Excerpt(datum, position, tuple(row[start:middle]), *pair, tuple(row[middle:stop]), cut)


@torch.no_grad()
def outcomes(
    params: Params,
    tokens: Int[Tensor, "n C"],
    targets: Int[Tensor, "n C"],
    config: Config,
    chosen: Sequence[int] = (),
    replacement: Replacement | None = None,
) -> Outcomes:
    """Loss and probabilities at every position, without dropout: they move where the prediction does not.

    Args:
        params, tokens, config, replacement: as for ``predictions``.
        targets: next tokens.
        chosen: ids of k tokens whose probability is wanted everywhere.

    Raises:
        ValueError: no layer has the replacement's neuron.
    """
    columns, parts = torch.tensor(list(chosen), dtype=torch.int64, device=tokens.device), []
    for rows, h in _residuals(params, tokens, config, replacement):
        logits = decode(params, h)
        normaliser = logits.logsumexp(1)
        loss = normaliser - logits.gather(1, targets[rows].reshape(-1, 1)).squeeze(1)
        parts.append((loss, (-loss).exp(), (logits[:, columns] - normaliser[:, None]).exp()))
    return Outcomes(*(torch.cat(part).unflatten(0, tokens.shape) for part in zip(*parts, strict=True)))


def effects(before: Outcomes, after: Outcomes) -> Outcomes:
    """after − before."""
    return tree.sub(after, before)


def by_token(outcomes: Outcomes, labels: Int[Tensor, "n C"]) -> TokenMeans:
    """Means over the positions with the same label.

    Args:
        outcomes: or ``effects``.
        labels: a token at each position: its target, its input, its prediction.
    """
    token, where, count = labels.flatten().unique(return_inverse=True, return_counts=True)

    def means(values: Float[Tensor, "n C *k"]) -> Float[Tensor, "m *k"]:
        flat = values.flatten(0, 1).double()
        total = flat.new_zeros(len(token), *flat.shape[1:]).index_add_(0, where, flat)
        return total / count.view(-1, *(1 for _ in flat.shape[1:]))

    return TokenMeans(token, count, *(means(values) for values in outcomes))
