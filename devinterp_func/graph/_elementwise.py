"""Uses place by place: what is added, what is multiplied by, and what a norm does with both."""

from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from devinterp_func.graph._use import Kind, Lay, Use, Views, argument, shape_of
from devinterp_func.graph._views import Part, Side, View, contiguous, pick, place

A = torch.ops.aten

NORMS: dict[Any, tuple[int, int, int | None]] = {  # places of weight and bias, and along which dimension these lie
    A.layer_norm.default: (2, 3, None),  # the last ones
    A.rms_norm.default: (2, -1, None),
    A.group_norm.default: (2, 3, 1),
    A.instance_norm.default: (1, 2, 1),
    A.batch_norm.default: (1, 2, 1),
}


def _along(view: View, first: int) -> tuple[list[int], Part] | None:
    """The output's dimensions along which a view lies, its own first being ``first``; and where it is in its unit."""
    for i in reversed(range(len(view.sides))):  # one place of a dimension is broadcast like a new one
        if view.sides[i].size == 1:
            view = pick(view, i, 0)
            view = view._replace(sides=(*view.sides[:i], Side(None, 0, 1), *view.sides[i:]))
    wide = [i for i, side in enumerate(view.sides) if side.size > 1]
    part = place(view, wide)
    if part is None or not contiguous(view) or any(view.sides[i].of is None for i in wide):
        return None
    return [first + i for i in wide], part


def _spread(dims: list[int], shape: tuple[int, ...]) -> Lay:
    """(n, *shape) -> (n, C, width): ``dims`` of the shape last."""
    width = prod(shape[i] for i in dims)
    last = list(range(-len(dims), 0))

    def lay(y: Tensor) -> Tensor:
        y = y.expand(len(y), *shape) if y.ndim == len(shape) + 1 else _broadcast(y, shape)
        return y.movedim([i + 1 for i in dims], last).reshape(len(y), -1, width)

    return lay


def _broadcast(y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Values of fewer dimensions, as torch broadcasts them."""
    missing = len(shape) + 1 - y.ndim
    return y.reshape(len(y), *[1] * missing, *y.shape[1:]).expand(len(y), *shape)


def elementwise(
    node: fx.Node,
    views: Views,
    name: Any,
    kind: Kind,
    x: fx.Node | None = None,
    scale: float = 1.0,
    first: int | None = None,
) -> list[Use]:
    """A parameter that meets each place of the output alike; its own dimensions lie last, or from ``first`` on."""
    view = views.get(name)
    if view is None:
        return []
    shape = shape_of(node)
    first = len(shape) - len(view.sides) if first is None else first
    along = _along(view, first) if first >= 0 else None
    if along is None:
        return []
    dims, part = along
    lay = _spread(dims, shape)
    if kind == "bias" and len(dims) == 2 and len(view.shape) == 2 and scale == 1.0:
        return [_table(node, view, shape, dims)]
    inputs = lay if kind == "gain" else None
    return [Use(kind, view.unit, view.shape, node, x, inputs, lay, rows=part, scale=scale)]


def _table(node: fx.Node, view: View, shape: tuple[int, ...], dims: list[int]) -> Use:
    """Rows of a table added at fixed places: a lookup whose ids are the same for all data."""
    rows, d = shape[dims[0]], shape[dims[1]]
    start = next(side.start for side in view.sides if side.of == 0)
    places = torch.arange(start, start + rows)

    def outputs(y: Tensor) -> Tensor:
        return y.movedim([i + 1 for i in dims], [-2, -1]).reshape(len(y), -1, d)

    def ids(y: Tensor) -> Tensor:
        return places.to(y.device).repeat(prod(shape) // (rows * d)).expand(len(y), -1)

    return Use("lookup", view.unit, view.shape, node, None, ids, outputs)


def add(node: fx.Node, views: Views) -> list[Use]:
    alpha: Any = node.kwargs.get("alpha", 1)
    sign = -1 if node.target is A.sub.Tensor else 1
    return [
        use
        for i, scale in ((0, 1.0), (1, float(sign * alpha)))
        for use in elementwise(node, views, node.args[i], "bias", scale=scale)
    ]


def mul(node: fx.Node, views: Views) -> list[Use]:
    a, b = node.args
    pairs = [(own, other) for own, other in ((a, b), (b, a)) if isinstance(other, fx.Node)]
    return [use for own, other in pairs for use in elementwise(node, views, own, "gain", other)]


def norm(node: fx.Node, views: Views) -> list[Use]:
    weight, bias, first = NORMS[node.target]
    gain = elementwise(node, views, argument(node, weight), "gain", first=first)
    return gain + elementwise(node, views, argument(node, bias), "bias", first=first)
