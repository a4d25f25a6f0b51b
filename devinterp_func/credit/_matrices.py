"""The units that have rows and columns to split: matrices of linear maps, whose deltas are sums of outer products."""

from collections.abc import Iterable

from devinterp_func.graph import Graph
from devinterp_func.per_example import Factor, Outer, Sum, n_positions


def linear_maps(graph: Graph, names: Iterable[str]) -> list[str]:
    """Those of some units that are the matrix of linear maps and nothing else: no biases, norms, tables, convolutions.

    Args:
        graph: the model.
        names: of units.
    """
    kinds: dict[str, set[str]] = {}
    for use in graph.uses:
        kinds.setdefault(use.unit, set()).add(use.kind)
    return [name for name in names if kinds.get(name) == {"linear"} and len(graph.shapes[name]) == 2]


def outers(factor: Factor) -> tuple[Outer, ...]:
    """The outer products that a matrix's deltas are the sum of at each position; none for other factors."""
    parts = factor.parts if isinstance(factor, Sum) else (factor,)
    found = tuple(part for part in parts if isinstance(part, Outer) and part.shape is None)
    alike = len(found) == len(parts) and len({n_positions(part) for part in parts}) == 1
    return found if alike else ()
