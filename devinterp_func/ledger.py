"""A ledger of training: the change of any number at a step, split over the data and token positions that caused it.

For a differentiable probe f(params) and a step w → w + Δw with Δw = Σ_j Δ_j there are two amounts, not to be confused:

    credit[j]   = ⟨ ∫₀¹ ∇f(w + s Δw) ds , Δ_j ⟩      Σ_j credit[j] = f(w + Δw) - f(w): the books balance
    marginal[j] = ⟨ ∇f(w + Δw) , Δ_j ⟩              ≈ f(w + Δw) - f(w + Δw - Δ_j): this step without datum j

The credit is the Aumann-Shapley value of the datum in the step; the integral is Gauss-Legendre quadrature with m nodes,
a gradient of the probe each, exact for polynomials of degree 2m. A third amount, ⟨∇f(w), Δ_j⟩, is what first-order
influence scores report: TracIn (Pruthi et al. 2020) and In-Run Data Shapley (Wang et al. 2024). It assumes that the
step is small.

No per-datum gradient is formed: with the factors a, b of ``per_example`` a linear map's amount is Σ_k b_kᵀ G a_k, and
its terms are those of the token positions k; embedding, biases and layer norms likewise. So all parameters are in the
books.

Source of the value: Aumann and Shapley 1974; of the same integral over inputs: Sundararajan et al. 2017.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import tree, walks
from devinterp_func.per_example import Bias, Factor, Gain, Lookup, Outer, data, form
from devinterp_func.probes import Probe
from devinterp_func.rundir import Run
from devinterp_func.training import Move
from devinterp_func.tree import Params

UNITS = ("*",)  # what a step must be captured with: all parameters
SPARSE = 20  # of so many rows of a gradient at most one is other than 0: the others are left out of the product


class Entries(NamedTuple):
    """What a step did to P probes, or S steps, stacked: by datum and token position, float64."""

    step: Int[Tensor, "*S"]
    datum: Int[Tensor, "*S n"]  # ids of the step's data
    before: Float[Tensor, "*S P"]  # the probes before the step
    after: Float[Tensor, "*S P"]
    credit: Float[Tensor, "*S P n C"]
    marginal: Float[Tensor, "*S P n C"]
    start: Float[Tensor, "*S P n C"]  # first order at the start of the step; NaN where it was not asked for

    def change(self) -> Float[Tensor, "*S P"]:
        """What the step did to each probe."""
        return self.after - self.before

    def residual(self) -> Float[Tensor, "*S P"]:
        """What the credits leave unexplained: the error of the quadrature, and rounding."""
        return self.change() - self.credit.sum((-2, -1))

    def __repr__(self) -> str:
        many = f"step {int(self.step)}" if self.step.ndim == 0 else f"{len(self.step)} steps"
        share = float(self.residual().abs().sum() / self.change().abs().sum())
        return f"Entries of {many}, {self.before.shape[-1]} probes: residual {share:.2%} of their changes"


def of_move(
    move: Move, probes: Sequence[Probe], m: int = 3, *, start: bool = False, before: Float[Tensor, "P"] | None = None
) -> Entries:
    """Splits the change of each probe in a step over its data and their token positions.

    Args:
        move: a step with the factors of all parameters, such as ``Recipe(units=UNITS)`` makes.
        probes: at least one.
        m: nodes of the quadrature: gradients of each probe besides that at the end.
        start: also the first-order amounts at the start.
        before: the probes' values before the step, where they are known.

    Raises:
        ValueError: m or the number of probes is 0, or a parameter has no factors.
    """
    return by_nodes(move, probes, (m,), start=start, before=before)[m]


@torch.no_grad()
def by_nodes(
    move: Move,
    probes: Sequence[Probe],
    ms: Sequence[int],
    *,
    start: bool = False,
    before: Float[Tensor, "P"] | None = None,
) -> dict[int, Entries]:
    """``of_move`` with several numbers of nodes, the gradients at the step's ends taken once.

    Args, Raises: as ``of_move``.
    """
    for m in ms:
        _check(m, probes)
    if missing := move.before.keys() - move.factors.keys():
        raise ValueError(
            f"step {move.step} has no factors of {', '.join(sorted(missing))}; make it with Recipe(units={UNITS})"
        )
    rows: dict[int, list[tuple[Tensor, ...]]] = {m: [] for m in ms}
    for i, probe in enumerate(probes):
        after, gradient = probe.value_and_grad(move.after)
        marginal = amounts(gradient, move.factors)
        known, first = None if before is None else before[i], torch.full_like(marginal, torch.nan)
        if start or known is None:  # not probe.value: that may round differently from the value of the step before
            known, gradient = probe.value_and_grad(move.before)
        if start:
            first = amounts(gradient, move.factors)
        for m in ms:
            credit = amounts(_mean_gradient(move, probe, m), move.factors)
            rows[m].append(tuple(x.double().cpu() for x in (known, after, credit, marginal, first)))
    ids = torch.tensor(move.step), move.datum.cpu()
    return {m: Entries(*ids, *map(torch.stack, zip(*own, strict=True))) for m, own in rows.items()}


def _mean_gradient(move: Move, probe: Probe, m: int) -> Params:
    """∫₀¹ ∇f(w + s Δw) ds by quadrature."""
    mean: Params = {}
    for place, weight in zip(*nodes(m), strict=True):
        _, gradient = probe.value_and_grad(between(move.before, move.after, place))
        for name, g in gradient.items():
            mean[name] = mean[name].add_(g, alpha=weight) if name in mean else g * weight
    return mean


def _check(m: int, probes: Sequence[Probe]) -> None:
    if m < 1 or not probes:
        raise ValueError(f"m is {m} and there are {len(probes)} probes; both must be at least 1")


def amounts(gradient: Params, factors: dict[str, Factor]) -> Float[Tensor, "n C"]:
    """⟨G, Δ_j⟩ over all units of ``factors``, split over the token positions of each datum.

    Args:
        gradient: G, by unit.
        factors: of every datum's Δ, by unit.

    >>> factors = {"w": Outer(torch.ones(1, 2, 3), torch.tensor([[[1.0], [2.0]]]))}
    >>> amounts({"w": torch.ones(1, 3)}, factors)
    tensor([[3., 6.]])
    """
    return torch.stack([_amounts(gradient[name], factor) for name, factor in factors.items()]).sum(0)


def _amounts(gradient: Tensor, factor: Factor) -> Float[Tensor, "n C"]:
    match factor:
        case Outer(inputs, signals):
            rows = gradient.any(1)  # most probes have a gradient in few rows of the decoder, or in none
            if len(rows) > SPARSE * int(rows.sum()):
                gradient, signals = gradient[rows], signals[..., rows]
            return ((signals @ gradient) * inputs).sum(-1)
        case Bias(signals):
            return signals @ gradient
        case Gain(inputs, signals):
            return (signals * inputs) @ gradient
        case Lookup(tokens, signals, _):
            return (signals * gradient[tokens]).sum(-1)


def nodes(m: int) -> tuple[list[float], list[float]]:
    """Gauss-Legendre nodes in (0, 1) and their weights, which add up to 1.

    >>> nodes(1)
    ([0.5], [1.0])
    """
    places, weights = np.polynomial.legendre.leggauss(m)
    return ((places + 1) / 2).tolist(), (weights / 2).tolist()


def between(before: Params, after: Params, place: float) -> Params:
    """The weights on the straight way from before (0) to after (1)."""
    return tree.map(lambda a, b: torch.lerp(a, b, place), before, after)


# ---- what the amounts are held against


@torch.no_grad()
def left_out(move: Move, probe: Probe) -> Float[Tensor, "n"]:
    """f(w + Δw) - f(w + Δw - Δ_j) for each datum: what it really did, given what the others did. A probe's value each.

    Args:
        move: a step with the factors of all parameters.
        probe: any.
    """
    after, changes = probe.value(move.after), []
    for j in range(len(move.datum)):
        own = {name: data(factor, slice(j, j + 1)) for name, factor in move.factors.items()}
        without = {name: w - form(own[name])[0] if name in own else w for name, w in move.after.items()}
        changes.append(after - probe.value(without))
    return torch.stack(changes).double()


@torch.no_grad()
def norms(factors: dict[str, Factor]) -> Float[Tensor, "n"]:
    """‖Δ_j‖ over all units of ``factors``, without forming any Δ_j: from the Gram matrices of the positions."""
    return torch.stack([_square(factor) for factor in factors.values()]).sum(0).sqrt()


def _square(factor: Factor) -> Float[Tensor, "n"]:
    match factor:
        case Outer(inputs, signals):
            return ((inputs @ inputs.mT) * (signals @ signals.mT)).sum((1, 2))
        case Lookup(tokens, signals, _):
            return ((tokens[:, :, None] == tokens[:, None, :]) * (signals @ signals.mT)).sum((1, 2))
        case _:
            return form(factor).square().sum(1)


# ---- a run


def walk(
    run: Run, folder: Run, probes: Sequence[Probe], *, start: int = 0, stop: int | None = None, m: int = 3
) -> Iterator[tuple[int, Entries | None]]:
    """Makes the steps of a run again and writes the ledger of some probes into a folder, as ``walks.walk`` does.

    Args:
        run, folder, start, stop: of ``walks.walk``.
        probes, m: of ``of_move``; the probes' names tell this walk from others.

    Yields:
        Each step as it is made, and its entries; None in their place on the way from a snapshot to the next step.

    Raises:
        ValueError: start, stop or m out of range, or no probes.
        RecordError: the folder is another walk's, is in use, or a file is damaged.
    """
    _check(m, probes)
    what = {"walk": "ledger", "m": m, "probes": [probe.name for probe in probes]}
    known: dict[int, Tensor] = {}  # step -> the probes before it, from the step that led there

    def look(move: Move, last: Move | None) -> Entries:
        entries = of_move(move, probes, m, before=known.pop(move.step, None))
        known[move.step + 1] = entries.after
        return entries

    yield from walks.walk(run, folder, what, UNITS, look, start, stop)


def read(folder: Run) -> Entries:
    """All that a walk has found so far, its steps stacked; errors as of ``walks.read``."""
    return Entries(**walks.read(folder))
