"""Ablating many neurons one at a time, with the predictions of ``neurons.zero``, some tens of times faster.

Of the definition, a forward pass a neuron, nine tenths are the head. Here the intact model runs once; an ablation
starts at its own operation, where it adds to the output one number a position times one direction (of a convolution, a
channel's patch times its kernel), runs what depends on that for all neurons of a unit together, only for data in which
the neuron does anything; and an upper bound on the other logits (``_argmax_bound``) proves for most positions that the
prediction stays, so that the head runs only where that is in doubt. Units that are used in several places, by the head,
or by another kind of operation are ablated as the definition says.

Rounding: where two logits are so close that it could decide, ``neurons.predictions`` itself is asked. So the answer is
the definition's, up to what its own sums depend on in the last place: how many positions are multiplied at once.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx

from devinterp_func.graph import (
    Graph,
    Operation,
    Pass,
    Side,
    below_head,
    check_batch,
    decode,
    forward,
    n_positions,
    operation,
    resume,
    resume_needs,
)
from devinterp_func.neurons._ablation import Replacement, blocks, predictions, zero
from devinterp_func.neurons._argmax_bound import Rounding, compare_margins, decide, measure_margins, rounding
from devinterp_func.neurons._neuron import Axis, Neuron, dimension, require
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
    number: Int[Tensor, "g"]  # in the list that was given
    index: Int[Tensor, "g"]  # type: ignore[assignment]  # in the unit


Values = Sequence[Float[Tensor, "n _"]]
"""What each neuron's activation becomes at its operation's positions, of ``neurons.replacements``."""


def sweep(
    graph: Graph, params: Params, batch: tuple[Any, ...], neurons: Sequence[Neuron], values: Values | None = None
) -> Sweep:
    """All positions at which ablating a neuron changes the prediction, for each neuron by itself.

    Args:
        graph, params: the model.
        batch: data; may be cut short, such as ``(tokens,)``.
        neurons: of any units, columns and rows.
        values: of ``neurons.replacements``, what each neuron's activation becomes; None zeroes its weights.

    Raises:
        ValueError: there is no such neuron, or the model has no head; what there is is named.
    """
    return join_sweeps(sweep_in_parts(graph, params, batch, neurons, values))


def sweep_in_parts(
    graph: Graph, params: Params, batch: tuple[Any, ...], neurons: Sequence[Neuron], values: Values | None = None
) -> Iterator[Sweep]:
    """``sweep`` a few data at a time, in order, for a progress bar; ``join_sweeps`` puts the parts together."""
    groups, least, leaves = _groups(graph, neurons), rounding(graph, params), check_batch(graph, batch)
    for rows in blocks(graph, len(leaves[0]), TOGETHER):
        replaced = None if values is None else [own[rows] for own in values]
        part = _sweep(graph, params, tuple(leaf[rows] for leaf in leaves), neurons, groups, least, replaced)
        yield part._replace(position=part.position + rows.start * n_positions(graph))


def n_sweep_parts(graph: Graph, n: int) -> int:
    """How many parts ``sweep_in_parts`` has for n data."""
    return len(blocks(graph, n, TOGETHER))


def sweep_naive(
    graph: Graph, params: Params, batch: tuple[Any, ...], neurons: Sequence[Neuron], values: Values | None = None
) -> Sweep:
    """``sweep`` by a forward pass for each neuron: the definition."""
    intact = predictions(graph, params, batch).flatten().cpu()
    parts = []
    for number, neuron in enumerate(neurons):
        after = _predictions(graph, params, batch, neuron, None if values is None else values[number]).flatten()
        parts.append(_flips(torch.tensor(number), intact, after.cpu()))
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


Columns = tuple[Int[Tensor, "m"], Int[Tensor, "m"], Int[Tensor, "m"], Int[Tensor, "m"]]
"""Neuron, position, before and after of flips."""


@torch.no_grad()
def _sweep(
    graph: Graph,
    params: Params,
    batch: tuple[Tensor, ...],
    neurons: Sequence[Neuron],
    groups: list[Group],
    least: Rounding,
    values: Values | None,
) -> Sweep:
    quick = {group.unit for group in groups if _is_quick(graph, group.unit)}
    needs = {name for unit in quick for name in resume_needs(graph, unit)} | {_reads(graph, unit) for unit in quick}
    (known,) = forward(graph, params, batch, watch=quick, keep=needs, blocks=[slice(None)])
    assert known.stream is not None
    stream = known.stream.flatten(0, 1)
    logits = decode(graph, params, stream)
    intact = logits.argmax(1)
    measured = measure_margins(graph, params, stream, logits)
    flips: list[Columns] = [(intact[:0],) * 4]
    work = [0, 0, 0]
    for group in groups:
        group = group._replace(number=group.number.to(intact.device), index=group.index.to(intact.device))
        for members in torch.arange(len(group.index)).split(TOGETHER if group.unit in quick else 1):
            numbers = group.number[members]
            replaced = None if values is None else [values[number].to(intact.device) for number in numbers.tolist()]
            if group.unit not in quick:
                own = None if replaced is None else replaced[0]
                after = _predictions(graph, params, batch, neurons[int(numbers)], own).flatten()
                flips.append(_flips(numbers, intact, after))
                work = [count + len(intact) for count in work]
                continue
            changed = _ablated(graph, params, group, group.index[members], known, replaced).flatten(1, 2)
            moved = (changed != stream).any(-1)
            suspects = compare_margins(graph, params, measured, changed, moved, least)
            token, doubt = suspects.token.clone(), (~suspects.proven).nonzero().squeeze(1)
            row, position = suspects.row[doubt], suspects.position[doubt]
            token[doubt], clear = decide(graph, params, changed[row, position], suspects.tolerance[doubt])
            for i in (~clear).nonzero().squeeze(1).tolist():
                datum, at = divmod(int(position[i]), n_positions(graph))
                one = tuple(leaf[datum : datum + 1] for leaf in batch)
                value = None if replaced is None else replaced[int(row[i])][datum : datum + 1]
                (after,) = _predictions(graph, params, one, neurons[int(numbers[row[i]])], value)
                token[doubt[i]] = after[at]
            flipped = token != intact[suspects.position]
            where = suspects.position[flipped]
            flips.append((numbers[suspects.row[flipped]], where, intact[where], token[flipped]))
            counts = int(moved.sum()), len(doubt), int((~clear).sum())
            work = [total + count for total, count in zip(work, counts, strict=True)]
    columns = [torch.cat(column).cpu() for column in zip(*flips, strict=True)]
    return Sweep(columns[0], columns[1], columns[2], columns[3], intact.cpu(), Work(len(neurons) * len(intact), *work))


def _flips(number: Int[Tensor, "*one"], intact: Int[Tensor, "p"], after: Int[Tensor, "p"]) -> Columns:
    """The positions at which a neuron's ablation changes the prediction."""
    position = (after != intact).nonzero().squeeze(1)
    return number.expand(len(position)), position, intact[position], after[position]


def _predictions(
    graph: Graph, params: Params, batch: tuple[Any, ...], neuron: Neuron, values: Float[Tensor, "n _"] | None
) -> Int[Tensor, "n C"]:
    """The definition: predictions with one neuron ablated."""
    if values is None:
        return predictions(graph, zero(params, neuron), batch)
    return predictions(graph, params, batch, Replacement(neuron, values))


def _groups(graph: Graph, neurons: Sequence[Neuron]) -> list[Group]:
    """The neurons by unit and axis."""
    members: dict[tuple[str, Axis], list[tuple[int, int]]] = {}
    for number, neuron in enumerate(neurons):
        require(graph.shapes, neuron)
        members.setdefault((neuron.unit, neuron.axis), []).append((number, neuron.index))
    return [Group(*key, *torch.tensor(pairs).T) for key, pairs in members.items()]


def _is_quick(graph: Graph, unit: str) -> bool:
    """Whether an ablation may start at the unit's operation: weight times input, plus at most a whole bias."""
    if not below_head(graph, unit):
        return False
    node = operation(graph, unit).node
    uses = [use for use in graph.uses if use.node is node]
    plain = all(use.kind != "lookup" and use.rows == (0, 0) and use.scale == 1 for use in uses)
    return plain and sum(isinstance(x, fx.Node) for x in node.args) == 1 + len(uses)


def _reads(graph: Graph, unit: str) -> str:
    """Name of what a unit's operation reads."""
    return operation(graph, unit).x.name


def _ablated(
    graph: Graph,
    params: Params,
    group: Group,
    index: Int[Tensor, "N"],
    known: Pass,
    values: Values | None,
) -> Float[Tensor, "N b C d"]:
    """The stream with each of some neurons of a unit ablated, by itself."""
    own, (_, output), stream = operation(graph, group.unit), known.seen[group.unit], known.stream
    assert stream is not None
    taken = _taken(own, params, known, own.side(group.axis), index, values)
    weight = params[group.unit]
    if own.side(group.axis) == "inputs":
        direction = weight.index_select(dimension(group.axis), index).movedim(dimension(group.axis), 0)
        direction = direction.reshape(len(index), output.shape[-1], -1).mT  # (N, k, o)
    else:
        direction = torch.eye(output.shape[-1]).to(weight)[index][:, None]
    changed = stream.expand(len(index), *stream.shape).clone()
    number, datum = (taken != 0).flatten(2).any(2).nonzero(as_tuple=True)  # all others are left as they are
    if len(number):
        after = output[datum] - taken[number, datum] @ direction[number]
        changed[number, datum] = resume(graph, params, group.unit, after, known.values, datum)
    return changed


def _taken(
    own: Operation,
    params: Params,
    known: Pass,
    side: Side,
    index: Int[Tensor, "N"],
    values: Values | None,
) -> Float[Tensor, "N b C k"]:
    """What is taken from each of some neurons at its operation's positions: k numbers, the size of its kernel."""
    inputs, output = known.seen[own.unit]
    if side == "outputs":  # a row of zeros still gives its bias
        rest = 0 if own.bias is None else params[own.bias][index, None, None]
        return (output[..., index].permute(2, 0, 1) - (rest if values is None else torch.stack([*values])))[..., None]
    lost = inputs[..., index].permute(2, 0, 1) - (0 if values is None else torch.stack([*values]))
    if own.use.kind == "linear":
        return lost[..., None]
    x, dims = known.values[own.x.name], len(own.use.shape) - 2
    assert own.use.inputs is not None
    patches = own.use.inputs(lost.reshape(-1, *x.shape[1 : -1 - dims], 1, *x.shape[-dims:]))
    return patches.unflatten(0, lost.shape[:2])
