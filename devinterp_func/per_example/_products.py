"""Products of factors: what each position gave, and what can be had of per-datum gradients without forming one."""

from functools import reduce

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import tree
from devinterp_func.per_example._factors import (
    Bias,
    Dense,
    Factor,
    Gain,
    Lookup,
    Outer,
    Scaled,
    Single,
    Sum,
    flat_shape,
    n_data,
    n_positions,
    size_of,
    widened,
)
from devinterp_func.per_example._form import form
from devinterp_func.per_example._maps import scale, take_data
from devinterp_func.tree import Params, wide

FORMED = 2**18  # numbers of gradients with a gain that are formed at once
SPARSE = 20  # of so many rows of a gradient at most one is other than 0: the others are left out of the product


def token_gradients(factors: dict[str, Factor]) -> dict[str, Float[Tensor, "n C ..."]]:
    """Each position's part of each datum's gradient: sums over C to ``gradients``, and is C times as large."""
    return {name: _position_gradients(factor) for name, factor in factors.items()}


def _position_gradients(factor: Factor) -> Float[Tensor, "n C ..."]:
    match factor:
        case Dense(gradients):
            return wide(gradients)[:, None]
        case Scaled(outer, gain):
            return _position_gradients(outer) * gain
        case Sum(parts):
            return _by_position([_position_gradients(part) for part in parts])
        case _:
            alone = tree.map(lambda x: rearrange(x, "n C ... -> (n C) 1 ...") if isinstance(x, Tensor) else x, factor)
            return form(alone).unflatten(0, factor.signals.shape[:2])


def contributions(factor: Factor, datum: Int[Tensor, "m"], index: Int[Tensor, "m"]) -> Float[Tensor, "m C"]:
    """What each position contributed to chosen entries of chosen data's gradients.

    Args:
        factor: of one unit.
        datum: row in the batch of each entry.
        index: row-major flat index of each entry in the unit.
    """
    match factor:
        case Outer(inputs, signals):
            row, column = _split(index, inputs.shape[-1])
            return wide(signals.mT[datum, row]) * wide(inputs.mT[datum, column])
        case Bias(signals):
            return wide(signals.mT[datum, index])
        case Gain(inputs, signals):
            return wide(signals.mT[datum, index]) * wide(inputs.mT[datum, index])
        case Lookup(tokens, signals, _):
            row, column = _split(index, signals.shape[-1])
            return wide(signals.mT[datum, column]) * (tokens[datum] == row[:, None])
        case Dense(gradients):
            return wide(gradients.reshape(len(gradients), -1)[datum, index])[:, None]
        case Scaled(outer, gain):
            return contributions(outer, datum, index) * gain.reshape(-1)[index][:, None]
        case Sum(parts):
            return _by_position([contributions(part, datum, index) for part in parts])


def _split(index: Int[Tensor, "m"], width: int) -> tuple[Int[Tensor, "m"], Int[Tensor, "m"]]:
    row = index.div(width, rounding_mode="floor")
    return row, index - row * width


def _by_position(parts: list[Float[Tensor, "n _ ..."]]) -> Float[Tensor, "n C ..."]:
    """The parts of a ``Sum``, each (n, its positions, ...)."""
    if len({part.shape[1] for part in parts}) == 1:
        return reduce(torch.add, parts)
    return torch.cat(parts, 1)


def amounts(gradient: Params, factors: dict[str, Factor]) -> Float[Tensor, "n C"]:
    """⟨G, Δ_j⟩ over all units of ``factors``, split over the positions of each datum.

    Where the units differ in their number of positions, these cannot be added: then C is 1, the whole datum.

    Args:
        gradient: G, by unit.
        factors: of every datum's Δ, by unit.

    >>> factors = {"w": Outer(torch.ones(1, 2, 3), torch.tensor([[[1.0], [2.0]]]))}
    >>> amounts({"w": torch.ones(1, 3)}, factors)
    tensor([[3., 6.]])
    """
    parts = [_amounts(gradient[name], factor) for name, factor in factors.items()]
    if len({part.shape[1] for part in parts}) > 1:
        parts = [part.sum(1, keepdim=True) for part in parts]
    return torch.stack(parts).sum(0)


def _amounts(gradient: Tensor, factor: Factor) -> Float[Tensor, "n C"]:
    match factor:
        case Dense(gradients):
            return wide(gradients).reshape(len(gradients), -1) @ gradient.reshape(-1, 1)
        case Scaled(outer, gain):
            return _amounts(gradient * gain, outer)
        case Sum(parts):
            return _by_position([_amounts(gradient, part) for part in parts])
    gradient, factor = gradient.reshape(flat_shape(factor)), widened(factor)
    match factor:
        case Outer(inputs, signals):
            rows = gradient.any(1)  # most probes have a gradient in few rows of the decoder, or in none
            if len(rows) > SPARSE * int(rows.sum()):
                gradient, signals = gradient[rows], signals[..., rows]
            return ((signals @ gradient) * inputs).sum(-1)
        case Bias(signals):
            return signals @ gradient
        case Gain(inputs, signals):
            return (signals * inputs) @ gradient
        case Lookup(tokens, signals, _):
            return (signals * gradient[tokens]).sum(-1)


@torch.no_grad()
def delta_norms(factors: dict[str, Factor]) -> Float[Tensor, "n"]:
    """‖Δ_j‖ over all units of ``factors``, from the Gram matrices of the positions where these are smaller than Δ_j."""
    return torch.stack([_square(factor) for factor in factors.values()]).sum(0).clamp(min=0).sqrt()


def _square(factor: Factor) -> Float[Tensor, "n"]:
    parts = _parts(factor)
    pairs = [(1 if i == j else 2) * _inner(a, b) for i, a in enumerate(parts) for j, b in enumerate(parts[: i + 1])]
    return torch.stack(pairs).sum(0)


def _parts(factor: Factor) -> list[Single]:
    """The parts of a sum and of the sums within it; of another factor itself."""
    return [p for part in factor.parts for p in _parts(part)] if isinstance(factor, Sum) else [widened(factor)]


def _inner(a: Single, b: Single) -> Float[Tensor, "n"]:
    """⟨a_j, b_j⟩ for each datum's gradients by two parts of one unit."""
    if isinstance(a, Scaled):
        return _scaled_inner(a, b)
    if isinstance(b, Scaled):
        return _scaled_inner(b, a)
    gram = _gram(a, b) if n_positions(a) * n_positions(b) < size_of(a) else None
    if gram is not None:
        return gram.sum((1, 2))
    formed = form(a)
    return (formed.square() if a is b else formed * form(b)).reshape(n_data(a), -1).sum(1)


def _scaled_inner(a: Scaled, b: Single) -> Float[Tensor, "n"]:
    """``_inner`` of outer products with a gain."""
    if not isinstance(b, Outer | Scaled):
        moved = _parts(scale(b, a.gain))  # a gain is as well the other's, where that stays as small: one part
        return _inner(a.factor, moved[0])
    shape = flat_shape(a.factor)
    if flat_shape(b.factor if isinstance(b, Scaled) else b) != shape:
        each = [slice(j, j + 1) for j in range(n_data(a))]  # those of a large table fill the memory
        return torch.stack([(form(take_data(a, j)) * form(take_data(b, j))).sum() for j in each])
    found, rows = a.factor.signals.new_zeros(n_data(a)), max(1, FORMED // max(1, n_data(a) * shape[1]))
    for at in range(0, shape[0], rows):  # some rows at a time: what is formed of these stays in the cache
        one = _some_rows(a, slice(at, at + rows))
        other = one if a is b else _some_rows(b, slice(at, at + rows))
        found += (one * other).flatten(1).sum(1)
    return found


def _some_rows(factor: Outer | Scaled, rows: slice) -> Float[Tensor, "n r i"]:
    """Some rows of each datum's gradient."""
    if isinstance(factor, Scaled):
        gain = factor.gain.reshape(flat_shape(factor.factor))
        return _some_rows(factor.factor, rows).mul_(gain[rows])
    return factor.signals[..., rows].mT @ factor.inputs


def _gram(a: Single, b: Single) -> Float[Tensor, "n C D"] | None:
    """The inner products of all positions' parts of a with those of b; None where forming is the only way."""
    if isinstance(a, Dense | Scaled) or isinstance(b, Dense | Scaled) or flat_shape(a) != flat_shape(b):
        return None
    match a, b:
        case Outer(), Outer():
            return (a.inputs @ b.inputs.mT) * (a.signals @ b.signals.mT)
        case Lookup(), Lookup():
            return (a.tokens[:, :, None] == b.tokens[:, None, :]) * (a.signals @ b.signals.mT)
        case Outer(), Lookup():
            at = b.tokens[:, None, :].expand(-1, n_positions(a), -1)
            return a.signals.gather(2, at) * (a.inputs @ b.signals.mT)
        case Lookup(), Outer():
            return _gram(b, a)
    return None
