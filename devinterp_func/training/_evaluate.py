"""The mean loss of a text."""

import torch
from jaxtyping import Int
from torch import Tensor

from devinterp_func import batches, per_example, units
from devinterp_func.models import Config
from devinterp_func.training._recipe import Recipe
from devinterp_func.tree import Params


@torch.no_grad()
def evaluate(params: Params, stream: Int[Tensor, "T"], config: Config, recipe: Recipe) -> float:
    """Mean loss in nats a token over a token stream, without dropout; its exponential is the perplexity."""
    W_U = params[units.UNEMBEDDING]
    data = batches.chunk(stream, recipe.context)
    buffer = W_U.new_empty(config.vocab_size, recipe.batch_size * recipe.context)
    total = 0.0
    for start in range(0, len(data.tokens), recipe.batch_size):
        tokens, targets = (x[start : start + recipe.batch_size].to(W_U.device) for x in data)
        whole = len(tokens) == recipe.batch_size
        losses = per_example.losses(params, tokens, targets, config, buffer if whole else None)
        total += float(losses.sum(dtype=torch.float64))
    return total / data.tokens.numel()
