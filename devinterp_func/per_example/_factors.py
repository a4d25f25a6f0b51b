"""Factors: what a unit's per-datum gradients are made of, and how they are formed.

For a linear map with input a[j,k] and back-signal b[j,k] (datum j, position k), datum j's weight gradient is
Σ_k b[j,k] ⊗ a[j,k]; the other factors are its relatives. Whatever is linear in the signals, such as a delta, has the
same form. A position is a row of the operation that used the unit: a token position in text, a place in an image,
a time step.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import tree

Shape = tuple[int, ...] | None


class Outer(NamedTuple):
    """A linear map's weight: datum j's gradient is Σ_k signals[j,k] ⊗ inputs[j,k], shape (out, in).

    The sides follow the weight as it is stored, so either may hold the back-signals: for y = x @ W with W of shape
    (in, out) these are ``inputs``, and ``signals`` are x. A convolution's inputs are its unfolded patches.
    """

    inputs: Float[Tensor, "n C i"]
    signals: Float[Tensor, "n C o"]
    shape: Shape = None  # the unit's, where it is not (out, in)


class Bias(NamedTuple):
    """A bias: datum j's gradient is Σ_k signals[j,k]."""

    signals: Float[Tensor, "n C o"]
    shape: Shape = None  # the unit's, where it is not (width,)


class Gain(NamedTuple):
    """A gain, such as a layer norm's weight: datum j's gradient is Σ_k signals[j,k] · inputs[j,k].

    The inputs are what was multiplied by the gain: a norm's are standardised.
    """

    inputs: Float[Tensor, "n C o"]
    signals: Float[Tensor, "n C o"]
    shape: Shape = None  # the unit's, where it is not (width,)


class Lookup(NamedTuple):
    """An embedding of ``rows`` rows: datum j's gradient has Σ_k [tokens[j,k] = v] signals[j,k] in row v."""

    tokens: Int[Tensor, "n C"]  # an expanded view where they are the same for all data
    signals: Float[Tensor, "n C d"]
    rows: int
    shape: Shape = None  # the unit's, where it is not (rows, d)


class Dense(NamedTuple):
    """A unit whose use has no factors: each datum's gradient itself, as one position."""

    gradients: Float[Tensor, "n ..."]


class Sum(NamedTuple):
    """A unit that is used more than once: datum j's gradient is the sum of its parts'.

    Parts that all have equally many positions share them, and add position by position. Otherwise the positions are
    numbered through, part after part.
    """

    parts: tuple["Factor", ...]


Plain = Outer | Bias | Gain | Lookup
Factor = Plain | Dense | Sum


def join(parts: Sequence[Factor]) -> Factor:
    """One factor of all the uses of a unit, each use's own given.

    Uses of the same kind with one row each, such as a recurrent net's, become one factor with a position for each use:
    its time step. Other uses become a ``Sum``; a single one stays itself.

    >>> join([Bias(torch.ones(2, 1, 3)), Bias(torch.ones(2, 1, 3))]).signals.shape
    torch.Size([2, 2, 3])
    """
    if len(parts) == 1:
        return parts[0]
    kinds = {_kind(part) for part in parts}
    if len(kinds) > 1 or isinstance(parts[0], Dense | Sum) or n_positions(parts[0]) > 1:
        return Sum(tuple(parts))
    return tree.map(lambda *xs: torch.cat(xs, 1) if isinstance(xs[0], Tensor) else xs[0], *parts)


def _kind(factor: Factor) -> tuple[Any, ...]:
    """Equal for factors of the same class, shapes and number of positions."""
    return type(factor), *(tuple(x.shape) if isinstance(x, Tensor) else x for x in tree.leaves(factor))


# ---- sizes


def n_data(factor: Factor) -> int:
    """Number of data."""
    return len(some_values(factor))


def n_positions(factor: Factor) -> int:
    """Number of positions of each datum: those of ``contributions``."""
    match factor:
        case Dense():
            return 1
        case Sum(parts):
            counts = [n_positions(part) for part in parts]
            return counts[0] if len(set(counts)) == 1 else sum(counts)
        case _:
            return factor.signals.shape[1]


def shape_of(factor: Factor) -> tuple[int, ...]:
    """Shape of the unit a factor belongs to."""
    match factor:
        case Dense(gradients):
            return tuple(gradients.shape[1:])
        case Sum(parts):
            return shape_of(parts[0])
        case _:
            return flat_shape(factor) if factor.shape is None else factor.shape


def size_of(factor: Factor) -> int:
    """Number of parameters of the unit a factor belongs to."""
    return torch.Size(shape_of(factor)).numel()


def flat_shape(factor: Plain) -> tuple[int, ...]:
    """Shape in which the factor's products are: the unit's, but for a given ``shape``."""
    width = factor.signals.shape[-1]
    match factor:
        case Outer(inputs, _):
            return (width, inputs.shape[-1])
        case Lookup(_, _, rows):
            return (rows, width)
        case _:
            return (width,)


def some_values(factor: Factor) -> Float[Tensor, "n ..."]:
    """A tensor with the factor's data, dtype and device."""
    match factor:
        case Dense(gradients):
            return gradients
        case Sum(parts):
            return some_values(parts[0])
        case _:
            return factor.signals


# ---- gradients


def gradients(factors: dict[str, Factor]) -> dict[str, Float[Tensor, "n ..."]]:
    """Each datum's gradient of each unit, formed from its factors."""
    return {name: form(factor) for name, factor in factors.items()}


def form(factor: Factor, out: Tensor | None = None) -> Float[Tensor, "n ..."]:
    """Each datum's gradient of one unit, written into ``out`` if given."""
    match factor:
        case Dense(gradients):
            return gradients if out is None else out.copy_(gradients)
        case Sum(parts):
            shape = (n_data(factor), *shape_of(factor))
            out = form(parts[0], some_values(factor).new_empty(shape) if out is None else out)
            for part in parts[1:]:
                _add_to(out, part)
            return out
    if factor.shape is None:
        return _form(factor, out)
    made = _form(factor, None if out is None else out.view(len(out), *flat_shape(factor)))
    return made.view(len(made), *factor.shape) if out is None else out


def _form(factor: Plain, out: Tensor | None) -> Float[Tensor, "n ..."]:
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
            return gradients.sum(0)
        case Sum(parts):
            return reduce(add_total, parts[1:], total(parts[0]))
        case _:
            return form(_as_one(factor))[0]


def add_total(out: Tensor, factor: Factor) -> Tensor:
    """``total`` added in place, where no second table or matrix of the unit's size need be made."""
    match factor:
        case Dense():
            return out.add_(total(factor))
        case Sum(parts):
            return reduce(add_total, parts, out)
        case _:
            _add_to(out[None], _as_one(factor))
            return out


def _as_one(factor: Plain) -> Plain:
    """All data's positions as those of one datum."""
    return tree.map(lambda x: x.flatten(0, 1)[None] if isinstance(x, Tensor) else x, factor)


def scale_factors(factors: dict[str, Factor], factor: float | Tensor) -> dict[str, Factor]:
    """The factors of ``factor`` · gradient: only the signals are scaled."""
    return {name: scale(f, factor) for name, f in factors.items()}


def scale(factor: Factor, by: float | Tensor) -> Factor:
    """The factor of ``by`` · gradient."""
    match factor:
        case Dense(gradients):
            return Dense(gradients * by)
        case Sum(parts):
            return Sum(tuple(scale(part, by) for part in parts))
        case _:
            return factor._replace(signals=factor.signals * by)


def take_data(factor: Factor, rows: slice) -> Factor:
    """The factors of some of the data."""
    return tree.map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, factor)
