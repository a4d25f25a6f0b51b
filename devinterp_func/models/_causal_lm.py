"""Hugging Face's causal language models: next-token loss of one example. Nothing is fetched, ever."""

import copy
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import keys
from devinterp_func.models._model import Model
from devinterp_func.models._module import module, path
from devinterp_func.models._transformer import NOTHING
from devinterp_func.tree import Params


def causal_lm(model: Any) -> Model:
    """A causal language model of transformers; ``loss(params, tokens, targets)`` is its next-token cross entropy.

    It runs in training mode, so with its own dropout, without a cache, and with attention written out (eager), so that
    patterns can be read. Tied weights appear once, under their first name.

    Args:
        model: a config, whose ``init(key)`` draws fresh float32 weights as transformers does, the global generator
            left alone; or a ``PreTrainedModel``, or a local directory, read in float32, whose ``init`` gives its own
            weights, whatever the key.

    Raises:
        ImportError: transformers is not installed.
        ValueError: a directory that is not there, or that lacks some of the weights.
        TypeError: none of these.
    """
    library = _transformers()
    if isinstance(model, str | os.PathLike):
        model = _read(library, Path(model))
    if isinstance(model, library.PreTrainedModel):
        return _of(library, _for_training(library, model), "given")
    if isinstance(model, library.PreTrainedConfig):
        return _fresh(library, model)
    raise TypeError(
        f"the model is a {type(model).__name__}; it must be a transformers config, a PreTrainedModel or a directory"
    )


def rebuild(source: dict[str, Any]) -> Model:
    """The model of a ``causal_lm``'s source; where its weights were given, ``init`` refuses."""
    library = _transformers()
    with _quiet(library):
        config = library.AutoConfig.for_model(**source["config"])
    model = _fresh(library, config)
    if source["weights"] == "fresh":
        return model
    if model.source["constants"] != source["constants"]:
        raise ValueError(
            f"the {source['class']} that was given had other buffers than its config makes, such as of another dtype; "
            "give it again: model=models.causal_lm(your_model)"
        )
    return replace(model, init=_not_kept, source=source)


def _fresh(library: ModuleType, config: Any) -> Model:
    config = copy.deepcopy(config)  # the caller's may change, and transformers writes into it

    def init(key: keys.Key | int) -> Params:
        return {name: w.detach() for name, w in _draw(library, config, key).named_parameters()}

    return replace(_of(library, _draw(library, config, 0), "fresh"), init=init)


def _draw(library: ModuleType, config: Any, key: keys.Key | int) -> Any:
    """The config's model with fresh weights; always on the CPU, so that they are a function of the key alone."""
    seed = int(keys.generator(key).integers(2**63))
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), _quiet(library):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators too
        return library.AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
        )


def _read(library: ModuleType, directory: Path) -> Any:
    if not directory.is_dir():
        raise ValueError(f"there is no directory {directory}; a model is read from disk, never fetched")
    with _quiet(library):
        model, found = library.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"the weights in {directory} are not all of the model's; missing are {missing}")
    return model


def _for_training(library: ModuleType, model: Any) -> Any:
    """The caller's model in training mode and eager: a copy that shares its weights."""
    shared = {id(x): x for x in (*model.parameters(), *model.buffers())}
    own = copy.deepcopy(model, shared).train()
    with _quiet(library):
        own.set_attn_implementation("eager")
    return own


def _of(library: ModuleType, own: Any, weights: str) -> Model:
    most = getattr(own.config.get_text_config(), "max_position_embeddings", None)

    def loss(model: Any, tokens: Int[Tensor, "C"], targets: Int[Tensor, "C"]) -> Float[Tensor, ""]:
        if most is not None and len(tokens) > most:
            raise ValueError(f"the example has {len(tokens)} tokens, more than the model's {most} positions")
        return F.cross_entropy(model(tokens[None], use_cache=False).logits[0], targets, ignore_index=NOTHING)

    made = module(own, loss)
    standard = library.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(own.config), None) is type(own)
    if not standard or len(made.shapes) < len(list(own.parameters())):  # another class, or frozen weights
        return replace(made, source=made.source | {"loss": path(causal_lm)})
    source = {
        "kind": "causal_lm",
        "class": type(own).__name__,
        "config": _as_json(own.config),
        "weights": weights,
        "constants": made.source["constants"],
        "versions": {"transformers": library.__version__},
    }
    return replace(made, source=source)


def _as_json(config: Any) -> dict[str, Any]:
    """All of a config but the place it was read from."""
    said = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in said.items() if name != "_name_or_path"}


def _not_kept(key: keys.Key | int) -> Params:
    raise ValueError("the run began with weights that were given to it; they are in its first snapshot alone")


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise ImportError('causal_lm needs transformers; pip install "devinterp_func[hf]"') from error
    return transformers


@contextmanager
def _quiet(library: ModuleType) -> Iterator[None]:
    """No progress bars and no advice meanwhile; what the caller had set comes back."""
    log = library.utils.logging
    level, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bar:
            log.enable_progress_bar()
