"""Amounts split by token: the one place where a sum over positions becomes a sum for each word."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class TokenAmounts(NamedTuple):
    """Amounts of R things (or of one) by token, and how often each token stood at a position."""

    net: Float[Tensor, "V *R"]
    gross: Float[Tensor, "V *R"]  # sum of absolute values
    positions: Int[Tensor, "V"]

    def __repr__(self) -> str:
        used = int((self.positions > 0).sum())
        return f"TokenAmounts over {int(self.positions.sum()):,} positions of {used:,} tokens"


def by_token(amounts: Float[Tensor, "..."], tokens: Int[Tensor, "..."], vocab_size: int) -> TokenAmounts:
    """Σ amounts, Σ |amounts| and the number of positions of each token, float64.

    Args:
        amounts: of positions; what follows the axes of ``tokens`` are things with amounts of their own, such as
            (steps, n, C) for one probe or (n, C, R) for R directions.
        tokens: the token at each position, input or target.
        vocab_size: V.

    >>> by_token(torch.tensor([1.0, -2.0, 0.5]), torch.tensor([2, 0, 2]), 3)._asdict()
    {'net': tensor([-2.0000,  0.0000,  1.5000], dtype=torch.float64),
     'gross': tensor([2.0000, 0.0000, 1.5000], dtype=torch.float64), 'positions': tensor([1, 0, 2])}
    """
    shape = (vocab_size, *amounts.shape[tokens.ndim :])
    net = torch.zeros(shape, dtype=torch.float64)
    table = TokenAmounts(net, torch.zeros_like(net), torch.zeros(vocab_size, dtype=torch.int64))
    add_by_token(table, amounts, tokens)
    return table


def add_by_token(table: TokenAmounts, amounts: Float[Tensor, "..."], tokens: Int[Tensor, "..."]) -> None:
    """Adds positions to a table, in place: over many steps it may be too large to be made anew at each.

    Args:
        table: of ``by_token``.
        amounts, tokens: as there.

    Raises:
        ValueError: amounts and tokens are of other positions.
    """
    if amounts.shape[: tokens.ndim] != tokens.shape:
        raise ValueError(
            f"amounts of shape {tuple(amounts.shape)} do not begin as tokens of {tuple(tokens.shape)} do: "
            "they are of other positions, or of whole data"
        )
    rows, ids = amounts.reshape(tokens.numel(), *table.net.shape[1:]).double(), tokens.flatten().long()
    table.net.index_add_(0, ids, rows)
    table.gross.index_add_(0, ids, rows.abs())
    table.positions.index_add_(0, ids, torch.ones_like(ids))
