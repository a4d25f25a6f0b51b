"""Muon (Jordan et al. 2024): momentum orthogonalised by Newton-Schulz; for 2-D weights."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp

from devinterp_func import checks
from devinterp_func.optim._rule import Buffers, clipped
from devinterp_func.optim._sgd import MOMENTUM
from devinterp_func.optim._share import Matrix, Share

Adjustment = Literal["original", "match_rms_adamw"]
ADJUSTMENTS = get_args(Adjustment)
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's quintic


@dataclass(frozen=True)
class Muon:
    """m' = μ m + (1 − μ) u; w' = w − lr · λ · w − lr' · NS(m'), Nesterov's: NS((1 − μ) u + μ m'). ``torch.optim.Muon``.

    Newton-Schulz is M ↦ P M (of a tall M: M Pᵀ) with a matrix P that M makes: ``orthogonaliser``. It is iterated in the
    weights' own dtype, where torch takes bfloat16. lr' is lr by the weight's shape: times √max(1, rows / columns) in
    "original", times 0.2 √max(rows, columns) in "match_rms_adamw".

    Raises:
        TypeError, ValueError: a value of another type or out of range; it is named.
    """

    momentum: float = 0.95
    nesterov: bool = True
    weight_decay: float = 0.1
    coefficients: tuple[float, float, float] = COEFFICIENTS
    eps: float = 1e-7  # the least norm that is divided by
    ns_steps: int = 5
    adjust: Adjustment = "original"

    def __post_init__(self) -> None:
        object.__setattr__(self, "momentum", checks.number("momentum", self.momentum))
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; Muon's must be at least 0 and below 1")
        if self.adjust not in ADJUSTMENTS:
            raise ValueError(f"adjust is {self.adjust!r}; it must be one of {', '.join(ADJUSTMENTS)}")
        object.__setattr__(self, "nesterov", checks.flag("nesterov", self.nesterov))
        object.__setattr__(self, "coefficients", checks.numbers("coefficients", self.coefficients, 3))
        object.__setattr__(self, "weight_decay", checks.non_negative("weight_decay", self.weight_decay))
        object.__setattr__(self, "eps", checks.positive("eps", self.eps))
        object.__setattr__(self, "ns_steps", checks.integer("ns_steps", self.ns_steps))

    @property
    def remembered(self) -> tuple[str, ...]:
        """Names of the buffers."""
        return (MOMENTUM,)

    def init(self, weight: Tensor) -> Buffers:
        """What is remembered of a unit before the first step.

        Raises:
            ValueError: the weight is not 2-D.
        """
        if weight.ndim != 2:
            raise ValueError(f"Muon steps 2-D weights, and this one's shape is {tuple(weight.shape)}; use another rule")
        return {MOMENTUM: torch.zeros_like(weight)}

    def step(
        self, weight: Tensor, grad: Tensor, clip: float, buffers: Buffers, lr: float, t: int, decayed: bool
    ) -> tuple[Tensor, Buffers, Share]:
        """One unit's step, the t-th from 1: its new weight and memory, and how the step came about."""
        decay, mu = self.weight_decay if decayed else 0.0, self.momentum
        u, memory = clipped(weight, grad, clip, 0.0), buffers[MOMENTUM]
        new = torch.lerp(memory, u, 1 - mu)
        direction = torch.lerp(u, new, mu) if self.nesterov else new
        present, past = ((1 - mu) * (1 + mu), mu * mu) if self.nesterov else (1 - mu, mu)
        left = weight.shape[0] <= weight.shape[1]
        wide = direction if left else direction.mT
        P = orthogonaliser(wide, self.coefficients, self.ns_steps, self.eps) * -self._rate(lr, weight)
        change = P @ wide
        shrunk = weight * (1 - lr * decay) if decay else weight
        share = Share(Matrix(P, left), present, past, mu, 1 - mu, memory, -lr * decay, 0.0)
        return shrunk + (change if left else change.mT), {MOMENTUM: new}, share

    def apply(
        self, weight: Tensor, grad: Tensor, buffers: Buffers, lr: float, t: int, decayed: bool
    ) -> tuple[Tensor, Buffers]:
        """The same step by a gradient that is clipped already, of operations that ``torch.func`` differentiates."""
        decay, mu = self.weight_decay if decayed else 0.0, self.momentum
        new = mu * buffers[MOMENTUM] + (1 - mu) * grad
        direction = (1 - mu) * grad + mu * new if self.nesterov else new
        left = weight.shape[0] <= weight.shape[1]
        wide = direction if left else direction.mT
        change = orthogonaliser(wide, self.coefficients, self.ns_steps, self.eps) @ wide * self._rate(lr, weight)
        return weight * (1 - lr * decay) - (change if left else change.mT), {MOMENTUM: new}

    def pull(
        self,
        weight: Tensor,
        grad: Tensor,
        clip: float,
        buffers: Buffers,
        lr: float,
        t: int,
        decayed: bool,
        back: Tensor,
        memory: Buffers,
    ) -> tuple[Tensor, Tensor, Buffers]:
        """Derivatives by the new weight and memory, pulled back to the weight, the clipped gradient and the memory."""

        def step(weight: Tensor, grad: Tensor, buffers: Buffers) -> tuple[Tensor, Buffers]:
            return self.apply(weight, grad, buffers, lr, t, decayed)

        found: tuple[Tensor, Tensor, Buffers] = vjp(step, weight, grad * clip, buffers)[1]((back, memory))
        return found

    def _rate(self, lr: float, weight: Tensor) -> float:
        rows, columns = weight.shape
        if self.adjust == "original":
            return lr * max(1, rows / max(1, columns)) ** 0.5
        return lr * (0.2 * max(rows, columns) ** 0.5)


def orthogonaliser(
    wide: Float[Tensor, "r c"],
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    steps: int = 5,
    eps: float = 1e-7,
) -> Float[Tensor, "r r"]:
    """P, by which Newton-Schulz multiplies a matrix of r ≤ c: X₀ = M / ‖M‖, X ← (a + b XXᵀ + c (XXᵀ)²) X, P M = X.

    Args:
        wide: M.
        coefficients: a, b and c.
        steps: how often it is iterated.
        eps: the least ‖M‖ that is divided by.

    Returns:
        P, a polynomial of M Mᵀ, so symmetric. Singular values of P M are near 1 where those of M are not near 0.

    >>> M = torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 1.0]])
    >>> torch.linalg.svdvals(orthogonaliser(M) @ M).round(decimals=1)
    tensor([1.1000, 0.7000])
    """
    a, b, c = coefficients
    norm = torch.linalg.vector_norm(wide).clamp(min=eps)
    X, P = wide / norm, torch.eye(len(wide), dtype=wide.dtype, device=wide.device) / norm
    for i in range(steps):
        gram = X @ X.mT
        update = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        P = torch.addmm(P, update, P, beta=a)
        X = torch.addmm(X, update, X, beta=a) if i < steps - 1 else X
    return P
