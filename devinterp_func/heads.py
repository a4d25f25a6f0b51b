"""Where attention heads look, beside where they would look anyway: attention on a pattern against its distances alone.

A head that attends to near tokens attends to many opening brackets, too. So beside the attention from each closing
bracket to the bracket it closes stands what the same head gives, from other queries, to keys at the same distances.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vmap

from devinterp_func import probes
from devinterp_func.transformer import Config
from devinterp_func.tree import Params


class Attention(NamedTuple):
    """Mean attention of every head to the marked keys, over the queries that have one; and its control."""

    value: Float[Tensor, "L h"]
    control: Float[Tensor, "L h"]  # from queries that have none, to keys at the same distances; NaN if all have
    queries: int

    def __repr__(self) -> str:
        over = self.value - self.control
        layer, head = divmod(int(over.argmax()), over.shape[1])
        best = f"head {layer}.{head}: {self.value[layer, head]:.3f}, by distance {self.control[layer, head]:.3f}"
        return f"Attention of {self.value.numel()} heads over {self.queries} queries; farthest above its control {best}"


@torch.no_grad()
def attention(params: Params, tokens: Int[Tensor, "n C"], pattern: probes.Pattern, config: Config) -> Attention:
    """Attention of all heads on a pattern, without dropout.

    Args:
        params, config: the model.
        tokens: some texts.
        pattern: the marked keys, such as ``probes.brackets`` finds.

    Raises:
        ValueError: no key is marked.
    """
    asked = probes.asked(pattern)
    weights = torch.cat([vmap(lambda text: probes.heads(params, text, config))(part) for part in tokens.split(64)])
    weights = weights.movedim((1, 2), (-2, -1))  # (n, C, C, L, h)
    value = (weights * pattern[..., None, None]).sum(2)[asked].mean(0)
    control = torch.zeros_like(value)
    for distance in range(1, tokens.shape[1]):
        marked = int(pattern.diagonal(-distance, 1, 2).sum())
        others = weights.diagonal(-distance, 1, 2).movedim(-1, 1)[~asked[:, distance:]]  # (m, L, h)
        if marked:  # the mean of none is NaN
            control += marked / int(asked.sum()) * others.mean(0)
    return Attention(value, control, int(asked.sum()))
