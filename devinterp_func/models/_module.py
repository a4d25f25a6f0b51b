"""Any ``nn.Module`` and a loss of one example as a model."""

import copy
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from devinterp_func import checks, keys
from devinterp_func.models._model import Model, sizes
from devinterp_func.tree import Params

REMEDY = "put that part in evaluation mode"


def module(module: nn.Module, loss: Callable[..., Tensor], name: str | None = None) -> Model:
    """A module as it is now: later changes of it do not reach the model, and nothing is changed or left on it.

    Parameters are those that require a gradient, tied ones once, under their first name. Frozen parameters and buffers
    are constants. Modules in training mode drop out, those in evaluation mode do not.

    Args:
        module: what ``loss`` calls.
        loss: ``loss(model, *example)``, a scalar; ``model`` is called as the module is. One example has no batch
            axis: a module that wants one is given ``x[None]``.
        name: of the model; by default the module's class.

    Returns:
        A model whose ``init`` gives clones of the module's own weights, whatever the key.

    Raises:
        TypeError: a parameter is not of floating point.
        ValueError: no parameter is trainable, one has no shape yet, or a norm would update its running statistics.

    >>> model = module(nn.Linear(3, 2), lambda model, x, y: (model(x) - y).square().mean())
    >>> model, model.shapes
    (Model Linear: 8 parameters in 2 tensors, {'weight': (2, 3), 'bias': (2,)})
    """
    checks.gradients_allowed()
    _refuse(module)
    own = dict(module.named_parameters())
    start = {name: w.detach().clone() for name, w in own.items() if w.requires_grad}
    frozen = [(name, w) for name, w in own.items() if not w.requires_grad]
    constants = {name: x.detach().clone() for name, x in (*frozen, *module.named_buffers())}
    skeleton = _skeleton(module)

    def of_one(params: Params, *example: Any) -> Tensor:
        def call(*args: Any, **kwargs: Any) -> Any:
            return functional_call(skeleton, params | constants, args, kwargs)

        before = {name: x._version for name, x in constants.items()}
        value = loss(call, *example)
        if changed := [name for name, x in constants.items() if x._version != before[name]]:
            raise ValueError(
                f"the loss changes {changed[0]} each time, so it is not a function of one example; {REMEDY}"
            )
        return value

    def init(key: keys.Key | int) -> Params:
        return {name: w.clone() for name, w in start.items()}

    source = {
        "kind": "module",
        "class": path(type(module)),
        "loss": path(loss),
        "training": module.training,
        "constants": digest(constants),
    }
    return Model(name or type(module).__name__, of_one, init, sizes(start), source)


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of tensors in order: names, dtypes, shapes and bytes."""
    total = sha256()
    for name, x in tensors.items():
        total.update(repr((name, str(x.dtype), tuple(x.shape))).encode())
        total.update(x.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def path(thing: Any) -> str:
    """Where a class or function is: ``package.module:Class``."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"


def _skeleton(module: nn.Module) -> nn.Module:
    """A copy that holds no numbers: every parameter and buffer is given at the call."""
    empty: dict[int, Tensor] = {
        id(w): nn.Parameter(w.detach().to("meta"), w.requires_grad) for w in module.parameters()
    }
    empty |= {id(x): x.detach().to("meta") for x in module.buffers()}
    return copy.deepcopy(module, empty)


def _refuse(module: nn.Module) -> None:
    where = type(module).__name__
    for name, w in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(w):
            raise ValueError(f"{where}'s {name} has no shape yet; call the module once on an example")
        if isinstance(w, nn.Parameter) and not w.is_floating_point():
            raise TypeError(f"{where}'s parameter {name} is {w.dtype}; only floats are trained: make it a buffer")
    if not any(w.requires_grad for w in module.parameters()):
        raise ValueError(f"{where} has no parameter that requires a gradient; call requires_grad_() on what is trained")
    moving = [name for name, part in module.named_modules() if isinstance(part, _NormBase) and _moves(part)]
    if moving:
        raise ValueError(
            f"{where}'s {moving[0] or 'norm'} updates its running statistics, so the loss is not a function of one "
            f"example; {REMEDY}, or use a layer or group norm"
        )


def _moves(norm: _NormBase) -> bool:
    return norm.training and norm.track_running_stats
