"""How one unit's step came about: a linear map of its gradient and of what the optimizer remembers.

Given the step's second moments, or its orthogonaliser, every rule here is linear. With u = c · g + λ · w, the clipped
gradient with the decay that is coupled to it, and m the memory before the step,

    w' − w = L(present · u + past · m) + decay · w        m' = keep · m + take · u

L is the gain: a number, an array, or a matrix. So the step is split exactly over its data and what came before. It is
not what the step would have been without a datum: then L would be another.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from devinterp_func import per_example
from devinterp_func.per_example import Factor


class Rooted(NamedTuple):
    """Entry by entry: scale / (√second / correction + eps). The array is made when it is asked for."""

    scale: float
    second: Float[Tensor, "..."]  # the mean square of the gradient, this step's included
    correction: float  # √(1 − β₂ᵗ)
    eps: float

    def array(self) -> Float[Tensor, "..."]:
        """The gain of each entry."""
        return self.scale / self.root()

    def root(self) -> Float[Tensor, "..."]:
        """What the gain divides by."""
        return self.second.sqrt().div_(self.correction).add_(self.eps)


class Matrix(NamedTuple):
    """matrix @ x, or x @ matrixᵀ."""

    matrix: Float[Tensor, "m m"]
    left: bool


Map = float | Rooted | Matrix


class Share(NamedTuple):
    """One unit's step as a linear map."""

    gain: Map  # L, the learning rate and its sign included
    present: float
    past: float
    keep: float
    take: float
    memory: Float[Tensor, "..."] | None  # m, None where there is none
    decay: float  # decoupled: −lr · λ
    coupled: float  # λ, where the decay is part of the gradient
    products: Float[Tensor, "p"] | None = None
    """``inner_products`` of what L's array multiplies in g, m and, where it decays, w; where the step measured them in
    passing, when all these were in the cache. float64."""


def inner_products(parts: Sequence[Tensor]) -> Float[Tensor, "p"]:
    """Inner products of all pairs of some vectors: the lower triangle, row by row."""
    return torch.stack([a.dot(b) for i, a in enumerate(parts) for b in parts[: i + 1]])


def apply_gain(gain: Map, x: Tensor) -> Tensor:
    """L(x)."""
    match gain:
        case Rooted():
            return x * gain.array()
        case Matrix(matrix, left):
            return matrix @ x if left else x @ matrix.mT
        case number:
            return x * number


def pull_gain(gain: Map, covector: Tensor) -> Tensor:
    """Lᵀ(G), for which ⟨G, L(x)⟩ = ⟨Lᵀ(G), x⟩."""
    match gain:
        case Matrix(matrix, left):
            return matrix.mT @ covector if left else covector @ matrix
        case _:
            return apply_gain(gain, covector)


def apply_gain_to_factor(gain: Map, factor: Factor, by: float | Tensor) -> Factor:
    """The factor of L(by · gradient)."""
    match gain:
        case Rooted():
            return per_example.scale(factor, gain.array().mul_(by))
        case Matrix(matrix, left):
            return per_example.multiply(factor, matrix * by, left)
        case number:
            return per_example.scale(factor, by * number)
