"""Losses of torch's modules and of Hugging Face's language models, for the laws of capture."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss
from zoo import Case, Make, ids, reals, square, values

from devinterp_func import models
from devinterp_func.tree import Params

SLOTS = 13  # words


def module(model: nn.Module, loss: Callable[..., Tensor], *batch: Any, found: bool = True) -> Case:
    """A case of ``loss(model, *example)``, the model in float64 and as it stands."""

    def pure(params: Params, *example: Any) -> Tensor:
        return loss(lambda *args, **named: functional_call(model, params, args, named), *example)

    shapes = {name: w.shape for name, w in model.double().named_parameters()}
    return Case(pure, values(shapes), batch, found)


def next_word(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y)


def of_output(model: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return square(model(*inputs))


# ---- transformers


class Language(nn.Module):
    """The word-language-model tutorial's transformer, with learned positions where they are wanted."""

    def __init__(self, block: nn.TransformerEncoderLayer, positions: int = 0) -> None:
        super().__init__()
        width = block.linear1.in_features
        self.embedding, self.dropout = nn.Embedding(SLOTS, width), nn.Dropout(0.2)
        self.positions = nn.Parameter(torch.zeros(positions, width)) if positions else None
        self.layers = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.decoder = nn.Linear(width, SLOTS)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embedding(tokens) * self.embedding.embedding_dim**0.5
        h = self.dropout(h if self.positions is None else h + self.positions[: len(tokens)])
        causal = nn.Transformer.generate_square_subsequent_mask(len(tokens), dtype=h.dtype)
        return self.decoder(self.layers(h[None], mask=causal, is_causal=True)[0])


def post() -> Case:
    """The post's transformer."""
    made = models.transformer(models.Config(SLOTS, d_model=8, n_heads=2, d_hidden=6, n_layers=2, dropout=0.3))
    shapes = {name: w.shape for name, w in made.init(0).items()}
    return Case(made.loss, values(shapes), (ids(SLOTS, 5), ids(SLOTS, 5, seed=2)))


def encoder(positions: int = 0, **choices: Any) -> Case:
    block = nn.TransformerEncoderLayer(8, 2, 6, batch_first=True, **choices)
    return module(Language(block, positions), next_word, ids(SLOTS, 5), ids(SLOTS, 5, seed=2))


def decoder() -> Case:
    block = nn.TransformerDecoderLayer(8, 2, 6, dropout=0.3, batch_first=True)
    return module(block, of_output, reals(4, 8), reals(3, 8, seed=2))


def attention(weights: bool, **choices: Any) -> Case:
    """Other queries than keys than values, weights averaged over heads where they are wanted."""
    mixed = nn.MultiheadAttention(8, 2, dropout=0.3, **choices)
    widths = [choices.get("kdim", 8), choices.get("vdim", 8)]

    def loss(model: Callable[..., tuple[Tensor, Any]], *inputs: Tensor) -> Tensor:
        output, seen = model(*inputs, need_weights=weights)
        return square(output) + (square(seen) if weights else 0)

    return module(mixed, loss, reals(3, 8), reals(4, widths[0], seed=2), reals(4, widths[1], seed=3))


def causal_lm(kind: str, attend: str) -> Case:
    """A Hugging Face language model with dropout in training mode."""
    hub = pytest.importorskip("transformers", reason="needs the package transformers")
    wide = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4, attention_dropout=0.2)
    choices: dict[str, dict[str, Any]] = {
        "GPT2": dict(n_positions=7, n_embd=8, n_layer=2, n_head=2, embd_pdrop=0.1, attn_pdrop=0.2, resid_pdrop=0.3),
        "GPTNeoX": dict(hidden_dropout=0.3, max_position_embeddings=16, **wide),
        "Llama": dict(num_key_value_heads=2, max_position_embeddings=16, **wide),
    }
    config = getattr(hub, f"{kind}Config")(
        vocab_size=SLOTS, bos_token_id=0, eos_token_id=0, attn_implementation=attend, **choices[kind]
    )
    model = hub.AutoModelForCausalLM.from_config(config).train()

    def loss(model: Callable[..., Any], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model(x[None], use_cache=False).logits[0], y)

    return module(model, loss, ids(SLOTS, 5), ids(SLOTS, 5, seed=2))


TRANSFORMERS: dict[str, Make] = {
    "the post's transformer": post,
    "encoder": lambda: encoder(dropout=0.3),
    "encoder, norm first": lambda: encoder(5, dropout=0.3, norm_first=True, activation="gelu"),
    "encoder without dropout": lambda: encoder(7, dropout=0.0, bias=False),
    "decoder of two sequences": decoder,
    "attention": lambda: attention(False),
    "attention with its weights": lambda: attention(True),
    "attention of other widths": lambda: attention(False, kdim=6, vdim=5),
    "attention with added keys": lambda: attention(True, add_bias_kv=True)._replace(found=False),
} | {
    f"{kind} {attend}": lambda kind=kind, attend=attend: causal_lm(kind, attend)
    for kind in ("GPT2", "GPTNeoX", "Llama")
    for attend in ("eager", "sdpa")
}

# ---- others


class Buffered(nn.Module):
    """A module with buffers, one of which is left out of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 6)
        self.register_buffer("scale", torch.arange(1.0, 7.0))
        self.order: Tensor
        self.register_buffer("order", torch.tensor([2, 0, 1]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x[self.order]) * self.scale


class Stepwise(nn.Module):
    """A recurrent cell stepped by hand."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for row in x:
            state = self.cell(row, state)
        return state[0] if isinstance(state, tuple) else state


def pictures() -> Case:
    """A CNN with group norm: cross entropy of pictures."""
    layers = (
        nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 2, bias=False), nn.GroupNorm(3, 6), nn.GELU(), nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(0), nn.Linear(6, 3),
    )  # fmt: skip
    return module(nn.Sequential(*layers), lambda model, x, y: cross_entropy(model(x[None])[None], y[None]),
                  reals(2, 6, 5), ids(3))  # fmt: skip


def evaluated() -> Case:
    """Batch norm in evaluation mode, with statistics of its own."""
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2)).eval()
    norm: Any = model[1]
    norm.running_mean.copy_(reals(n=3)), norm.running_var.copy_(reals(n=3).square() + 0.5)
    return module(model, lambda model, x, y: mse_loss(model(x[None])[0], y), reals(2, 4), reals(2), found=False)


def recurrent(kind: Callable[..., nn.Module], found: bool = True, **choices: Any) -> Case:
    model = kind(3, 4, batch_first=True, **choices)
    return module(model, lambda model, x: square(model(x[None])[0]), reals(5, 3), found=found)


def cell(kind: Callable[..., nn.Module]) -> Case:
    return module(Stepwise(kind(3, 4)), of_output, reals(3, 3), found=False)


def normed(norm: nn.Module, *shape: int, found: bool = False) -> Case:
    return module(norm, lambda model, x: square(model(x[None])), reals(*shape), found=found)


def multilayer() -> Case:
    model = nn.Sequential(
        nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 6, bias=False), nn.SiLU(), nn.Linear(6, 2)
    )
    return module(model, lambda model, x, y: mse_loss(model(x), y), reals(5), reals(2))


OTHERS: dict[str, Make] = {
    "pictures": pictures,
    "regression": multilayer,
    "batch norm evaluated": evaluated,
    "LSTM": lambda: recurrent(nn.LSTM),
    "LSTM of two layers, both ways": lambda: recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "LSTM with a projection": lambda: recurrent(nn.LSTM, proj_size=2, found=False),
    "GRU": lambda: recurrent(nn.GRU),
    "GRU of two layers, both ways": lambda: recurrent(nn.GRU, num_layers=2, bidirectional=True, bias=False),
    "RNN": lambda: recurrent(nn.RNN),
    "LSTM cell": lambda: cell(nn.LSTMCell),
    "GRU cell": lambda: cell(nn.GRUCell),
    "bilinear": lambda: module(nn.Bilinear(3, 4, 2), of_output, reals(5, 3), reals(5, 4, seed=2), found=False),
    "buffers": lambda: module(Buffered(), of_output, reals(3, 5)),
    "weight norm": lambda: normed(nn.utils.parametrizations.weight_norm(nn.Linear(5, 6)), 4, 5),
    "nn.InstanceNorm2d": lambda: normed(nn.InstanceNorm2d(3, affine=True), 3, 2, 2),
    "nn.GroupNorm": lambda: normed(nn.GroupNorm(2, 4), 4, 3, 2, found=True),
    "RMS norm": lambda: normed(nn.RMSNorm(5), 4, 5, found=True),
    "PReLU": lambda: normed(nn.PReLU(4), 4, 5),
    "embedding bag": lambda: module(nn.EmbeddingBag(7, 4), lambda f, x: square(f(x[None])), ids(7, 3), found=False),
    "embedding with padding": lambda: module(nn.Embedding(4, 5, padding_idx=1), of_output, ids(4, 6)),
    "transposed convolution": lambda: normed(nn.ConvTranspose1d(3, 2, 2, stride=2), 3, 4),
}  # fmt: skip

MODULES = {**TRANSFORMERS, **OTHERS}
