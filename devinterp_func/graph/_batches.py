"""The one forward pass over many data, a few at a time, and what may be looked at or replaced on the way."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx
from torch.func import vmap

from devinterp_func import tree
from devinterp_func.graph._given import check_batch, device_of, require_leaves
from devinterp_func.graph._graph import Graph, names, require_head
from devinterp_func.graph._interpret import after, inputs_of, run_one, steps_to
from devinterp_func.graph._operations import Side, operation
from devinterp_func.graph._run import run
from devinterp_func.tree import Params

LOGITS = 2**23  # formed at once
POSITIONS = 2**12  # run at once where no logits are formed

Seen = dict[str, tuple[Tensor, Tensor]]
"""Unit -> what its operation reads and gives, each (b, C, width)."""


class Pass(NamedTuple):
    """Some data, run without dropout."""

    rows: slice  # which they are
    stream: Float[Tensor, "b C d"] | None  # what the head reads; None where there is no head
    seen: Seen  # of the units that were watched
    values: dict[str, Tensor]  # of the nodes that were to be kept


class Replace(NamedTuple):
    """An activation to run with instead of a neuron's: one of what a unit's operation reads, or of what it gives."""

    unit: str
    side: Side
    index: int  # type: ignore[assignment]  # a tuple's own method


def forward(
    graph: Graph,
    params: Params,
    batch: tuple[Any, ...],
    *,
    watch: Collection[str] = (),
    keep: Collection[str] = (),
    blocks: Sequence[slice] | None = None,
    replace: Replace | None = None,
    values: Float[Tensor, "n C"] | None = None,
) -> Iterator[Pass]:
    """Runs the model over data without dropout, a few at a time; once with none where there are no data.

    Args:
        graph, params: the model.
        batch: data, each tensor with a leading n; may be cut short after what the stream depends on.
        watch: units whose operation's inputs and outputs are wanted.
        keep: names of nodes whose values are wanted as they are.
        blocks: which data go together; by default as many as make ``POSITIONS`` positions.
        replace: an activation to replace.
        values: what by, at every position of every datum.

    Raises:
        ValueError: a unit has no single operation, or the batch does not fit the graph.
    """
    leaves, every = check_batch(graph, batch), names(graph)
    operations = {unit: operation(graph, unit) for unit in watch}
    nodes = [every[name] for name in keep]
    nodes += [x for own in operations.values() for x in (own.x, own.node)]
    head = graph.head
    wanted = tuple(dict.fromkeys(nodes + ([] if head is None else [head.stream])))
    steps = steps_to(graph, wanted, frozenset())
    require_leaves(graph, steps, wanted, len(leaves))
    changed = None if replace is None else operation(graph, replace.unit)

    def one(leaves: list[Tensor], value: Tensor | None) -> list[Tensor]:
        def tap(x: fx.Node, known: Any, y: Any) -> Any:
            if changed is None or replace is None or value is None or x is not changed.node:
                return y
            return changed.replaced(known, y, replace.side, replace.index, value)

        done = run_one(graph, steps, inputs_of(graph, params, leaves), None, tap)
        return [done[node] for node in wanted]

    if not len(leaves[0]):  # which vmap refuses: what some datum gives, cut to none
        (some,) = forward(graph, params, tuple(x.new_zeros(1, *x.shape[1:]) for x in leaves), watch=watch, keep=keep)
        yield Pass(slice(0, 0), *tree.map(lambda x: x if x is None else x[:0], some[1:]))
        return
    in_dims, device = (0, None if values is None else 0), device_of(params)
    size = max(1, POSITIONS // n_positions(graph))
    for rows in by_size(len(leaves[0]), size) if blocks is None else blocks:
        own = None if values is None else values[rows].to(device)
        block = [leaf[rows].to(device) for leaf in leaves]
        found = dict(zip(wanted, vmap(one, in_dims)(block, own), strict=True))
        stream = None if head is None else head_rows(graph, found[head.stream])
        seen = {
            unit: (tree.wide(own.read(found[own.x])), tree.wide(own.write(found[own.node])))
            for unit, own in operations.items()
        }
        yield Pass(rows, stream, seen, {name: found[every[name]] for name in keep})


def n_positions(graph: Graph) -> int:
    """How many positions an example has that the head reads; without a head, of its largest operation."""
    if graph.head is not None:
        own = graph.head
        return len(own.rows) if own.rows is not None else own.map.meta["val"].numel() // own.n_classes
    shapes = [use.node.meta["val"].shape for use in graph.uses if use.kind in ("linear", "conv")]
    return max((prod(shape[:-1]) for shape in shapes), default=1)


def head_rows(graph: Graph, stream: Tensor) -> Float[Tensor, "b C d"]:
    """What the head reads at its positions, in their order; numbers of 16 bits as float32."""
    head = require_head(graph)
    flat = tree.wide(stream).reshape(len(stream), -1, head.width)
    return flat if head.rows is None else flat[:, head.rows.to(flat.device)]


def streams(graph: Graph, params: Params, batch: tuple[Any, ...]) -> Float[Tensor, "n C d"]:
    """What the head reads at every position of every datum, without dropout.

    Raises:
        ValueError: the graph has no head, or the batch does not fit it.
    """
    require_head(graph)
    return torch.cat([part.stream for part in forward(graph, params, batch) if part.stream is not None])


def decode(graph: Graph, params: Params, stream: Float[Tensor, "m d"]) -> Float[Tensor, "m V"]:
    """Logits of the stream at m positions, all V at once, in the parameters' precision whatever the model rounds."""
    head = require_head(graph)
    stream = stream.to(params[head.weight].dtype)
    weight = params[head.weight].T
    return stream @ weight if head.bias is None else torch.addmm(params[head.bias], stream, weight)


def attention_patterns(graph: Graph, params: Params, batch: tuple[Any, ...]) -> Float[Tensor, "n L h q k"]:
    """Attention of all heads of all layers on some data, without dropout: datum, layer, head, query, key.

    Raises:
        ValueError: no softmax between two products is found in the graph, or their shapes differ.
    """
    if not graph.attention:
        raise ValueError(
            "no attention is found in this graph: no softmax between a product of two activations and another"
        )
    leaves = check_batch(graph, batch)
    blocks = by_size(len(leaves[0]), max(1, POSITIONS // n_positions(graph)))
    parts = []
    for rows in blocks:
        found = run(graph, params, tuple(leaf[rows] for leaf in leaves), graph.attention)
        each = [tree.wide(x).reshape(len(x), prod(x.shape[1:-2]), *x.shape[-2:]) for x in found.values()]
        if len({x.shape for x in each}) > 1:
            raise ValueError(f"the attentions have different shapes: {[tuple(x.shape[1:]) for x in each]}")
        parts.append(torch.stack(each, dim=1))
    return torch.cat(parts)


# ---- from one operation on


def resume_needs(graph: Graph, unit: str) -> tuple[str, ...]:
    """The nodes whose values ``resume`` goes on from: what the rest reads besides the operation's output."""
    node, stream = operation(graph, unit).node, require_head(graph).stream
    later = after(graph, node)
    rest = [x for x in steps_to(graph, (stream,), frozenset([node])) if x.node in later]
    fixed = {*graph.trace.params, *graph.trace.constants, node}
    read = dict.fromkeys(x for step in rest for x in step.node.all_input_nodes)
    own = [x for x in read if x not in later and x not in fixed]
    return tuple(x.name for x in own)


def resume(
    graph: Graph,
    params: Params,
    unit: str,
    output: Float[Tensor, "p K o"],
    known: Mapping[str, Tensor],
    datum: Int[Tensor, "p"],
) -> Float[Tensor, "p C_head d"]:
    """What the head reads when a unit's operation, for some data, gives another output.

    Args:
        graph, params: the model.
        unit: of one operation.
        output: what that gives instead.
        known: values of ``resume_needs`` for the data, each with a leading b, of ``forward``.
        datum: which of the b data each output belongs to.
    """
    own, every, stream = operation(graph, unit), names(graph), require_head(graph).stream
    needs = [every[name] for name in resume_needs(graph, unit)]
    steps = steps_to(graph, (stream,), frozenset([own.node, *needs]))

    def rest(y: Tensor, given: list[Tensor]) -> Tensor:
        values = inputs_of(graph, params, ()) | {own.node: y} | dict(zip(needs, given, strict=True))
        return run_one(graph, steps, values, None)[stream]

    restored = own.restore(output).to(own.use.dtype)
    found = vmap(rest)(restored, [known[x.name][datum] for x in needs])
    return head_rows(graph, found)


# ---- how much at once


def logit_blocks(graph: Graph, n: int) -> list[slice]:
    """n data a few at a time, so that their logits fit in ``LOGITS``; one block with none where there are no data."""
    return by_size(n, max(1, LOGITS // (graph.vocab_size * n_positions(graph))))


def by_size(n: int, size: int) -> list[slice]:
    """0 to n − 1 cut into slices of a size; one empty slice for n = 0."""
    return [slice(start, start + size) for start in range(0, max(n, 1), size)]
