"""Ablating many neurons one at a time, with the predictions of ``neurons.zero``, some tens of times faster.

Of the definition, a forward pass a neuron, nine tenths are the unembedding. Here the intact model runs once; an
ablation starts at its own operation, where it adds to the output one number a position times one direction, runs the
layers above for all neurons of a unit together, only for data in which the neuron does anything; and an upper bound on
the other logits (``_argmax_bound``) proves for most positions that the prediction stays, so that the unembedding runs
only where that is in doubt.

Rounding: where two logits are so close that it could decide, ``neurons.predictions`` itself is asked. So the answer is
the definition's, up to what its own sums depend on in the last place: how many positions are multiplied at once.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import models, units
from devinterp_func.models import Config
from devinterp_func.neurons._ablation import Replacement, predictions, zero
from devinterp_func.neurons._argmax_bound import compare_margins, decide, measure_margins, tolerance
from devinterp_func.neurons._neuron import Axis, Neuron, operation_of
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


def sweep(
    params: Params,
    tokens: Int[Tensor, "n C"],
    config: Config,
    neurons: Sequence[Neuron],
    values: Float[Tensor, "n C G"] | None = None,
) -> Sweep:
    """All positions at which ablating a neuron changes the prediction, for each neuron by itself.

    Args:
        params: weights.
        tokens: input tokens.
        config: the model.
        neurons: of any 2-D weights in the layers, columns and rows.
        values: of ``neurons.replacements``, what each neuron's activation becomes; None zeroes its weights.

    Raises:
        ValueError: no layer has such a neuron; what there is is named.
    """
    return join_sweeps(sweep_in_parts(params, tokens, config, neurons, values))


def sweep_in_parts(
    params: Params,
    tokens: Int[Tensor, "n C"],
    config: Config,
    neurons: Sequence[Neuron],
    values: Float[Tensor, "n C G"] | None = None,
) -> Iterator[Sweep]:
    """``sweep`` a few data at a time, in order, for a progress bar; ``join_sweeps`` puts the parts together."""
    groups, least = _groups(params, neurons), tolerance(params, config)
    for rows in models.logit_blocks(tokens, config):
        replaced = None if values is None else values[rows]
        part = _sweep(params, tokens[rows], config, neurons, groups, least, replaced)
        yield part._replace(position=part.position + rows.start * tokens.shape[1])


def sweep_naive(
    params: Params,
    tokens: Int[Tensor, "n C"],
    config: Config,
    neurons: Sequence[Neuron],
    values: Float[Tensor, "n C G"] | None = None,
) -> Sweep:
    """``sweep`` by a forward pass for each neuron: the definition."""
    intact = predictions(params, tokens, config).flatten()
    parts = []
    for number, neuron in enumerate(neurons):
        operation_of(params, neuron)
        after = _predictions(params, tokens, config, neuron, None if values is None else values[..., number]).flatten()
        position = (after != intact).nonzero().squeeze(1)
        parts.append((torch.full_like(position, number), position, intact[position], after[position]))
    pairs = len(neurons) * len(intact)
    columns = [torch.cat(part) for part in zip((intact[:0],) * 4, *parts, strict=True)]
    return Sweep(columns[0], columns[1], columns[2], columns[3], intact, Work(pairs, pairs, pairs, pairs))


def join_sweeps(parts: Iterable[Sweep]) -> Sweep:
    """The parts of ``sweep_in_parts`` as one."""
    *columns, intact, work = zip(*parts, strict=True)
    neuron, position, before, after = (torch.cat(column) for column in columns)
    everything = torch.cat(intact)
    order = (neuron * len(everything) + position).argsort()
    total = Work(*(sum(counts) for counts in zip(*work, strict=True)))
    return Sweep(neuron[order], position[order], before[order], after[order], everything, total)


def flip_counts(sweep: Sweep, n_neurons: int, vocab_size: int) -> tuple[Int[Tensor, "G V"], Int[Tensor, "G V"]]:
    """Count and flips of every token for every neuron, as ``neurons.flips`` counts them; int32.

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
    values: Float[Tensor, "b C G"] | None,
) -> Sweep:
    watch = {name for group in groups for name in (group.operation, *models.resume_needs(group.operation))}
    (intact_pass,) = models.forward(params, tokens, config, watch=watch, blocks=[slice(None)])
    stream, seen = intact_pass.stream, intact_pass.seen
    logits = models.decode(params, stream.flatten(0, 1))
    intact = logits.argmax(1)
    measured = measure_margins(params, stream.flatten(0, 1), logits)
    flips, work = [(intact[:0],) * 4], [0, 0, 0]
    for group in groups:
        for members in torch.arange(len(group.index)).split(TOGETHER):
            numbers = group.number[members]
            replaced = None if values is None else values[..., numbers]
            changed = _ablated(params, config, group, group.index[members], stream, seen, replaced).flatten(1, 2)
            moved = (changed != measured.stream).any(-1)
            suspects = compare_margins(params, measured, changed, moved, tolerance)
            token, doubt = suspects.token.clone(), (~suspects.proven).nonzero().squeeze(1)
            row, position = suspects.row[doubt], suspects.position[doubt]
            token[doubt], clear = decide(params, changed[row, position], tolerance)
            for i in (~clear).nonzero().squeeze(1).tolist():
                datum, at = divmod(int(position[i]), tokens.shape[1])
                number = int(numbers[row[i]])
                value = None if values is None else values[datum : datum + 1, :, number]
                (after,) = _predictions(params, tokens[datum : datum + 1], config, neurons[number], value)
                token[doubt[i]] = after[at]
            flipped = token != intact[suspects.position]
            where = suspects.position[flipped]
            flips.append((numbers[suspects.row[flipped]], where, intact[where], token[flipped]))
            counts = int(moved.sum()), len(doubt), int((~clear).sum())
            work = [total + count for total, count in zip(work, counts, strict=True)]
    columns = [torch.cat(column) for column in zip(*flips, strict=True)]
    return Sweep(columns[0], columns[1], columns[2], columns[3], intact, Work(len(neurons) * len(intact), *work))


def _predictions(
    params: Params,
    tokens: Int[Tensor, "n C"],
    config: Config,
    neuron: Neuron,
    values: Float[Tensor, "n C"] | None,
) -> Int[Tensor, "n C"]:
    """The definition: predictions with one neuron ablated."""
    if values is None:
        return predictions(zero(params, neuron), tokens, config)
    return predictions(params, tokens, config, Replacement(neuron, values))


def _groups(params: Params, neurons: Sequence[Neuron]) -> list[Group]:
    """The neurons by unit and axis."""
    members: dict[tuple[str, Axis, str], list[tuple[int, int]]] = {}
    for number, neuron in enumerate(neurons):
        key = (neuron.unit, neuron.axis, operation_of(params, neuron))
        members.setdefault(key, []).append((number, neuron.index))
    return [Group(*key, *torch.tensor(pairs).T) for key, pairs in members.items()]


def _ablated(
    params: Params,
    config: Config,
    group: Group,
    index: Int[Tensor, "N"],
    stream: Float[Tensor, "b C d"],
    seen: models.Seen,
    values: Float[Tensor, "b C N"] | None,
) -> Float[Tensor, "N b C d"]:
    """The stream with each of some neurons of a unit ablated, by itself."""
    inputs, output = seen[group.operation]
    weight, bias = (params[name] for name in units.weight_and_bias(group.operation))
    if group.axis == "in":
        taken, direction = inputs[..., index] - (0 if values is None else values), weight[:, index].T
    else:  # a row of zeros still gives its bias
        taken = output[..., index] - (bias[index] if values is None else values)
        direction = torch.eye(len(weight)).to(weight)[index]
    changed = stream.expand(len(index), *stream.shape).clone()
    number, datum = (taken != 0).any(1).T.nonzero(as_tuple=True)  # all others are left as they are
    lost = taken.permute(2, 0, 1)[number, datum]
    after = output[datum] - lost[..., None] * direction[number][:, None]
    changed[number, datum] = models.resume(params, config, group.operation, after, seen, datum)
    return changed
