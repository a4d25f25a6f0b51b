"""Which findings are beyond chance: false discovery rates, and how far two sets of tokens overlap.

An overlap is held against the hypergeometric distribution, or against permutations within strata of like frequency.
"""

import torch
from jaxtyping import Bool, Float, Float64, Int, Num
from torch import Tensor

from devinterp_func import keys
from devinterp_func.stats._statistics import Tokens, by_rows


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
    return by_rows(_adjusted, p)


def false_discovery(p: Float[Tensor, "*G m"], level: float = 0.05) -> Bool[Tensor, "*G m"]:
    """Which of m tests are discoveries at a false discovery rate of at most ``level`` (Benjamini and Hochberg 1995)."""
    return adjusted(p) <= level


def overlap(notable: Tokens, flipped: Tokens, universe: Bool[Tensor, "... V"]) -> Float64[Tensor, "*G"]:
    """p-value of the overlap of notable and flipped tokens: the chance of one as large if drawn from the universe.

        P(X ≥ |notable ∩ flipped|)        X ~ Hypergeometric(|universe|, |notable|, |flipped|)

    Args:
        notable, flipped: sets of tokens; what is outside the universe is left out.
        universe: tokens that could have been both, such as those that the model predicts somewhere and that have the
            count to be notable; of all, or of each. Tokens that could not have been make any overlap look significant.

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
    """Sizes of the overlap of notable and flipped tokens after permutations of which tokens are flipped.

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
