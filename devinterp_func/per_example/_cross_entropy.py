"""The fused vocabulary head: cross entropy of logits = W_U h + b and its gradients, a block of words at a time."""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vmap

from devinterp_func import checks
from devinterp_func.models import Config, stream
from devinterp_func.per_example._factors import Bias, Factor, Outer
from devinterp_func.tree import Params
from devinterp_func.units import UNEMBEDDING, UNEMBEDDING_BIAS

VOCABULARY_BLOCK = 1024  # rows of W_U at a time on a CPU: (1024, n·C) logits stay in cache between product and exp


@torch.no_grad()
def losses(
    params: Params,
    tokens: Int[Tensor, "n C"],
    targets: Int[Tensor, "n C"],
    config: Config,
    buffer: Float[Tensor, "V nC"] | None = None,
) -> Float[Tensor, "n C"]:
    """Cross entropy in nats at every position, without dropout: ``capture``'s forward half, for evaluation.

    Raises:
        TypeError: float16 parameters, in which the softmax would underflow.
        ValueError: a token that the vocabulary lacks, or a buffer of another shape.
    """
    check_batch(params, tokens, targets, config, buffer)
    final = vmap(lambda example: stream(params, example, config))(tokens)
    return _losses(params, final.flatten(0, 1), targets, buffer)[0]


def check_batch(params: Params, tokens: Tensor, targets: Tensor, config: Config, buffer: Tensor | None) -> None:
    """Whether ``losses`` and ``capture`` can take these; raises as they do."""
    if params[UNEMBEDDING].dtype == torch.float16:
        raise TypeError("the parameters are torch.float16, whose range is too small; use float32, float64 or bfloat16")
    for name, ids in (("tokens", tokens), ("targets", targets)):
        checks.token_ids(name, ids, config.vocab_size)
    wanted = (config.vocab_size, targets.numel())
    if buffer is not None and buffer.shape != wanted:
        raise ValueError(f"buffer is {tuple(buffer.shape)}; for {len(targets)} data it must be {wanted}")


class Head(NamedTuple):
    losses: Float[Tensor, "n C"]
    stream_signals: Float[Tensor, "n C d"]
    mean_grads: Params
    exponentials: Float[Tensor, "V nC"]  # softmax before normalisation
    normaliser: Float[Tensor, "nC"]
    targets: Int[Tensor, "n C"]


def head_gradients(
    params: Params, final: Float[Tensor, "n C d"], targets: Int[Tensor, "n C"], buffer: Tensor | None
) -> Head:
    """Cross entropy and the gradients of logits, W_U and bias together, block by block of the vocabulary.

    The logits are written once; softmax's normaliser is folded into the (n·C, d) factors of the products, so that the
    V·n·C exponentials are never touched again but by matrix products.
    """
    weight, bias = params[UNEMBEDDING], params[UNEMBEDDING_BIAS]
    n, C = len(targets), targets.shape[1]
    h, t = rearrange(final, "n C d -> (n C) d"), targets.flatten()
    losses, exponentials, total = _losses(params, h, targets, buffer)
    normaliser = 1 / (C * total)
    scaled = h * (normaliser / n)[:, None]
    d_weight, d_bias = torch.empty_like(weight), torch.empty_like(bias)
    d_h = torch.zeros_like(h)
    for block in _blocks(weight):
        torch.mm(exponentials[block], scaled, out=d_weight[block])
        torch.mv(exponentials[block], normaliser / n, out=d_bias[block])
        d_h.addmm_(exponentials[block].mT, weight[block])
    d_weight.index_add_(0, t, h, alpha=-1 / (n * C))
    d_bias.index_add_(0, t, torch.full_like(normaliser, -1 / (n * C)))
    d_h = d_h.mul_(normaliser[:, None]).sub_(weight[t], alpha=1 / C)
    mean_grads = {UNEMBEDDING: d_weight, UNEMBEDDING_BIAS: d_bias}
    return Head(losses, d_h.view(n, C, -1), mean_grads, exponentials, normaliser, targets)


def _losses(
    params: Params, h: Float[Tensor, "nC d"], targets: Int[Tensor, "n C"], buffer: Tensor | None
) -> tuple[Float[Tensor, "n C"], Float[Tensor, "V nC"], Float[Tensor, "nC"]]:
    """Losses, and the exponentials and their sums that they come from."""
    weight, bias, t = params[UNEMBEDDING], params[UNEMBEDDING_BIAS], targets.flatten()
    exponentials, total, shift = _exponentials(weight, bias, h, buffer)
    losses = total.log() + shift - (h * weight[t]).sum(1) - bias[t]
    return losses.view(targets.shape), exponentials, total


def _exponentials(
    weight: Float[Tensor, "V d"], bias: Float[Tensor, "V"], h: Float[Tensor, "nC d"], buffer: Tensor | None
) -> tuple[Float[Tensor, "V nC"], Float[Tensor, "nC"], Float[Tensor, "nC"]]:
    """exp(logit − shift), their sum over the vocabulary, and the shift.

    exp(logit) loses no precision while it neither overflows nor underflows, so the usual shift by the largest logit,
    one more pass over V·n·C numbers, is made only where a sum shows that it was needed.
    """
    out = torch.empty(len(weight), len(h), dtype=h.dtype, device=h.device) if buffer is None else buffer
    shift = torch.zeros_like(h[:, 0])
    total = _fill(out, weight, bias, h, shift)
    if not bool(((total > 1e-25) & (total < 1e30)).all()):
        for block in _blocks(weight):
            largest = (weight[block] @ h.mT + bias[block, None]).amax(0)
            shift = largest if block.start == 0 else torch.maximum(shift, largest)
        total = _fill(out, weight, bias, h, shift)
    return out, total, shift


def _fill(out: Tensor, weight: Tensor, bias: Tensor, h: Tensor, shift: Tensor) -> Float[Tensor, "nC"]:
    total, transposed = torch.zeros_like(shift), h.mT.contiguous()
    shifted = bool(shift.any())
    for block in _blocks(weight):
        logits = torch.mm(weight[block], transposed, out=out[block]).add_(bias[block, None])
        total += (logits.sub_(shift) if shifted else logits).exp_().sum(0)
    return total


def _blocks(weight: Float[Tensor, "V d"]) -> list[slice]:
    size = VOCABULARY_BLOCK if weight.device.type == "cpu" else len(weight)
    return [slice(i, min(i + size, len(weight))) for i in range(0, len(weight), size)]


def decoder_factors(final: Float[Tensor, "n C d"], head: Head) -> dict[str, Factor]:
    """(P − onehot)/C at every position, V numbers each: only when asked for, and laid out as the logits are."""
    n, C = head.targets.shape
    signals = head.exponentials * head.normaliser  # (V, n·C)
    target = head.targets.flatten()
    signals[target, torch.arange(len(target), device=target.device)] -= 1 / C
    signals = rearrange(signals, "V (n C) -> n C V", n=n)
    return {UNEMBEDDING: Outer(final, signals), UNEMBEDDING_BIAS: Bias(signals)}
