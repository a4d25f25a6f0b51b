"""The law: a step's change is what its own data did, what earlier data did through the memory, and weight decay.

    w' − w = Σ_j Δ_j + past + decay        Δ_j = L(present · c · g_j / n)

c is the coefficient of clipping, min(1, max_norm / (‖g‖ + 1e-6)); L and ``present`` are the step's own (``_share.py``).
``training.moves`` applies it in the one line marked "the law"; ``missed`` measures how far a step that was made is from
it; ``tests/optim/test_law.py`` is the property test.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from devinterp_func import per_example
from devinterp_func.optim._share import apply_gain, apply_gain_to_factor
from devinterp_func.optim._split import Split
from devinterp_func.per_example import Factor
from devinterp_func.tree import Params


@runtime_checkable
class Made(Protocol):
    """A step as it was made, such as ``training.Move``."""

    @property
    def before(self) -> Params: ...
    @property
    def after(self) -> Params: ...
    @property
    def split(self) -> Split: ...
    @property
    def factors(self) -> dict[str, Factor]: ...


def deltas(per_example_grads: Params, split: Split) -> dict[str, Float[Tensor, "n ..."]]:
    """Each datum's part of the step, Δ_j: sums over its leading n to ``Split.present``.

    Args:
        per_example_grads: of the n data of the step, by unit, each with a leading n.
        split: how the step came about, of ``Optimizer.update``.
    """
    return {
        name: apply_gain(split.shares[name].gain, g * _part(split, name, len(g)))
        for name, g in per_example_grads.items()
    }


def delta_factors(gradient_factors: dict[str, Factor], split: Split, n: int) -> dict[str, Factor]:
    """The factors of the deltas, from those of the gradients.

    Args:
        gradient_factors: of ``per_example.capture``.
        split: how the step came about, of ``Optimizer.update``.
        n: the batch size, the divisor of the mean gradient.
    """
    return {
        name: apply_gain_to_factor(split.shares[name].gain, factor, _part(split, name, n))
        for name, factor in gradient_factors.items()
    }


def _part(split: Split, unit: str, n: int) -> float:
    """present · c / n, of which L makes a delta out of a gradient."""
    return split.shares[unit].present * float(split.clip) / n


@torch.no_grad()
def missed(made: Made) -> dict[str, float]:
    """How far a step misses the law: ‖(w' − w) − Σ_j Δ_j − past − decay‖ / ‖w' − w‖ of each captured unit, in float64.

    Args:
        made: a step with its weights before and after, its split, and the factors of its deltas.

    Returns:
        Unit -> a number near the rounding of the weights, which is ε ‖w‖ / ‖w' − w‖; 0 where nothing is missed.
    """
    formed = per_example.form_units(made.factors)
    found = {}
    for name, d in formed.items():
        change = made.after[name].double() - made.before[name].double()
        rest = change - d.sum(0, dtype=torch.float64) - made.split.past(name) - made.split.decay(name)
        found[name] = float(_norm(rest) / _norm(change)) if bool(_norm(rest)) else 0.0
    return found


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x)
