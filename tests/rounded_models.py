"""Small models in bfloat16 of every kind, with data, to test with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers as tf
from torch import Tensor, nn

from devinterp_func import graph, keys, models
from devinterp_func.graph import Graph
from devinterp_func.models import Model
from devinterp_func.tree import Params

U = 2.0**-8  # the largest relative error of one rounding to bfloat16
N, C, V = 5, 6, 23  # data, tokens, words


class Case(NamedTuple):
    """A model, the same in bfloat16, weights and data."""

    model: Model
    rounded: Model
    graph: Graph  # of the rounded one
    params: Params
    batch: tuple[Any, ...]


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.two, self.head = nn.Conv2d(4, 6, 3, stride=2), nn.Linear(6 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.two(F.gelu(self.norm(self.one(x))))).flatten(1))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(keys.generator(seed).standard_normal(shape)).float()


def ids(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(keys.generator(seed).integers(0, n, shape))


def _texts() -> tuple[Tensor, Tensor]:
    return ids(V, N, C, seed=1), ids(V, N, C, seed=2)


def _llm(config: Any) -> tuple[Model, tuple[Any, ...]]:
    return models.causal_lm(config), _texts()


SIZES = {"vocab_size": V, "bos_token_id": 0, "eos_token_id": 0}
WIDE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))


def drawn(make: Callable[[], nn.Module]) -> nn.Module:
    """A module whose weights are the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def _squared(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


def _classified(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x[None])[0], y)


def post(dropout: float = 0.0) -> Model:
    return models.transformer(models.Config(V, d_model=16, n_heads=4, d_hidden=12, n_layers=1, dropout=dropout))


MADE = {
    "post": lambda: (post(), _texts()),
    "GPT-2": lambda: _llm(
        tf.GPT2Config(**SIZES, n_positions=8, n_embd=16, n_layer=1, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    ),
    "GPT-NeoX": lambda: _llm(tf.GPTNeoXConfig(**SIZES, **WIDE, max_position_embeddings=8)),
    "Llama": lambda: _llm(tf.LlamaConfig(**SIZES, **WIDE, num_key_value_heads=2, max_position_embeddings=8)),
    "MLP": lambda: (models.module(drawn(network), _squared), (normal(N, 4, seed=3), normal(N, 3, seed=4))),
    "CNN": lambda: (models.module(drawn(Pictures), _classified), (normal(N, 1, 8, 8, seed=5), ids(5, N, seed=6))),
}


def case(model: Model, batch: tuple[Any, ...]) -> Case:
    """The model with weights away from where they start, so that no bias is 0 and no gain is 1."""
    rounded = models.autocast(model)
    params = {name: w + 0.1 * normal(*w.shape, seed=i) for i, (name, w) in enumerate(model.init(0).items())}
    return Case(model, rounded, graph.of(rounded.loss, params, *(x[0] for x in batch)), params, batch)
