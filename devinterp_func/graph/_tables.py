"""Uses in tables that are looked up, and in convolutions."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from devinterp_func.graph._elementwise import elementwise
from devinterp_func.graph._use import Lay, Use, Views, argument, rows_of, shape_of

A = torch.ops.aten
CONVS = {A.conv1d.default: 1, A.conv2d.default: 2, A.conv1d.padding: 1, A.conv2d.padding: 2}


def _lookup(node: fx.Node, views: Views, table: Any, ids: Any, padding: int | None = None) -> list[Use]:
    view = views.get(table)
    if view is None or not isinstance(ids, fx.Node) or len(view.shape) != 2 or [s.of for s in view.sides] != [0, 1]:
        return []
    start, size, d = view.sides[0].start, view.sides[0].size, view.shape[1]
    if view.sides[1].size != d:
        return []
    padding = None if padding is None or padding < 0 else padding + start

    def into(x: Tensor) -> Tensor:
        return x.reshape(len(x), -1).remainder(size) + start

    return [Use("lookup", view.unit, view.shape, node, ids, into, rows_of(d), padding=padding)]


def embedding(node: fx.Node, views: Views) -> list[Use]:
    return _lookup(node, views, node.args[0], node.args[1], argument(node, 2))


def index(node: fx.Node, views: Views) -> list[Use]:
    indices: Any = node.args[1]
    if len(indices) != 1 or indices[0].meta["val"].dtype in (torch.bool, torch.uint8):
        return []
    return _lookup(node, views, node.args[0], indices[0])


def index_select(node: fx.Node, views: Views) -> list[Use]:
    return _lookup(node, views, node.args[0], node.args[2]) if node.args[1] == 0 else []


def conv(node: fx.Node, views: Views) -> list[Use]:
    x: Any = node.args[0]
    weight: Any = node.args[1]
    view, dims = views.get(weight), CONVS[node.target]  # type: ignore[index]
    bias = elementwise(node, views, argument(node, 2), "bias", first=len(shape_of(node)) - dims - 1)
    if view is None or argument(node, 6, 1) != 1 or view.sizes() != view.shape or view.fixed:
        return bias
    out, kernel = view.shape[0], view.shape[2:]
    stride, padding, dilation = (argument(node, i, default) for i, default in ((3, 1), (4, 0), (5, 1)))
    unfold = _unfolder(dims, kernel, stride, padding, dilation)

    def outputs(y: Tensor) -> Tensor:
        return y.movedim(-1 - dims, -1).reshape(len(y), -1, out)

    return [Use("conv", view.unit, view.shape, node, x, unfold, outputs), *bias]


def _unfolder(dims: int, kernel: tuple[int, ...], stride: Any, padding: Any, dilation: Any) -> Lay:
    """(n, [1,] c, *places) -> (n, C, c · kernel): the patch that each place of the output reads."""
    stride, dilation = (_each(x, dims) for x in (stride, dilation))
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    sides = [(t // 2, t - t // 2) for t in total] if padding == "same" else [(0, 0)] * dims
    sides = [(p, p) for p in _each(padding, dims)] if not isinstance(padding, str) else sides
    pads = [x for side in reversed(sides) for x in side]

    def unfold(x: Tensor) -> Tensor:
        flat = F.pad(x.reshape(-1, *x.shape[-1 - dims :]), pads)
        if dims == 1:
            flat = flat.unsqueeze(-2)
        full = [(1,) * (2 - dims) + tuple(v) for v in (kernel, dilation, stride)]
        patches = F.unfold(flat, full[0], dilation=full[1], stride=full[2])
        return patches.mT.reshape(len(x), -1, patches.shape[1])

    return unfold


def _each(value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * dims if len(values) == 1 else values
