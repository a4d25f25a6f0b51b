"""Per-example gradients as they are defined, for any pure loss: slow, obviously right."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import grad, vmap

from devinterp_func import checks, tree
from devinterp_func.tree import Tree

Randomness = Literal["error", "same", "different"]


def grads(loss: Callable[..., Tensor], *, randomness: Randomness = "error", loop: bool = False) -> Callable[..., Tree]:
    """Per-example gradients of any pure ``loss(params, *example) -> scalar``: the definition, ``vmap(grad(loss))``.

    Args:
        loss: of one example.
        randomness: of ``vmap``, for a loss that draws random numbers: "different" draws for each example.
        loop: take the examples one after the other, for what ``vmap`` cannot do (GRU and LSTM cells, ``.item()``).

    Returns:
        A function of (params, *batch), every leaf of the batch with a leading n, giving a tree like params whose leaves
        have a leading n and carry no autograd graph.

    Raises:
        RuntimeError: within torch's inference mode.
        TypeError: a parameter that is not floating point; it is named.
        ValueError: a batch of no examples, or of unequal numbers of them.

    >>> grads(lambda w, x: (w * x).sum())(torch.zeros(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[1., 2.],
            [3., 4.]])
    """

    def per_example(params: Tree, *batch: Any) -> Tree:
        checks.gradients_allowed()
        n = _check(params, batch)
        params = tree.map(lambda leaf: leaf.detach(), params)
        if loop:
            each = [tree.map(lambda leaf, j=j: leaf[j], batch) for j in range(n)]
            return tree.stack([tree.map(torch.Tensor.detach, grad(loss)(params, *example)) for example in each])
        found = vmap(grad(loss), in_dims=(None, *(0 for _ in batch)), randomness=randomness)(params, *batch)
        return tree.map(torch.Tensor.detach, found)

    return per_example


def _check(params: Tree, batch: tuple[Any, ...]) -> int:
    for name, leaf in tree.flat(params).items():
        if not leaf.is_floating_point():
            what = f"parameter {name!r}" if name else "the parameter"
            raise TypeError(
                f"{what} is {leaf.dtype}; only floating-point tensors have gradients: leave it out of params"
            )
    sizes = {len(leaf) if leaf.ndim else 0 for leaf in tree.leaves(batch)}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(f"the batch's leaves have {sorted(sizes)} examples; all must have the same number, at least 1")
    return sizes.pop()
