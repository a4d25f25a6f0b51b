"""The post's language model as a pure loss of ONE example of C tokens.

The model of PyTorch's word-language-model tutorial: embedding × √d, sinusoidal positions, dropout, post-LN
``nn.TransformerEncoderLayer`` blocks (ReLU, eps 1e-5, causal mask, no final norm), linear decoder, untied. Parameters
have torch's names.
"""

import math
from dataclasses import asdict
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import keys
from devinterp_func.models._model import Model
from devinterp_func.models._parameters import Config, init, shapes
from devinterp_func.tree import Params

NOTHING = -(2**62)  # no target is left out: torch's own default would silently skip −100


def transformer(config: Config) -> Model:
    """The post's model; ``source`` holds its ``Config``."""

    def start(key: keys.Key | int) -> Params:
        return init(config, key=key)

    source = {"kind": "transformer", "config": asdict(config)}
    return Model("transformer", partial(loss, config=config), start, shapes(config), source)


def loss(
    params: Params, tokens: Int[Tensor, "C"], targets: Int[Tensor, "C"], config: Config, training: bool = True
) -> Float[Tensor, ""]:
    """Cross entropy in nats, averaged over the C positions of one example; ``training`` is with dropout."""
    return F.cross_entropy(apply(params, tokens, config, training), targets, ignore_index=NOTHING)


def apply(params: Params, tokens: Int[Tensor, "C"], config: Config, training: bool = False) -> Float[Tensor, "C V"]:
    """Logits of the next token at every position of one example.

    Args:
        params: parameters, of any floating dtype.
        tokens: token ids in [0, vocab_size).
        config: the model.
        training: with dropout, drawn from torch's own generator.
    """
    dropout = config.dropout if training else 0.0
    x = F.embedding(tokens, params["embedding.weight"]) * math.sqrt(config.d_model)
    x = _drop(x + position_encoding(config, len(tokens)).to(x), dropout)
    for i in range(config.n_layers):
        x = _layer(params, f"layers.{i}.", x, config.n_heads, dropout)
    return F.linear(x, params["decoder.weight"], params["decoder.bias"])


def position_encoding(config: Config, context: int) -> Float[Tensor, "C d"]:
    """Sinusoidal positions (Vaswani et al. 2017, §3.5), float64; ``"sin"`` has the sine in both halves of each pair."""
    frequency = torch.exp(-math.log(10000.0) / config.d_model * torch.arange(0, config.d_model, 2, dtype=torch.float64))
    angle = torch.arange(context, dtype=torch.float64)[:, None] * frequency
    second = torch.cos(angle) if config.positions == "sincos" else torch.sin(angle)
    return torch.stack([torch.sin(angle), second], dim=-1).flatten(1)[:, : config.d_model]


def _layer(params: Params, name: str, x: Float[Tensor, "C d"], n_heads: int, dropout: float) -> Float[Tensor, "C d"]:
    """One post-LN block, ``name`` being its prefix: norm1(x + attention(x)), then norm2(x + MLP(x))."""
    qkv = F.linear(x, params[f"{name}self_attn.in_proj_weight"], params[f"{name}self_attn.in_proj_bias"])
    mixed = _linear(params, f"{name}self_attn.out_proj", _attention(qkv, n_heads, dropout))
    x = _norm(params, f"{name}norm1", x + _drop(mixed, dropout))
    hidden = _drop(F.relu(_linear(params, f"{name}linear1", x)), dropout)
    return _norm(params, f"{name}norm2", x + _drop(_linear(params, f"{name}linear2", hidden), dropout))


def _attention(qkv: Float[Tensor, "C e"], n_heads: int, dropout: float) -> Float[Tensor, "C d"]:
    """Causal attention of all heads, side by side, from their joint projection."""
    query, key, value = qkv.unflatten(-1, (3, n_heads, -1)).permute(1, 2, 0, 3)  # (h, C, a) each
    # Scaled on the query side, as torch does; written out because the fused kernel has no vmap rule on CPU.
    scores = query / math.sqrt(query.shape[-1]) @ key.mT
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=qkv.device).triu(1)
    weights = F.softmax(scores.masked_fill(future, -math.inf), dim=-1)
    return (_drop(weights, dropout) @ value).transpose(0, 1).flatten(1)


def _linear(params: Params, name: str, x: Float[Tensor, "C i"]) -> Float[Tensor, "C o"]:
    return F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])


def _norm(params: Params, name: str, x: Float[Tensor, "C d"]) -> Float[Tensor, "C d"]:
    return F.layer_norm(x, x.shape[-1:], params[f"{name}.weight"], params[f"{name}.bias"], eps=1e-5)


def _drop(x: Tensor, p: float) -> Tensor:
    return F.dropout(x, p, training=True) if p else x
