"""The operation that a weight belongs to: what it reads and gives at every position, and what a neuron is of it."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor, fx

from devinterp_func.graph._graph import Graph
from devinterp_func.graph._trace import call
from devinterp_func.graph._use import Use, shape_of

Side = Literal["inputs", "outputs"]


class Operation(NamedTuple):
    """A linear map or a convolution, the only one of its weight."""

    unit: str
    bias: str | None
    use: Use

    @property
    def node(self) -> fx.Node:
        """What it gives."""
        return self.use.node

    @property
    def x(self) -> fx.Node:
        """What it reads."""
        assert self.use.x is not None
        return self.use.x

    def side(self, axis: Literal["in", "out"]) -> Side:
        """What a neuron of the unit is: of a column (in) what enters it, of a row (out) what it gives.

        Where the unit is stored (in, out), a column is an output and a row an input.
        """
        return "inputs" if (axis == "in") != self.use.transposed else "outputs"

    def read(self, x: Tensor) -> Num[Tensor, "b C i"]:
        """What it reads, position by position: of a convolution the channels at each place, not their patches."""
        return _channels_last(x, _conv_dims(self.use)) if self.use.kind == "conv" else self.use.inputs(x)  # type: ignore[misc]

    def write(self, y: Tensor) -> Num[Tensor, "b C o"]:
        """What it gives, position by position."""
        return self.use.outputs(y)

    def restore(self, rows: Float[Tensor, "p C o"]) -> Tensor:
        """The inverse of ``write``."""
        return _restored(rows, shape_of(self.node), self.write)

    def replaced(
        self, known: Callable[[fx.Node], Any], y: Tensor, side: Side, index: int, values: Float[Tensor, "C"]
    ) -> Tensor:
        """What it gives for one example when one activation is replaced: one of its outputs, or one of its inputs.

        Args:
            known: values of what it reads.
            y: what it gives.
            side, index: which activation.
            values: at every position.
        """
        if side == "outputs":
            return _put(y, self.write, index, values)
        x = _put(known(self.x), self.read, index, values)
        return call(self.node, _Changed(known, self.x, x))


class _Changed(dict[fx.Node, Any]):
    """Values of nodes with one replaced; for ``call``."""

    def __init__(self, known: Callable[[fx.Node], Any], node: fx.Node, value: Tensor) -> None:
        super().__init__()
        self.known, self.node, self.value = known, node, value

    def __getitem__(self, node: fx.Node) -> Any:
        return self.value if node is self.node else self.known(node)


def operation(graph: Graph, unit: str) -> Operation:
    """The operation of a weight.

    Raises:
        ValueError: the unit is no linear map's or convolution's weight, or of several; those that are are named.
    """
    uses = [use for use in graph.uses if use.unit == unit and use.kind in ("linear", "conv")]
    others = [use for use in graph.uses if use.unit == unit and use.kind not in ("linear", "conv")]
    if len(uses) != 1 or others or not _is_matrix(uses[0]) or any((*uses[0].rows, *uses[0].columns)):
        have = [name for name in graph.shapes if _has_one(graph, name)]
        raise ValueError(
            f"{unit!r} is not the weight of one linear map or convolution; units that are: {', '.join(have) or 'none'}"
        )
    bias = next((use.unit for use in graph.uses if use.node is uses[0].node and use.kind == "bias"), None)
    return Operation(unit, bias, uses[0])


def _has_one(graph: Graph, unit: str) -> bool:
    uses = [use for use in graph.uses if use.unit == unit]
    return len(uses) == 1 and _is_matrix(uses[0])


def _is_matrix(use: Use) -> bool:
    """Whether the unit's columns and rows are what the operation reads and gives."""
    return use.kind == "conv" or (use.kind == "linear" and len(use.shape) == 2)


def _conv_dims(use: Use) -> int:
    return len(use.shape) - 2


def _channels_last(x: Tensor, dims: int) -> Num[Tensor, "b C i"]:
    x = x.movedim(-1 - dims, -1)
    return x.reshape(len(x), -1, x.shape[-1])


def _restored(rows: Tensor, shape: tuple[int, ...], lay: Callable[[Tensor], Tensor]) -> Tensor:
    """Rows of positions back in an operation's shape: the rows' places are found by laying out numbers."""
    size = torch.Size(shape).numel()
    order = lay(torch.arange(size, device=rows.device).view(1, *shape))[0].flatten().argsort()
    return rows.reshape(len(rows), -1)[:, order].reshape(len(rows), *shape)


def _put(y: Tensor, lay: Callable[[Tensor], Tensor], index: int, values: Float[Tensor, "C"]) -> Tensor:
    """One example's values with one column of its rows of positions replaced."""
    here = lay(torch.arange(y.numel(), device=y.device).view(1, *y.shape))[0][:, index]
    mask = torch.zeros(y.numel(), dtype=torch.bool, device=y.device).index_fill(0, here, True)
    rank = torch.zeros(y.numel(), dtype=torch.long, device=y.device)
    rank[here] = torch.arange(len(here), device=y.device)
    return torch.where(mask, values[rank].to(y.dtype), y.reshape(-1)).reshape(y.shape)
