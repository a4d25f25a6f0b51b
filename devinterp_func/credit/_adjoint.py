"""The adjoint of a training step: how a number at the end of training depends on what came before it.

With z = (weights, memory) and a step z' = step(z, ω), where ω_j is the weight of datum j in g = (1/n) Σ_j ω_j ∇ℓ_j(w),
the derivatives λ of a number by z' give those by z and by ω as ``vjp`` of the step. ``pull_step`` takes the fast way:
back through the optimizer and its clipping to y, the derivative by g; then one forward-over-reverse pass,

    influence[j] = ⟨∇ℓ_j(w), y⟩ / n        λ_w ← λ_w + H y        H the Hessian of the batch's mean loss at w

``pull_step_by_definition`` is the ``vjp``. Of a model of ``models.autocast`` the losses are the unrounded ones, at the
weights and with the clipping of the run as it was made: rounding has no derivative. (Maclaurin, Duvenaud and Adams
2015, *Gradient-based hyperparameter optimization through reversible learning*; Ilyas and Engstrom 2025, *MAGIC:
near-optimal data attribution*.)
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad, vjp

from devinterp_func import checks, per_example, training, tree
from devinterp_func import graph as graphs
from devinterp_func.graph import Graph, Masks
from devinterp_func.optim import Covector, State
from devinterp_func.per_example import Tangent
from devinterp_func.training import Move, Recipe
from devinterp_func.tree import Params

Curvature = Literal["hessian", "fisher"]


class Point(NamedTuple):
    """A step and where it began: all that going back over it takes."""

    step: int
    epoch: int
    datum: Int[Tensor, "n"]
    params: Params
    state: State
    grads: Params  # the mean gradient, unclipped
    lr: float

    def __repr__(self) -> str:
        return f"Point(step={self.step}, data {self.datum.tolist()})"


class Pulled(NamedTuple):
    """A number's derivatives by what a step began with, and by the weights of its data."""

    covector: Covector
    influence: Float[Tensor, "n C"]  # by position: by the weight of its part of the datum's loss; C = 1 without a head

    def __repr__(self) -> str:
        return f"Pulled of {len(self.influence)} data: influence {self.influence.sum():.4g}, {self.covector}"


def point_of(move: Move) -> Point:
    """What going back over a move takes."""
    grads = move.split.grads
    return Point(move.step, move.epoch, move.datum, move.before, move.state_before, grads, float(move.split.lr))


def ending(gradient: Params, state: State) -> Covector:
    """The derivatives of a function of the weights, such as a probe: what the optimizer remembers does not matter."""
    return Covector(gradient, tree.map(torch.zeros_like, state.buffers))


@torch.no_grad()
def pull_step(
    graph: Graph, data: Any, recipe: Recipe, point: Point, back: Sequence[Covector], curvature: Curvature = "hessian"
) -> list[Pulled]:
    """Numbers' derivatives by what a step led to, pulled back to what it began with and to its data.

    Args:
        graph: the model.
        data: the training data.
        recipe: of the training.
        point: the step.
        back: each number's derivatives.
        curvature: "hessian" is exact; "fisher" takes (1/n) Σ_j ∇ℓ_j ∇ℓ_jᵀ in its place, the empirical Fisher.

    Raises:
        ValueError: there is no such curvature, or the step was made without some of its data.
        NotImplementedError: torch has no second derivative of an operation of the model.
    """
    require_curvature(curvature)
    if len(point.datum) != recipe.batch_size:
        raise ValueError(
            f"step {point.step} was made of {len(point.datum)} data; all {recipe.batch_size} must be there"
        )
    optimizer, given = recipe.optimizer, (point.params, point.grads, point.state)
    pairs = [optimizer.pull(*given, own, point.lr, recipe.max_norm) for own in back]
    graph, device = graphs.unrounded(graph), next(iter(point.params.values())).device
    batch, masks = training.step_data(graph, recipe, data, point.epoch, point.datum, device)
    directions = [by_gradient for _, by_gradient in pairs]
    turned = per_example.tangents(graph, point.params, *batch, directions=directions, masks=masks)
    if curvature == "fisher":
        turned = [_fisher(graph, point.params, batch, masks, own) for own in turned]
    return [_pulled(own, tangent) for (own, _), tangent in zip(pairs, turned, strict=True)]


def require_curvature(curvature: str) -> None:
    """Refuses what ``pull_step`` does not know."""
    if curvature not in (known := get_args(Curvature)):
        raise ValueError(f"curvature is {curvature!r}; it must be {' or '.join(map(repr, known))}")


def _pulled(before: Covector, tangent: Tangent) -> Pulled:
    weights = {name: x.add_(tangent.mean_grads[name]) for name, x in before.weights.items()}
    return Pulled(before._replace(weights=weights), tangent.losses / len(tangent.losses))


def _fisher(graph: Graph, params: Params, batch: Any, masks: Masks | None, tangent: Tangent) -> Tangent:
    """The empirical Fisher's product in place of the Hessian's: (1/n) Σ_j ⟨∇ℓ_j, y⟩ ∇ℓ_j."""
    found = per_example.capture(graph, params, *batch, masks=masks, weights=tangent.losses.sum(1))
    return tangent._replace(mean_grads=found.mean_grads)


def pull_step_by_definition(
    graph: Graph, data: Any, recipe: Recipe, point: Point, back: Sequence[Covector]
) -> list[Pulled]:
    """``pull_step`` as it is defined: ``vjp`` of the step, a pure function of weights, memory and data weights.

    Influences are by datum, without positions: C = 1. Twice as slow and several times larger; obviously right.
    """
    checks.gradients_allowed()
    graph, device = graphs.unrounded(graph), next(iter(point.params.values())).device
    batch, masks = training.step_data(graph, recipe, data, point.epoch, point.datum, device)
    output, n = graph.trace.output.name, len(point.datum)

    def mean(params: Params, weights: Tensor) -> Tensor:
        losses = graphs.run(graph, params, batch, [output], masks=masks)[output]
        return (losses * weights).sum() / n

    def step(params: Params, memory: Any, weights: Tensor) -> tuple[Params, Any]:
        state = State(point.state.steps, memory)
        after, new = recipe.optimizer.apply(params, grad(mean)(params, weights), state, point.lr, recipe.max_norm)
        return after, new.buffers

    ones = next(iter(point.params.values())).new_ones(n)
    pull = vjp(step, point.params, point.state.buffers, ones)[1]
    found = [pull((own.weights, own.memory)) for own in back]
    return [Pulled(Covector(params, memory), weights[:, None]) for params, memory, weights in found]
