"""One SGD step with gradient clipping, and its split over the data: the deltas.

    g = (1/n) Σ_j g_j        c = min(1, max_norm / (‖g‖ + 1e-6))        Δ_j = −lr · c · g_j / n

The law: w' − w = Σ_j Δ_j. The post's formula has no clip coefficient c, and its code logged shifts before clipping;
here c is part of the delta and is kept beside it, so that the unclipped shift is one division away.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from devinterp_func import tree
from devinterp_func.tree import Params, Tree


class StepInfo(NamedTuple):
    """What a step used: 0-d tensors."""

    lr: Float[Tensor, ""]
    clip: Float[Tensor, ""]  # c, 1 where clipping was idle
    grad_norm: Float[Tensor, ""]  # ‖g‖ over ALL parameters, before clipping

    def __repr__(self) -> str:
        return f"StepInfo(lr={self.lr:.6g}, clip={self.clip:.6g}, grad_norm={self.grad_norm:.6g})"


def learning_rate(epoch: int, lr: float = 5.0, gamma: float = 0.9) -> float:
    """lr · gamma^epoch: the rate is multiplied by gamma after each epoch, the first being 0."""
    return lr * gamma**epoch


def update(params: Params, mean_grads: Params, *, lr: float, max_norm: float) -> tuple[Params, StepInfo]:
    """New parameters w − lr · c · g, and what the step used.

    Args:
        params: the weights w.
        mean_grads: the batch gradient g of every parameter.
        lr: learning rate.
        max_norm: the largest gradient norm left unclipped; ``math.inf`` switches clipping off.

    Raises:
        ValueError: if a parameter has no gradient, or lr or max_norm is not positive.

    >>> update({"w": torch.zeros(2)}, {"w": torch.tensor([3.0, 4.0])}, lr=1.0, max_norm=0.5)
    ({'w': tensor([-0.3000, -0.4000])}, StepInfo(lr=1, clip=0.1, grad_norm=5))
    """
    if missing := params.keys() ^ mean_grads.keys():
        raise ValueError(f"params and mean_grads differ in {sorted(missing)}; both need every parameter")
    for name, value in (("lr", lr), ("max_norm", max_norm)):
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be positive")
    norm = tree.norm(mean_grads)
    clip = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    info = StepInfo(torch.as_tensor(lr, dtype=norm.dtype, device=norm.device), clip, norm)
    factor = float(info.lr * clip)
    return {name: torch.sub(w, mean_grads[name], alpha=factor) for name, w in params.items()}, info


def deltas(per_example_grads: Tree, info: StepInfo) -> Tree:
    """Each datum's part of the update, Δ_j = −lr · c · g_j / n: sums over its leading n to the update."""
    n = len(tree.leaves(per_example_grads)[0])
    return tree.scale(per_example_grads, share(info, n))


def share(info: StepInfo, n: int) -> Float[Tensor, ""]:
    """−lr · c / n, what turns the gradient of one of n data into its delta."""
    return -info.lr * info.clip / n


def residual(before: Params, after: Params, deltas: Params) -> dict[str, float]:
    """How far a step misses the law: ‖(w' − w) − Σ_j Δ_j‖ / ‖w' − w‖ per unit, in float64.

    Args:
        before, after: weights around the step.
        deltas: per-datum deltas (n, ...) of some units.
    """
    return {name: _relative(after[name].double() - before[name].double(), d) for name, d in deltas.items()}


def _relative(moved: Tensor, deltas: Float[Tensor, "n ..."]) -> float:
    missed = torch.linalg.vector_norm(moved - deltas.sum(0, dtype=torch.float64))
    return float(missed / torch.linalg.vector_norm(moved)) if bool(missed) else 0.0
