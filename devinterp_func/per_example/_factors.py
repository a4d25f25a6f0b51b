"""Factors: what a unit's per-datum gradients are made of.

For a linear map with input a[j,k] and back-signal b[j,k] (datum j, position k), datum j's weight gradient is
Σ_k b[j,k] ⊗ a[j,k]; the other factors are its relatives. Whatever is linear in the signals, such as a delta, has the
same form. A position is a row of the operation that used the unit: a token position in text, a place in an image,
a time step.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple, TypeVar

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


class Scaled(NamedTuple):
    """An ``Outer`` each of whose entries has a gain of its own: datum j's is gain ⊙ Σ_k signals[j,k] ⊗ inputs[j,k].

    So are the deltas of an optimizer that divides each entry by a root of its own, such as AdamW. Other factors take
    the gains of entries into their signals (``scale``).
    """

    factor: Outer
    gain: Float[Tensor, "..."]  # of the unit's shape


Plain = Outer | Bias | Gain | Lookup
Single = Plain | Scaled | Dense  # a factor that is no sum
Factor = Single | Sum
S = TypeVar("S", bound=Single)


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
    if len(kinds) > 1 or isinstance(parts[0], Dense | Scaled | Sum) or n_positions(parts[0]) > 1:
        return Sum(tuple(parts))
    return tree.map(lambda *xs: torch.cat(xs, 1) if isinstance(xs[0], Tensor) else xs[0], *parts)


def _kind(factor: Factor) -> tuple[Any, ...]:
    """Equal for factors of the same class, shapes and number of positions."""
    return type(factor), *(tuple(x.shape) if isinstance(x, Tensor) else x for x in tree.leaves(factor))


# ---- precision


def dtype_of(factor: Factor) -> torch.dtype:
    """In which products of the factor are made: float32 of factors of 16 bits, whose products it holds exactly."""
    kinds = [x.dtype for x in tree.leaves(factor) if isinstance(x, Tensor) and x.is_floating_point()]
    found = reduce(torch.promote_types, kinds)
    return torch.float32 if found.itemsize < 4 else found


def widened(factor: S, dtype: torch.dtype | None = None) -> S:
    """The factor in ``dtype_of`` it, or in another dtype: nothing is rounded."""
    to = dtype_of(factor) if dtype is None else dtype
    found: S = tree.map(lambda x: x.to(to) if isinstance(x, Tensor) and x.is_floating_point() else x, factor)
    return found


# ---- sizes


def n_data(factor: Factor) -> int:
    """Number of data."""
    return len(some_values(factor))


def n_positions(factor: Factor) -> int:
    """Number of positions of each datum: those of ``contributions``."""
    match factor:
        case Dense():
            return 1
        case Scaled(outer, _):
            return n_positions(outer)
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
        case Scaled(outer, _):
            return shape_of(outer)
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
        case Scaled(outer, _):
            return outer.signals
        case Sum(parts):
            return some_values(parts[0])
        case _:
            return factor.signals
