"""A model whose loss is computed in bfloat16 where torch's autocast says so; its parameters stay as they are."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from devinterp_func.models._model import Model
from devinterp_func.tree import Params

KIND = "autocast"
DTYPES = {"bfloat16": torch.bfloat16}


def autocast(model: Model, dtype: torch.dtype = torch.bfloat16) -> Model:
    """The same model, its loss under ``torch.autocast``: linear maps and convolutions in bfloat16, losses in float32.

    Parameters, their gradients and the optimizer's step keep the parameters' dtype. What is cast where is torch's
    choice for the device that the parameters are on. Evaluation, and whatever else runs the model, runs it like this.

    Args:
        model: any; of one that the caller alone has (``module``), a run is opened with ``autocast`` of it.
        dtype: ``torch.bfloat16``.

    Raises:
        ValueError: another dtype, or the model is one of ``autocast`` already.

    >>> from devinterp_func import models
    >>> models.autocast(models.transformer(models.Config(vocab_size=28782)))
    Model transformer in bfloat16: 12,267,582 parameters in 39 tensors
    """
    if dtype == torch.float16:
        raise ValueError(
            "dtype is torch.float16, in which small gradients become 0 unless losses are scaled; use torch.bfloat16"
        )
    name = next((name for name, own in DTYPES.items() if own == dtype), None)
    if name is None:
        raise ValueError(f"dtype is {dtype!r}; it must be torch.bfloat16")
    if model.source.get("kind") == KIND:
        raise ValueError(f"the model is {model.name} already; autocast takes one that is in its parameters' precision")
    source = {"kind": KIND, "dtype": name, "of": model.source}
    return replace(model, name=f"{model.name} in {name}", loss=_Autocast(model.loss, dtype), source=source)


@dataclass(frozen=True)
class _Autocast:
    """A loss under autocast; a value, so that it can be compared, and looked into."""

    unrounded: Callable[..., Tensor]
    """The same in its parameters' precision, which ``graph.unrounded`` asks for."""
    dtype: torch.dtype

    def __call__(self, params: Params, *example: Any) -> Tensor:
        device = next(iter(params.values())).device.type
        if torch.is_autocast_enabled(device):
            raise ValueError(
                "the loss of a model of autocast is called within another torch.autocast; leave that, so that one "
                "place says what is rounded"
            )
        # a cache would remember a weight's cast from one call to the next
        with torch.autocast(device, self.dtype, cache_enabled=False):
            return self.unrounded(params, *example)
