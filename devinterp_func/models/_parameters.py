"""The transformer's shape and its parameters: their names, their order, and where they start."""

import math
import re
from dataclasses import dataclass
from typing import Literal

import torch

from devinterp_func import checks, keys
from devinterp_func.tree import Params


@dataclass(frozen=True)
class Config:
    """Static shape of the model; defaults are the post's. Closed over, never passed through a transform.

    Raises:
        TypeError, ValueError: a value of another type, or out of range; it is named.
    """

    vocab_size: int
    d_model: int = 200
    n_heads: int = 4
    d_hidden: int = 200
    n_layers: int = 3
    dropout: float = 0.2
    positions: Literal["sincos", "sin"] = "sincos"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_heads", "d_hidden", "n_layers"):
            object.__setattr__(self, name, checks.integer(f"Config.{name}", getattr(self, name)))
        if self.d_model % self.n_heads:
            raise ValueError(f"Config.d_model {self.d_model} is not divisible by n_heads {self.n_heads}")
        object.__setattr__(self, "dropout", checks.number("Config.dropout", self.dropout))
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
        drawn = (
            keys.uniform(shape, -bound, bound, key=keys.fold_in(key, start))
            if bound
            else torch.zeros(shape, dtype=torch.float32)
        )
        gain = ".norm" in name and name.endswith("weight")
        params[name] = torch.ones(shape, dtype=torch.float32) if gain else drawn
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


def _bound(name: str, weight_shape: tuple[int, ...]) -> float:
    """Half width of the uniform start: Xavier for in_proj, 1/√fan_in in the layers, 0 for what starts at 0."""
    if name in ("embedding.weight", "decoder.weight"):
        return 0.1
    if name.endswith("in_proj_weight"):
        return math.sqrt(6 / sum(weight_shape))
    if ".linear" in name or name.endswith("out_proj.weight"):
        return 1 / math.sqrt(weight_shape[-1])
    return 0.0
