"""How far a credit can be trusted: what estimates of a change miss, and whether amounts rank data as removal does.

    completeness        Σ_t |Δf_t − estimate_t| / Σ_t |Δf_t|        0 for an estimate that accounts for every change
    rank agreement      median over steps t of Spearman's ρ(score_t, truth_t) over the data of step t

An estimate of a change is that of the data's shares with past and decay. Both have a bootstrap interval over steps.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from devinterp_func import keys, stats
from devinterp_func.credit._ledger import Entries

START, END, TRAPEZOID, CREDIT = "gradient at the start", "gradient at the end", "trapezoid", "credit"


class Completeness(NamedTuple):
    """How much of P probes' changes an estimate misses."""

    estimate: str  # START, END, TRAPEZOID or CREDIT
    nodes: int | None  # of the quadrature, for CREDIT
    missed: list[stats.Estimate]  # of each probe, as a share of its change; 1 is all of it
    change: Float[Tensor, "P"]  # Σ|Δf|

    def __repr__(self) -> str:
        shares = ", ".join(f"{found.value:.1%}" for found in self.missed)
        return f"Completeness of {self.estimate}{f', {self.nodes} nodes' if self.nodes else ''}: misses {shares}"


def completeness(by_nodes: Mapping[int, Entries], *, key: keys.Key | int, resamples: int = 2000) -> list[Completeness]:
    """What each estimate of the probes' changes misses: first-order estimates, their mean, and credits by nodes.

    Args:
        by_nodes: m -> the same S steps' entries with m nodes, made with ``at_start``.
        key: of the bootstrap over steps.
        resamples: of it.

    Raises:
        ValueError: the amounts at the start are not there.
    """
    first = next(iter(by_nodes.values()))
    if bool(first.at_start.isnan().any()):
        raise ValueError("the entries have no amounts at the start; make them with at_start=True")
    start = first.at_start.sum((-2, -1)) + first.rest_at_start
    end = first.marginal.sum((-2, -1)) + first.rest_at_end
    estimates: list[tuple[str, int | None, Tensor]] = [
        (START, None, start),
        (END, None, end),
        (TRAPEZOID, None, (start + end) / 2),
        *((CREDIT, m, e.credit.sum((-2, -1)) + e.past + e.decay) for m, e in by_nodes.items()),
    ]
    change = first.change()
    return [
        Completeness(name, m, _shares((change - estimate).abs(), change.abs(), key, resamples), change.abs().sum(0))
        for name, m, estimate in estimates
    ]


def rank_agreement(
    scores: Mapping[str, Float[Tensor, "S n"]],
    truth: Float[Tensor, "S n"],
    *,
    key: keys.Key | int,
    resamples: int = 2000,
) -> dict[str, stats.Estimate]:
    """Spearman's correlation of each score with the truth over the data of a step, its median over steps.

    Args:
        scores: name -> amounts, steps by data.
        truth: such as ``leave_one_out`` of each step, or ``rerun_without``.
        key: of the bootstrap over steps.
        resamples: of it.

    Returns:
        Of each score; steps in which a score or the truth is the same for all data are left out.
    """
    found = {}
    for name, score in scores.items():
        each = torch.tensor([stats.rank_correlation(x, y) for x, y in zip(score, truth, strict=True)])
        found[name] = stats.bootstrap(lambda x: np.median(x, -1), each[~each.isnan()], key=key, resamples=resamples)
    return found


def _shares(
    missed: Float[Tensor, "S P"], change: Float[Tensor, "S P"], key: keys.Key | int, resamples: int
) -> list[stats.Estimate]:
    """Σ missed / Σ change over steps, of each probe."""
    return [
        stats.bootstrap(lambda a, b: a.sum(-1) / b.sum(-1), missed[:, i], change[:, i], key=key, resamples=resamples)
        for i in range(missed.shape[1])
    ]
