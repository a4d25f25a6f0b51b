"""The post's language model as pure functions of a parameter tree, written for ONE example of C tokens.

The model of PyTorch's word-language-model tutorial: embedding × √d, sinusoidal positions, dropout, post-LN
``nn.TransformerEncoderLayer`` blocks (ReLU, eps 1e-5, causal mask, no final norm), linear decoder, untied. Parameters
have torch's names, masks are data, and every parametrised operation goes through a ``tap``, the one place where
per-example gradients look in.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devinterp_func import keys, units
from devinterp_func.models._parameters import Config
from devinterp_func.tree import Params

NOTHING = -(2**62)  # no target is left out: torch's own default would silently skip −100
Masks = dict[str, Bool[Tensor, "..."]]
Tap = Callable[[str, Tensor, Tensor], Tensor]
"""(name of a parametrised operation, its input, its output) -> the output to go on with."""


def apply(params: Params, tokens: Int[Tensor, "C"], config: Config, masks: Masks | None = None) -> Float[Tensor, "C V"]:
    """Logits of the next token at every position of one example.

    Args:
        params: parameters, of any floating dtype.
        tokens: token ids in [0, vocab_size).
        config: the model.
        masks: dropout masks of ``dropout_masks``; none for no dropout (evaluation).
    """
    return _linear(params, "decoder", stream(params, tokens, config, masks), _untapped)


def loss(
    params: Params,
    tokens: Int[Tensor, "C"],
    targets: Int[Tensor, "C"],
    config: Config,
    masks: Masks | None = None,
) -> Float[Tensor, ""]:
    """Cross entropy in nats, averaged over the C positions of one example."""
    logits = apply(params, tokens, config, masks)
    return F.cross_entropy(logits, targets, ignore_index=NOTHING)


def stream(
    params: Params,
    tokens: Int[Tensor, "C"],
    config: Config,
    masks: Masks | None = None,
    tap: Tap | None = None,
) -> Float[Tensor, "C d"]:
    """The stream, which the unembedding reads."""
    tap = tap or _untapped
    x = tap("embedding", tokens, F.embedding(tokens, params[units.EMBEDDING])) * math.sqrt(config.d_model)
    x = _drop(x + position_encoding(config, len(tokens)).to(x), masks, "dropout", config)
    for i in range(config.n_layers):
        x = layer(params, f"layers.{i}.", x, config, masks, tap)
    return x


def layer(
    params: Params,
    name: str,
    x: Float[Tensor, "C d"],
    config: Config,
    masks: Masks | None = None,
    tap: Tap | None = None,
) -> Float[Tensor, "C d"]:
    """One post-LN block, ``name`` being its prefix: norm1(x + attention(x)), then norm2(x + MLP(x))."""
    tap = tap or _untapped
    qkv = _linear(params, f"{name}self_attn.in_proj", x, tap)
    return layer_from(params, name, "self_attn.in_proj", qkv, x, x, config, masks, tap)


def layer_from(
    params: Params,
    name: str,
    kind: str,
    output: Float[Tensor, "C o"],
    entering: Float[Tensor, "C d"],
    between: Float[Tensor, "C d"],
    config: Config,
    masks: Masks | None = None,
    tap: Tap | None = None,
) -> Float[Tensor, "C d"]:
    """The rest of a block from the output of one of its operations on.

    Args:
        params, config, masks, tap: as for ``layer``.
        name: the block's prefix.
        kind: the operation in it: self_attn.in_proj, self_attn.out_proj, linear1 or linear2.
        output: what that operation gave.
        entering: what enters the block.
        between: what enters the MLP; not read where the operation is in the attention.
    """
    tap = tap or _untapped
    if kind == "self_attn.in_proj":
        weights, value = attention_weights(output, config.n_heads)
        weights = _drop(weights, masks, f"{name}self_attn.dropout", config)
        mixed = einsum(weights, value, "h q k, h k a -> q h a").flatten(1)
        output, kind = _linear(params, f"{name}self_attn.out_proj", mixed, tap), "self_attn.out_proj"
    if kind == "self_attn.out_proj":
        between = _norm(params, f"{name}norm1", entering + _drop(output, masks, f"{name}dropout1", config), tap)
        output, kind = _linear(params, f"{name}linear1", between, tap), "linear1"
    if kind == "linear1":
        active = _drop(F.relu(output), masks, f"{name}dropout", config)
        output = _linear(params, f"{name}linear2", active, tap)
    return _norm(params, f"{name}norm2", between + _drop(output, masks, f"{name}dropout2", config), tap)


def dropout_masks(config: Config, context: int, *, key: keys.Key | int) -> Masks:
    """Masks for one example of ``context`` tokens, True where kept: one per dropout site of torch's model.

    A value is kept with probability 1 − dropout, rounded to a multiple of 2⁻¹⁶. Sites and shapes: ``dropout`` (C, d)
    after the positions; per layer ``self_attn.dropout`` (heads, C, C) on the attention weights, ``dropout1``,
    ``dropout2`` (C, d) on the residual branches, ``dropout`` (C, d_hidden) in the MLP. The sites share one stream of
    the key, in this order, so that a datum costs one generator.
    """
    shapes = _mask_shapes(config, context)
    sizes = [math.prod(shape) for shape in shapes.values()]
    keep = keys.random_bits(sum(sizes), key=key) >= round(config.dropout * 2**16)
    parts = torch.from_numpy(keep).split(sizes)
    return {site: part.view(shape) for (site, shape), part in zip(shapes.items(), parts, strict=True)}


def stacked_dropout_masks(config: Config, context: int, *, each: Sequence[keys.Key | int]) -> Masks:
    """``dropout_masks`` of several examples, one key each, with a leading n."""
    masks = [dropout_masks(config, context, key=key) for key in each]
    return {site: torch.stack([one[site] for one in masks]) for site in masks[0]}


def _mask_shapes(config: Config, context: int) -> dict[str, tuple[int, ...]]:
    wide, inner = (context, config.d_model), (context, config.d_hidden)
    shapes: dict[str, tuple[int, ...]] = {"dropout": wide}
    for i in range(config.n_layers):
        shapes |= {
            f"layers.{i}.self_attn.dropout": (config.n_heads, context, context),
            f"layers.{i}.dropout1": wide,
            f"layers.{i}.dropout": inner,
            f"layers.{i}.dropout2": wide,
        }
    return shapes


def position_encoding(config: Config, context: int) -> Float[Tensor, "C d"]:
    """Sinusoidal positions (Vaswani et al. 2017, §3.5), float64; ``"sin"`` has the sine in both halves of each pair."""
    frequency = torch.exp(-math.log(10000.0) / config.d_model * torch.arange(0, config.d_model, 2, dtype=torch.float64))
    angle = torch.arange(context, dtype=torch.float64)[:, None] * frequency
    second = torch.cos(angle) if config.positions == "sincos" else torch.sin(angle)
    return torch.stack([torch.sin(angle), second], dim=-1).flatten(1)[:, : config.d_model]


def attention_weights(qkv: Float[Tensor, "C e"], n_heads: int) -> tuple[Float[Tensor, "h C C"], Float[Tensor, "h C a"]]:
    """Causal attention pattern (heads, query, key) and values of one example, from its joint projection."""
    query, key, value = rearrange(qkv, "C (three h a) -> three h C a", three=3, h=n_heads)
    # Scaled on the query side, as torch does; written out because the fused kernel has no vmap rule on CPU.
    scores = einsum(query / math.sqrt(query.shape[-1]), key, "h q a, h k a -> h q k")
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=qkv.device).triu(1)
    return F.softmax(scores.masked_fill(future, -math.inf), dim=-1), value


def _linear(params: Params, name: str, x: Float[Tensor, "C i"], tap: Tap) -> Float[Tensor, "C o"]:
    weight, bias = units.weight_and_bias(name)
    return tap(name, x, F.linear(x, params[weight], params[bias]))


def _norm(params: Params, name: str, x: Float[Tensor, "C d"], tap: Tap) -> Float[Tensor, "C d"]:
    standardised = F.layer_norm(x, x.shape[-1:], eps=1e-5)
    weight, bias = units.weight_and_bias(name)
    return tap(name, standardised, standardised * params[weight] + params[bias])


def _drop(x: Tensor, masks: Masks | None, site: str, config: Config) -> Tensor:
    # The mask is scaled, not x: one pass fewer over what autograd tracks.
    return x if masks is None else x * (masks[site].to(x.dtype) * (1 / (1 - config.dropout)))


def _untapped(name: str, inputs: Tensor, output: Tensor) -> Tensor:
    return output
