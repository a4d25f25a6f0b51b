"""Read-only tensors: an in-place operation on one is refused before it runs.

Torch has no such tensors of its own (inference tensors complain only after they were written to). Two doors stay
open, as nobody enters them by accident: raw pointers, and in-place operations on what ``vmap`` hands to its function.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from devinterp_func.tree import Tree, map

SPECIAL = {"__setitem__", "__set__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__"}


class FrozenTensor(Tensor):
    """A tensor that refuses in-place operations. Its views are frozen too; everything computed from it is plain.

    >>> row = freeze(torch.zeros(2, 3))[0]
    >>> row += 1
    Traceback (most recent call last):
    ValueError: add_ writes to a read-only tensor; .clone() it first
    >>> row + 1
    tensor([1., 1., 1.])
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").partition(".")[0]
        if any(True for target in _targets(name, args, kwargs) for _ in _frozen(target)):
            raise _refusal(name)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            return _freeze_views(result, {_storage(tensor) for tensor in _frozen((args, kwargs))})

    def __iter__(self) -> Iterator[Tensor]:  # torch's own hands out an iterator, whose views nobody would freeze
        return iter(self.unbind(0))

    def __format__(self, spec: str) -> str:
        return self.clone().__format__(spec)

    def set_(self, *_: Any) -> Tensor:  # the one in-place method that torch does not dispatch
        raise _refusal("set_")

    def __deepcopy__(self, memo: dict) -> Tensor:
        return self.clone()

    def __reduce_ex__(self, protocol: Any) -> Any:  # a view would pickle all of its storage
        return self.clone().__reduce_ex__(protocol)


def freeze(tree: Tree) -> Tree:
    """The same tree, its tensors read-only; they share memory with the given ones, which stay as they are."""
    return map(lambda leaf: leaf.as_subclass(FrozenTensor) if isinstance(leaf, Tensor) else leaf, tree)


def _refusal(name: str) -> ValueError:
    """NumPy's exception for this; a TypeError would be swallowed by torch's ``+=``, which then is ``x = x + ...``."""
    return ValueError(f"{name} writes to a read-only tensor; .clone() it first")


def _targets(name: str, args: tuple, kwargs: Mapping) -> Iterator[Any]:
    """What a call writes to: its first argument if it works in place, and ``out``."""
    if name in SPECIAL or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace"):
        yield args[0] if args else tuple(kwargs.values())
    yield kwargs.get("out")


def _frozen(value: Any) -> Iterator[FrozenTensor]:
    """The frozen tensors within nested tuples, lists and dicts."""
    if isinstance(value, FrozenTensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _frozen(part)


def _freeze_views(result: Any, storages: set[int]) -> Any:
    if isinstance(result, Tensor):
        return result.as_subclass(FrozenTensor) if _storage(result) in storages else result
    if type(result) in (tuple, list):
        return type(result)(_freeze_views(part, storages) for part in result)
    if isinstance(result, np.ndarray):
        result.flags.writeable = False
    return result


def _storage(tensor: Tensor) -> int:
    """Identity of the tensor's memory; 0 for what torch.func wraps and for layouts without a storage."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or tensor.layout != torch.strided:
        return 0
    return tensor.untyped_storage()._cdata
