"""Each a loss of one example and a start: the post's transformer, any module, Hugging Face's; or one in bfloat16."""

from devinterp_func.models._autocast import autocast
from devinterp_func.models._build import build
from devinterp_func.models._causal_lm import causal_lm
from devinterp_func.models._model import Model
from devinterp_func.models._module import module
from devinterp_func.models._outline import PUBLISHED, outline, stand_ins
from devinterp_func.models._parameters import Config, init, shapes
from devinterp_func.models._transformer import apply, loss, position_encoding, transformer

__all__ = [
    "Config",
    "Model",
    "PUBLISHED",
    "apply",
    "autocast",
    "build",
    "causal_lm",
    "init",
    "loss",
    "module",
    "outline",
    "position_encoding",
    "shapes",
    "stand_ins",
    "transformer",
]
