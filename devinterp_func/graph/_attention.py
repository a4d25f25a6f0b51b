"""Attention in a graph: a softmax between a product of queries and keys and a product with values."""

from typing import Any

import torch
from torch import fx

A = torch.ops.aten
PRODUCTS = (A.matmul.default, A.bmm.default, A.baddbmm.default, A.einsum.default)
SOFTMAX = (A.softmax.int, A._softmax.default)
BETWEEN = {  # between a product and the softmax, and between the softmax and the next product
    *("add", "sub", "mul", "div", "masked_fill", "where", "view", "reshape", "transpose", "permute", "clone", "to"),
    *("_to_copy", "unsqueeze", "squeeze", "expand", "dropout", "native_dropout", "alias", "_unsafe_view", "flatten"),
    *("contiguous", "getitem", "select", "slice", "type_as"),
}


def attention_nodes(nodes: tuple[fx.Node, ...]) -> list[fx.Node]:
    """The softmax nodes that are attention patterns, in order: their last two dimensions are query and key."""
    return [node for node in nodes if node.target in SOFTMAX and _scores(node) and _weighs(node)]


def _name(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target)).partition(".")[0]


def _scores(node: fx.Node) -> bool:
    """Whether the softmax is over a product of two activations."""
    shape = node.meta["val"].shape
    if len(shape) < 2 or int(node.args[1]) % len(shape) != len(shape) - 1:  # type: ignore[arg-type]
        return False
    source: Any = node.args[0]
    while isinstance(source, fx.Node) and source.op == "call_function":
        if source.target in PRODUCTS:
            return True
        inputs = [x for x in source.args if isinstance(x, fx.Node)]
        if _name(source) not in BETWEEN or not inputs:
            return False
        source = inputs[1] if _name(source) == "where" and len(inputs) > 1 else inputs[0]
    return False


def _weighs(node: fx.Node) -> bool:
    """Whether a product with values reads the pattern."""
    todo = list(node.users)
    while todo:
        user = todo.pop()
        if user.target in PRODUCTS:
            return True
        if _name(user) in BETWEEN:
            todo += list(user.users)
    return False
