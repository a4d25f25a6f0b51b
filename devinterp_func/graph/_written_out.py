"""Operations written out as smaller ones: whose parts are to be seen, or which ``vmap`` cannot do or does wrongly."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions

from devinterp_func.tree import wide

A = torch.ops.aten


def written_out() -> dict[Any, Callable[..., Any]]:
    """Operation -> what it is made of."""
    table = get_decompositions([A.lstm.input, A.gru.input, A.rnn_tanh.input, A.rnn_relu.input])
    return {
        **table,
        A.scaled_dot_product_attention.default: _attention,
        A._weight_norm.default: _weight_norm,
        A.lstm_cell.default: _lstm_cell,
        A.select_scatter.default: _select_scatter,
        A.slice_scatter.default: _slice_scatter,
    }


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``F.scaled_dot_product_attention`` as its documentation defines it."""
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    kind = q.dtype
    q, k, v = (wide(x) for x in (q, k, v))  # torch's own works in float32 inside, and rounds what it gives
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-1, -2)
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    if attn_mask is not None:
        masked = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        scores = masked
    weights = torch.softmax(scores, -1)
    return ((torch.dropout(weights, dropout_p, True) if dropout_p else weights) @ v).to(kind)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g · v / ‖v‖; torch's own has a wrong second derivative."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _lstm_cell(
    x: Tensor,
    state: list[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``nn.LSTMCell`` as its documentation defines it."""
    h, c = state
    gates = torch.nn.functional.linear(x, w_ih, b_ih) + torch.nn.functional.linear(h, w_hh, b_hh)
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _select_scatter(x: Tensor, src: Tensor, dim: int, index: int) -> Tensor:
    """x with one place of a dimension written over; torch's own loses a gradient under ``vmap`` within autograd."""
    size = x.shape[dim]
    here = (torch.arange(size, device=x.device) == index % size).view([-1, *[1] * (x.ndim - 1 - dim % x.ndim)])
    return torch.where(here, src.unsqueeze(dim), x)


def _slice_scatter(
    x: Tensor, src: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    """x with a slice of a dimension written over; torch's own loses a gradient under ``vmap`` within autograd."""
    size, rest = x.shape[dim], [1] * (x.ndim - 1 - dim % x.ndim)
    chosen = range(size)[slice(start, end, step)]
    if not len(chosen):
        return x.clone()
    place = torch.arange(size, device=x.device) - chosen.start
    here = (place >= 0) & (place < chosen.stop - chosen.start) & (place % step == 0)
    rank = (place // step).clamp(0, len(chosen) - 1)
    return torch.where(here.view([-1, *rest]), src.index_select(dim, rank), x)
