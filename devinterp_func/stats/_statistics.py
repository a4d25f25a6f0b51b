"""Seven statistics of how far each of V tokens is over-represented: attributed counts against reference counts.

With a, r the counts of a token, A, R their sums, p = a / A and q = r / R, a token is over-represented where its
relative frequency p / q exceeds 1. Counts are integers or weights, of one distribution (V,) or of many (..., V).

Attributed data are of the reference corpus, so a token with no reference count is refused when it is attributed and
scores 0 when it is not; and where nothing is attributed, every score is 0. Relative frequency, Mahalanobis distance
and the change of KL divergence do not depend on the scale of the counts. The others do, as does any threshold:
weights should be scaled to add up to the number of tokens that they stand for.

A statistic is written for a block of float64 rows; ``_of_rows`` makes of it a function of counts of any shape, checked.
"""

import math
from collections.abc import Callable
from functools import wraps

import torch
from jaxtyping import Bool, Float64, Num, Shaped
from torch import Tensor

BLOCK = 2**18  # scores computed at once
TINY = torch.finfo(torch.float64).tiny

TokenCounts = Num[Tensor, "*G V"]
Reference = Num[Tensor, "V"]
Scores = Float64[Tensor, "*G V"]
Tokens = Bool[Tensor, "*G V"]  # sets of tokens
Statistic = Callable[..., Tensor]


def _of_rows(statistic: Statistic) -> Statistic:
    """Lifts a statistic of float64 rows to checked counts of any shape and dtype, a block of rows at a time."""

    @wraps(statistic)
    def lifted(attributed: TokenCounts, reference: Reference, **options: int | float) -> Scores:
        _check_counts(attributed, reference)
        whole = reference.double()
        return by_rows(lambda rows: statistic(rows, whole, **options), attributed)

    return lifted


@_of_rows
def relative_frequency(attributed: Scores, reference: Reference) -> Scores:
    """p / q: how many times as frequent the token is in the attributed data as in the reference."""
    return ratio(attributed * reference.sum(), row_total(attributed) * reference)


@_of_rows
def count(attributed: Scores, reference: Reference) -> Scores:
    """a."""
    return attributed


@_of_rows
def log_product(attributed: Scores, reference: Reference) -> Scores:
    """(1 + ln a)(1 + ln p/q), the post's log-scaled product, with 0 for a factor that is negative or has ln 0.

    So it rises with a: without that a token much rarer than in the reference would score the lower, the more frequent.
    """
    relative = relative_frequency(attributed, reference)
    return (1 + attributed.log()).clamp(min=0) * (1 + relative.log()).clamp(min=0)


@_of_rows
def mahalanobis(attributed: Scores, reference: Reference) -> Scores:
    """Mahalanobis distance of (a, p/q) from its mean over the tokens that occur, by their sample covariance.

    A singular covariance is replaced by its pseudo-inverse. Tokens that do not occur score 0. Far is unlike the
    others in either direction: tokens frequent everywhere are far as well.
    """
    occurs = attributed > 0
    relative = relative_frequency(attributed, reference)
    x, y = _centred(attributed, occurs), _centred(relative, occurs)
    y = _unless_rounding(y - x * ratio(row_total(x * y), row_total(x * x)), relative)  # what regression on x leaves
    squares = ratio(x * x, row_total(x * x)) + ratio(y * y, row_total(y * y))
    return (squares * (row_total(occurs) - 1).clamp(min=0)).sqrt()


@_of_rows
def kl_drop(attributed: Scores, reference: Reference) -> Scores:
    """D(p ‖ q) minus what is left of it when the token is dropped from both, which are then renormalised; in nats.

        D₋ᵥ = (D − p_v ln p_v/q_v) / (1 − p_v) + ln (1 − q_v)/(1 − p_v)

    Where nothing but the token is attributed, D₋ᵥ is 0. A token that is rarer than in the reference also contributes
    to D, so that high scores are not all over-represented.
    """
    A, R = row_total(attributed), reference.sum()
    terms = torch.xlogy(ratio(attributed, A), relative_frequency(attributed, reference))
    others, expected = ratio(A - attributed, A), (R - reference) / R
    without = (row_total(terms) - terms) / others + (expected / others).log()
    return row_total(terms) - torch.where((others > 0) & (expected > 0), without, 0)


@_of_rows
def log_likelihood(attributed: Scores, reference: Reference) -> Scores:
    """Log-likelihood ratio G² of the table a, A − a; r, R − r, negative where the token is under-represented.

        G² = 2 Σ O ln O/E        over the four cells, E = row sum · column sum / sum

    Both corpora are samples here: attributed data may count a datum more often than the reference has it.

    Source: Dunning 1993, *Accurate methods for the statistics of surprise and coincidence*.
    """
    A, R = row_total(attributed), reference.sum()
    token, others = attributed + reference, (A - attributed) + (R - reference)
    cells = (attributed, A, token), (A - attributed, A, others), (reference, R, token), (R - reference, R, others)
    terms = (torch.xlogy(O, ratio(O * (A + R), row * column)) for O, row, column in cells)
    over = (attributed * R - reference * A).sign()
    return over * (2 * sum(terms, torch.zeros(()))).clamp(min=0)


@_of_rows
def log_odds(attributed: Scores, reference: Reference, prior: int | float = 1000) -> Scores:
    """Weighted log-odds-ratio with an informative Dirichlet prior, as a z-score.

        z = (ln (a + α)/(A + α₀ − a − α) − ln (r + α)/(R + α₀ − r − α)) / √(1/(a + α) + 1/(r + α))        α = α₀ q

    The prior is as if α₀ reference tokens had been seen in each corpus beforehand; it leaves the reference's odds as
    they are and shrinks the attributed ones towards them. The size is ours: some use the reference counts themselves,
    α₀ = R, under which a neuron's few data say little. A token that makes up the whole reference scores 0.

    Args:
        prior: α₀.

    Source: Monroe, Colaresi and Quinn 2008, *Fightin' words*.
    """
    if not 0 < prior < math.inf:
        raise ValueError(f"prior is {prior}; it must be positive and finite")
    A, R = row_total(attributed), reference.sum()
    alpha = prior * reference / R
    difference = ((attributed + alpha) / (A - attributed + prior - alpha) * (R - reference) / reference).log()
    z = difference / (1 / (attributed + alpha) + 1 / (reference + alpha)).sqrt()
    return torch.where((A > 0) & (reference > 0) & (reference < R), z, 0)


STATISTICS: dict[str, Statistic] = {
    statistic.__name__: statistic
    for statistic in (relative_frequency, count, log_product, mahalanobis, kl_drop, log_likelihood, log_odds)
}


# ---- helpers


def row_total(rows: Shaped[Tensor, "*G V"]) -> Num[Tensor, "*G 1"]:
    return rows.sum(-1, keepdim=True)


def ratio(x: Tensor, y: Tensor) -> Tensor:
    """x / y for y ≥ 0, where y is 0 only if x is: then 0."""
    return x / y.clamp(min=TINY)


def _centred(x: Scores, occurs: Tokens) -> Scores:
    """x minus its mean over the tokens that occur; 0 elsewhere."""
    mean = ratio(row_total(x * occurs), row_total(occurs).double())
    return _unless_rounding(torch.where(occurs, x - mean, 0), x)


def _unless_rounding(x: Scores, larger: Scores) -> Scores:
    """x, or 0 in rows where it is nothing but the rounding of larger numbers, which may have been float32."""
    return torch.where(row_total(x * x) > 1e-12 * row_total(larger * larger), x, 0)


def by_rows(f: Callable[[Tensor], Tensor], x: Num[Tensor, "*G V"]) -> Scores:
    """f of rows in float64, a block of rows at a time."""
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.new_zeros(0, x.shape[-1])
    out = torch.empty(rows.shape, dtype=torch.float64, device=x.device)
    size = max(1, BLOCK // max(1, rows.shape[1]))
    for part, into in zip(rows.split(size), out.split(size), strict=True):
        into.copy_(f(part.double()))
    return out.reshape(x.shape)


def _check_counts(attributed: Tensor, reference: Tensor) -> None:
    if reference.ndim != 1 or attributed.shape[-1:] != reference.shape:
        shapes = f"attributed counts have shape {tuple(attributed.shape)} and reference counts {tuple(reference.shape)}"
        raise ValueError(f"{shapes}; they must be (..., V) and (V,) for the same V tokens")
    for name, counts in (("attributed", attributed), ("reference", reference)):
        low, high = counts.aminmax() if counts.numel() else (0, 0)
        if not (low >= 0 and high < math.inf):
            where, value = _first(counts, ~((counts >= 0) & (counts < math.inf)))
            raise ValueError(f"the {name} count at {where} is {value}; counts must be finite and not negative")
    if not reference.any():
        raise ValueError("the reference counts are all 0; they must be those of the whole training set")
    if attributed[..., reference == 0].any():
        where, value = _first(attributed, (attributed > 0) & (reference == 0))
        message = f"the attributed count at {where} is {value}, but token {where[-1]} has no reference count"
        raise ValueError(f"{message}; attributed data must be of the reference corpus")


def _first(counts: Tensor, bad: Tensor) -> tuple[tuple[int, ...], float]:
    where = tuple(bad.nonzero()[0].tolist())
    return where, counts[where].item()
