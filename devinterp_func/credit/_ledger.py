"""A ledger of training: the change of any number at a step, split over the data and positions that caused it.

For a differentiable probe f(params) and a step w → w + Δw with Δw = Σ_j Δ_j + past + decay (``optim``) there are two
amounts, not to be confused:

    credit[j]   = ⟨ ∫₀¹ ∇f(w + s Δw) ds , Δ_j ⟩      Σ_j credit[j] + past + decay = f(w + Δw) - f(w): completeness
    marginal[j] = ⟨ ∇f(w + Δw) , Δ_j ⟩              ≈ f(w + Δw) - f(w + Δw - Δ_j): this step without datum j

The credit is the Aumann-Shapley value of the datum in the step; the integral is Gauss-Legendre quadrature with m nodes,
a gradient of the probe each, exact for polynomials of degree 2m. Past and decay have credits likewise: what data of
earlier steps did through the optimizer's memory, and what weight decay did. Without either they are 0. A third amount,
⟨∇f(w), Δ_j⟩, is what first-order influence scores report: TracIn (Pruthi et al. 2020) and In-Run Data Shapley (Wang et
al. 2024). It assumes that the step is small.

All three are of the datum's present share of the step, given the step's own gain: clip coefficient, AdamW's second
moments, Muon's orthogonaliser. Without the datum that gain would have been another; ``rerun_without`` makes the step
again with the gain that follows.

No per-datum gradient is formed: with the factors a, b of ``per_example`` a linear map's amount is Σ_k b_kᵀ G a_k, and
its terms are those of the positions k, which are a text's tokens; embedding, biases and layer norms likewise. So all
parameters count. Where units differ in their number of positions, as in a convolutional network, an amount is the whole
datum's: one column.

Source of the value: Aumann and Shapley 1974; of the same integral over inputs: Sundararajan et al. 2017.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import per_example, records, tree, units
from devinterp_func.credit._rest import rest
from devinterp_func.credit.probes import Probe
from devinterp_func.records import Run, RunPath
from devinterp_func.training import Move
from devinterp_func.tree import Params


class Entries(NamedTuple):
    """What a step did to P probes, or S steps, stacked: by datum and position, float64."""

    step: Int[Tensor, "*S"]
    datum: Int[Tensor, "*S n"]  # ids of the step's data
    before: Float[Tensor, "*S P"]  # the probes before the step
    after: Float[Tensor, "*S P"]
    credit: Float[Tensor, "*S P n C"]
    marginal: Float[Tensor, "*S P n C"]
    at_start: Float[Tensor, "*S P n C"]  # first order at the start of the step; NaN where it was not asked for
    past: Float[Tensor, "*S P"]  # what data of earlier steps did, through the optimizer's memory
    decay: Float[Tensor, "*S P"]  # what weight decay did
    rest_at_end: Float[Tensor, "*S P"]  # past and decay in first order at the end: what the marginals leave ...
    rest_at_start: Float[Tensor, "*S P"]  # ... and at the start; both NaN where ``at_start`` was not asked for

    def change(self) -> Float[Tensor, "*S P"]:
        """What the step did to each probe."""
        return self.after - self.before

    def missed(self) -> Float[Tensor, "*S P"]:
        """What credits, past and decay miss: the error of the quadrature, and rounding."""
        return self.change() - self.credit.sum((-2, -1)) - self.past - self.decay

    def __repr__(self) -> str:
        span = f"step {int(self.step)}" if self.step.ndim == 0 else f"{len(self.step)} steps"
        missed, change = float(self.missed().abs().sum()), float(self.change().abs().sum())
        share = f"{missed / change:.2%} of their changes" if change else f"{missed:.2g}"
        return f"Entries of {span}, {self.before.shape[-1]} probes: misses {share}"


def split_change(
    move: Move, probes: Sequence[Probe], m: int = 3, *, at_start: bool = False, before: Float[Tensor, "P"] | None = None
) -> Entries:
    """Splits the change of each probe in a step over its data and their positions, past and decay.

    Args:
        move: a step with the factors of all parameters, such as ``Run.moves(captured=units.EVERY)`` gives.
        probes: at least one.
        m: nodes of the quadrature: gradients of each probe besides that at the end.
        at_start: also what there is in first order: the amounts at the start, and past and decay at either end.
        before: the probes' values before the step, where they are known.

    Raises:
        ValueError: m or the number of probes is 0, or a parameter has no factors.
    """
    return split_by_nodes(move, probes, (m,), at_start=at_start, before=before)[m]


@torch.no_grad()
def split_by_nodes(
    move: Move,
    probes: Sequence[Probe],
    ms: Sequence[int],
    *,
    at_start: bool = False,
    before: Float[Tensor, "P"] | None = None,
) -> dict[int, Entries]:
    """``split_change`` with several numbers of nodes, the gradients at the step's ends taken once.

    Args, Raises: as ``split_change``.
    """
    for m in ms:
        check_nodes(m, probes)
    require_all_factors(move)
    columns: dict[int, list[tuple[Tensor, ...]]] = {m: [] for m in ms}
    for i, probe in enumerate(probes):
        after, gradient = probe.value_and_grad(move.after)
        marginal = per_example.amounts(gradient, move.factors)
        known, first = None if before is None else before[i], torch.full_like(marginal, torch.nan)
        rest_at_end = rest_at_start = torch.tensor(torch.nan)
        if at_start:
            rest_at_end = rest(gradient, move.split).sum()
        if at_start or known is None:  # not probe.value: that may round differently from the value of the step before
            known, gradient = probe.value_and_grad(move.before)
        if at_start:
            first, rest_at_start = per_example.amounts(gradient, move.factors), rest(gradient, move.split).sum()
        for m in ms:
            mean = mean_gradient(move, probe, m)
            amounts = per_example.amounts(mean, move.factors), marginal, first
            found = (known, after, *amounts, *rest(mean, move.split), rest_at_end, rest_at_start)
            columns[m].append(tuple(x.double().cpu() for x in found))
    ids = torch.tensor(move.step), move.datum.cpu()
    return {m: Entries(*ids, *map(torch.stack, zip(*parts, strict=True))) for m, parts in columns.items()}


def mean_gradient(move: Move, probe: Probe, m: int) -> Params:
    """∫₀¹ ∇f(w + s Δw) ds by quadrature."""
    mean: Params = {}
    for place, weight in zip(*nodes(m), strict=True):
        _, gradient = probe.value_and_grad(between(move.before, move.after, place))
        for name, g in gradient.items():
            mean[name] = mean[name].add_(g, alpha=weight) if name in mean else g * weight
    return mean


def check_nodes(m: int, probes: Sequence[Probe]) -> None:
    if m < 1 or not probes:
        raise ValueError(f"m is {m} and there are {len(probes)} probes; both must be at least 1")


def require_all_factors(move: Move) -> None:
    """Refuses a step whose data are known in some units only.

    Raises:
        ValueError: a parameter has no factors.
    """
    if missing := move.before.keys() - move.factors.keys():
        raise ValueError(
            f"step {move.step} has no factors of {', '.join(sorted(missing))}; replay it with captured={units.EVERY}"
        )


def nodes(m: int) -> tuple[list[float], list[float]]:
    """Gauss-Legendre nodes in (0, 1) and their weights, which add up to 1.

    >>> nodes(1)
    ([0.5], [1.0])
    """
    places, weights = np.polynomial.legendre.leggauss(m)
    return ((places + 1) / 2).tolist(), (weights / 2).tolist()


def between(before: Params, after: Params, place: float) -> Params:
    """The weights on the straight line from before (0) to after (1)."""
    return tree.map(lambda a, b: torch.lerp(a, b, place), before, after)


# ---- a run


def ledger(
    run: Run,
    folder: RunPath,
    probes: Sequence[Probe],
    *,
    start: int = 0,
    stop: int | None = None,
    m: int = 3,
    about: Mapping[str, Any] | None = None,
) -> Iterator[tuple[int, Entries]]:
    """Replays the steps of a run and writes the ledger of some probes into a folder, as ``records.walk`` does.

    Args:
        run, folder, start, stop: of ``records.walk``.
        probes, m: of ``split_change``.
        about: what else tells this walk from others, besides the run, start, m and the probes' names: such as which
            texts the probes read.

    Yields:
        Each new step, and its entries; ``records.read_walk(folder, Entries)`` gives them all.

    Raises:
        ValueError: start, stop or m out of range, or no probes.
        RecordError: as ``records.walk``.
    """
    check_nodes(m, probes)
    what = {**(about or {}), "walk": "ledger", "m": m, "probes": [probe.name for probe in probes]}

    def look(move: Move, last: records.Last[Entries] | None) -> Entries:
        return split_change(move, probes, m, before=None if last is None else last.found.after)

    yield from records.walk(run, folder, what, units.EVERY, look, Entries, start=start, stop=stop)
