"""The post's language model as pure functions of a parameter tree, written for ONE example of C tokens.

The model of PyTorch's word-language-model tutorial: embedding × √d, sinusoidal positions, dropout, post-LN
``nn.TransformerEncoderLayer`` blocks (ReLU, eps 1e-5, causal mask, no final norm), linear decoder, untied. Parameters
have torch's names, masks are data, and every parametrised operation goes through a ``tap``, the one place where
per-example gradients look in.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devinterp_func import keys
from devinterp_func.tree import Params

Masks = dict[str, Bool[Tensor, "..."]]
Tap = Callable[[str, Tensor, Tensor], Tensor]
"""(name of a parametrised operation, its input, its output) -> the output to go on with."""


@dataclass(frozen=True)
class Config:
    """Static shape of the model; defaults are the post's. Closed over, never passed through a transform."""

    vocab_size: int
    d_model: int = 200
    n_heads: int = 4
    d_hidden: int = 200
    n_layers: int = 3
    dropout: float = 0.2
    positions: Literal["sincos", "sin"] = "sincos"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_heads", "d_hidden", "n_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"Config.{name} is {getattr(self, name)}; it must be at least 1")
        if self.d_model % self.n_heads:
            raise ValueError(f"Config.d_model {self.d_model} is not divisible by n_heads {self.n_heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Config.dropout is {self.dropout}; it must be in [0, 1)")
        if self.positions not in ("sincos", "sin"):
            raise ValueError(f"Config.positions is {self.positions!r}; it must be 'sincos' or 'sin'")


def init(config: Config, *, key: keys.Key | int, clone_layers: bool = True) -> Params:
    """Fresh float32 parameters: embedding and decoder weights ~ U(-0.1, 0.1), decoder bias 0, layers as torch does.

    Args:
        config: the model.
        key: source of randomness.
        clone_layers: start every layer from the same draw, as ``nn.TransformerEncoder`` (it deep-copies one layer) and
            hence the post did; False draws each layer by itself.

    >>> sum(p.numel() for p in init(Config(vocab_size=28782), key=0).values())
    12267582
    """
    params, every = {}, shapes(config)
    for name, shape in every.items():
        start = re.sub(r"^layers\.\d+", "layers", name) if clone_layers else name
        # torch draws a linear map's bias from the range of its weight
        bound = _bound(name, every[name.replace("bias", "weight")])
        drawn = keys.uniform(shape, -bound, bound, key=keys.fold_in(key, start)) if bound else torch.zeros(shape)
        params[name] = torch.ones(shape) if ".norm" in name and name.endswith("weight") else drawn
    return params


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, in the order that ``init`` gives them."""
    d, hidden, size = config.d_model, config.d_hidden, config.vocab_size
    layer = {
        "self_attn.in_proj_weight": (3 * d, d),
        "self_attn.in_proj_bias": (3 * d,),
        "self_attn.out_proj.weight": (d, d),
        "self_attn.out_proj.bias": (d,),
        "linear1.weight": (hidden, d),
        "linear1.bias": (hidden,),
        "linear2.weight": (d, hidden),
        "linear2.bias": (d,),
        "norm1.weight": (d,),
        "norm1.bias": (d,),
        "norm2.weight": (d,),
        "norm2.bias": (d,),
    }
    layers = {f"layers.{i}.{name}": shape for i in range(config.n_layers) for name, shape in layer.items()}
    return {"embedding.weight": (size, d), **layers, "decoder.weight": (size, d), "decoder.bias": (size,)}


def in_order(params: Params, config: Config) -> Params:
    """The same parameters in ``init``'s order, which numbers them and in which they are summed.

    Raises:
        ValueError: if one is missing, unknown, or of another shape.
    """
    wanted = shapes(config)
    if unknown := params.keys() ^ wanted.keys():
        raise ValueError(f"the parameters and {config} differ in {', '.join(sorted(unknown))}")
    for name, shape in wanted.items():
        if params[name].shape != shape:
            raise ValueError(f"{name} has shape {tuple(params[name].shape)}; {config} wants {shape}")
    return {name: params[name] for name in wanted}


def apply(params: Params, tokens: Int[Tensor, "C"], config: Config, masks: Masks | None = None) -> Float[Tensor, "C V"]:
    """Logits of the next token at every position of one example.

    Args:
        params: parameters, of any floating dtype.
        tokens: token ids in [0, vocab_size).
        config: the model.
        masks: dropout masks of ``dropout_masks``; None switches dropout off (evaluation).
    """
    return _linear(params, "decoder", hidden(params, tokens, config, masks), _untapped)


def loss(
    params: Params,
    tokens: Int[Tensor, "C"],
    targets: Int[Tensor, "C"],
    config: Config,
    masks: Masks | None = None,
) -> Float[Tensor, ""]:
    """Cross entropy in nats, averaged over the C positions of one example."""
    return F.cross_entropy(apply(params, tokens, config, masks), targets)


def hidden(
    params: Params,
    tokens: Int[Tensor, "C"],
    config: Config,
    masks: Masks | None = None,
    tap: Tap | None = None,
) -> Float[Tensor, "C d"]:
    """The residual stream that the decoder reads."""
    tap = tap or _untapped
    x = tap("embedding", tokens, params["embedding.weight"][tokens]) * math.sqrt(config.d_model)
    x = _drop(x + positions(config, len(tokens)).to(x), masks, "dropout", config)
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
    attended = _attention(params, f"{name}self_attn.", x, config, masks, tap)
    x = _norm(params, f"{name}norm1", x + _drop(attended, masks, f"{name}dropout1", config), tap)
    active = _drop(F.relu(_linear(params, f"{name}linear1", x, tap)), masks, f"{name}dropout", config)
    written = _linear(params, f"{name}linear2", active, tap)
    return _norm(params, f"{name}norm2", x + _drop(written, masks, f"{name}dropout2", config), tap)


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


def positions(config: Config, context: int) -> Float[Tensor, "C d"]:
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


def _attention(
    params: Params, name: str, x: Float[Tensor, "C d"], config: Config, masks: Masks | None, tap: Tap
) -> Float[Tensor, "C d"]:
    weights, value = attention_weights(_linear(params, f"{name}in_proj", x, tap), config.n_heads)
    mixed = einsum(_drop(weights, masks, f"{name}dropout", config), value, "h q k, h k a -> q h a")
    return _linear(params, f"{name}out_proj", mixed.flatten(1), tap)


def _linear(params: Params, name: str, x: Float[Tensor, "C i"], tap: Tap) -> Float[Tensor, "C o"]:
    weight, bias = weight_and_bias(name)
    return tap(name, x, F.linear(x, params[weight], params[bias]))


def _norm(params: Params, name: str, x: Float[Tensor, "C d"], tap: Tap) -> Float[Tensor, "C d"]:
    standardised = F.layer_norm(x, x.shape[-1:], eps=1e-5)
    weight, bias = weight_and_bias(name)
    return tap(name, standardised, standardised * params[weight] + params[bias])


def _drop(x: Tensor, masks: Masks | None, site: str, config: Config) -> Tensor:
    # The mask is scaled, not x: one pass fewer over what autograd tracks.
    return x if masks is None else x * (masks[site].to(x.dtype) * (1 / (1 - config.dropout)))


def _untapped(name: str, inputs: Tensor, output: Tensor) -> Tensor:
    return output


def weight_and_bias(name: str) -> tuple[str, str]:
    """Parameter names of a parametrised operation; torch writes ``in_proj_weight`` but ``out_proj.weight``."""
    join = "_" if name.endswith("in_proj") else "."
    return f"{name}{join}weight", f"{name}{join}bias"


def _bound(name: str, weight_shape: tuple[int, ...]) -> float:
    """Half width of the uniform start: Xavier for in_proj, 1/√fan_in in the layers, 0 for what starts at 0."""
    if name in ("embedding.weight", "decoder.weight"):
        return 0.1
    if name.endswith("in_proj_weight"):
        return math.sqrt(6 / sum(weight_shape))
    if ".linear" in name or name.endswith("out_proj.weight"):
        return 1 / math.sqrt(weight_shape[-1])
    return 0.0
