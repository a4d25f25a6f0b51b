"""Views of parameters: which part of which parameter an operation reads, when it reads a slice or a transpose of it."""

import operator
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from torch import fx

A = torch.ops.aten


class Side(NamedTuple):
    """One dimension of a view: a stretch of one of the parameter's dimensions, or a new one of size 1."""

    of: int | None  # the parameter's dimension
    start: int
    size: int


class View(NamedTuple):
    """A parameter, or a part of it, as an operation reads it."""

    unit: str
    shape: tuple[int, ...]  # of the parameter
    sides: tuple[Side, ...]
    fixed: tuple[tuple[int, int], ...] = ()  # the parameter's dimensions that the view has not, and where it is in them

    def sizes(self) -> tuple[int, ...]:
        """Shape of the view."""
        return tuple(side.size for side in self.sides)

    def wide(self) -> list[int]:
        """The view's dimensions that are of the parameter and larger than 1."""
        return [i for i, side in enumerate(self.sides) if side.of is not None and self.shape[side.of] > 1]


class Part(NamedTuple):
    """Where some dimensions of a view lie in the parameter, flattened: so many numbers before them, so many after."""

    before: int
    after: int


def whole(unit: str, shape: tuple[int, ...]) -> View:
    """The parameter itself."""
    return View(unit, shape, tuple(Side(i, 0, size) for i, size in enumerate(shape)))


def views(nodes: tuple[fx.Node, ...], params: Mapping[fx.Node, str]) -> dict[fx.Node, View]:
    """The nodes that are parameters or views of them; an operation's first argument is what it views."""
    found = {node: whole(name, tuple(node.meta["val"].shape)) for node, name in params.items()}
    for node in nodes:
        source: Any = node.args[0] if node.args else None
        view = found.get(source) if isinstance(source, fx.Node) else None
        if node.target is operator.getitem and isinstance(source, fx.Node) and source.target in CUTS:
            cuts: Any = source.args[0]
            view, made = found.get(cuts), None
            if view is not None:
                made = cut(source, view, node.args[1])  # type: ignore[arg-type]
        else:
            rule = RULES.get(node.target)
            made = rule(node, view) if rule and view is not None else None
        if made is not None:
            found[node] = made
    return found


def piece(view: View, dim: int, start: int, size: int) -> View:
    """A stretch of a dimension."""
    side = view.sides[dim]
    sides = list(view.sides)
    sides[dim] = Side(side.of, side.start + start, size)
    return view._replace(sides=tuple(sides))


def pick(view: View, dim: int, index: int) -> View:
    """One place of a dimension, which is no more."""
    side = view.sides[dim]
    sides = view.sides[:dim] + view.sides[dim + 1 :]
    fixed = view.fixed if side.of is None else (*view.fixed, (side.of, side.start + index))
    return view._replace(sides=sides, fixed=fixed)


def place(view: View, dims: list[int]) -> Part | None:
    """Where the view's dimensions ``dims``, flattened, lie in the flattened parameter dimensions that they are of.

    Fixed dimensions right before them count with them. None if they are no one stretch: in another order, or cut
    elsewhere than in the first.
    """
    of = [view.sides[i].of for i in dims]
    known = [d for d in of if d is not None]
    if len(known) < len(of) or known != sorted(known):
        return None
    fixed = [(d, at) for d, at in sorted(view.fixed) if view.shape[d] > 1 and (not known or d < known[0])]
    rows = [*fixed, *((side.of, side.start) for side in (view.sides[i] for i in dims))]
    sizes = [view.shape[d] for d, _ in rows]  # type: ignore[index]
    taken = [1] * len(fixed) + [view.sides[i].size for i in dims]
    full = [t == s for t, s in zip(taken, sizes, strict=True)]
    first = next((i for i, ok in enumerate(full) if ok), len(full))
    if not all(full[first:]) or any(t != 1 for t in taken[: max(first - 1, 0)]):
        return None
    before = 0
    for (_, at), size in zip(rows, sizes, strict=True):
        before = before * size + at
    return Part(before, prod(sizes) - before - prod(taken))


def contiguous(view: View) -> bool:
    """Fixed dimensions come before the others, so that they count with the first of them."""
    kept = [side.of for side in view.sides if side.of is not None and view.shape[side.of] > 1]
    fixed = [d for d, _ in view.fixed if view.shape[d] > 1]
    return not fixed or not kept or max(fixed) < min(kept)


# ---- one rule an operation


def _same(node: fx.Node, view: View) -> View | None:
    return view


def _to(node: fx.Node, view: View) -> View | None:
    """A cast to another floating dtype shows the same numbers, rounded: its gradient goes back as it is."""
    return view if node.meta["val"].is_floating_point() else None


def _transpose(node: fx.Node, view: View) -> View | None:
    order = list(range(len(view.sides)))
    a, b = (int(i) for i in (node.args[1:3] if len(node.args) > 1 else (0, -1)))  # type: ignore[arg-type]
    if len(order) > 1:
        order[a], order[b] = order[b], order[a]
    return view._replace(sides=tuple(view.sides[i] for i in order))


def _permute(node: fx.Node, view: View) -> View | None:
    return view._replace(sides=tuple(view.sides[i] for i in node.args[1]))  # type: ignore[union-attr, index]


def _slice(node: fx.Node, view: View) -> View | None:
    given: list[Any] = list(node.args[1:])
    dim, start, stop, step = given + [0, None, None, 1][len(given) :]
    dim %= len(view.sides)
    start, stop, _ = slice(start, stop).indices(view.sides[dim].size)
    return piece(view, dim, start, stop - start) if step == 1 else None


def _select(node: fx.Node, view: View) -> View | None:
    dim, index = (int(x) for x in node.args[1:3])  # type: ignore[arg-type]
    dim %= len(view.sides)
    return pick(view, dim, index % view.sides[dim].size)


def _unsqueeze(node: fx.Node, view: View) -> View | None:
    dim = int(node.args[1]) % (len(view.sides) + 1)  # type: ignore[arg-type]
    return view._replace(sides=(*view.sides[:dim], Side(None, 0, 1), *view.sides[dim:]))


def _reshape(node: fx.Node, view: View) -> View | None:
    """Reshaping that only adds or drops dimensions of size 1."""
    wanted = tuple(node.meta["val"].shape)
    wide = [i for i, side in enumerate(view.sides) if side.size > 1]
    if [view.sides[i].size for i in wide] != [size for size in wanted if size > 1]:
        return None
    for dim in reversed([i for i in range(len(view.sides)) if i not in wide]):
        view = pick(view, dim, 0)
    rest = iter(view.sides)
    return view._replace(sides=tuple(next(rest) if size > 1 else Side(None, 0, 1) for size in wanted))


def _expand(node: fx.Node, view: View) -> View | None:
    return _reshape(node, view)  # only where nothing is repeated


RULES: dict[Any, Callable[[fx.Node, View], View | None]] = {
    A.alias.default: _same,
    A.clone.default: _same,
    A.contiguous.default: _same,
    A.to.dtype: _to,
    A._to_copy.default: _to,
    A.t.default: _transpose,
    A.transpose.int: _transpose,
    A.numpy_T.default: _transpose,
    A.mT.default: lambda node, view: _swap_last(view),
    A.permute.default: _permute,
    A.slice.Tensor: _slice,
    A.select.int: _select,
    A.unsqueeze.default: _unsqueeze,
    A.squeeze.default: _reshape,
    A.squeeze.dim: _reshape,
    A.squeeze.dims: _reshape,
    A.view.default: _reshape,
    A.reshape.default: _reshape,
    A._unsafe_view.default: _reshape,
    A.flatten.using_ints: _reshape,
    A.expand.default: _expand,
}
CUTS = (A.split.Tensor, A.split_with_sizes.default, A.chunk.default, A.unbind.int)


def _swap_last(view: View) -> View:
    return view._replace(sides=(*view.sides[:-2], view.sides[-1], view.sides[-2]))


def cut(node: fx.Node, view: View, number: int) -> View | None:
    """Piece ``number`` of a view that ``split``, ``chunk`` or ``unbind`` cuts."""
    sizes = [tuple(part.shape) for part in node.meta["val"]]
    if node.target is A.unbind.int:
        dim = int(node.args[1]) if len(node.args) > 1 else 0  # type: ignore[arg-type]
        return pick(view, dim % len(view.sides), number)
    dim = int(node.args[2] if len(node.args) > 2 else 0) % len(view.sides)  # type: ignore[arg-type]
    return piece(view, dim, sum(size[dim] for size in sizes[:number]), sizes[number][dim])
