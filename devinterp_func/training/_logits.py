"""Scratch for a batch's logits, made once and used again for every batch."""

from jaxtyping import Float
from torch import Tensor

from devinterp_func.graph import Graph, n_positions
from devinterp_func.tree import Params


def logits_buffer(graph: Graph, params: Params, n: int) -> Float[Tensor, "V nC"] | None:
    """Room for the logits of n data; None where the loss has no head."""
    if graph.head is None:
        return None
    return params[graph.head.weight].new_empty(graph.vocab_size, n * n_positions(graph), dtype=graph.head.dtype)


def for_fewer(graph: Graph, buffer: Float[Tensor, "V nC"] | None, n: int) -> Float[Tensor, "V mC"] | None:
    """The part of the buffer that n data take, at most as many as it was made for."""
    if buffer is None:
        return None
    return buffer.flatten()[: len(buffer) * n * n_positions(graph)].view(len(buffer), -1)
