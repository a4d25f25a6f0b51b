"""A card that is none: a device whose tensors lie in main memory, and which is as strict as a GPU about what meets.

Its tensors hold tensors of the CPU and say that they are on ``card:0``. Every operation runs on the CPU, after it was
held against a GPU's rules: no tensor of the CPU may take part but a number in an elementwise operation, an index, and
what is copied. So where code makes a tensor without saying on which device, or forgets ``.cpu()``, it fails here as it
would on a GPU.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

CARD = "card"
COPIES = {"_to_copy", "copy_", "copy", "_copy_from", "_copy_from_and_resize", "to"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


class OnCard(Tensor):
    """A tensor that says it is on the card."""

    inner: Any  # the tensor that it holds

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnCard":
        inner = torch.zeros_like(inner) if inner._is_zerotensor() else inner  # which has no memory to work on
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(CARD, 0),
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def tolist(self) -> Any:  # torch refuses it of what it thinks of as wrapped
        return self.inner.tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None) -> Tensor:  # type: ignore[override]
        return tensor(data, dtype=dtype or self.dtype, device=self.device)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple, kwargs: dict) -> Any:
    name = func._schema.name.partition("::")[2]
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    held = {id(x.inner): x for x in given if isinstance(x, OnCard)}
    device = kwargs.get("device")
    if held and name not in COPIES:
        _require_one_device(name, args, kwargs, elementwise=torch.Tag.pointwise in func.tags)
    out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    stays = device is None and held or device is not None and torch.device(device).type == CARD
    if name in ("copy_", "_copy_from"):
        stays = isinstance(args[0 if name == "copy_" else 1], OnCard)
    return tree_map(lambda x: _outer(x, held) if isinstance(x, Tensor) and stays else x, out)


def _inner(x: Any) -> Any:
    if isinstance(x, OnCard):
        return x.inner
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == CARD else x


def _outer(x: Tensor, held: dict[int, OnCard]) -> OnCard:
    there = held.get(id(x))
    return there if there is not None and there.shape == x.shape else OnCard(x)  # squeeze_ gives another shape


def _require_one_device(name: str, args: tuple, kwargs: dict, elementwise: bool) -> None:
    looked = (args[0], args[2:]) if name in INDEXED else (args, kwargs)
    for x in tree_leaves(looked):
        if isinstance(x, Tensor) and not isinstance(x, OnCard) and not (elementwise and x.ndim == 0):
            raise RuntimeError(f"{name}: all tensors must be on one device, but one of {tuple(x.shape)} is on the CPU")


def _outside(func: Any, *args: Any, **kwargs: Any) -> Any:
    return _run(func, args, kwargs)


def set_up() -> None:
    """Makes the device known to torch, once a process."""
    if torch._C._get_privateuse1_backend_name() == CARD:
        return
    _setup_privateuseone_for_python_backend(CARD)
    LIBRARY.fallback(_outside, "PrivateUse1")


def tensor(data: Any, *, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
    """``torch.tensor``, which knows no device that is made in Python."""
    made = MADE(data, dtype=dtype)
    return made if device is None else made.to(device)


MADE = torch.tensor
LIBRARY = torch.library.Library("_", "IMPL")
