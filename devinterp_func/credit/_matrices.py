"""The units that have rows and columns to split: matrices of linear maps, whose deltas are sums of outer products."""

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor

from devinterp_func.graph import Graph
from devinterp_func.per_example import Factor, Outer, Scaled, Sum, n_positions, widened

Products = Outer | Scaled
"""Outer products of one use of a matrix; with a gain for each entry after a step of an optimizer that gives one."""


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


def outers(factor: Factor) -> tuple[Products, ...]:
    """The outer products that a matrix's deltas are the sum of at each position; none for other factors."""
    parts = factor.parts if isinstance(factor, Sum) else (factor,)
    found = tuple(part for part in parts if isinstance(part, Products) and plain(part).shape is None)
    alike = len(found) == len(parts) and len({n_positions(part) for part in parts}) == 1
    return found if alike else ()


def plain(products: Products) -> Outer:
    """The outer products without the gain of their entries; of 16 bits as float32."""
    return widened(products.factor if isinstance(products, Scaled) else products)


def pulled(weight: Float[Tensor, "o i"], products: Products) -> Float[Tensor, "o i"]:
    """What takes the weight's place in an inner product with ``plain(products)``: gain ⊙ weight."""
    return weight * products.gain if isinstance(products, Scaled) else weight
