"""The fused head: cross entropy of logits = W h + b and its gradients, a block of classes at a time."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vjp

from devinterp_func import checks, tree
from devinterp_func.graph import Graph, Head, head_rows, run, run_tail
from devinterp_func.per_example._factors import Bias, Factor, Outer
from devinterp_func.per_example._rounded_head import Rounded, rounded_gradients, rounded_logits
from devinterp_func.tree import Params

VOCABULARY_BLOCK = 1024  # rows of W at a time on a CPU: (1024, n·C) logits stay in cache between product and exp


@torch.no_grad()
def losses(
    graph: Graph, params: Params, *batch: Any, buffer: Float[Tensor, "V nC"] | None = None
) -> Float[Tensor, "n C"]:
    """Cross entropy in nats at every position that the head reads, without dropout; without a head each datum's loss.

    Args:
        graph, params: the model.
        batch: data, each tensor with a leading n.
        buffer: as for ``capture``.

    Raises:
        TypeError: float16 parameters, in which the softmax would underflow.
        ValueError: the batch does not fit the graph, a target is no class, or a buffer is of another shape.
    """
    head = graph.head
    if head is None:
        return run(graph, params, batch, [graph.trace.output.name])[graph.trace.output.name][:, None]
    return _scored(head, graph, params, batch, buffer).losses


@torch.no_grad()
def data_losses(
    graph: Graph, params: Params, *batch: Any, buffer: Float[Tensor, "V nC"] | None = None
) -> Float[Tensor, "n"]:
    """Each datum's loss without dropout; arguments and errors as for ``losses``."""
    head = graph.head
    if head is None:
        return run(graph, params, batch, [graph.trace.output.name])[graph.trace.output.name]
    scores = _scored(head, graph, params, batch, buffer)
    return weigh(graph, params, tree.leaves(batch), scores)[0]


class Scores(NamedTuple):
    """What the head says of n data at C positions each."""

    losses: Float[Tensor, "n C"]  # 0 where the target is ignored
    exponentials: Float[Tensor, "V nC"]  # softmax before normalisation; where the head rounds, the logits themselves
    total: Float[Tensor, "nC"]  # their sums
    stream: Float[Tensor, "n C d"]
    targets: Int[Tensor, "n C"]  # 0 where ignored
    counts: Float[Tensor, "n C"]  # 1, or 0 where the target is ignored
    shift: Float[Tensor, "nC"]  # of the logits, before they are exponentiated


class HeadGradients(NamedTuple):
    losses: Float[Tensor, "n"]
    stream_signals: Float[Tensor, "n C d"]
    mean_grads: Params
    scores: Scores
    weights: Float[Tensor, "n C"]  # of each position in its datum's loss
    signals: Float[Tensor, "V nC"] | None = None  # where the head rounds: by the logits, in its 16 bits


def _scored(
    head: Head, graph: Graph, params: Params, batch: tuple[Any, ...], buffer: Float[Tensor, "V nC"] | None
) -> Scores:
    """What the head says of a batch, without dropout."""
    found = run(graph, params, batch, [head.stream.name, head.targets.name])
    return score(head, params, head_rows(graph, found[head.stream.name]), found[head.targets.name], buffer)


def check_head(head: Head, params: Params) -> None:
    """Refuses numbers too short for a softmax without its usual shift."""
    if torch.float16 in (params[head.weight].dtype, head.dtype):
        what = "parameters are" if params[head.weight].dtype == torch.float16 else "head works in"
        raise TypeError(f"the {what} torch.float16, whose range is too small; use float32, float64 or bfloat16")


def rounds(head: Head) -> bool:
    """Whether the head's linear map works in 16 bits."""
    return head.dtype.itemsize < 4


def score(
    head: Head, params: Params, stream: Float[Tensor, "n C d"], targets: Tensor, buffer: Float[Tensor, "V nC"] | None
) -> Scores:
    """Losses at every position, and what they come from."""
    check_head(head, params)
    n, C, _ = stream.shape
    targets = targets.reshape(n, -1)
    kept = targets != head.ignored
    checks.token_ids("targets", targets[kept], head.n_classes)
    wanted = (head.n_classes, n * C)
    if buffer is not None and (buffer.shape != wanted or buffer.dtype != head.dtype):
        raise ValueError(
            f"buffer is {tuple(buffer.shape)}, {buffer.dtype}; for {n} data it must be {wanted}, {head.dtype}"
        )
    weight, bias = (None if name is None else params[name].to(head.dtype) for name in (head.weight, head.bias))
    assert weight is not None
    h, t = stream.flatten(0, 1).to(head.dtype), torch.where(kept, targets, 0).flatten()
    if rounds(head):
        logits = rounded_logits(weight, bias, h, buffer, blocks(weight))
        exponentials, shift, total = logits
        found = total.log() + shift - logits.at(t)
    else:
        exponentials, total, shift = _exponentials(weight, bias, h, buffer)
        found = total.log() + shift - (h * weight[t]).sum(1) - (0 if bias is None else bias[t])
    counts = kept.to(found.dtype)
    return Scores((found.view(n, C) * counts), exponentials, total, stream, t.view(n, C), counts, shift)


def head_gradients(
    graph: Graph,
    params: Params,
    leaves: list[Tensor],
    stream: Tensor,
    targets: Tensor,
    buffer: Tensor | None,
    counted: Float[Tensor, "n"] | None = None,
) -> HeadGradients:
    """Each datum's loss and the gradients of logits, W and bias together, block by block of the classes.

    Gradients are of the losses times what each datum is ``counted``.

    The logits are written once; softmax's normaliser and each position's weight in its datum's loss are folded into the
    (n·C, d) factors of the products, so that the V·n·C exponentials are never touched again but by matrix products.
    """
    head = graph.head
    assert head is not None
    scores = score(head, params, stream, targets, buffer)
    losses, weights = weigh(graph, params, leaves, scores)
    weights = weights if counted is None else weights * counted.to(weights)[:, None]
    weight, n = params[head.weight].to(head.dtype), len(stream)
    h, t, w = stream.flatten(0, 1).to(head.dtype), scores.targets.flatten(), weights.flatten()
    if rounds(head):
        logits = Rounded(scores.exponentials, scores.shift, scores.total)
        own = rounded_gradients(logits, weight, h, t, w, n, blocks(weight))
        means = {head.weight: own.weight} | ({} if head.bias is None else {head.bias: own.bias})
        return HeadGradients(losses, own.stream.view(stream.shape), means, scores, weights, own.signals)
    normaliser = w / scores.total
    scaled = h * (normaliser / n)[:, None]
    d_weight, d_bias = torch.empty_like(weight), weight.new_empty(len(weight))
    d_h = torch.zeros_like(h)
    for block in blocks(weight):
        torch.mm(scores.exponentials[block], scaled, out=d_weight[block])
        if head.bias is not None:
            torch.mv(scores.exponentials[block], normaliser / n, out=d_bias[block])
        d_h.addmm_(scores.exponentials[block].mT, weight[block])
    d_weight.index_add_(0, t, h * (w / -n)[:, None])
    d_h = d_h.mul_(normaliser[:, None]).sub_(weight[t] * w[:, None])
    mean_grads = {head.weight: d_weight}
    if head.bias is not None:
        mean_grads[head.bias] = d_bias.index_add_(0, t, w / -n)
    return HeadGradients(losses, d_h.view(stream.shape), mean_grads, scores, weights)


def weigh(
    graph: Graph, params: Params, leaves: list[Tensor], scores: Scores
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n C"]]:
    """Each datum's loss, and the weight of each position in it: the loss's derivative by the position's."""
    head = graph.head
    assert head is not None
    counts = scores.counts
    if head.reduction == "mean":
        counts = counts / counts.sum(1, keepdim=True)
    if head.reduction != "none":
        reduced = (scores.losses * counts).sum(1)
    if head.loss is graph.trace.output:
        return reduced, counts
    shape = head.loss.meta["val"].shape
    entropy = scores.losses.reshape(len(counts), *shape) if head.reduction == "none" else reduced
    losses, pull = vjp(lambda value: run_tail(graph, params, leaves, value), entropy)  # type: ignore[misc]
    (outer,) = pull(torch.ones_like(losses))
    return losses, counts * outer.reshape(len(counts), -1)


def head_factors(head: Head, found: HeadGradients) -> dict[str, Factor]:
    """(P − onehot) · weight at every position, V numbers each: only when asked for, and laid out as the logits are."""
    if found.signals is None:
        w = found.weights.flatten()
        signals = found.scores.exponentials * (w / found.scores.total)  # (V, n·C)
        target = found.scores.targets.flatten()
        signals[target, torch.arange(len(target), device=target.device)] -= w
    else:
        signals = found.signals.clone()  # which lie in the buffer
    rows = signals.unflatten(1, (len(found.losses), -1)).permute(1, 2, 0)
    factors: dict[str, Factor] = {head.weight: Outer(found.scores.stream.to(head.dtype), rows)}
    return factors if head.bias is None else {**factors, head.bias: Bias(rows)}


# ---- the softmax, block by block


def _exponentials(
    weight: Float[Tensor, "V d"], bias: Float[Tensor, "V"] | None, h: Float[Tensor, "nC d"], buffer: Tensor | None
) -> tuple[Float[Tensor, "V nC"], Float[Tensor, "nC"], Float[Tensor, "nC"]]:
    """exp(logit − shift), their sum over the classes, and the shift.

    exp(logit) loses no precision while it neither overflows nor underflows, so the usual shift by the largest logit,
    one more pass over V·n·C numbers, is made only where a sum shows that it was needed.
    """
    out = torch.empty(len(weight), len(h), dtype=h.dtype, device=h.device) if buffer is None else buffer
    shift = torch.zeros_like(h[:, 0])
    total = _fill(out, weight, bias, h, shift)
    if not bool(((total > 1e-25) & (total < 1e30)).all()):
        for block in blocks(weight):
            logits = weight[block] @ h.mT
            largest = (logits if bias is None else logits + bias[block, None]).amax(0)
            shift = largest if block.start == 0 else torch.maximum(shift, largest)
        total = _fill(out, weight, bias, h, shift)
    return out, total, shift


def _fill(out: Tensor, weight: Tensor, bias: Tensor | None, h: Tensor, shift: Tensor) -> Float[Tensor, "nC"]:
    total, transposed = torch.zeros_like(shift), h.mT.contiguous()
    shifted = bool(shift.any())
    for block in blocks(weight):
        logits = torch.mm(weight[block], transposed, out=out[block])
        if bias is not None:
            logits.add_(bias[block, None])
        total += (logits.sub_(shift) if shifted else logits).exp_().sum(0)
    return total


def blocks(weight: Float[Tensor, "V d"]) -> list[slice]:
    size = VOCABULARY_BLOCK if weight.device.type == "cpu" else len(weight)
    return [slice(i, min(i + size, len(weight))) for i in range(0, len(weight), size)]
