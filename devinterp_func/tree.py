"""Parameter trees: a flat dict under torch's dotted names, and the few operations the update needs.

A dict of tensors is a pytree to ``torch.func``, it is what safetensors stores, and it is what
``dict(module.named_parameters())`` gives, so every function here also takes somebody else's model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

Params = dict[str, Tensor]
Tree = Any  # any pytree of tensors: dicts, lists, tuples, NamedTuples


def map(f: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """``f`` at every leaf of one tree, or of several of the same structure (``jax.tree.map``)."""
    return tree_map(f, tree, *rest)


def leaves(tree: Tree) -> list[Any]:
    """The leaves in order (``jax.tree.leaves``)."""
    return tree_leaves(tree)


def add(a: Tree, b: Tree) -> Tree:
    """a + b, leaf by leaf.

    >>> add({"w": torch.ones(2)}, {"w": torch.ones(2)})
    {'w': tensor([2., 2.])}
    """
    return map(torch.add, a, b)


def sub(a: Tree, b: Tree) -> Tree:
    """a - b, leaf by leaf."""
    return map(torch.sub, a, b)


def scale(tree: Tree, factor: float | Tensor) -> Tree:
    """factor · tree."""
    return map(lambda leaf: leaf * factor, tree)


def dot(a: Tree, b: Tree) -> Float[Tensor, ""]:
    """⟨a, b⟩ over all leaves."""
    return torch.stack([torch.sum(x * y) for x, y in zip(leaves(a), leaves(b), strict=True)]).sum()


def norm(tree: Tree) -> Float[Tensor, ""]:
    """Euclidean norm over all entries of all leaves."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(leaf) for leaf in leaves(tree)]))


def wide(x: Tensor) -> Tensor:
    """Floating-point numbers of 16 bits as float32, which holds all of them; anything else as it is.

    >>> wide(torch.ones(2, dtype=torch.bfloat16)).dtype, wide(torch.ones(2, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def flat(tree: Tree) -> Params:
    """The leaves by dotted name: what a nested tree is called among flat ones.

    >>> list(flat({"layer": {"w": torch.ones(2), "b": torch.ones(2)}, "scale": torch.ones(())}))
    ['layer.w', 'layer.b', 'scale']
    """
    return dict(_named(tree, ""))


def _named(tree: Tree, name: str) -> Iterator[tuple[str, Any]]:
    fields = None if isinstance(tree, Tensor) else _fields(tree)
    if fields is None:
        yield name, tree
        return
    for key, part in fields.items():
        yield from _named(part, f"{name}.{key}" if name else str(key))


def stack(items: Sequence[Tree]) -> Tree:
    """Trees of the same structure as one, each leaf stacked along a new first axis.

    >>> stack([{"w": torch.tensor(1.0)}, {"w": torch.tensor(2.0)}])
    {'w': tensor([1., 2.])}
    """
    return map(lambda *leaves: torch.stack(leaves), *items)


def describe(tree: Tree, indent: str = "") -> str:
    """The tree in short, a line a leaf: name, shape, dtype and norm; for a person at a prompt."""
    if isinstance(tree, Tensor):
        return _describe_tensor(tree)
    fields = _fields(tree)
    if fields is None:
        return repr(tree)
    lines = [f"{indent}{name}: {_describe_field(value, indent)}" for name, value in fields.items()]
    return "\n".join(lines)


def _describe_field(value: Tree, indent: str) -> str:
    return describe(value) if _fields(value) is None else "\n" + describe(value, indent + "  ")


def _fields(tree: Tree) -> Mapping[Any, Tree] | None:
    """A node's children by name or number; None for a leaf."""
    if hasattr(tree, "_asdict"):
        return tree._asdict()
    if isinstance(tree, list | tuple):
        return dict(enumerate(tree))
    return tree if isinstance(tree, Mapping) else None


def _describe_tensor(tensor: Tensor) -> str:
    if tensor.ndim == 0:
        return f"{tensor.item():.6g}"
    kind = str(tensor.dtype).removeprefix("torch.")
    norm = f" norm {torch.linalg.vector_norm(tensor.detach()).item():.4g}" if tensor.is_floating_point() else ""
    return f"{kind}{list(tensor.shape)}{norm}"
