"""Uses in linear maps: linear, addmm, matmul and their like, with the parameter on either side."""

from math import prod
from typing import Any

from torch import fx

from devinterp_func.graph._elementwise import elementwise
from devinterp_func.graph._use import Lay, Use, Views, argument, rows_of, shape_of
from devinterp_func.graph._views import Part, View, contiguous, place


def _map(node: fx.Node, views: Views, weight: Any, x: Any, out: int, left: bool = False) -> list[Use]:
    """A product of x with a matrix whose dimension ``out`` of the last two is the output's; ``left``: before x."""
    view = views.get(weight)
    base = 0 if view is None else len(view.sides) - 2
    if view is None or base < 0 or any(i < base for i in view.wide()):
        return []
    o, i = base + out, base + 1 - out
    rows, columns = place(view, _of(view, o)), place(view._replace(fixed=()), _of(view, i))
    outer, inner = view.sides[o], view.sides[i]
    crossed = outer.of is not None and inner.of is not None and outer.of > inner.of
    if crossed:  # stored (in, out): what is fixed comes before the inputs' side
        rows, columns = place(view._replace(fixed=()), _of(view, o)), place(view, _of(view, i))
    if rows is None or columns is None or shape_of(x)[-1:] == () or not contiguous(view):
        return []
    flip = left and len(shape_of(x)) > 1

    def lay(width: int) -> Lay:
        return (lambda y: y.transpose(-1, -2).reshape(len(y), -1, width)) if flip else rows_of(width)

    parts = (columns, rows) if crossed else (rows, columns)
    return [Use("linear", view.unit, view.shape, node, x, lay(inner.size), lay(outer.size), *parts, transposed=crossed)]


def _of(view: View, dim: int) -> list[int]:
    """The dimension, where it is the parameter's."""
    return [dim] if view.sides[dim].of is not None and view.shape[view.sides[dim].of] > 1 else []  # type: ignore[index]


def linear(node: fx.Node, views: Views) -> list[Use]:
    return _map(node, views, node.args[1], node.args[0], out=0) + elementwise(node, views, argument(node, 2), "bias")


def addmm(node: fx.Node, views: Views) -> list[Use]:
    if node.kwargs:
        return []
    bias, x, weight = node.args
    return _product(node, views, x, weight) + elementwise(node, views, bias, "bias")


def matmul(node: fx.Node, views: Views) -> list[Use]:
    return _product(node, views, *node.args)


def _product(node: fx.Node, views: Views, a: Any, b: Any) -> list[Use]:
    if b in views and a in views:
        return []
    if b in views:
        return _map(node, views, b, a, out=1) if len(shape_of(b)) > 1 else _vector(node, views, b, a)
    if len(shape_of(a)) > 1:
        return _map(node, views, a, b, out=0, left=True)
    return _vector(node, views, a, b) if len(shape_of(b)) == 1 else []


def _vector(node: fx.Node, views: Views, weight: Any, x: Any) -> list[Use]:
    """x @ w with a vector w: a linear map to one number."""
    view = views[weight]
    part = place(view, _of(view, 0))
    if part is None:
        return []
    lay = rows_of(view.sides[0].size)
    return [Use("linear", view.unit, view.shape, node, x, lay, rows_of(1), Part(0, 0), part)]


def einsum(node: fx.Node, views: Views) -> list[Use]:
    """A product of two operands of which one is a parameter, its dimensions those of the output, then of the input, or
    the other way round; what is batched over or summed within one operand has no rule.
    """
    equation, operands = node.args[:2]
    reads, _, gives = str(equation).replace(" ", "").partition("->")
    letters: list[Any] = reads.split(",")
    both: Any = operands
    if len(letters) != 2 or "." in reads or any(len(set(own)) < len(own) for own in (*letters, gives)):
        return []
    for own, other in ((0, 1), (1, 0)):
        if both[own] in views and both[other] not in views:
            return _contracted(node, views[both[own]], letters[own], both[other], letters[other], gives)
    return []


def _contracted(node: fx.Node, view: View, own: str, x: fx.Node, other: str, gives: str) -> list[Use]:
    outer, inner = ([c for c in own if c in there] for there in (gives, other))
    places = [c for c in other if c not in own]
    crossed = own == "".join(inner + outer)
    if (own != "".join(outer + inner) and not crossed) or set(gives) != set(places + outer) or not inner or not outer:
        return []
    rows, columns = (place(view, [own.index(c) for c in side]) for side in (outer, inner))
    if rows is None or columns is None or view.fixed:
        return []

    def lay(here: str, last: list[str]) -> Lay:
        order, width = [here.index(c) + 1 for c in (*places, *last)], prod(view.sides[own.index(c)].size for c in last)
        return lambda y: y.permute(0, *order).reshape(len(y), -1, width)

    parts = (columns, rows) if crossed else (rows, columns)
    return [
        Use("linear", view.unit, view.shape, node, x, lay(other, inner), lay(gives, outer), *parts, transposed=crossed)
    ]
