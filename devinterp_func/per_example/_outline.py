"""What ``capture`` gives of a batch, without a number in it: every factor's shapes and dtypes, as tensors on meta."""

import torch
from torch import Tensor, fx

from devinterp_func.graph import Graph, Head, Probed, choose, n_positions
from devinterp_func.per_example._capture import _factor, _nothing
from devinterp_func.per_example._factors import Bias, Dense, Factor, Outer, join
from devinterp_func.units import Patterns


def outline(graph: Graph, n: int, units: Patterns = ()) -> dict[str, Factor]:
    """The factors that ``capture`` would give of n data, on torch's meta device: they take no memory, and no time.

    Args:
        graph: of the loss of one example; one traced with stand-ins for weights will do.
        n: how many data.
        units: which parameters, as name patterns (``graph.choose``).

    Raises:
        TypeError, ValueError: as ``graph.choose``.

    >>> from devinterp_func import graph
    >>> traced = graph.of(lambda p, x: (p["w"] @ x).sum(), {"w": torch.zeros(2, 3)}, torch.ones(3))
    >>> [tuple(x.shape) for x in outline(traced, 5)["w"][:2]]
    [(5, 1, 3), (5, 1, 2)]
    """
    wanted, head = choose(graph, units), graph.head
    uses = [use for use in graph.uses if use.unit in wanted and (head is None or use.node is not head.map)]
    blank = {x: _like(x, n) for use in uses for x in (use.node, use.x, use.node.args[0]) if isinstance(x, fx.Node)}
    standard = {use.node: blank[use.node.args[0]] for use in uses if isinstance(use.node.args[0], fx.Node)}
    probed = Probed(torch.empty(0), None, blank, standard, lambda signals: ({}, {}))
    parts: dict[str, list[Factor]] = {}
    for use in uses:
        parts.setdefault(use.unit, []).append(_factor(use, probed, blank[use.node]))
    weights = {name: torch.empty(graph.shapes[name], dtype=graph.dtypes[name], device="meta") for name in wanted}
    parts |= {name: [Dense(torch.stack(n * [weights[name]]))] for name in graph.dense if name in wanted}
    parts |= {name: [_nothing(weights[name], n)] for name in graph.unused if name in wanted}
    if head is not None and {head.weight, head.bias} & set(wanted):
        for name, factor in _of_head(graph, head, n).items():
            parts.setdefault(name, []).append(factor)
    return {name: join(parts[name]) for name in wanted}


def _like(node: fx.Node, n: int) -> Tensor:
    """What n data make of a node."""
    value = node.meta["val"]
    return torch.empty((n, *value.shape), dtype=value.dtype, device="meta")


def _of_head(graph: Graph, head: Head, n: int) -> dict[str, Factor]:
    """As ``head_factors``."""
    C = n_positions(graph)
    stream = torch.empty((n, C, head.width), dtype=head.dtype, device="meta")
    rows = torch.empty((n, C, head.n_classes), dtype=head.dtype, device="meta")
    factors: dict[str, Factor] = {head.weight: Outer(stream, rows)}
    return factors if head.bias is None else {**factors, head.bias: Bias(rows)}
