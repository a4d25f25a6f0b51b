"""What one operation does with one parameter."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx

from devinterp_func.graph._views import Part, View

Kind = Literal["linear", "conv", "bias", "gain", "lookup"]
Lay = Callable[[Tensor], Tensor]
Views = Mapping[fx.Node, View]


class Use(NamedTuple):
    """One operation's use of one parameter."""

    kind: Kind
    unit: str
    shape: tuple[int, ...]  # of the unit
    node: fx.Node  # the operation
    x: fx.Node | None  # what it reads beside the parameter; None for a bias, and for a norm's standardised input
    inputs: Lay | None  # (n, *x) -> (n, C, i); of a lookup (n, C)
    outputs: Lay  # (n, *y) -> (n, C, o)
    rows: Part = Part(0, 0)  # where the outputs' side lies in the unit's flattened side
    columns: Part = Part(0, 0)  # ... and the inputs'
    transposed: bool = False  # the unit is stored (in, out)
    scale: float = 1.0  # of what is added
    padding: int | None = None  # of a lookup: the id whose row gets no gradient

    @property
    def dtype(self) -> torch.dtype:
        """In which the operation gives its output, and gets its signals."""
        found: torch.dtype = self.node.meta["val"].dtype
        return found

    def __repr__(self) -> str:
        return f"Use({self.unit}: {self.kind} in {self.node.name})"


def argument(node: fx.Node, i: int, default: Any = None) -> Any:
    return node.args[i] if 0 <= i < len(node.args) else default


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of an operation's output for one example."""
    return tuple(node.meta["val"].shape)


def rows_of(width: int) -> Lay:
    return lambda y: y.reshape(len(y), -1, width)
