"""Gradients of each example apart: ``grads``, the definition, and ``capture``, the same numbers in one backward pass.

For a linear map with input a[j,k] and back-signal b[j,k] (datum j, token position k), datum j's weight gradient is
Σ_k b[j,k] ⊗ a[j,k] and its bias gradient Σ_k b[j,k]. So (a, b) is a lossless factorisation of all per-example
gradients, and each term of the sum says which token position moved the weight. ``capture`` adds a zero "probe" to the
output of every parametrised operation and differentiates with respect to the probes alone: that gives every b, the
forward pass every a. (Goodfellow 2015, *Efficient per-example gradient computations*; Dangel et al. 2020, *BackPACK*.)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vjp, vmap

from devinterp_func import checks, tree
from devinterp_func.models import Config, Masks, stream
from devinterp_func.per_example._cross_entropy import check_batch, decoder_factors, head_gradients
from devinterp_func.per_example._factors import Bias, Factor, Gain, Lookup, Outer
from devinterp_func.tree import Params
from devinterp_func.units import (
    EMBEDDING,
    UNEMBEDDING,
    UNEMBEDDING_BIAS,
    Patterns,
    choose,
    is_norm,
    operation,
    weight_and_bias,
)


class Capture(NamedTuple):
    """What one batch says: each datum's loss, the batch gradient of ALL parameters, the captured units' factors."""

    losses: Float[Tensor, "n"]
    mean_grads: Params
    factors: dict[str, Factor]

    def __repr__(self) -> str:
        size = sum(gradient.numel() for gradient in self.mean_grads.values())
        return (
            f"Capture of {len(self.losses)} data: mean loss {self.losses.mean():.4f}, gradient norm "
            f"{tree.norm(self.mean_grads):.4g} over {size:,} parameters, factors of {len(self.factors)} units"
        )


@torch.no_grad()
def capture(
    params: Params,
    tokens: Int[Tensor, "n C"],
    targets: Int[Tensor, "n C"],
    config: Config,
    masks: Masks | None = None,
    units: Patterns = (),
    buffer: Float[Tensor, "V nC"] | None = None,
) -> Capture:
    """The numbers of ``vmap(grad(models.loss))`` in one ordinary backward pass.

    Args:
        params: parameters of ``models.init``.
        tokens: input tokens.
        targets: next tokens.
        config: the model.
        masks: dropout masks, each with a leading n, or None.
        units: which parameters get factors, as name patterns (``units.choose``).
        buffer: scratch for the logits, to spare an allocation of V·n·C numbers; its contents are overwritten.

    Raises:
        RuntimeError: within torch's inference mode.
        TypeError: float16 parameters, in which the softmax would underflow.
        ValueError: a token that the vocabulary lacks, a pattern that matches no parameter, a buffer of another shape.
    """
    checks.gradients_allowed()
    check_batch(params, tokens, targets, config, buffer)
    wanted = choose(params, units)
    inputs, pull, final = _forward(params, tokens, config, masks)
    head = head_gradients(params, final, targets, buffer)
    (signals,) = pull(head.stream_signals)
    factors = {name: factor for op in inputs for name, factor in _factors(op, inputs[op], signals[op], params)}
    mean_grads = {name: _mean_gradient(factor) for name, factor in factors.items()} | head.mean_grads
    if UNEMBEDDING in wanted or UNEMBEDDING_BIAS in wanted:
        factors |= decoder_factors(final, head)
    return Capture(
        reduce(head.losses, "n C -> n", "mean"),
        {name: mean_grads[name] for name in params},
        {name: factors[name] for name in wanted},
    )


def _forward(
    params: Params, tokens: Int[Tensor, "n C"], config: Config, masks: Masks | None
) -> tuple[dict[str, Tensor], Callable[..., Any], Float[Tensor, "n C d"]]:
    """Inputs of every parametrised operation, the pull-back to their outputs, and the final stream."""

    def one(tokens: Tensor, masks: Masks | None, probes: Params) -> tuple[Tensor, Params]:
        inputs: Params = {}

        def tap(name: str, x: Tensor, y: Tensor) -> Tensor:
            inputs[name] = x
            return y + probes[name]

        return stream(params, tokens, config, masks, tap), inputs

    zero = params[UNEMBEDDING].new_zeros(())  # expanded: probes take no memory
    probes = {name: zero.expand(*tokens.shape, width) for name, width in _operations(params)}
    in_dims = (0, None if masks is None else 0, 0)
    # torch's annotation leaves has_aux out
    final, pull, inputs = vjp(  # type: ignore[misc]
        lambda probes: vmap(one, in_dims)(tokens, masks, probes), probes, has_aux=True
    )
    return inputs, pull, final


def _operations(params: Params) -> list[tuple[str, int]]:
    """Every parametrised operation below the unembedding and its output width."""
    weights = [name for name in params if name.endswith("weight") and name != UNEMBEDDING]
    return [(operation(name), params[name].shape[-1 if name == EMBEDDING else 0]) for name in weights]


def _factors(op: str, inputs: Tensor, signals: Tensor, params: Params) -> list[tuple[str, Factor]]:
    weight, bias = weight_and_bias(op)
    if weight == EMBEDDING:
        return [(weight, Lookup(inputs, signals, len(params[weight])))]
    return [(weight, Gain(inputs, signals) if is_norm(weight) else Outer(inputs, signals)), (bias, Bias(signals))]


def _mean_gradient(factor: Factor) -> Tensor:
    """The batch gradient of a unit: mean over the data of the gradients that ``form`` would give."""
    n = len(factor.signals)
    signals = rearrange(factor.signals, "n C o -> (n C) o") / n
    match factor:
        case Outer(inputs, _):
            return signals.mT @ inputs.flatten(0, 1)
        case Bias():
            return signals.sum(0)
        case Gain(inputs, _):
            return (signals * inputs.flatten(0, 1)).sum(0)
        case Lookup(tokens, _, rows):
            return signals.new_zeros(rows, signals.shape[-1]).index_add_(0, tokens.flatten(), signals)
