"""Ablating many neurons one at a time, with the predictions of ``ablation.zero``, some tens of times faster.

Of the definition, a forward pass a neuron, nine tenths are the decoder. Here the intact model runs once; an ablation
starts at its own operation, where it adds to the output one number a position times one direction, runs the layers
above for all neurons of a unit together, only for data in which the neuron does anything; and ``margins`` proves for
most positions from a few logits that the prediction stays, so that the decoder runs only where that is in doubt.

Rounding: where two logits are so close that it could decide, ``ablation.predictions`` itself is asked. So the answer is
the definition's, up to what its own sums depend on in the last place: how many positions are multiplied at once.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vmap

from devinterp_func import ablation, margins, transformer
from devinterp_func.neurons import Axis, Neuron, layer_of
from devinterp_func.transformer import Config
from devinterp_func.tree import Params

TOGETHER = 64  # neurons run at once


class Work(NamedTuple):
    """How many predictions there were to make, a neuron and a position each, and what it took."""

    pairs: int
    moved: int  # the ablation changes something there
    decoded: int  # all logits were formed
    repeated: int  # two of them were within rounding: the definition was asked

    def __repr__(self) -> str:
        shares = (f"{name} {getattr(self, name) / max(self.pairs, 1):.2g}" for name in ("moved", "decoded", "repeated"))
        return f"Work({self.pairs:,} pairs, of which {', '.join(shares)})"


class Sweep(NamedTuple):
    """The flipped positions of every neuron's ablation, by neuron, then position."""

    neuron: Int[Tensor, "m"]  # number in the list that was given
    position: Int[Tensor, "m"]  # datum · C + position in it
    before: Int[Tensor, "m"]
    after: Int[Tensor, "m"]
    intact: Int[Tensor, "p"]  # the intact model's predictions at all n·C positions
    work: Work

    def __repr__(self) -> str:
        return f"Sweep({len(self.neuron):,} flips at {len(self.intact):,} positions; {self.work})"


class Group(NamedTuple):
    """Neurons of one unit and axis."""

    unit: str
    axis: Axis
    operation: str
    number: Int[Tensor, "g"]  # in the list that was given
    index: Int[Tensor, "g"]  # type: ignore[assignment]  # in the unit


Seen = dict[str, tuple[Tensor, Tensor]]
"""Operation -> its inputs and its outputs."""


def sweep(params: Params, tokens: Int[Tensor, "n C"], config: Config, neurons: Sequence[Neuron]) -> Sweep:
    """All positions at which zeroing a neuron's weights changes the prediction, for each neuron by itself.

    Args:
        params: weights.
        tokens: input tokens.
        config: the model.
        neurons: of any 2-D weights in the layers, columns and rows.

    Raises:
        ValueError: no layer has such a neuron; what there is is named.
    """
    return join(stream(params, tokens, config, neurons))


def stream(params: Params, tokens: Int[Tensor, "n C"], config: Config, neurons: Sequence[Neuron]) -> Iterator[Sweep]:
    """``sweep`` a few data at a time, in order, for a progress bar; ``join`` puts the parts together."""
    groups, tolerance = _groups(params, neurons), margins.tolerance(params, config)
    for rows in ablation.blocks(tokens, config):
        part = _sweep(params, tokens[rows], config, neurons, groups, tolerance)
        yield part._replace(position=part.position + rows.start * tokens.shape[1])


def sweep_naive(params: Params, tokens: Int[Tensor, "n C"], config: Config, neurons: Sequence[Neuron]) -> Sweep:
    """``sweep`` by a forward pass for each neuron: the definition."""
    intact = ablation.predictions(params, tokens, config).flatten()
    parts = []
    for number, neuron in enumerate(neurons):
        ablation.operation_of(params, neuron)
        after = ablation.predictions(ablation.zero(params, neuron), tokens, config).flatten()
        position = (after != intact).nonzero().squeeze(1)
        parts.append((torch.full_like(position, number), position, intact[position], after[position]))
    pairs = len(neurons) * len(intact)
    found = [torch.cat(part) for part in zip((intact[:0],) * 4, *parts, strict=True)]
    return Sweep(found[0], found[1], found[2], found[3], intact, Work(pairs, pairs, pairs, pairs))


def join(parts: Iterable[Sweep]) -> Sweep:
    """The parts of ``stream`` as one."""
    *columns, intact, work = zip(*parts, strict=True)
    neuron, position, before, after = (torch.cat(column) for column in columns)
    everything = torch.cat(intact)
    order = (neuron * len(everything) + position).argsort()
    total = Work(*(sum(counts) for counts in zip(*work, strict=True)))
    return Sweep(neuron[order], position[order], before[order], after[order], everything, total)


def flip_counts(sweep: Sweep, n_neurons: int, vocab_size: int) -> tuple[Int[Tensor, "G V"], Int[Tensor, "G V"]]:
    """Count and flips of every token for every neuron, as ``ablation.flips`` counts them; int32.

    Args:
        sweep: of these neurons.
        n_neurons: G.
        vocab_size: V.
    """
    flips = torch.zeros(n_neurons * vocab_size, dtype=torch.int32, device=sweep.intact.device)
    count = torch.bincount(sweep.intact, minlength=vocab_size).to(flips.dtype).repeat(n_neurons)
    one = torch.ones_like(sweep.neuron, dtype=flips.dtype)
    start = sweep.neuron * vocab_size
    flips.index_add_(0, start + sweep.before, one).index_add_(0, start + sweep.after, one)
    count.index_add_(0, start + sweep.after, one)
    return count.view(n_neurons, vocab_size), flips.view(n_neurons, vocab_size)


# ---- a block of data


@torch.no_grad()
def _sweep(
    params: Params,
    tokens: Int[Tensor, "b C"],
    config: Config,
    neurons: Sequence[Neuron],
    groups: list[Group],
    tolerance: float,
) -> Sweep:
    residual, seen = _trace(params, tokens, config)
    logits = ablation.decode(params, residual.flatten(0, 1))
    intact = logits.argmax(1)
    measured = margins.measure(params, residual.flatten(0, 1), logits)
    found, work = [(intact[:0],) * 4], [0, 0, 0]
    for group in groups:
        for some in torch.arange(len(group.index)).split(TOGETHER):
            changed = _ablated(params, config, group, group.index[some], residual, seen).flatten(1, 2)
            moved = (changed != measured.residual).any(-1)
            suspects = margins.compare(params, measured, changed, moved, tolerance)
            token, doubt = suspects.token.clone(), (~suspects.proven).nonzero().squeeze(1)
            row, position = suspects.row[doubt], suspects.position[doubt]
            token[doubt], clear = margins.decide(params, changed[row, position], tolerance)
            for i in (~clear).nonzero().squeeze(1).tolist():
                datum, at = divmod(int(position[i]), tokens.shape[1])
                weights = ablation.zero(params, neurons[int(group.number[some][row[i]])])
                token[doubt[i]] = ablation.predictions(weights, tokens[datum : datum + 1], config)[0, at]
            flipped = token != intact[suspects.position]
            where = suspects.position[flipped]
            found.append((group.number[some][suspects.row[flipped]], where, intact[where], token[flipped]))
            counts = int(moved.sum()), len(doubt), int((~clear).sum())
            work = [total + count for total, count in zip(work, counts, strict=True)]
    number, position, before, after = (torch.cat(column) for column in zip(*found, strict=True))
    return Sweep(number, position, before, after, intact, Work(len(neurons) * len(intact), *work))


def _groups(params: Params, neurons: Sequence[Neuron]) -> list[Group]:
    """The neurons by unit and axis."""
    members: dict[tuple[str, Axis, str], list[tuple[int, int]]] = {}
    for number, neuron in enumerate(neurons):
        key = (neuron.unit, neuron.axis, ablation.operation_of(params, neuron))
        members.setdefault(key, []).append((number, neuron.index))
    return [Group(*key, *torch.tensor(pairs).T) for key, pairs in members.items()]


def _trace(params: Params, tokens: Int[Tensor, "b C"], config: Config) -> tuple[Float[Tensor, "b C d"], Seen]:
    """The intact residual stream, and inputs and outputs of every operation."""

    def one(example: Int[Tensor, "C"]) -> tuple[Float[Tensor, "C d"], Seen]:
        seen: Seen = {}

        def tap(name: str, inputs: Tensor, output: Tensor) -> Tensor:
            seen[name] = inputs, output
            return output

        return transformer.hidden(params, example, config, tap=tap), seen

    return vmap(one)(tokens)


def _ablated(
    params: Params,
    config: Config,
    group: Group,
    index: Int[Tensor, "N"],
    residual: Float[Tensor, "b C d"],
    seen: Seen,
) -> Float[Tensor, "N b C d"]:
    """The residual stream with each of some neurons of a unit switched off, by itself."""
    inputs, output = seen[group.operation]
    weight, bias = (params[name] for name in transformer.weight_and_bias(group.operation))
    if group.axis == "in":
        taken, direction = inputs[..., index], weight[:, index].T
    else:
        taken, direction = output[..., index] - bias[index], torch.eye(len(weight)).to(weight)[index]
    changed = residual.expand(len(index), *residual.shape).clone()
    number, datum = (taken != 0).any(1).T.nonzero(as_tuple=True)  # all others are left as they are
    lost = taken.permute(2, 0, 1)[number, datum]
    after = output[datum] - lost[..., None] * direction[number][:, None]
    changed[number, datum] = _go_on(params, config, group.operation, after, seen, datum)
    return changed


def _go_on(
    params: Params, config: Config, operation: str, output: Float[Tensor, "P C o"], seen: Seen, datum: Int[Tensor, "P"]
) -> Float[Tensor, "P C d"]:
    """The residual stream at the end when an operation, in these data, gives another output."""
    layer = layer_of(operation)
    name, kind = f"layers.{layer}.", operation.removeprefix(f"layers.{layer}.")
    entering, between = seen[f"{name}self_attn.in_proj"][0][datum], seen[f"{name}linear1"][0][datum]
    x = _finish(params, config, name, kind, output, entering, between)
    for above in range(layer + 1, config.n_layers):
        name = f"layers.{above}."
        x = _finish(params, config, name, "self_attn.in_proj", _linear(params, f"{name}self_attn.in_proj", x), x, x)
    return x


def _finish(
    params: Params,
    config: Config,
    name: str,
    kind: str,
    output: Float[Tensor, "P C o"],
    entering: Float[Tensor, "P C d"],
    between: Float[Tensor, "P C d"],
) -> Float[Tensor, "P C d"]:
    """The rest of a layer from the output of one of its operations on, as ``transformer.layer`` computes it.

    Args:
        params, config: the model.
        name: the layer's prefix.
        kind: the operation in it.
        output: what it gives.
        entering: what enters the layer.
        between: what enters the MLP, if the operation is in the MLP.
    """
    if kind == "self_attn.in_proj":
        weights, value = vmap(lambda qkv: transformer.attention_weights(qkv, config.n_heads))(output)
        mixed = einsum(weights, value, "P h q k, P h k a -> P q h a").flatten(2)
        output, kind = _linear(params, f"{name}self_attn.out_proj", mixed), "self_attn.out_proj"
    if kind == "self_attn.out_proj":
        between = _norm(params, f"{name}norm1", entering + output)
        output, kind = _linear(params, f"{name}linear1", between), "linear1"
    if kind == "linear1":
        output = _linear(params, f"{name}linear2", torch.relu(output))
    return _norm(params, f"{name}norm2", between + output)


def _linear(params: Params, name: str, x: Float[Tensor, "P C i"]) -> Float[Tensor, "P C o"]:
    weight, bias = transformer.weight_and_bias(name)
    return F.linear(x, params[weight], params[bias])


def _norm(params: Params, name: str, x: Float[Tensor, "P C d"]) -> Float[Tensor, "P C d"]:
    return F.layer_norm(x, x.shape[-1:], params[f"{name}.weight"], params[f"{name}.bias"], eps=1e-5)
