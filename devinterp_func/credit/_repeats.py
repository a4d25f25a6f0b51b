"""Where a text says again what it has said: what is predicted there, and how much of a probe's credit lies there.

Three kinds of places, by what stands earlier in the same text: where looking back to it would copy the right token,
where it would copy a wrong one, and where there is nothing to look back to.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devinterp_func import keys, stats
from devinterp_func.credit import patterns
from devinterp_func.graph import Graph, decode, logit_blocks, streams
from devinterp_func.stats import Estimate
from devinterp_func.tree import Params

PLACES = ("again", "otherwise", "new")  # the token stood before, and its target came after it; other ones did; neither


class CreditShare(NamedTuple):
    """What some places of some texts have of a probe's credit; intervals by the bootstrap over visits. NaN of none."""

    positions: float  # of all positions
    gross: Estimate  # of the sum of absolute credits
    net: Estimate  # of the sum of credits
    credit: float  # the sum of theirs

    def __repr__(self) -> str:
        return f"CreditShare({self.positions:.1%} of positions, {self.gross.value:.1%} of absolute credit)"


def place_kinds(tokens: Int[Tensor, "n C"], targets: Int[Tensor, "n C"]) -> Int[Tensor, "n C"]:
    """The kind of every place, a number in ``PLACES``.

    >>> place_kinds(torch.tensor([[7, 8, 7, 7]]), torch.tensor([[8, 7, 7, 8]]))
    tensor([[2, 2, 1, 0]])
    """
    same = patterns.same_token(tokens)
    followed = same & (targets[:, :, None] == targets[:, None, :])
    stood = torch.where(same.any(-1), 1, 2)
    return stood.masked_fill(followed.any(-1), 0)


@torch.no_grad()
def position_losses(
    graph: Graph, params: Params, tokens: Int[Tensor, "n C"], targets: Int[Tensor, "n C"]
) -> Float[Tensor, "n C"]:
    """Loss at every position of some texts, nats, without dropout.

    Raises:
        ValueError: the graph has no head, or the texts do not fit it.
    """
    parts = []
    for rows in logit_blocks(graph, len(tokens)):
        stream = streams(graph, params, (tokens[rows],))
        chances = decode(graph, params, stream.flatten(0, 1)).log_softmax(-1)
        parts.append(-chances.gather(1, targets[rows].reshape(-1, 1)).view(stream.shape[:2]))
    return torch.cat(parts)


def credit_share(
    credits: Float[Tensor, "*S n C"], chosen: Bool[Tensor, "*S n C"], *, key: keys.Key | int
) -> CreditShare:
    """What the chosen places have of a probe's credit.

    Args:
        credits: of ``Entries``, of one probe.
        chosen: some of the places.
        key: of the bootstrap.
    """
    own = credits.double().masked_fill(~chosen, 0.0)
    parts, wholes = own.flatten(0, -2), credits.double().flatten(0, -2)
    gross = stats.bootstrap(_ratio, parts.abs().sum(-1), wholes.abs().sum(-1), key=key)
    net = stats.bootstrap(_ratio, parts.sum(-1), wholes.sum(-1), key=key)
    return CreditShare(float(chosen.double().mean()), gross, net, float(own.sum()))


def mean_where(values: Float[Tensor, "n C"], chosen: Bool[Tensor, "n C"], *, key: keys.Key | int) -> Estimate:
    """Mean of values over the chosen places, and its interval by the bootstrap over texts; NaN over none."""
    sums, counts = values.double().masked_fill(~chosen, 0.0).sum(-1), chosen.double().sum(-1)
    there = counts > 0
    return stats.bootstrap(_ratio, sums[there], counts[there], key=key)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Of the sums; NaN where the whole is nothing."""
    own, every = np.asarray(part.sum(-1)), np.asarray(whole.sum(-1))
    return np.divide(own, every, out=np.full(own.shape, np.nan), where=every != 0)
