"""Which tokens are notable in attributed data: their distribution against the reference, by seven statistics.

Attributed counts say how often each of V tokens occurs in data attributed to a parameter or neuron, with multiplicity
or weighted, (..., V); reference counts say the same of the whole training set, (V,). With a, r the counts of a token,
A, R their sums, p = a / A and q = r / R, a token is over-represented where its relative frequency p / q exceeds 1.

Attributed data are of the reference corpus, so a token with no reference count is refused when it is attributed and
scores 0 when it is not; and where nothing is attributed, every score is 0. Relative frequency, Mahalanobis distance
and the change of KL divergence do not depend on the scale of the counts. The others do, as does any threshold:
weights should be scaled to add up to the number of tokens that they stand for.

Source: the token distributions of *Training Process Transparency through Gradient Interpretability: Early
Experiments on Toy Language Models* (Krzyzanowski and Hubinger 2023), which compared the first five and chose
``univariate_heuristic``; what it did not try names its own source.
"""

import math
from collections.abc import Callable
from functools import wraps
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int, Num, Shaped
from torch import Tensor

from devinterp_func import keys

BLOCK = 2**18  # scores computed at once
TINY = torch.finfo(torch.float64).tiny

Counts = Num[Tensor, "*G V"]
Reference = Num[Tensor, "V"]
Scores = Float64[Tensor, "*G V"]
Tokens = Bool[Tensor, "*G V"]  # sets of tokens
Ids = Int[Tensor, "n"]
Statistic = Callable[..., Tensor]


class Comparison(NamedTuple):
    """Attributed against reference counts (the post's Tables 2 and 3)."""

    count: Counts  # type: ignore[assignment]  # a tuple's own method
    frequency: Scores  # p, 0 where nothing is attributed
    reference_frequency: Scores  # q
    relative_frequency: Scores  # p / q

    def __repr__(self) -> str:
        occur, over = (self.count > 0).sum(-1), (self.relative_frequency > 1).sum(-1)
        return f"Comparison{list(self.count.shape)}(tokens that occur: {occur.tolist()}, over: {over.tolist()})"


def compare(attributed_counts: Counts, reference_counts: Reference) -> Comparison:
    """Count, frequency, reference frequency and relative frequency of every token.

    Args:
        attributed_counts: of one distribution, or of many at once; integers or weights.
        reference_counts: of the whole training set.

    Raises:
        ValueError: the numbers of tokens differ, a count is negative or not finite, the reference is empty, or a token
            is attributed that it does not have; so do all statistics.

    >>> compare(torch.tensor([3, 1, 0]), torch.tensor([30, 40, 30])).relative_frequency
    tensor([2.5000, 0.6250, 0.0000], dtype=torch.float64)
    """
    relative = relative_frequency(attributed_counts, reference_counts)
    frequency = _by_rows(lambda rows: _ratio(rows, _total(rows)), attributed_counts)
    expected = reference_counts.double() / reference_counts.double().sum()
    return Comparison(attributed_counts, frequency, expected.expand_as(frequency), relative)


def univariate_heuristic(
    attributed_counts: Num[Tensor, "V"], reference_counts: Reference, c: int | float = 20, d: int = 100, f: int = 3
) -> Ids:
    """The post's univariate token selection heuristic, for one distribution.

    Of the tokens with count ≥ c, take the d of highest relative frequency; of these, the f of highest count.

    Args:
        attributed_counts, reference_counts: as in ``compare``, but of one distribution.
        c, d, f: by default the post's values; its published code has 20, 200 and 5.

    Returns:
        At most f token ids by descending count; all ties by ascending id.

    Raises:
        ValueError: as ``compare``, or c, d or f is out of range.

    >>> univariate_heuristic(torch.tensor([50, 40, 30, 9]), torch.tensor([99, 40, 20, 1]), c=10, d=2, f=1)
    tensor([1])
    """
    if not (c > 0 and d >= 1 and f >= 1):
        raise ValueError(f"c, d and f are {c}, {d} and {f}; c must be above 0, d and f at least 1")
    relative = relative_frequency(attributed_counts, reference_counts)
    typical = rank(relative, attributed_counts >= c)[:d]
    return rank(attributed_counts, as_set(typical, len(relative)))[:f]


def notable(
    attributed_counts: Num[Tensor, "V"],
    reference_counts: Reference,
    statistic: str,
    top: int,
    least_count: int | float = 1,
) -> Ids:
    """The over-represented tokens that score highest by a statistic, best first, of one distribution.

    Args:
        attributed_counts, reference_counts: as in ``compare``, but of one distribution.
        statistic: a name in ``STATISTICS``.
        top: at most so many.
        least_count: of a token.

    >>> notable(torch.tensor([3, 1, 0]), torch.tensor([30, 40, 30]), "log_likelihood", top=2)
    tensor([0])
    """
    over = relative_frequency(attributed_counts, reference_counts) > 1
    return rank(score(attributed_counts, reference_counts, statistic), over & (attributed_counts >= least_count))[:top]


def rank(scores: Num[Tensor, "V"], eligible: Bool[Tensor, "V"]) -> Ids:
    """Ids of the eligible tokens by descending score, ties by ascending id."""
    ids = eligible.nonzero().squeeze(1)
    return ids[scores[ids].argsort(descending=True, stable=True)]


def as_set(ids: Ids, vocab_size: int) -> Bool[Tensor, "V"]:
    """The set of these tokens, as a mask; that of several concatenated is their union.

    >>> as_set(torch.tensor([2, 0, 2]), 4)
    tensor([ True, False,  True, False])
    """
    return torch.zeros(vocab_size, dtype=torch.bool, device=ids.device).index_fill_(0, ids, True)


def score(attributed_counts: Counts, reference_counts: Reference, statistic: str) -> Scores:
    """A statistic by name.

    Raises:
        ValueError: as ``compare``, or there is no such statistic; the message names those that there are.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"{statistic!r} is no statistic; there are {', '.join(STATISTICS)}")
    return STATISTICS[statistic](attributed_counts, reference_counts)


# ---- statistics: written for rows of one block, float64; called with counts of any shape (..., V), checked


def _of_rows(statistic: Statistic) -> Statistic:
    """Lifts a statistic of float64 rows to checked counts of any shape and dtype, a block of rows at a time."""

    @wraps(statistic)
    def lifted(attributed: Counts, reference: Reference, **options: int | float) -> Scores:
        _check_counts(attributed, reference)
        whole = reference.double()
        return _by_rows(lambda rows: statistic(rows, whole, **options), attributed)

    return lifted


@_of_rows
def relative_frequency(attributed: Scores, reference: Reference) -> Scores:
    """p / q: how many times as frequent the token is in the attributed data as in the reference."""
    return _ratio(attributed * reference.sum(), _total(attributed) * reference)


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
    y = _unless_rounding(y - x * _ratio(_total(x * y), _total(x * x)), relative)  # what regression on x leaves
    squares = _ratio(x * x, _total(x * x)) + _ratio(y * y, _total(y * y))
    return (squares * (_total(occurs) - 1).clamp(min=0)).sqrt()


@_of_rows
def kl_drop(attributed: Scores, reference: Reference) -> Scores:
    """D(p ‖ q) minus what is left of it when the token is dropped from both, which are then renormalised; in nats.

        D₋ᵥ = (D − p_v ln p_v/q_v) / (1 − p_v) + ln (1 − q_v)/(1 − p_v)

    Where nothing but the token is attributed, D₋ᵥ is 0. A token that is rarer than in the reference also contributes
    to D, so that high scores are not all over-represented.
    """
    total, whole = _total(attributed), reference.sum()
    terms = torch.xlogy(_ratio(attributed, total), relative_frequency(attributed, reference))
    others, expected = _ratio(total - attributed, total), (whole - reference) / whole
    without = (_total(terms) - terms) / others + (expected / others).log()
    return _total(terms) - torch.where((others > 0) & (expected > 0), without, 0)


@_of_rows
def log_likelihood(attributed: Scores, reference: Reference) -> Scores:
    """Log-likelihood ratio G² of the table a, A − a; r, R − r, negative where the token is under-represented.

        G² = 2 Σ O ln O/E        over the four cells, E = row sum · column sum / sum

    Both corpora are samples here: attributed data may count a datum more often than the reference has it.

    Source: Dunning 1993, *Accurate methods for the statistics of surprise and coincidence*.
    """
    A, R = _total(attributed), reference.sum()
    token, others = attributed + reference, (A - attributed) + (R - reference)
    cells = (attributed, A, token), (A - attributed, A, others), (reference, R, token), (R - reference, R, others)
    terms = (torch.xlogy(O, _ratio(O * (A + R), row * column)) for O, row, column in cells)
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
    A, R = _total(attributed), reference.sum()
    alpha = prior * reference / R
    difference = ((attributed + alpha) / (A - attributed + prior - alpha) * (R - reference) / reference).log()
    z = difference / (1 / (attributed + alpha) + 1 / (reference + alpha)).sqrt()
    return torch.where((A > 0) & (reference > 0) & (reference < R), z, 0)


STATISTICS: dict[str, Statistic] = {
    statistic.__name__: statistic
    for statistic in (relative_frequency, count, log_product, mahalanobis, kl_drop, log_likelihood, log_odds)
}


# ---- beyond chance


@_of_rows
def p_values(attributed: Scores, reference: Reference) -> Scores:
    """One-sided p-values of over-representation by G²: the normal tail beyond its signed root; 1 where a = 0.

    Counts are taken to be independent. Tokens of a text come in bursts, and data count as often as they are
    attributed, so these are too small; they underflow to 0 where G² exceeds about 1,480: rank by G² itself.
    """
    signed = log_likelihood(attributed, reference)
    tail = torch.special.erfc(signed.sign() * (signed.abs() / 2).sqrt()) / 2
    return torch.where(attributed > 0, tail, 1)


def adjusted(p: Float[Tensor, "*G m"]) -> Float64[Tensor, "*G m"]:
    """p-values adjusted for m tests: the least false discovery rate at which each is discovered.

        adjusted_(i) = min over j ≥ i of p_(j) m / j        p_(1) ≤ ... ≤ p_(m)

    Raises:
        ValueError: a p-value is not in [0, 1].

    Source: Benjamini and Hochberg 1995, *Controlling the false discovery rate*.

    >>> adjusted(torch.tensor([0.01, 0.5, 0.02]))
    tensor([0.0300, 0.5000, 0.0300], dtype=torch.float64)
    """
    low, high = p.aminmax() if p.numel() else (0, 1)
    if not (low >= 0 and high <= 1):
        raise ValueError(f"p-values go from {float(low)} to {float(high)}; they must be in [0, 1]")
    return _by_rows(_adjusted, p)


def false_discovery(p: Float[Tensor, "*G m"], level: float = 0.05) -> Bool[Tensor, "*G m"]:
    """Which of m tests are discoveries at a false discovery rate of at most ``level`` (Benjamini and Hochberg 1995)."""
    return adjusted(p) <= level


def overlap(notable: Tokens, flipped: Tokens, universe: Bool[Tensor, "... V"]) -> Float64[Tensor, "*G"]:
    """p-value of the overlap of notable and flipped tokens: the chance of one as large if drawn from the universe.

        P(X ≥ |notable ∩ flipped|)        X ~ Hypergeometric(|universe|, |notable|, |flipped|)

    Args:
        notable, flipped: sets of tokens; what is outside the universe is left out.
        universe: tokens that could have been both, such as those that the model predicts somewhere and that have the
            count to be notable; of all, or of each. Tokens that could not have been, make any overlap look rare.

    Returns:
        1 where they have no token in common; ``false_discovery`` of them gives the verdicts.

    >>> tokens = torch.arange(10)
    >>> overlap(tokens < 2, tokens < 2, tokens >= 0)  # 1 / 45
    tensor(0.0222, dtype=torch.float64)
    """
    from scipy.stats import hypergeom  # slow to import, hence not at the top

    n, m, size = _sizes(notable, flipped, universe)
    both = (notable & flipped & universe).sum(-1)
    tail = hypergeom.sf(both.numpy() - 1, size.clamp(min=1).numpy(), n.numpy(), m.numpy())
    return torch.where(both > 0, torch.as_tensor(tail), 1.0)


def permuted_overlaps(
    notable: Tokens,
    flipped: Tokens,
    universe: Bool[Tensor, "... V"],
    draws: int,
    *,
    key: keys.Key | int,
    strata: Int[Tensor, "V"] | None = None,
) -> Int[Tensor, "draws *G"]:
    """Sizes of the overlap of notable and flipped tokens when it is permuted which tokens are flipped.

    Permuting within strata leaves each set its share of every stratum. With strata of like frequency, such as
    ``(1 + reference).log2().long()``, this is the null for "more than because both are frequent tokens". The overlap
    with a permuted set has a hypergeometric distribution in each stratum, from which it is drawn.

    Args:
        notable, flipped, universe: as in ``overlap``.
        draws: permutations, independent for every distribution.
        key: of the permutations.
        strata: labels of the tokens; by default all are in one, and the null is that of ``overlap``.
    """
    rng = keys.generator(key)
    labels = torch.zeros(notable.shape[-1]) if strata is None else strata
    total = torch.zeros(draws, *notable.shape[:-1], dtype=torch.int64)
    for label in labels.unique():
        columns = (labels == label).nonzero().squeeze(1)
        n, m, size = (x.numpy() for x in _sizes(*(x[..., columns] for x in (notable, flipped, universe))))
        total += torch.as_tensor(rng.hypergeometric(n, size - n, m, size=tuple(total.shape)))
    return total


def permutation_p_values(observed: Num[Tensor, "*G"], permuted: Num[Tensor, "draws *G"]) -> Float64[Tensor, "*G"]:
    """(1 + permutations that reach what was observed) / (1 + permutations), never 0 (Phipson and Smyth 2010).

    >>> permutation_p_values(torch.tensor([3]), torch.tensor([[0], [3], [1]]))
    tensor([0.5000], dtype=torch.float64)
    """
    return (1 + (permuted >= observed).sum(0)).double() / (1 + len(permuted))


# ---- helpers


def _total(rows: Shaped[Tensor, "*G V"]) -> Num[Tensor, "*G 1"]:
    return rows.sum(-1, keepdim=True)


def _ratio(x: Tensor, y: Tensor) -> Tensor:
    """x / y for y ≥ 0, where y is 0 only if x is: then 0."""
    return x / y.clamp(min=TINY)


def _centred(x: Scores, occurs: Tokens) -> Scores:
    """x minus its mean over the tokens that occur; 0 elsewhere."""
    mean = _ratio(_total(x * occurs), _total(occurs).double())
    return _unless_rounding(torch.where(occurs, x - mean, 0), x)


def _unless_rounding(x: Scores, of: Scores) -> Scores:
    """x, or 0 in rows where it is nothing but the rounding of larger numbers, which may have been float32."""
    return torch.where(_total(x * x) > 1e-12 * _total(of * of), x, 0)


def _adjusted(p: Float64[Tensor, "G m"]) -> Float64[Tensor, "G m"]:
    ordered, order = p.sort(dim=1)
    i = torch.arange(1, p.shape[1] + 1, dtype=p.dtype, device=p.device)
    scaled = ordered * (torch.full_like(i, len(i)) / i)
    least = scaled.flip(1).cummin(1).values.flip(1).clamp(max=1)
    return torch.empty_like(least).scatter_(1, order, least)


def _sizes(notable: Tensor, flipped: Tensor, universe: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of notable and of flipped tokens in the universe, and of all in it."""
    n, m = (notable & universe).sum(-1), (flipped & universe).sum(-1)
    return n, m, universe.sum(-1).expand_as(n)


def _by_rows(f: Callable[[Tensor], Tensor], x: Num[Tensor, "*G V"]) -> Scores:
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
