"""What one example's loss is: its operations, the uses of its parameters, its dropout sites and its head."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from devinterp_func import units
from devinterp_func.graph._attention import attention_nodes
from devinterp_func.graph._head import Head, find_head
from devinterp_func.graph._refusals import DROPOUTS
from devinterp_func.graph._trace import Loss, Trace, trace
from devinterp_func.graph._use import Use, shape_of
from devinterp_func.graph._uses import uses_of
from devinterp_func.graph._views import views
from devinterp_func.tree import Params
from devinterp_func.units import Patterns


class Site(NamedTuple):
    """A place where dropout works."""

    node: fx.Node
    shape: tuple[int, ...]
    p: float


@dataclass(frozen=True, eq=False)
class Graph:
    """The loss of one example, written down."""

    loss: Loss  # what it was traced from
    trace: Trace
    shapes: dict[str, tuple[int, ...]]  # of every parameter, in the order that they were given
    dtypes: dict[str, torch.dtype]
    uses: tuple[Use, ...]
    dense: dict[str, str]  # parameters with a use that has no rule, and that operation
    sites: dict[str, Site]  # dropout, in the order in which it is met
    head: Head | None  # the linear map that cross entropy reads
    attention: tuple[str, ...]  # softmax nodes between a query-key product and a product with values
    example: tuple[tuple[tuple[int, ...], torch.dtype], ...]  # shape and dtype of the example's tensors

    @property
    def unused(self) -> list[str]:
        """Parameters that the loss does not read: their gradient is 0."""
        used = {use.unit for use in self.uses} | self.dense.keys()
        return [name for name in self.shapes if name not in used]

    @property
    def rounded(self) -> dict[str, torch.dtype]:
        """Units that are used in less than their own precision, and in which: what a model of autocast has."""
        return {
            use.unit: use.dtype
            for use in self.uses
            if torch.finfo(use.dtype).eps > torch.finfo(self.dtypes[use.unit]).eps
        }

    @property
    def vocab_size(self) -> int:
        """Rows of the head's weight: words, or classes."""
        return require_head(self).n_classes

    @property
    def width(self) -> int:
        """Width of the stream that the head reads."""
        return require_head(self).width

    @property
    def embedding(self) -> str | None:
        """The table in which the example's first tensor is looked up; None if in none."""
        first = self.trace.leaves[:1]
        return next((use.unit for use in self.uses if use.kind == "lookup" and leaf_of(use.x) in first), None)

    def __repr__(self) -> str:
        return describe(self)


def of(loss: Loss, params: Params, *example: Any) -> Graph:
    """Writes down the loss of one example as a graph: every use of every parameter, dropout sites, the head.

    Args:
        loss: ``loss(params, *example)`` -> 0-d tensor; a pure function of ONE example, dropout aside. It is called
            once, with stand-ins for tensors; control flow must not depend on their values.
        params: every parameter by name, in the dtype and on the device to be used.
        example: one training example, any pytrees of tensors; later ones must have the same shapes.

    Raises:
        TypeError: params are no dict of floating-point tensors.
        ValueError: the loss is no scalar, or does what is no fixed, pure function of one example: batch norm in
            training mode, branches on values, sparse gradients, random numbers other than dropout, changes in place.
            The operation and the remedy are named.

    >>> graph = of(lambda p, x, y: (p["w"] @ x - y) ** 2, {"w": torch.zeros(3)}, torch.ones(3), torch.tensor(1.0))
    >>> graph.uses
    (Use(w: linear in matmul),)
    """
    traced = trace(loss, params, *example)
    found = views(traced.nodes, traced.params)
    uses, dense = uses_of(traced.nodes, found)
    sites = {n.name: Site(n, _site_shape(n), float(n.args[1])) for n in traced.nodes if _drops(n)}  # type: ignore[arg-type]
    head = find_head(traced, uses)
    leaves = [leaf if isinstance(leaf, Tensor) else torch.as_tensor(leaf) for leaf in tree_leaves(example)]
    return Graph(
        loss,
        traced,
        {name: tuple(weight.shape) for name, weight in params.items()},
        {name: weight.dtype for name, weight in params.items()},
        uses,
        dense,
        sites,
        head,
        tuple(node.name for node in attention_nodes(traced.nodes)),
        tuple((tuple(leaf.shape), leaf.dtype) for leaf in leaves),
    )


def in_order(graph: Graph, params: Params) -> Params:
    """The same parameters in the graph's order, which numbers them and in which they are summed.

    Raises:
        ValueError: one is missing, unknown, or of another shape or dtype than the graph was traced with.
    """
    if unknown := params.keys() ^ graph.shapes.keys():
        raise ValueError(f"the parameters and the graph differ in {', '.join(map(repr, sorted(unknown)))}")
    for name, shape in graph.shapes.items():
        if params[name].shape != shape:
            raise ValueError(f"{name!r} has shape {tuple(params[name].shape)}; the graph wants {shape}")
        if params[name].dtype != graph.dtypes[name]:
            raise ValueError(
                f"{name!r} is {params[name].dtype}; the graph was traced with {graph.dtypes[name]}: trace it again, "
                "with graph.of"
            )
    return {name: params[name] for name in graph.shapes}


def choose(graph: Graph, patterns: Patterns = ()) -> list[str]:
    """The units that patterns choose, in the graph's order.

    Args:
        graph: the model.
        patterns: of ``units.choose``; none for the weights of linear maps and convolutions other than the head's and
            tables looked up (the post's choice), or all parameters where there are no such weights.

    Raises:
        TypeError, ValueError: as ``units.choose``.
    """
    if units.as_patterns(patterns):
        return units.choose(graph.shapes, patterns)
    maps = {use.unit for use in graph.uses if use.kind in ("linear", "conv") and len(use.shape) > 1}
    tables = {use.unit for use in graph.uses if use.kind == "lookup"} | ({graph.head.weight} if graph.head else set())
    return [name for name in graph.shapes if name in maps - tables] or list(graph.shapes)


def require_head(graph: Graph) -> Head:
    """The graph's head.

    Raises:
        ValueError: it has none.
    """
    if graph.head is None:
        raise ValueError(
            "this loss has no head: it is no cross entropy of a linear map of a parameter, so it has no logits"
        )
    return graph.head


def leaf_of(node: fx.Node | None) -> fx.Node | None:
    """The example's tensor that a node is a view or a copy of; None if of none."""
    through = ("view", "reshape", "unsqueeze", "squeeze", "alias", "clone", "to", "_to_copy", "flatten", "contiguous")
    while node is not None and node.op == "call_function":
        name = str(node.target).removeprefix("aten.").partition(".")[0]
        source: Any = node.args[0] if node.args else None
        node = source if name in through and isinstance(source, fx.Node) else None
    return node


def _drops(node: fx.Node) -> bool:
    return node.target in DROPOUTS and bool(node.args[2]) and float(node.args[1]) > 0  # type: ignore[arg-type]


def _site_shape(node: fx.Node) -> tuple[int, ...]:
    return shape_of(node.args[0])  # type: ignore[arg-type]


def fingerprint(graph: Graph) -> str:
    """SHA-256 (hex) of what the graph computes: its operations, its parameters' shapes and its constants' bits."""
    digest = hashlib.sha256(repr((graph.shapes, [str(t) for t in graph.dtypes.values()], graph.example)).encode())
    for node in graph.trace.nodes:
        digest.update(repr((node.name, str(node.target), node.args, node.kwargs)).encode())
    for node, value in graph.trace.constants.items():
        digest.update(repr((node.name, value.dtype, tuple(value.shape))).encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# ---- one screen


def describe(graph: Graph) -> str:
    """The graph in a screen: operations, units with their kind of factor, what is dense and what it costs."""
    kinds: dict[str, list[str]] = {}
    for use in graph.uses:
        own = "" if use.dtype == graph.dtypes[use.unit] else f" in {str(use.dtype).removeprefix('torch.')}"
        kinds.setdefault(use.unit, []).append(use.kind + own)
    size = sum(prod(shape) for shape in graph.shapes.values())
    lines = [
        f"Graph: {len(graph.trace.nodes)} operations, {len(graph.shapes)} units of {size:,} parameters, "
        f"{len(graph.sites)} dropout sites, {len(graph.attention)} attentions"
    ]
    alike: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for name, used in kinds.items():
        times = {kind: used.count(kind) for kind in used}
        what = " + ".join(f"{n} x {kind}" if n > 1 else kind for kind, n in times.items())
        alike.setdefault((_shorter(name), what, graph.shapes[name]), []).append(name)
    lines += [
        f"  {pattern}{f' ({len(names)} units)' if len(names) > 1 else ''}: {what} {list(shape)}"
        for (pattern, what, shape), names in alike.items()
    ]
    lines += [
        f"  {name}: dense, as {operation} has no rule; {_bytes(graph, name):,} bytes a datum"
        for name, operation in graph.dense.items()
    ]
    lines += [f"  {name}: not read by the loss, its gradient is 0" for name in graph.unused]
    if graph.head is not None:
        lines.append(f"  head: {graph.head!r}")
    return "\n".join(lines if len(lines) <= SCREEN else [*lines[: SCREEN - 1], f"  ... {len(lines) - SCREEN + 1} more"])


SCREEN = 40  # lines


def _bytes(graph: Graph, name: str) -> int:
    return prod(graph.shapes[name]) * graph.dtypes[name].itemsize


def _shorter(name: str) -> str:
    """A unit's name with its numbers replaced by stars."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def names(graph: Graph) -> Mapping[str, fx.Node]:
    """Every node by name."""
    return {node.name: node for node in (*graph.trace.params, *graph.trace.leaves, *graph.trace.nodes)}
