"""Linear maps of gradients as maps of their factors: by a number, entry by entry, by a matrix; some of the data."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from devinterp_func import tree
from devinterp_func.per_example._factors import Dense, Factor, Lookup, Outer, Scaled, Sum, flat_shape, shape_of, widened
from devinterp_func.per_example._form import form
from devinterp_func.tree import wide


def scale_factors(factors: dict[str, Factor], factor: float | Tensor) -> dict[str, Factor]:
    """The factors of ``factor`` · gradient, a number for all units."""
    return {name: scale(f, factor) for name, f in factors.items()}


def scale(factor: Factor, by: float | Tensor) -> Factor:
    """The factor of ``by`` ⊙ gradient.

    Args:
        factor: of one unit.
        by: a number, or a tensor of the unit's shape: a gain for each entry.

    Raises:
        ValueError: the tensor is of another shape.
    """
    if not isinstance(by, Tensor) or by.ndim == 0:
        return _scale_alike(factor, by)
    if tuple(by.shape) != shape_of(factor):
        raise ValueError(f"the gain is {tuple(by.shape)}; it must be a number or {shape_of(factor)}, as the unit")
    return _scale_each(factor, by)


def _scale_alike(factor: Factor, by: float | Tensor) -> Factor:
    match factor:
        case Dense(gradients):
            return Dense(wide(gradients) * by)
        case Scaled(outer, gain):
            return Scaled(outer._replace(signals=wide(outer.signals) * by), gain)
        case Sum(parts):
            return Sum(tuple(_scale_alike(part, by) for part in parts))
        case _:
            return factor._replace(signals=wide(factor.signals) * by)


def _scale_each(factor: Factor, by: Tensor) -> Factor:
    match factor:
        case Dense(gradients):
            return Dense(wide(gradients) * by)
        case Outer():
            return Scaled(factor, by)
        case Scaled(outer, gain):
            return Scaled(outer, gain * by)
        case Lookup(tokens, signals, _):
            return factor._replace(signals=wide(signals) * by.reshape(flat_shape(factor))[tokens])
        case Sum(parts):
            return Sum(tuple(_scale_each(part, by) for part in parts))
        case _:
            return factor._replace(signals=wide(factor.signals) * by.reshape(flat_shape(factor)))


def multiply(factor: Factor, matrix: Float[Tensor, "m m"], left: bool = True) -> Factor:
    """The factor of matrix @ gradient, or of gradient @ matrixᵀ, of a 2-D unit.

    Args:
        factor: of one unit.
        matrix: square, of the unit's first size, or of its second.
        left: whether it stands on the left.

    Raises:
        ValueError: the unit is not 2-D, or the matrix of another size.
    """
    shape = shape_of(factor)
    if len(shape) != 2 or len(matrix) != shape[0 if left else 1]:
        side = "left" if left else "right"
        raise ValueError(f"a matrix of {len(matrix)} rows on the {side} does not fit a unit of shape {shape}")
    factor = factor if isinstance(factor, Sum) else widened(factor)
    match factor:
        case Sum(parts):
            return Sum(tuple(multiply(part, matrix, left) for part in parts))
        case Outer(inputs, signals) if flat_shape(factor) == shape:
            return factor._replace(signals=signals @ matrix.mT) if left else factor._replace(inputs=inputs @ matrix.mT)
        case Lookup(tokens, signals) if flat_shape(factor) == shape:
            return Outer(signals, matrix.mT[tokens]) if left else factor._replace(signals=signals @ matrix.mT)
        case _:
            formed = form(factor)
            return Dense(matrix @ formed if left else formed @ matrix.mT)


def take_data(factor: Factor, rows: slice) -> Factor:
    """The factors of some of the data."""
    match factor:
        case Scaled(outer, gain):
            return Scaled(_rows(outer, rows), gain)
        case Sum(parts):
            return Sum(tuple(take_data(part, rows) for part in parts))
        case _:
            return _rows(factor, rows)


def _rows(factor: Any, rows: slice) -> Any:
    return tree.map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, factor)


def join_data(parts: Sequence[Factor]) -> Factor:
    """One factor of the data of several, which are of the same unit, in order; ``take_data`` undone.

    Raises:
        ValueError: a part has gains of its own for each entry: data are joined first, and scaled then.
    """
    if len(parts) == 1:
        return parts[0]
    if any(isinstance(part, Scaled) for part in parts):
        raise ValueError("a scaled factor's gain is its data's alone; join the data before they are scaled")
    return tree.map(lambda *xs: torch.cat(xs) if isinstance(xs[0], Tensor) else xs[0], *parts)
