"""The law: a step's change is what its own data did, what earlier data did through the memory, and weight decay.

    w' − w = Σ_j Δ_j + past + decay        Δ_j = L(present · c · g_j / n)

c is the coefficient of clipping, min(1, max_norm / (‖g‖ + 1e-6)); L and ``present`` are the step's own (``_share.py``).
``training.moves`` applies it in the one line marked "the law"; ``missed`` measures how far a step that was made is from
it; ``tests/optim/test_law.py`` is the property test.

Numbers miss it by their rounding. Where a model's linear maps work in bfloat16 the factors, and so the Δ_j, are exact
to float32, but what is applied is their sum rounded to bfloat16: once for each use i of a unit and each part p of the
batch that is captured at once. With u = 2⁻⁸, ε = 2⁻²³, Δ_ip the deltas' sum by a use and a part, |Δ|_ip the same of
absolute values, and m_ip positions that are summed,

    ‖missed‖ · ‖w' − w‖  ≤  Σ_ip (u ‖Δ_ip‖ + ε (2 m_ip + 4) ‖|Δ|_ip‖) + 4ε (‖Σ_j Δ_j‖ + ‖past‖ + ‖decay‖ + ‖w‖ + ‖w'‖)

the first term where a use is in bfloat16, the others in any run (with ε of its parameters' dtype). A gain that is a
number or an array takes each entry by itself, and so what is rounded of it; of one that is a matrix (Muon's) no bound
is stated. ``missed_bound`` is the right side, divided.
"""

import math
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from devinterp_func import per_example, tree
from devinterp_func.optim._share import Matrix, apply_gain, apply_gain_to_factor
from devinterp_func.optim._split import Split
from devinterp_func.per_example import Factor, Outer, Scaled, Sum
from devinterp_func.tree import Params

UNIT_ROUNDOFF = 2.0**-8  # of bfloat16: the largest relative error of one rounding


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
def missed(made: Made, sums: dict[str, Float[Tensor, "..."]] | None = None) -> dict[str, float]:
    """How far a step misses the law: ‖(w' − w) − Σ_j Δ_j − past − decay‖ / ‖w' − w‖ of each captured unit, in float64.

    Args:
        made: a step with its weights before and after, its split, and the factors of its deltas.
        sums: Σ_j Δ_j of each unit, where not all of the step's data are in its factors; of ``delta_sums``, added up.

    Returns:
        Unit -> a number near the rounding of the weights, which is ε ‖w‖ / ‖w' − w‖; 0 where nothing is missed.
    """
    found = {}
    for name, present in (delta_sums(made.factors) if sums is None else sums).items():
        change = made.after[name].double() - made.before[name].double()
        rest = change - present - made.split.past(name) - made.split.decay(name)
        found[name] = float(_norm(rest) / _norm(change)) if bool(_norm(rest)) else 0.0
    return found


@torch.no_grad()
def delta_sums(factors: dict[str, Factor]) -> dict[str, Float[Tensor, "..."]]:
    """Σ_j Δ_j of each unit, each delta formed, in float64."""
    return {name: d.sum(0, dtype=torch.float64) for name, d in per_example.form_units(factors).items()}


class Summed(NamedTuple):
    """What some data did together, unit by unit; of several captured parts the numbers add up."""

    sums: dict[str, Float[Tensor, "..."]]  # Σ_j Δ_j, each delta formed; float64
    rounding: dict[str, float]  # by how much, in norm, what is applied may differ from that: the bound's sum over i, p

    def __repr__(self) -> str:
        return f"Summed({', '.join(self.sums)})"


@torch.no_grad()
def summed(factors: dict[str, Factor], split: Split) -> Summed:
    """What the data of one part, captured at once, did together, and what rounding may change of it.

    Args:
        factors: of the deltas.
        split: how the step came about.
    """
    mixed = {name for name in factors if isinstance(split.shares[name].gain, Matrix)}
    bounds = {name: math.nan if name in mixed else _rounding(factor) for name, factor in factors.items()}
    return Summed(delta_sums(factors), bounds)


def add_summed(a: Summed, b: Summed) -> Summed:
    """What the data of both did together."""
    return Summed(tree.add(a.sums, b.sums), {name: bound + b.rounding[name] for name, bound in a.rounding.items()})


def _rounding(factor: Factor) -> float:
    """What rounding may change of Σ_j Δ_j, in norm: to 16 bits once for each use that is in these, and of the sums."""
    if isinstance(factor, Sum):
        return sum(_rounding(part) for part in factor.parts)
    sizes = per_example.total(tree.map(lambda x: x.abs() if isinstance(x, Tensor) else x, factor))
    m = per_example.n_positions(factor) * per_example.n_data(factor)
    found = torch.finfo(sizes.dtype).eps * (2 * m + 4) * float(_norm(sizes))
    return found + (UNIT_ROUNDOFF * float(_norm(per_example.total(factor))) if _is_short(factor) else 0.0)


def _is_short(factor: Factor) -> bool:
    """Whether a use's sum is rounded to 16 bits: of a linear map or a convolution; those of others are in float32.

    What scales a factor leaves one of its sides as it was captured.
    """
    tensors = [x for x in tree.leaves(factor) if isinstance(x, Tensor)]
    return isinstance(factor, Outer | Scaled) and any(x.dtype == torch.bfloat16 for x in tensors)


@torch.no_grad()
def missed_bound(made: Made, found: Summed | None = None) -> dict[str, float]:
    """What ``missed`` is at most: this module's formula.

    Args:
        made: as for ``missed``.
        found: of ``summed``, added up over the parts that were captured at once; by default all data are one part.

    Returns:
        Unit -> a number to hold ``missed`` against; as that, 0 where nothing was to change, and infinite where a change
            is lost in the weights' rounding. NaN for a rule whose gain is a matrix.
    """
    found = summed(made.factors, made.split) if found is None else found
    bounds = {}
    for name, present in found.sums.items():
        before, after, split = made.before[name], made.after[name], made.split
        parts = present, split.past(name), split.decay(name)
        sizes = sum(float(_norm(x)) for x in (*parts, before, after))
        change = float(_norm(after.double() - before.double()))
        most = found.rounding[name] + 4 * torch.finfo(before.dtype).eps * sizes
        lost = math.inf if any(bool(x.any()) for x in parts) else 0.0  # all of it in the weights' rounding, or nothing
        bounds[name] = most / change if change else lost
    return bounds


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x)
