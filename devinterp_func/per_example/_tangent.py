"""How losses and gradients of a batch change along directions of the weights, forward over reverse.

For a direction y the derivative of each datum's loss is ⟨∇ℓ_j, y⟩, and that of the mean loss's gradient the Hessian
product H y; no datum's own gradient is formed. (Pearlmutter 1994, *Fast exact multiplication by the Hessian*.) With a
head, the V·n·C logits go block by block, as in ``capture``; everything below it is left to ``torch.func.jvp``. With
p = softmax(z), the cross entropy e = log Σ exp z − z_t at a position, and ω its weight in its datum's loss, along y

    ė = ⟨p, ż⟩ − ż_t        d/dz = ω (p − 1_t)        its tangent: ω p ⊙ (ż − ⟨p, ż⟩) + ω̇ (p − 1_t)
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jvp, vjp, vmap

from devinterp_func import checks, tree
from devinterp_func.graph import Graph, Masks, check_batch, head_rows, in_order, require_head, run
from devinterp_func.per_example._cross_entropy import Scores, blocks, score, weigh
from devinterp_func.tree import Params, Tree


class Tangent(NamedTuple):
    """Derivatives along one direction y of the weights."""

    losses: Float[Tensor, "n C"]  # ⟨∇ of the position's part of its datum's loss, y⟩; C = 1 without a head
    mean_grads: Params  # H y, of the mean loss of the batch

    def __repr__(self) -> str:
        return f"Tangent of {len(self.losses)} data: mean loss {self.losses.sum(1).mean():.4g}"


@torch.no_grad()
def tangents(
    graph: Graph, params: Params, *batch: Any, directions: Sequence[Params], masks: Masks | None = None
) -> list[Tangent]:
    """Derivatives of a batch's losses and of its mean gradient along directions of the weights.

    Args:
        graph: of the loss of one example.
        params: every parameter by name.
        batch: the data, each tensor with a leading n.
        directions: each of every parameter. Several go together, which is faster; bits may depend on how many.
        masks: dropout masks of ``graph.draw_masks``; none for no dropout.

    Raises:
        NotImplementedError: torch has no second derivative of an operation.
        RuntimeError: within torch's inference mode.
        TypeError: float16 parameters.
        ValueError: parameters, directions or data do not fit the graph, an id is out of range, or the loss is rounded.

    >>> from devinterp_func import graph as graphs
    >>> w, x, y = {"w": torch.tensor([1.0, 0.0])}, torch.tensor([[1.0, 2.0]]), torch.tensor([0.0])
    >>> squared = graphs.of(lambda p, x, y: (p["w"] @ x - y) ** 2, w, x[0], y[0])
    >>> (found,) = tangents(squared, w, x, y, directions=[{"w": torch.tensor([0.0, 1.0])}])
    >>> found.losses, found.mean_grads
    (tensor([[4.]]), {'w': tensor([4., 8.])})
    """
    checks.gradients_allowed()
    if graph.rounded:
        raise ValueError(
            "this loss is rounded to bfloat16, and rounding has no second derivative; graph.unrounded(graph) gives the "
            "same loss without it"
        )
    params, leaves = in_order(graph, params), check_batch(graph, batch)
    directions = [in_order(graph, direction) for direction in directions]
    if not directions:
        return []
    along = _along if graph.head is None else _along_headed
    try:
        return along(graph, params, leaves, masks, directions, _forwards)
    except NotImplementedError:  # torch has no forward derivative of some operation's backward: SiLU's, group norm's
        return along(graph, params, leaves, masks, directions, _backwards)


def _along(
    graph: Graph, params: Params, leaves: list[Tensor], masks: Masks | None, directions: Sequence[Params], way: "_Way"
) -> list[Tangent]:
    """Without a head: what is differentiated is each datum's loss."""

    def losses(params: Params) -> Float[Tensor, "n"]:
        return run(graph, params, tuple(leaves), [name], masks=masks)[name]

    name, n = graph.trace.output.name, len(leaves[0])
    ones = next(iter(params.values())).new_ones(n)
    moved, turned = way(_Function(losses, params, ones / n), directions)
    gradients = turned([torch.zeros_like(ones)] * len(directions))
    return [Tangent(own[:, None], gradient) for own, gradient in zip(moved, gradients, strict=True)]


def _along_headed(
    graph: Graph, params: Params, leaves: list[Tensor], masks: Masks | None, directions: Sequence[Params], way: "_Way"
) -> list[Tangent]:
    """With a head: what is differentiated is what it reads; the rest is written out below."""
    head, batch = require_head(graph), tuple(leaves)

    def stream(params: Params) -> Float[Tensor, "n C d"]:
        return head_rows(graph, run(graph, params, batch, [head.stream.name], masks=masks)[head.stream.name])

    def weights_of(losses: Tensor) -> Tensor:
        return weigh(graph, params, leaves, scores._replace(losses=losses))[1]

    targets = run(graph, params, batch, [head.targets.name], masks=masks)[head.targets.name]
    scores = score(head, params, stream(params), targets, None)
    logits = _Logits(params[head.weight], scores, weights_of(scores.losses).flatten())
    shape = scores.stream.shape
    moved, turned = way(_Function(stream, params, logits.signals().view(shape)), directions)
    losses, seconds = list[Tensor](), list[_Second]()
    for direction, own in zip(directions, moved, strict=True):
        own, weight = own.flatten(0, 1), direction[head.weight]
        tilt = logits.along(weight, None if head.bias is None else direction[head.bias], own)
        each = tilt.losses.view(shape[:2])
        turn = jvp(weights_of, (scores.losses,), (each,))[1].flatten()
        losses.append(logits.weights.view(shape[:2]) * each)
        seconds.append(logits.second(weight, own, tilt, turn))
    gradients, found = turned([second.signals.view(shape) for second in seconds]), list[Tangent]()
    for gradient, second, each in zip(gradients, seconds, losses, strict=True):
        added = {head.weight: second.weight} | ({} if head.bias is None else {head.bias: second.bias})
        total = {name: x + added[name] if name in added else x for name, x in gradient.items()}
        found.append(Tangent(each, {name: total[name] / len(leaves[0]) for name in params}))
    return found


# ---- a function of the weights along a direction


class _Function(NamedTuple):
    """A function h of the weights, and a derivative σ by what it gives: so also the gradient Σ σ ∂h by the weights."""

    of: Callable[[Params], Tensor]
    params: Params
    signals: Tensor

    def gradient(self, params: Params, signals: Tensor) -> Params:
        (gradient,) = vjp(self.of, params)[1](signals)
        return gradient


_Way = Callable[[_Function, Sequence[Params]], tuple[list[Tensor], Callable[[Sequence[Tensor]], list[Params]]]]
"""Of a function and some directions: ḣ of each, and each's tangent of the gradient if σ moves by what is given."""


def _forwards(f: _Function, directions: Sequence[Params]) -> tuple[list[Tensor], Callable[..., list[Params]]]:
    def turned(signals: Sequence[Tensor]) -> list[Params]:
        def one(direction: Params, signals: Tensor) -> Params:
            found: Params = jvp(f.gradient, (f.params, f.signals), (direction, signals))[1]
            return found

        return _each(one, directions, signals)

    return _each(lambda direction: jvp(f.of, (f.params,), (direction,))[1], directions), turned


def _backwards(f: _Function, directions: Sequence[Params]) -> tuple[list[Tensor], Callable[..., list[Params]]]:
    """⟨Σ σ ∂h, y⟩ is linear in σ: its derivative by σ is ḣ, and by the weights the gradient's tangent, σ held."""
    both = _each(vjp(f.gradient, f.params, f.signals)[1], directions)

    def turned(signals: Sequence[Tensor]) -> list[Params]:
        own = _each(lambda signals: f.gradient(f.params, signals), signals)
        return [tree.add(held, gradient) for (held, _), gradient in zip(both, own, strict=True)]

    return [moved for _, moved in both], turned


def _each(f: Callable[..., Tree], *given: Sequence[Tree]) -> list[Tree]:
    """What f gives of each of several arguments, which go together where there are more than one."""
    if len(given[0]) == 1:
        return [f(*(own[0] for own in given))]
    with warnings.catch_warnings():  # what vmap has no rule for it does one by one, as we would
        warnings.filterwarnings("ignore", "There is a performance drop")
        found = vmap(f)(*(tree.stack(own) for own in given))
    return [tree.map(lambda x, i=i: x[i], found) for i in range(len(given[0]))]


# ---- logits, block by block


class _Tilt(NamedTuple):
    """What the logits do along a direction."""

    logits: Float[Tensor, "V nC"]  # ż; ``second`` uses it up
    mean: Float[Tensor, "nC"]  # ⟨p, ż⟩
    losses: Float[Tensor, "nC"]  # ė


class _Second(NamedTuple):
    """Tangents of the gradients by what the head reads, its weight and its bias; summed over the data."""

    signals: Float[Tensor, "nC d"]
    weight: Float[Tensor, "V d"]
    bias: Float[Tensor, "V"]


@dataclass(frozen=True)
class _Logits:
    """Logits W h + b at n·C positions, of which ``scores`` has the exponentials."""

    weight: Float[Tensor, "V d"]
    scores: Scores
    weights: Float[Tensor, "nC"]  # ω

    @cached_property
    def pulled(self) -> Float[Tensor, "nC d"]:
        """Wᵀ exp z."""
        return self._pull(self.scores.exponentials, self.weight)

    def signals(self) -> Float[Tensor, "nC d"]:
        """The gradient by what the head reads."""
        target = self.weight[self.scores.targets.flatten()]
        return (self.pulled / self.scores.total[:, None] - target) * self.weights[:, None]

    def along(self, weight: Float[Tensor, "V d"], bias: Tensor | None, moved: Float[Tensor, "nC d"]) -> _Tilt:
        """ż = Ẇ h + W ḣ + ḃ and what follows from it."""
        h, target = self.scores.stream.flatten(0, 1).mT.contiguous(), self.scores.targets.flatten()
        logits, inner, moved = torch.empty_like(self.scores.exponentials), torch.zeros_like(self.weights), moved.mT
        for block in blocks(weight):
            tilt = torch.mm(weight[block], h, out=logits[block]).addmm_(self.weight[block], moved)
            if bias is not None:
                tilt.add_(bias[block, None])
            inner += (self.scores.exponentials[block] * tilt).sum(0)
        mean = inner / self.scores.total
        losses = mean - logits[target, torch.arange(len(target), device=target.device)]
        return _Tilt(logits, mean, losses * self.scores.counts.flatten())

    def second(self, weight: Tensor, moved: Tensor, tilt: _Tilt, turned: Float[Tensor, "nC"]) -> _Second:
        """Tangents of the head's gradients; ω moves by ``turned``."""
        exponentials, total, target = self.scores.exponentials, self.scores.total, self.scores.targets.flatten()
        h, w, n = self.scores.stream.flatten(0, 1), self.weights[:, None], turned[:, None]
        scaled, shifted = h * (w / total[:, None]), (moved * w + h * n) / total[:, None]
        d_weight, d_bias, d_h = torch.empty_like(weight), weight.new_empty(len(weight)), torch.zeros_like(h)
        for block in blocks(weight):
            product = tilt.logits[block].sub_(tilt.mean).mul_(exponentials[block])
            torch.mm(product, scaled, out=d_weight[block]).addmm_(exponentials[block], shifted)
            torch.mv(product, self.weights / total, out=d_bias[block]).addmv_(exponentials[block], turned / total)
            d_h.addmm_(product.mT, self.weight[block]).addmm_(exponentials[block].mT, weight[block])
        d_h = d_h * (w / total[:, None]) - weight[target] * w
        d_h += (self.pulled / total[:, None] - self.weight[target]) * n
        d_weight.index_add_(0, target, -(moved * w + h * n))
        d_bias.index_add_(0, target, -turned)
        return _Second(d_h, d_weight, d_bias)

    def _pull(self, rows: Float[Tensor, "V nC"], weight: Float[Tensor, "V d"]) -> Float[Tensor, "nC d"]:
        found = torch.zeros_like(self.scores.stream).flatten(0, 1)
        for block in blocks(weight):
            found.addmm_(rows[block].mT, weight[block])
        return found
