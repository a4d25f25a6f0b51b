"""The law: a step's change is the sum of what its data did, w' − w = Σ_j Δ_j.

    g = (1/n) Σ_j g_j        c = min(1, max_norm / (‖g‖ + 1e-6))        Δ_j = −lr · c · g_j / n

``training.moves`` applies it in the one line marked "the law"; ``missed`` measures how far a step that was made is from
it; ``tests/optim/test_law.py`` is the property test.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from devinterp_func import per_example, tree
from devinterp_func.optim._sgd import StepInfo
from devinterp_func.per_example import Factor
from devinterp_func.tree import Params, Tree


@runtime_checkable
class Made(Protocol):
    """A step as it was made, such as ``training.Move``."""

    @property
    def before(self) -> Params: ...
    @property
    def after(self) -> Params: ...
    @property
    def factors(self) -> dict[str, Factor]: ...


def share(info: StepInfo, n: int) -> Float[Tensor, ""]:
    """−lr · c / n, what turns the gradient of one of n data into its delta."""
    return -info.lr * info.clip / n


def deltas(per_example_grads: Tree, info: StepInfo) -> Tree:
    """Each datum's part of the update, Δ_j = −lr · c · g_j / n: sums over its leading n to the update.

    Args:
        per_example_grads: of the n data of the step, each leaf with a leading n.
        info: what the step used, of ``update``.
    """
    return tree.scale(per_example_grads, share(info, len(tree.leaves(per_example_grads)[0])))


def delta_factors(gradient_factors: dict[str, Factor], info: StepInfo, n: int) -> dict[str, Factor]:
    """The factors of the deltas, from those of the gradients.

    Args:
        gradient_factors: of ``per_example.capture``.
        info: what the step used, of ``update``.
        n: the batch size, the divisor of the mean gradient.
    """
    return per_example.scale_factors(gradient_factors, share(info, n))


@torch.no_grad()
def missed(made: Made) -> dict[str, float]:
    """How far a step misses the law: ‖(w' − w) − Σ_j Δ_j‖ / ‖w' − w‖ of each captured unit, in float64.

    Args:
        made: a step with its weights before and after, and the factors of its deltas.

    Returns:
        Unit -> a number near the dtype's rounding; 0 where nothing is missed.
    """
    formed = per_example.form_units(made.factors)
    return {name: _missed(made.after[name].double() - made.before[name].double(), d) for name, d in formed.items()}


def _missed(change: Tensor, deltas: Float[Tensor, "n ..."]) -> float:
    difference = torch.linalg.vector_norm(change - deltas.sum(0, dtype=torch.float64))
    return float(difference / torch.linalg.vector_norm(change)) if bool(difference) else 0.0
