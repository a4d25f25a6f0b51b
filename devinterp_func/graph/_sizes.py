"""How much memory the values of a graph take."""

import operator

from torch import Tensor, fx

from devinterp_func.graph._graph import Graph
from devinterp_func.graph._interpret import steps_to


def value_bytes(graph: Graph) -> int:
    """Bytes of all values that one example makes up to what the head reads, or to the loss where there is no head.

    Views take none. A backward pass needs most of the others.
    """
    last = graph.trace.output if graph.head is None else graph.head.stream
    values = [step.node.meta["val"] for step in steps_to(graph, (last,), frozenset()) if not _is_view(step.node)]
    return sum(x.numel() * x.element_size() for x in values if isinstance(x, Tensor))


def _is_view(node: fx.Node) -> bool:
    """Whether an operation gives memory of what it reads."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _is_view(node.args[0])
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(x.alias_info is not None for x in schema.returns)
