"""A model from what a run's manifest says of it."""

from typing import Any

from devinterp_func.models._autocast import DTYPES, KIND, autocast
from devinterp_func.models._causal_lm import rebuild
from devinterp_func.models._model import Model
from devinterp_func.models._parameters import Config
from devinterp_func.models._transformer import transformer


def build(source: dict[str, Any]) -> Model:
    """The model of a ``Model.source``, as JSON gives it back.

    Raises:
        ValueError: the source is of a module, which only the caller has, or of no kind known here.
        ImportError: the source is of a Hugging Face model, and transformers is not installed.
    """
    kind = source.get("kind")
    if kind == KIND:
        return _autocast(source)
    if kind == "transformer":
        return transformer(Config(**source["config"]))
    if kind == "causal_lm":
        return rebuild(source)
    if kind == "module":
        raise ValueError(
            f"the model is a module of {source['class']} with the loss {source['loss']}, which is not stored with the "
            "run; give it: model=models.module(your_module, your_loss)"
        )
    raise ValueError(
        f"the model's source is of kind {kind!r}; it must be 'transformer', 'causal_lm', 'module' or 'autocast'"
    )


def _autocast(source: dict[str, Any]) -> Model:
    if source["dtype"] not in DTYPES:
        raise ValueError(f"the model's source is in {source['dtype']!r}; it must be one of {', '.join(DTYPES)}")
    if source["of"].get("kind") == "module":
        own = source["of"]
        raise ValueError(
            f"the model is a module of {own['class']} with the loss {own['loss']}, which is not stored with the run; "
            "give it: model=models.autocast(models.module(your_module, your_loss))"
        )
    return autocast(build(source["of"]), DTYPES[source["dtype"]])
