"""Each a loss of one example and a start: the post's transformer, any module, Hugging Face's language models."""

from devinterp_func.models._build import build
from devinterp_func.models._causal_lm import causal_lm
from devinterp_func.models._model import Model
from devinterp_func.models._module import module
from devinterp_func.models._parameters import Config, init, shapes
from devinterp_func.models._transformer import apply, loss, position_encoding, transformer

__all__ = [
    "Config",
    "Model",
    "apply",
    "build",
    "causal_lm",
    "init",
    "loss",
    "module",
    "position_encoding",
    "shapes",
    "transformer",
]
