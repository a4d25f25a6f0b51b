"""Models without weights: what there is to count of a causal language model, whatever its size."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses import FakeTensorMode

from devinterp_func import keys
from devinterp_func.models._causal_lm import _of, _quiet, _transformers
from devinterp_func.models._model import Model
from devinterp_func.tree import Params


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_embd": width, "n_layer": layers, "n_head": heads}


def _pythia(width: int, layers: int, heads: int, vocab: int = 50304) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": vocab}
    return {"model_type": "gpt_neox", **sizes, "intermediate_size": 4 * width}


PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "gpt3": _gpt2(12288, 96, 96) | {"n_positions": 2048},  # with dense attention throughout, which has as many numbers
    "pythia-70m": _pythia(512, 6, 8),
    "pythia-160m": _pythia(768, 12, 12),
    "pythia-410m": _pythia(1024, 24, 16),
    "pythia-1b": _pythia(2048, 16, 8),
    "pythia-1.4b": _pythia(2048, 24, 16),
    "pythia-2.8b": _pythia(2560, 32, 32),
    "pythia-6.9b": _pythia(4096, 32, 32, 50432),
    "pythia-12b": _pythia(5120, 36, 40, 50688),
    "llama-7b": {"model_type": "llama"},  # transformers' defaults are its sizes
}
"""Published models, by Radford et al. 2019, Brown et al. 2020, Biderman et al. 2023, and Touvron et al. 2023."""


def outline(what: Any) -> Model:
    """A causal language model of transformers without its weights; ``init`` gives stand-ins that take no memory.

    ``graph.of`` takes them as it takes weights; the graph and all that is counted from it are those of the real model.

    Args:
        what: a name of ``PUBLISHED``, the path of a config.json or of a folder with one, or a config. Nothing is
            fetched.

    Raises:
        ImportError: transformers is not installed.
        ValueError: neither a name nor a path that is there, or the config is of no causal language model.
        TypeError: none of these.

    >>> outline("gpt2-xl")
    Model gpt2-xl: 1,557,611,200 parameters in 580 tensors
    """
    library = _transformers()
    config = _config(library, what) if isinstance(what, str | os.PathLike) else what
    if not isinstance(config, library.PreTrainedConfig):
        raise TypeError(f"the model is a {type(what).__name__}; it must be a name, a path or a transformers config")
    with torch.device("meta"), _quiet(library):
        own = library.AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
        )
    for part in own.modules():  # a trace reads buffers as they are, so they need memory, but no numbers
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else torch.zeros_like(buffer, device="cpu")
    made = _of(library, own.train(), "fresh")
    name = what if isinstance(what, str) and what in PUBLISHED else type(own).__name__

    def init(key: keys.Key | int) -> Params:
        return stand_ins(made)

    return replace(made, name=name, init=init, source={"kind": "outline", "of": name})


def stand_ins(model: Model) -> Params:
    """Tensors of a model's parameters' shapes that hold no numbers and take no memory (torch's ``FakeTensor``)."""
    with FakeTensorMode():
        return {name: torch.empty(shape) for name, shape in model.shapes.items()}


def _config(library: Any, what: str | os.PathLike[str]) -> Any:
    if isinstance(what, str) and what in PUBLISHED:
        return library.AutoConfig.for_model(**PUBLISHED[what])
    if not Path(what).exists():
        raise ValueError(f"there is no model {str(what)!r}: give {', '.join(PUBLISHED)}, or the path of a config.json")
    with _quiet(library):
        try:
            config = library.AutoConfig.from_pretrained(what, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{what}: no config.json of a model that transformers knows") from error
    if type(config) not in library.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{what}: {type(config).__name__} is of no causal language model")
    return config
