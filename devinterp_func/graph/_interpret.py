"""A graph interpreted for one example: which operations are run, and what each gives."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from devinterp_func.graph._elementwise import NORMS
from devinterp_func.graph._graph import Graph
from devinterp_func.graph._refusals import DROPOUTS
from devinterp_func.graph._trace import call
from devinterp_func.tree import Params, wide

A = torch.ops.aten
NO_PADDING = -1  # of an embedding
RESHAPED = (A.view.default, A._unsafe_view.default)  # under vmap a view may not be one


# ---- what is run


class Step(NamedTuple):
    """An operation, and what nobody reads after it."""

    node: fx.Node
    done: tuple[fx.Node, ...]


@lru_cache(maxsize=256)
def steps_to(graph: Graph, wanted: tuple[fx.Node, ...], given: frozenset[fx.Node]) -> tuple[Step, ...]:
    """The operations that some nodes depend on, in order, where others are given."""
    needed, todo = set[fx.Node](), list(wanted)
    while todo:
        node = todo.pop()
        if node not in needed and node not in given:
            needed.add(node)
            todo += node.all_input_nodes
    order = [node for node in graph.trace.nodes if node in needed]
    last = {x: i for i, node in enumerate(order) for x in node.all_input_nodes}
    ends: dict[int, list[fx.Node]] = {}
    for x, i in last.items():
        if x not in wanted and x.op == "call_function":
            ends.setdefault(i, []).append(x)
    return tuple(Step(node, tuple(ends.get(i, ()))) for i, node in enumerate(order))


def after(graph: Graph, node: fx.Node) -> set[fx.Node]:
    """The operations that depend on a node, itself left out."""
    found, inside = set[fx.Node](), set(graph.trace.nodes)
    todo = list(node.users)
    while todo:
        user = todo.pop()
        if user in inside and user not in found:
            found.add(user)
            todo += list(user.users)
    return found


# ---- one example

Tap = Callable[[fx.Node, Callable[[fx.Node], Any], Any], Any]
"""(operation, values so far, what it gives) -> what to go on with."""


def run_one(
    graph: Graph,
    steps: Sequence[Step],
    values: dict[fx.Node, Any],
    masks: Mapping[str, Tensor] | None,
    tap: Tap | None = None,
    standard: Callable[[fx.Node, Tensor], None] | None = None,
) -> dict[fx.Node, Any]:
    """Runs operations for one example; the values that are still wanted.

    Args:
        graph: the model.
        steps: of ``steps_to``.
        values: of parameters, the example, constants and whatever else is given; added to.
        masks: of the dropout sites; None for no dropout.
        tap: what every operation's output goes through.
        standard: told of each norm's input, standardised, before its weight and bias.
    """
    for node, done in steps:
        y = _apply(graph, node, values, masks, standard)
        values[node] = y if tap is None else tap(node, values.__getitem__, y)
        for x in done:
            del values[x]
    return values


def _apply(
    graph: Graph,
    node: fx.Node,
    values: Mapping[fx.Node, Any],
    masks: Mapping[str, Tensor] | None,
    standard: Callable[[fx.Node, Tensor], None] | None,
) -> Any:
    target: Any = node.target
    if target in DROPOUTS:
        x = values[node.args[0]]  # type: ignore[index]
        site = graph.sites.get(node.name)
        if (
            site is not None and masks is not None
        ):  # the mask is scaled, not x: one pass fewer over what autograd tracks
            x = x * (masks[node.name].to(x.dtype) * (1 / (1 - site.p)))
        return (x, None) if target is A.native_dropout.default else x
    if target in RESHAPED:
        return values[node.args[0]].reshape(node.args[1])  # type: ignore[index]
    if target is A.copy.default:  # written over: torch has no derivative of it
        old, new = (values[x] for x in node.args[:2])  # type: ignore[index]
        return new.to(old.dtype).expand(old.shape)
    if target is A.embedding.default and len(node.args) > 2 and node.args[2] != NO_PADDING:
        ids, found = values[node.args[1]], call(node, values)  # type: ignore[index]
        # torch gives the row of the padding id no gradient; so it is a constant, forwards too
        return torch.where((ids == node.args[2])[..., None], found.detach(), found)
    if target in NORMS and standard is not None:
        return _norm(node, values, standard)
    return call(node, values)


def _norm(node: fx.Node, values: Mapping[fx.Node, Any], standard: Callable[[fx.Node, Tensor], None]) -> Tensor:
    """A norm as two: the input standardised, then weight and bias."""
    at, bias_at, first = NORMS[node.target]
    weight, bias = (node.args[i] if 0 <= i < len(node.args) else None for i in (at, bias_at))
    plain = [None if i in (at, bias_at) else arg for i, arg in enumerate(node.args)]
    args, kwargs = fx.node.map_arg((plain, node.kwargs), lambda x: wide(values[x]))
    y: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    standard(node, y)
    if weight is not None:
        y = y * _aligned(values[weight], y.ndim, first)  # type: ignore[index]
    y = y if bias is None else y + _aligned(values[bias], y.ndim, first)  # type: ignore[index]
    return y.to(node.meta["val"].dtype)  # rounded once, as the norm as one operation does


def _aligned(parameter: Tensor, dims: int, first: int | None) -> Tensor:
    return parameter if first is None else parameter.view(*parameter.shape, *[1] * (dims - first - 1))


# ---- where it starts


def inputs_of(graph: Graph, params: Params, leaves: Sequence[Tensor]) -> dict[fx.Node, Any]:
    """Values of parameters, constants and the example's tensors."""
    values: dict[fx.Node, Any] = dict(graph.trace.constants)
    values |= {node: params[name] for node, name in graph.trace.params.items()}
    return values | dict(zip(graph.trace.leaves, leaves, strict=False))


def run_example(graph: Graph, params: Params, example: tuple[Any, ...]) -> Tensor:
    """The loss of one example, operation after operation, without dropout; differentiable in the parameters."""
    values = inputs_of(graph, params, tree_leaves(example))
    output = graph.trace.output
    return run_one(graph, steps_to(graph, (output,), frozenset()), values, None)[output]
