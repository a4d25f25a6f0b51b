"""Whether capture can be trusted for a graph: held against autograd, one example after the other, on real data."""

from typing import Any

import torch
from torch import Tensor

from devinterp_func import tree
from devinterp_func.graph import Graph, run_example
from devinterp_func.per_example._capture import capture
from devinterp_func.tree import Params

SMALL = 1e-3  # of the largest gradient of all: what is less, such as what cancels to 0, is measured against this
ROUNDED = 2.0**-4  # the same where the model rounds: 16 roundings to bfloat16 of the largest


def capture_missed(graph: Graph, params: Params, *batch: Any) -> dict[str, float]:
    """How far the batch gradient of ``capture`` misses autograd's of the same graph without ``vmap``; without dropout.

    ``vmap`` within autograd is wrong for an operation here and there, and silently so; this finds it on a few data.

    Args:
        graph, params: the model.
        batch: a few data, each tensor with a leading n.

    Returns:
        Unit -> the largest difference, as a share of the unit's largest gradient.

    >>> from devinterp_func import graph
    >>> model = graph.of(lambda p, x: (p["w"] * x).sin().sum(), {"w": torch.ones(2)}, torch.ones(2))
    >>> capture_missed(model, {"w": torch.ones(2)}, torch.eye(2))["w"] < 1e-6
    True
    """
    found, n = capture(graph, params, *batch).mean_grads, len(tree.leaves(batch)[0])
    each = [_gradient(graph, params, tree.map(lambda x, j=j: x[j], batch)) for j in range(n)]
    wanted = {name: torch.stack([one[name] for one in each]).mean(0) for name in params}
    least = (ROUNDED if graph.rounded else SMALL) * max(float(gradient.abs().max()) for gradient in wanted.values())
    return {
        name: float((found[name] - gradient).abs().max()) / max(float(gradient.abs().max()), least, 1e-30)
        for name, gradient in wanted.items()
    }


def _gradient(graph: Graph, params: Params, example: tuple[Any, ...]) -> Params:
    """One example's gradient by autograd."""
    own = {name: weight.detach().requires_grad_() for name, weight in params.items()}
    with torch.enable_grad():
        loss: Tensor = run_example(graph, own, example)
    if not loss.requires_grad:
        return {name: torch.zeros_like(weight) for name, weight in params.items()}
    gradients = torch.autograd.grad(loss, list(own.values()), materialize_grads=True)
    return dict(zip(own, gradients, strict=True))
