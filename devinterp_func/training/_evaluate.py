"""The mean loss of some data."""

from typing import Any

import torch

from devinterp_func import batches, per_example, tree
from devinterp_func.graph import Graph
from devinterp_func.training._logits import for_fewer, logits_buffer
from devinterp_func.tree import Params


@torch.no_grad()
def evaluate(graph: Graph, params: Params, data: Any, batch_size: int = 20) -> float:
    """Mean loss over data, without dropout; of text in nats a token, so that its exponential is the perplexity.

    Args:
        graph, params: the model.
        data: tensors with a leading N.
        batch_size: data run at once.
    """
    device, n, total = next(iter(params.values())).device, batches.n_data(data), 0.0
    buffer = logits_buffer(graph, params, min(batch_size, n))
    for start in range(0, n, batch_size):
        batch = tree.map(lambda x, start=start: x[start : start + batch_size].to(device), tuple(data))
        scratch = for_fewer(graph, buffer, batches.n_data(batch))
        losses = per_example.data_losses(graph, params, *batch, buffer=scratch)
        total += float(losses.sum(dtype=torch.float64))
    return total / n
