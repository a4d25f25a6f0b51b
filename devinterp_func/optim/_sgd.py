"""One SGD step with gradient clipping by global norm, as a pure function.

The post's formula has no clip coefficient c, and its code logged shifts before clipping; here c is part of the delta
(``_law.py``) and is kept beside it, so that the unclipped shift is one division away.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from devinterp_func import checks, tree
from devinterp_func.tree import Tree


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


@torch.no_grad()
def update(params: Tree, mean_grads: Tree, *, lr: float, max_norm: float) -> tuple[Tree, StepInfo]:
    """New parameters w − lr · c · g, and what the step used.

    Args:
        params: the weights w, any tree of tensors; the new ones carry no autograd graph.
        mean_grads: the batch gradient g of every parameter.
        lr: learning rate.
        max_norm: the largest gradient norm left unclipped; ``math.inf`` clips none.

    Raises:
        ValueError: if a parameter has no gradient, or lr or max_norm is not positive.

    >>> update({"w": torch.zeros(2)}, {"w": torch.tensor([3.0, 4.0])}, lr=1.0, max_norm=0.5)
    ({'w': tensor([-0.3000, -0.4000])}, StepInfo(lr=1, clip=0.1, grad_norm=5))
    """
    if missing := tree.flat(params).keys() ^ tree.flat(mean_grads).keys():
        raise ValueError(f"params and mean_grads differ in {sorted(missing)}; both need every parameter")
    lr, max_norm = checks.positive("lr", lr), checks.positive("max_norm", max_norm, infinite=True)
    norm = tree.norm(mean_grads)
    clip = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    info = StepInfo(torch.as_tensor(lr, dtype=norm.dtype, device=norm.device), clip, norm)
    factor = float(info.lr * clip)
    return tree.map(lambda w, g: torch.sub(w, g, alpha=factor), params, mean_grads), info
