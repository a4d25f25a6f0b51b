"""What becomes of an operation's output: whether it is added to what the head reads, and through which norm.

A step of a path takes rows of ``width`` numbers to rows of as many. It is *direct* if a change of a row comes out as
the same change, but for a norm's gain, its mean and one factor a row; it is *elementwise* if each number of a row
depends on that number alone.
"""

import operator
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from devinterp_func.graph._graph import Graph
from devinterp_func.graph._interpret import after, steps_to
from devinterp_func.graph._operations import Operation, operation
from devinterp_func.graph._refusals import DROPOUTS
from devinterp_func.graph._trace import ancestors, call
from devinterp_func.graph._use import shape_of

A = torch.ops.aten
NORMS = (A.layer_norm.default, A.rms_norm.default)
SCALES = (A.mul.Tensor, A.div.Tensor)
Step = Callable[[Graph, fx.Node, fx.Node, int], bool]


class Norm(NamedTuple):
    """A layer norm, which subtracts the mean, or an rms norm."""

    weight: str | None
    bias: str | None
    centred: bool  # whether it subtracts the mean


def final_norm(graph: Graph) -> Norm | None:
    """The norm whose output the head reads, as one operation or written out; None where it reads another's."""
    node, found, scaled = graph.head.stream if graph.head else None, Norm(None, None, False), False
    while node is not None and node.op == "call_function":
        source = _source(node)
        own = {use.kind: use.unit for use in graph.uses if use.node is node}
        if source is None or _shape(node)[-1:] != (graph.width,):
            break
        if node.target in NORMS and not scaled and _of_rows(node, graph.width):
            centred = node.target is A.layer_norm.default
            return Norm(own.get("gain", found.weight), own.get("bias", found.bias), centred)
        if scaled and node.target is A.sub.Tensor and _one_a_row(node.args[1]):
            return found._replace(centred=True)
        if own.keys() & {"gain", "bias"} and node.target not in NORMS and not scaled:
            found = found._replace(weight=own.get("gain", found.weight), bias=own.get("bias", found.bias))
        elif not scaled and _scales_by_itself(node, source):
            scaled = True
        elif not _drops(node) and not _whole_rows(node, graph.width):
            break
        node = source
    return found if scaled else None


def writes_stream(graph: Graph, unit: str) -> bool:
    """Whether what a unit's operation gives is added to what the head reads, with only norms and dropout between.

    Raises:
        ValueError: the unit has no single operation.
    """
    own = operation(graph, unit)
    if graph.head is None or not _rows_of(own, graph.width):
        return False
    return graph.head.stream in _reached(graph, own.node, graph.width, _direct)


def has_operation(graph: Graph, unit: str) -> bool:
    """Whether a unit is the weight of one linear map or convolution, and of nothing else."""
    try:
        return bool(operation(graph, unit))
    except ValueError:
        return False


def below_head(graph: Graph, unit: str) -> bool:
    """Whether what the head reads depends on the one operation of a unit; False where it has none."""
    if graph.head is None or not has_operation(graph, unit):
        return False
    node = operation(graph, unit).node
    return graph.head.stream in (node, *after(graph, node))


def hidden_maps(graph: Graph) -> dict[str, str]:
    """The input projections of MLPs: unit -> the output projection, which writes to the stream.

    Between the two is nothing but elementwise functions, such as a ReLU or a gate.
    """
    units = [unit for unit in graph.shapes if has_operation(graph, unit)]
    outputs = [unit for unit in units if writes_stream(graph, unit)]
    pairs = ((unit, output) for unit in units for output in outputs if _feeds(graph, unit, output))
    return dict(pairs)


def largest(graph: Graph) -> int:
    """How many numbers the largest value has that what the head reads is made from, for one example."""
    assert graph.head is not None
    values = [step.node.meta["val"] for step in steps_to(graph, (graph.head.stream,), frozenset())]
    return max((x.numel() for x in values if isinstance(x, Tensor)), default=1)


def _feeds(graph: Graph, unit: str, output: str) -> bool:
    own, reader = operation(graph, unit), operation(graph, output)
    width = shape_of(own.node)[-1]
    reached = _reached(graph, own.node, width, _elementwise)
    between = after(graph, own.node) & ancestors([reader.x])
    return _rows_of(own, width) and reader.x in reached and between <= reached


def _reached(graph: Graph, node: fx.Node, width: int, step: Step) -> set[fx.Node]:
    """The node and what is reached from it by steps."""
    later, found, todo = after(graph, node), {node}, [node]
    while todo:
        source = todo.pop()
        new = [user for user in source.users if user in later - found and step(graph, user, source, width)]
        found |= set(new)
        todo += new
    return found


# ---- steps


def _direct(graph: Graph, node: fx.Node, source: fx.Node, width: int) -> bool:
    if _shape(node)[-1:] != (width,):
        return False
    if node.target in NORMS:
        return node.args[0] is source and _of_rows(node, width)
    if node.target is A.add.Tensor:
        return not node.kwargs and list(node.args).count(source) == 1
    if node.target is A.sub.Tensor:
        return node.args[0] is source and not node.kwargs and _one_a_row(node.args[1])
    if node.target in SCALES:
        others = [x for x in node.args if x is not source]
        gain = any(use.node is node and use.kind == "gain" for use in graph.uses)
        kept = node.target is A.mul.Tensor or node.args[0] is source
        return bool(len(others) == 1 and kept and (gain or _one_a_row(others[0])))
    return _drops(node) or _whole_rows(node, width)


def _elementwise(graph: Graph, node: fx.Node, source: fx.Node, width: int) -> bool:
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ()) and _shape(node) == _shape(source)
    return _shape(node)[-1:] == (width,) and (pointwise or _drops(node) or _whole_rows(node, width))


def _drops(node: fx.Node) -> bool:
    """Whether an operation is dropout, or takes the values out of what dropout gives."""
    first: Any = node.args[0] if node.args else None
    taken = node.target is operator.getitem and node.args[1] == 0 and first.target in DROPOUTS
    return node.target in DROPOUTS or bool(taken)


def _shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of what an operation gives; of dropout's, without the mask; () of what is no tensor."""
    value = node.meta["val"][0] if node.target is A.native_dropout.default else node.meta["val"]
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _scales_by_itself(node: fx.Node, source: fx.Node) -> bool:
    """Whether rows are multiplied by a number each that is made from the same."""
    if node.target not in SCALES:
        return False
    factors = [x for x in node.all_input_nodes if x is not source and _shape(x)[-1:] == (1,)]
    return any(x.op == "call_function" for factor in factors for x in ancestors([factor]) & ancestors([source]))


def _of_rows(norm: fx.Node, width: int) -> bool:
    sizes: Any = norm.args[1]
    return list(sizes) == [width]


def _one_a_row(x: Any) -> bool:
    """A number, or one for each row."""
    return not isinstance(x, fx.Node) or _shape(x)[-1:] in ((), (1,))


def _source(node: fx.Node) -> fx.Node | None:
    """What an operation does something to: the largest of what it reads, the first of those."""
    made = [x for x in node.all_input_nodes if x.op == "call_function"]
    return max(made, key=lambda x: prod(_shape(x)), default=None)


def _whole_rows(node: fx.Node, width: int) -> bool:
    """Whether an operation only rearranges, drops or repeats whole rows; it is tried on numbers."""
    if node.target not in REARRANGED or node.target in TYPES:
        return node.target in TYPES
    source: Any = node.args[0]
    if shape_of(source)[-1:] != (width,):
        return False
    return _are_rows(call(node, {source: torch.arange(prod(shape_of(source))).view(shape_of(source))}), width)


def _are_rows(numbers: Tensor, width: int) -> bool:
    rows = numbers.reshape(-1, width)
    return torch.equal(rows, rows[:, :1] + torch.arange(width)) and bool((rows[:, 0] % width == 0).all())


def _rows_of(own: Operation, width: int) -> bool:
    """Whether the operation's positions are the rows of its output, in order."""
    shape = shape_of(own.node)
    numbers = torch.arange(prod(shape))
    return shape[-1:] == (width,) and torch.equal(own.write(numbers.view(1, *shape)), numbers.view(1, -1, width))


TYPES = (A.to.dtype, A._to_copy.default)
REARRANGED = (
    *(
        A.view.default,
        A.reshape.default,
        A._unsafe_view.default,
        A.flatten.using_ints,
        A.squeeze.default,
        A.squeeze.dim,
    ),
    *(A.squeeze.dims, A.unsqueeze.default, A.transpose.int, A.permute.default, A.select.int, A.slice.Tensor),
    *(A.index_select.default, A.alias.default, A.clone.default, A.contiguous.default, A.expand.default, *TYPES),
)
