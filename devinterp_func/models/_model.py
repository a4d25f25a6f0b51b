"""What the library calls a model: the loss of one example, and where its parameters start."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from devinterp_func import keys
from devinterp_func.tree import Params


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A pure loss of ONE example and its start.

    >>> from devinterp_func import models
    >>> models.transformer(models.Config(vocab_size=28782))
    Model transformer: 12,267,582 parameters in 39 tensors
    """

    name: str
    loss: Callable[..., Tensor]
    """``loss(params, *example)``, a scalar; dropout as ``F.dropout(x, p, training=True)``."""
    init: Callable[[keys.Key | int], Params]
    """Parameters to start from, given a key."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of every parameter, in the order that ``init`` gives them."""
    source: dict[str, Any]
    """What ``build`` makes the model from, or what it names in its refusal; JSON values."""

    def __repr__(self) -> str:
        count = sum(math.prod(shape) for shape in self.shapes.values())
        return f"Model {self.name}: {count:,} parameters in {len(self.shapes)} tensors"


def sizes(params: Params) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, in order."""
    return {name: tuple(w.shape) for name, w in params.items()}
