"""The fused head where its linear map works in bfloat16, as torch's autocast does it.

Logits are rounded once; softmax and losses are of these, in float32; the gradient by the logits is rounded once, and so
is each of its products with weights and stream. A block of classes at a time: what is as large as the logits is there
once, in 16 bits, first as the logits and then as the gradient by them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Rounded(NamedTuple):
    """Logits in 16 bits, and what their softmax divides by."""

    logits: Float[Tensor, "V nC"]
    shift: Float[Tensor, "nC"]
    total: Float[Tensor, "nC"]  # Σ exp(logit − shift)

    def at(self, target: Int[Tensor, "nC"]) -> Float[Tensor, "nC"]:
        """The target's logit."""
        return self.logits[target, torch.arange(len(target), device=target.device)].float()


class RoundedGradients(NamedTuple):
    weight: Float[Tensor, "V d"]  # mean over the data
    bias: Float[Tensor, "V"]
    stream: Float[Tensor, "nC d"]
    signals: Float[Tensor, "V nC"]  # by the logits, in 16 bits; they lie where the logits lay


def rounded_logits(
    weight: Float[Tensor, "V d"],
    bias: Float[Tensor, "V"] | None,
    h: Float[Tensor, "nC d"],
    buffer: Tensor | None,
    blocks: Sequence[slice],
) -> Rounded:
    """Logits of n·C positions, all three in the same 16 bits; the usual shift only where it is needed."""
    out = torch.empty(len(weight), len(h), dtype=h.dtype, device=h.device) if buffer is None else buffer
    transposed, shift = h.mT.contiguous(), torch.zeros(len(h), dtype=torch.float32, device=h.device)
    total = torch.zeros_like(shift)
    for block in blocks:
        if bias is None:
            torch.mm(weight[block], transposed, out=out[block])
        else:
            torch.addmm(bias[block, None], weight[block], transposed, out=out[block])
        total += out[block].float().exp_().sum(0)
    if bool(((total > 1e-25) & (total < 1e30)).all()):
        return Rounded(out, shift, total)
    shift, total = out.amax(0).float(), torch.zeros_like(total)
    for block in blocks:
        total += out[block].float().sub_(shift).exp_().sum(0)
    return Rounded(out, shift, total)


def rounded_gradients(
    rounded: Rounded,
    weight: Float[Tensor, "V d"],
    h: Float[Tensor, "nC d"],
    target: Int[Tensor, "nC"],
    w: Float[Tensor, "nC"],
    n: int,
    blocks: Sequence[slice],
) -> RoundedGradients:
    """Gradients of the losses of n data; uses the logits up.

    Args:
        rounded: of ``rounded_logits``.
        weight, h: as for these.
        target: of each position.
        w: weight of each position in its datum's loss.
        n: how many data there are.
        blocks: of classes that go together.
    """
    signals, normaliser = rounded.logits, w / rounded.total
    right = (rounded.at(target) - rounded.shift).exp_() * normaliser - w  # rounded once, not at p and again at p − 1
    d_weight = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    d_bias = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    for block in blocks:
        signals[block] = signals[block].float().sub_(rounded.shift).exp_().mul_(normaliser)
        here = ((target >= block.start) & (target < block.stop)).nonzero().squeeze(1)
        signals[target[here], here] = right[here].to(signals.dtype)
        d_weight[block] = signals[block] @ h
        d_bias[block] = signals[block].sum(1, dtype=torch.float32)
    return RoundedGradients(d_weight.div_(n), d_bias.div_(n), (signals.mT @ weight).float(), signals)
