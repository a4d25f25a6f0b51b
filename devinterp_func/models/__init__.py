"""The post's transformer as pure functions, its forward pass in batches."""

from devinterp_func.models._forward import (
    LOGITS,
    Seen,
    attention_patterns,
    decode,
    forward,
    logit_blocks,
    resume,
    resume_needs,
    streams,
)
from devinterp_func.models._parameters import Config, in_order, init, shapes
from devinterp_func.models._transformer import (
    Masks,
    Tap,
    apply,
    dropout_masks,
    loss,
    position_encoding,
    stacked_dropout_masks,
    stream,
)

__all__ = [
    "Config",
    "LOGITS",
    "Masks",
    "Seen",
    "Tap",
    "apply",
    "attention_patterns",
    "decode",
    "dropout_masks",
    "forward",
    "in_order",
    "init",
    "logit_blocks",
    "loss",
    "position_encoding",
    "resume",
    "resume_needs",
    "shapes",
    "stacked_dropout_masks",
    "stream",
    "streams",
]
