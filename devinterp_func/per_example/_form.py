"""Gradients of factors: each datum's, formed, and the sum over the data, for which none is formed."""

from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from devinterp_func import tree
from devinterp_func.per_example._factors import (
    Bias,
    Dense,
    Factor,
    Gain,
    Lookup,
    Outer,
    Plain,
    Scaled,
    Sum,
    dtype_of,
    flat_shape,
    n_data,
    shape_of,
    some_values,
    widened,
)
from devinterp_func.tree import wide


def gradients(factors: dict[str, Factor]) -> dict[str, Float[Tensor, "n ..."]]:
    """Each datum's gradient of each unit, formed from its factors."""
    return {name: form(factor) for name, factor in factors.items()}


def form(factor: Factor, out: Tensor | None = None) -> Float[Tensor, "n ..."]:
    """Each datum's gradient of one unit, written into ``out`` if given."""
    match factor:
        case Dense(gradients):
            return wide(gradients) if out is None else out.copy_(gradients)
        case Scaled(outer, gain):
            return form(outer, out).mul_(gain)
        case Sum(parts):
            shape = (n_data(factor), *shape_of(factor))
            empty = some_values(factor).new_empty(shape, dtype=dtype_of(factor)) if out is None else out
            out = form(parts[0], empty)
            for part in parts[1:]:
                _add_to(out, part)
            return out
    if factor.shape is None:
        return _form(factor, out)
    made = _form(factor, None if out is None else out.view(len(out), *flat_shape(factor)))
    return made.view(len(made), *factor.shape) if out is None else out


def _form(factor: Plain, out: Tensor | None) -> Float[Tensor, "n ..."]:
    factor = widened(factor)
    match factor:
        case Outer(inputs, signals):
            return torch.bmm(signals.mT, inputs, out=out)
        case Bias(signals):
            return torch.sum(signals, dim=1, out=out)
        case Gain(inputs, signals):
            return torch.sum(signals * inputs, dim=1, out=out)
        case Lookup(tokens, signals, rows):
            table = signals.new_zeros(len(tokens), rows, signals.shape[-1]) if out is None else out.zero_()
            _add_to(table, factor)
            return table


def _add_to(out: Float[Tensor, "n ..."], factor: Factor) -> None:
    """Adds each datum's gradient, forming no second one of a matrix."""
    factor = widened(factor, out.dtype) if isinstance(factor, Outer | Lookup) else factor
    match factor:
        case Outer(inputs, signals):
            out.view(len(out), *flat_shape(factor)).baddbmm_(signals.mT, inputs)
        case Lookup(tokens, signals, _):
            table = out.view(len(out), *flat_shape(factor))
            table.scatter_add_(1, tokens[..., None].expand_as(signals), signals)
        case Sum(parts):
            for part in parts:
                _add_to(out, part)
        case _:
            out.add_(form(factor))


def total(factor: Factor) -> Tensor:
    """The change of a unit by all data together, Σ_j Δ_j, forming no datum's own."""
    match factor:
        case Dense(gradients):
            return wide(gradients).sum(0)
        case Scaled(outer, gain):
            return total(outer).mul_(gain)
        case Sum(parts):
            return reduce(add_total, parts[1:], total(parts[0]))
        case _:
            return form(_as_one(factor))[0]


def rounded_total(factor: Outer) -> Tensor:
    """``total`` of factors of 16 bits as the backward pass makes it: the sum rounded once to them, in float32."""
    rows = factor.signals.flatten(0, 1).mT @ factor.inputs.flatten(0, 1)
    return rows.float().view(shape_of(factor))


def add_total(out: Tensor, factor: Factor) -> Tensor:
    """``total`` added in place, where no second table or matrix of the unit's size need be made."""
    match factor:
        case Dense() | Scaled():
            return out.add_(total(factor))
        case Sum(parts):
            return reduce(add_total, parts, out)
        case _:
            _add_to(out[None], _as_one(factor))
            return out


def _as_one(factor: Plain) -> Plain:
    """All data's positions as those of one datum."""
    return tree.map(lambda x: x.flatten(0, 1)[None] if isinstance(x, Tensor) else x, factor)
