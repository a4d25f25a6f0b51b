"""Models as modules of plain linear maps and convolutions, which is what a library with hooks can see.

A module that is given may have ``nn.Linear``, ``nn.Conv2d`` and transformers' ``Conv1D``, which becomes an
``nn.Linear``. The post's model is a pure function, and torch's own attention calls no module: it is written out here.
What no such module holds, embeddings and norms, is not seen.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from devinterp_func import models
from devinterp_func.models import Config, Model
from devinterp_func.tree import Params

WIDEST = 2048  # outputs: what has more, such as the head of a large vocabulary, would need a matrix of their square


class Network(NamedTuple):
    """A model with its weights, without dropout."""

    module: nn.Module
    logits: Callable[[Callable[..., Any], Any], Tensor]  # of what calls the module, and a batch: (n, V), or (n, C, V)
    seen: list[str]  # names of the modules that count

    def __repr__(self) -> str:
        return f"Network of {type(self.module).__name__}: seen are {', '.join(self.seen)}"


def network(module: nn.Module, params: Params, logits: Callable[[Callable[..., Any], Any], Tensor]) -> Network:
    """A module with some weights.

    Args:
        module: what ``models.module`` or ``models.causal_lm`` was made of; it is not changed.
        params: its weights by name.
        logits: of a batch of its first inputs, given the module.

    Raises:
        ValueError: the weights are not all of the module's, or it has nothing that can be seen.
    """
    own = copy.deepcopy(module).float().eval()
    there = {name: w for name, w in own.named_parameters() if w.requires_grad}
    if missing := there.keys() ^ params.keys():
        raise ValueError(f"{', '.join(sorted(missing))}: of the weights or of the module, not of both")
    with torch.no_grad():
        for name, w in there.items():
            w.copy_(params[name])
    _as_linear(own)
    own = own if list(own.children()) else nn.Sequential(own)  # a module alone has nobody to put another in its place
    seen = [name for name, part in own.named_modules() if isinstance(part, nn.Linear | nn.Conv2d) and _narrow(part)]
    if not seen:
        raise ValueError(f"{type(module).__name__} has no linear map or convolution with at most {WIDEST} outputs")
    return Network(own, logits, seen)


def _narrow(part: nn.Linear | nn.Conv2d) -> bool:
    return part.weight.requires_grad and len(part.weight) <= WIDEST


def _as_linear(module: nn.Module) -> None:
    for name, part in module.named_children():
        if type(part).__name__ == "Conv1D":  # of transformers: y = x W + b
            own = dict(part.named_parameters())
            linear = nn.Linear(*own["weight"].shape)
            linear.weight, linear.bias = nn.Parameter(own["weight"].detach().T.contiguous()), own["bias"]
            setattr(module, name, linear)
        else:
            _as_linear(part)


# ---- models of text


def of_model(model: Model, params: Params) -> Network:
    """A language model with some weights, from what the library knows of it.

    Raises:
        ValueError: it is another module; give it to ``network``.
    """
    source = model.source
    if source["kind"] == "transformer":
        return post(Config(**source["config"]), params)
    if source["kind"] == "causal_lm":
        from transformers import AutoConfig

        return gpt2(AutoConfig.for_model(**source["config"]), params)
    raise ValueError(f"{model} is of a module that only you have; make it with network(module, params, logits)")


def gpt2(config: Any, params: Params) -> Network:
    """A language model of transformers, such as GPT-2, given its config; its head where the vocabulary is small.

    A tied head counts as a map of its own: what its table does as the embedding is not seen.
    """
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        module = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    return network(module, params, lambda call, tokens: call(tokens, use_cache=False).logits)


def post(config: Config, params: Params) -> Network:
    """The post's model: ``models.transformer``."""
    renamed = {name.replace("in_proj_", "in_proj."): w for name, w in params.items()}
    return network(Post(config), renamed, lambda call, tokens: call(tokens))


class Post(nn.Module):
    """``models.apply`` of a batch, without dropout."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.decoder = nn.Linear(config.d_model, config.vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) * math.sqrt(self.config.d_model)
        x = x + models.position_encoding(self.config, tokens.shape[1]).to(x)
        for layer in self.layers:
            x = layer(x)
        return self.decoder(x)


class Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        d = config.d_model
        self.heads = config.n_heads
        self.self_attn = nn.ModuleDict({"in_proj": nn.Linear(d, 3 * d), "out_proj": nn.Linear(d, d)})
        self.linear1, self.linear2 = nn.Linear(d, config.d_hidden), nn.Linear(config.d_hidden, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x: Tensor) -> Tensor:
        split = self.self_attn["in_proj"](x).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)  # (n, h, C, a) each
        scores = query / math.sqrt(query.shape[-1]) @ key.mT  # torch's own attention has no vmap rule on CPU
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(future, -math.inf).softmax(-1) @ value
        x = self.norm1(x + self.self_attn["out_proj"](mixed.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))
