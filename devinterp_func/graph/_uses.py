"""Uses of parameters: what each operation does with each parameter, and so what its per-example gradient is made of.

Of an operation with input x and output y, a use says how both lie as rows of positions: a linear map's gradient is then
Σ_k signals[k] ⊗ inputs[k] over the positions k, and the others' are its relatives. What has no rule here is *dense*.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from devinterp_func.graph._elementwise import NORMS, add, mul, norm
from devinterp_func.graph._maps import addmm, einsum, linear, matmul
from devinterp_func.graph._tables import CONVS, conv, embedding, index, index_select
from devinterp_func.graph._use import Use, Views
from devinterp_func.graph._views import CUTS

A = torch.ops.aten
RULES: dict[Any, Callable[[fx.Node, Views], list[Use]]] = {
    A.linear.default: linear,
    A.addmm.default: addmm,
    A.matmul.default: matmul,
    A.mm.default: matmul,
    A.mv.default: matmul,
    A.bmm.default: matmul,
    A.dot.default: matmul,
    A.einsum.default: einsum,
    A.add.Tensor: add,
    A.sub.Tensor: add,
    A.mul.Tensor: mul,
    A.embedding.default: embedding,
    A.index.Tensor: index,
    A.index_select.default: index_select,
    **dict.fromkeys(NORMS, norm),
    **dict.fromkeys(CONVS, conv),
}


def uses_of(nodes: tuple[fx.Node, ...], views: Views) -> tuple[tuple[Use, ...], dict[str, str]]:
    """Every use that has a rule, and the units that have one without: unit -> that operation's name."""
    found: list[Use] = []
    dense: dict[str, str] = {}
    for node in nodes:
        if node in views or (node.target in CUTS and node.args[0] in views):
            continue
        read = [x for x in _arguments(node) if x in views]
        uses = RULES[node.target](node, views) if read and node.target in RULES else []
        found += uses
        for unit in {views[x].unit for x in read}:
            times = sum(views[x].unit == unit for x in read)
            if times != sum(use.unit == unit for use in uses):
                dense[unit] = str(node.target).removeprefix("aten.").partition(".")[0]
    return tuple(use for use in found if use.unit not in dense), dense


def _arguments(node: fx.Node) -> list[fx.Node]:
    """The nodes that an operation reads, each as often as it does."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), lambda x: found.append(x))
    return found
