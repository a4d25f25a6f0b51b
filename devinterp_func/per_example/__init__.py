"""Gradients of each example: the definition, one-pass capture as factors, and exact outliers."""

from devinterp_func.per_example._capture import Capture, capture
from devinterp_func.per_example._check import capture_missed
from devinterp_func.per_example._cross_entropy import VOCABULARY_BLOCK, data_losses, losses
from devinterp_func.per_example._definition import grads
from devinterp_func.per_example._factors import (
    Bias,
    Dense,
    Factor,
    Gain,
    Lookup,
    Outer,
    Scaled,
    Sum,
    join,
    n_data,
    n_positions,
    shape_of,
    size_of,
    widened,
)
from devinterp_func.per_example._form import form, gradients, total
from devinterp_func.per_example._maps import join_data, multiply, scale, scale_factors, take_data
from devinterp_func.per_example._outliers import (
    Outliers,
    Per,
    form_flat,
    form_units,
    leading_positions,
    select,
    top_k,
    top_k_from_factors,
    top_k_of_step,
    workspace,
)
from devinterp_func.per_example._outline import outline
from devinterp_func.per_example._products import amounts, contributions, delta_norms, token_gradients
from devinterp_func.per_example._tangent import Tangent, tangents

__all__ = [
    "Bias",
    "Capture",
    "Dense",
    "Factor",
    "Gain",
    "Lookup",
    "Outer",
    "Outliers",
    "Per",
    "Scaled",
    "Sum",
    "Tangent",
    "VOCABULARY_BLOCK",
    "amounts",
    "capture",
    "capture_missed",
    "contributions",
    "data_losses",
    "delta_norms",
    "form",
    "form_flat",
    "form_units",
    "gradients",
    "grads",
    "join",
    "join_data",
    "leading_positions",
    "losses",
    "multiply",
    "n_data",
    "n_positions",
    "outline",
    "scale",
    "scale_factors",
    "select",
    "shape_of",
    "size_of",
    "take_data",
    "tangents",
    "token_gradients",
    "top_k",
    "top_k_from_factors",
    "top_k_of_step",
    "total",
    "widened",
    "workspace",
]
