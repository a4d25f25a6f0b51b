"""What of a step is not its own data's, along a gradient: past and decay.

    ⟨G, past⟩ = past · ⟨Lᵀ(G), m⟩        ⟨G, decay⟩ = present · λ · ⟨Lᵀ(G), w⟩, or decay · ⟨G, w⟩ where it is decoupled

(``optim._share``). One unit at a time, and none where there is nothing: a step of SGD without momentum costs nothing.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from devinterp_func import optim
from devinterp_func.optim import Share, Split
from devinterp_func.tree import Params

BLOCK = 2**16  # entries multiplied at once: the sum of the blocks is in float64


class Rest(NamedTuple):
    """What the optimizer's memory and weight decay did to a number, in first order."""

    past: Float[Tensor, ""]
    decay: Float[Tensor, ""]

    def sum(self) -> Float[Tensor, ""]:
        """Both."""
        return self.past + self.decay


@torch.no_grad()
def rest(gradient: Params, split: Split) -> Rest:
    """⟨G, past⟩ and ⟨G, decay⟩ over all units of a gradient, float64.

    Args:
        gradient: G, by unit.
        split: of the step.
    """
    past = decay = torch.zeros((), dtype=torch.float64)
    for unit, along in gradient.items():
        share, weight = split.shares[unit], split.before[unit]
        remembers = share.memory is not None and share.past != 0
        if remembers or share.coupled:
            scale, own = _pulled(share, along)
            if share.memory is not None and remembers:
                past = past + scale * share.past * _dot(own, share.memory)
            if share.coupled:
                decay = decay + scale * share.present * share.coupled * _dot(own, weight)
        if share.decay:
            decay = decay + share.decay * _dot(along, weight)
    return Rest(past, decay)


def _pulled(share: Share, along: Tensor) -> tuple[float, Tensor]:
    """Lᵀ(G) as a number and a tensor: where L is a number, G need not be multiplied by it."""
    if isinstance(share.gain, float | int):
        return share.gain, along
    return 1.0, optim.pull_gain(share.gain, along)


def _dot(a: Tensor, b: Tensor) -> Float[Tensor, ""]:
    """⟨a, b⟩ on the CPU."""
    blocks = zip(a.reshape(-1).split(BLOCK), b.reshape(-1).split(BLOCK), strict=True)
    return torch.stack([x.dot(y) for x, y in blocks]).sum(dtype=torch.float64).cpu()
