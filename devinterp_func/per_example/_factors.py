"""Factors: what a unit's per-datum gradients are made of, and all that can be had of them without forming one.

For a linear map with input a[j,k] and back-signal b[j,k] (datum j, position k), datum j's weight gradient is
Σ_k b[j,k] ⊗ a[j,k]; the other factors are its relatives. Whatever is linear in the signals, such as a delta, has the
same form.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import tree
from devinterp_func.tree import Params


class Outer(NamedTuple):
    """A linear map's weight: datum j's gradient is Σ_k signals[j,k] ⊗ inputs[j,k], shape (out, in)."""

    inputs: Float[Tensor, "n C i"]
    signals: Float[Tensor, "n C o"]


class Bias(NamedTuple):
    """A bias: datum j's gradient is Σ_k signals[j,k]."""

    signals: Float[Tensor, "n C o"]


class Gain(NamedTuple):
    """A layer norm's weight: datum j's gradient is Σ_k signals[j,k] · inputs[j,k], inputs standardised."""

    inputs: Float[Tensor, "n C o"]
    signals: Float[Tensor, "n C o"]


class Lookup(NamedTuple):
    """An embedding of ``rows`` rows: datum j's gradient has Σ_k [tokens[j,k] = v] signals[j,k] in row v."""

    tokens: Int[Tensor, "n C"]
    signals: Float[Tensor, "n C d"]
    rows: int


Factor = Outer | Bias | Gain | Lookup


def gradients(factors: dict[str, Factor]) -> dict[str, Float[Tensor, "n ..."]]:
    """Each datum's gradient of each unit, formed from its factors."""
    return {name: form(factor) for name, factor in factors.items()}


def form(factor: Factor, out: Tensor | None = None) -> Float[Tensor, "n ..."]:
    """Each datum's gradient of one unit, written into ``out`` if given."""
    match factor:
        case Outer(inputs, signals):
            return torch.bmm(signals.mT, inputs, out=out)
        case Bias(signals):
            return torch.sum(signals, dim=1, out=out)
        case Gain(inputs, signals):
            return torch.sum(signals * inputs, dim=1, out=out)
        case Lookup(tokens, signals, rows):
            table = signals.new_zeros(len(tokens), rows, signals.shape[-1]) if out is None else out.zero_()
            return table.scatter_add_(1, tokens[..., None].expand_as(signals), signals)


def token_gradients(factors: dict[str, Factor]) -> dict[str, Float[Tensor, "n C ..."]]:
    """Each token position's part of each datum's gradient: sums over C to ``gradients``, and is C times as large."""
    return {
        name: form(
            tree.map(lambda x: rearrange(x, "n C ... -> (n C) 1 ...") if isinstance(x, Tensor) else x, factor)
        ).unflatten(0, factor.signals.shape[:2])
        for name, factor in factors.items()
    }


def contributions(factor: Factor, datum: Int[Tensor, "m"], index: Int[Tensor, "m"]) -> Float[Tensor, "m C"]:
    """What each token position contributed to chosen entries of chosen data's gradients.

    Args:
        factor: of one unit.
        datum: row in the batch of each entry.
        index: row-major flat index of each entry in the unit.
    """
    width = factor.signals.shape[-1]
    match factor:
        case Outer(inputs, signals):
            wide = inputs.shape[-1]
            row = index.div(wide, rounding_mode="floor")
            column = index - row * wide
            return signals.mT[datum, row] * inputs.mT[datum, column]
        case Bias(signals):
            return signals.mT[datum, index]
        case Gain(inputs, signals):
            return signals.mT[datum, index] * inputs.mT[datum, index]
        case Lookup(tokens, signals, _):
            row = index.div(width, rounding_mode="floor")
            column = index - row * width
            return signals.mT[datum, column] * (tokens[datum] == row[:, None])


def scale_factors(factors: dict[str, Factor], factor: float | Tensor) -> dict[str, Factor]:
    """The factors of ``factor`` · gradient: only the signals are scaled."""
    return {name: f._replace(signals=f.signals * factor) for name, f in factors.items()}


def take_data(factor: Factor, rows: slice) -> Factor:
    """The factors of some of the data."""
    return tree.map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, factor)


def shape_of(factor: Factor) -> tuple[int, ...]:
    """Shape of the unit a factor belongs to."""
    width = factor.signals.shape[-1]
    match factor:
        case Outer(inputs, _):
            return (width, inputs.shape[-1])
        case Lookup(_, _, rows):
            return (rows, width)
        case _:
            return (width,)


def size_of(factor: Factor) -> int:
    """Number of parameters of the unit a factor belongs to."""
    return torch.Size(shape_of(factor)).numel()


SPARSE = 20  # of so many rows of a gradient at most one is other than 0: the others are left out of the product


def amounts(gradient: Params, factors: dict[str, Factor]) -> Float[Tensor, "n C"]:
    """⟨G, Δ_j⟩ over all units of ``factors``, split over the token positions of each datum.

    Args:
        gradient: G, by unit.
        factors: of every datum's Δ, by unit.

    >>> factors = {"w": Outer(torch.ones(1, 2, 3), torch.tensor([[[1.0], [2.0]]]))}
    >>> amounts({"w": torch.ones(1, 3)}, factors)
    tensor([[3., 6.]])
    """
    return torch.stack([_amounts(gradient[name], factor) for name, factor in factors.items()]).sum(0)


def _amounts(gradient: Tensor, factor: Factor) -> Float[Tensor, "n C"]:
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
    """‖Δ_j‖ over all units of ``factors``, without forming any Δ_j: from the Gram matrices of the positions."""
    return torch.stack([_square(factor) for factor in factors.values()]).sum(0).sqrt()


def _square(factor: Factor) -> Float[Tensor, "n"]:
    match factor:
        case Outer(inputs, signals):
            return ((inputs @ inputs.mT) * (signals @ signals.mT)).sum((1, 2))
        case Lookup(tokens, signals, _):
            return ((tokens[:, :, None] == tokens[:, None, :]) * (signals @ signals.mT)).sum((1, 2))
        case _:
            return form(factor).square().sum(1)


def total(factor: Factor) -> Tensor:
    """The change of a unit by all data together, Σ_j Δ_j, forming no datum's own."""
    joined = tree.map(lambda x: x.flatten(0, 1)[None] if isinstance(x, Tensor) else x, factor)
    return form(joined)[0]
