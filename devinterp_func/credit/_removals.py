"""Which data are removed, or stepped on once more, and how an effect stands beside those of random choices."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import special
from scipy import stats as distributions
from torch import Tensor

from devinterp_func import keys

RANDOM = "random"  # the name of draws, among scores
Interval = tuple[float, float]


class Choice(NamedTuple):
    """What is removed, or stepped on once more: the highest by a score, or a random draw of as many."""

    score: str
    share: float  # of all occurrences, or of all different data
    draw: int = 0


class Distance(NamedTuple):
    """How far an effect lies from those of random draws, in their standard deviations."""

    value: float
    low: float
    high: float


# ---- what is chosen


def helping_sign(probe: str) -> Literal[1, -1]:
    """1, or -1 of a loss: to help is to lower a loss, and to raise any other probe."""
    return -1 if probe == "loss" else 1


def top_mask(scores: Float[Tensor, "S n"], share: float) -> Bool[Tensor, "S n"]:
    """The highest share of all scores, at least one; of equal scores the earlier.

    Raises:
        ValueError: share is not between 0 and 1, or a score is NaN.

    >>> top_mask(torch.tensor([[1.0, 3.0], [3.0, 2.0]]), 0.25)
    tensor([[False,  True],
            [False, False]])
    """
    require_share(share)
    if bool(scores.isnan().any()):
        raise ValueError(f"{int(scores.isnan().sum())} of the scores are NaN; they must be numbers")
    order = scores.flatten().argsort(descending=True, stable=True)
    chosen = torch.zeros(scores.numel(), dtype=torch.bool)
    chosen[order[: max(1, round(share * len(order)))]] = True
    return chosen.view(scores.shape)


def require_share(share: float) -> None:
    """Refuses what is no share of several data.

    Raises:
        ValueError: share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; it must be between 0 and 1")


def removals(
    scores: Mapping[str, Float[Tensor, "S n"]],
    shares: Sequence[float],
    draws: int,
    *,
    key: keys.Key | int,
    among: Mapping[str, Bool[Tensor, "S n"]] = MappingProxyType({}),
    given: Mapping[str, Bool[Tensor, "S n"]] = MappingProxyType({}),
) -> dict[Choice, Bool[Tensor, "S n"]]:
    """For each share the top of each score, and random draws of the same size, from all and from some occurrences.

    Args:
        scores: by name, at least one; "random" is the name of the draws.
        shares: of all occurrences.
        draws: how many random ones.
        key: of them.
        among: occurrences that others are drawn from, by the name of these draws.
        given: occurrences that are removed as they are, by name, each beside random draws of as many.

    Raises:
        ValueError: as of ``top_mask``, there are too few occurrences to draw from, or those given are none or all.
    """
    shape = tuple(next(iter(scores.values())).shape)
    chance = [keys.uniform(shape, 0.0, 1.0, key=keys.fold_in(key, draw)) for draw in range(draws)]
    chosen: dict[Choice, Tensor] = {}
    for share in shares:
        chosen |= {Choice(name, share): top_mask(score, share) for name, score in scores.items()}
        chosen |= {Choice(RANDOM, share, draw): top_mask(score, share) for draw, score in enumerate(chance)}
        for name, pool in among.items():
            chosen |= {Choice(name, share, draw): _top_of(pool, score, share) for draw, score in enumerate(chance)}
    for name, own in given.items():
        count, n = int(own.sum()), own.numel()
        if not 0 < count < n:
            raise ValueError(f"{name!r} are {count} of {n} occurrences; they must be some and not all")
        chosen[Choice(name, count / n)] = own
        chosen |= {Choice(RANDOM, count / n, draw): top_mask(score, count / n) for draw, score in enumerate(chance)}
    return chosen


def _top_of(pool: Bool[Tensor, "S n"], scores: Float[Tensor, "S n"], share: float) -> Bool[Tensor, "S n"]:
    chosen = top_mask(scores.masked_fill(~pool, -1.0), share)
    if bool((chosen & ~pool).any()):
        raise ValueError(
            f"{int(chosen.sum())} occurrences were to be drawn from {int(pool.sum())}; take a smaller share"
        )
    return chosen


def tail_batches(
    scores: Mapping[str, Float[Tensor, "S n"]], datum: Int[Tensor, "S n"], draws: int, *, key: keys.Key | int
) -> dict[Choice, Int[Tensor, "m"]]:
    """Batches for ``tail_patch``: the different data with highest and lowest sum of each score, and random ones.

    Args:
        scores: of the occurrences, by name.
        datum: their data; a batch has as many data as theirs.
        draws: how many random batches.
        key: of them.
    """
    ids = datum.unique()
    m, chosen = min(datum.shape[1], len(ids)), dict[Choice, Tensor]()
    for name, score in scores.items():
        order = datum_totals(score, datum)[1].argsort(descending=True, stable=True)
        chosen[Choice(f"highest {name}", m / len(ids))] = ids[order[:m]]
        chosen[Choice(f"lowest {name}", m / len(ids))] = ids[order[-m:]]
    for draw in range(draws):
        drawn = keys.permutation(len(ids), key=keys.fold_in(key, draw))[:m]
        chosen[Choice(RANDOM, m / len(ids), draw)] = ids[drawn]
    return chosen


def datum_totals(
    scores: Float[Tensor, "S n *C"], datum: Int[Tensor, "S n"]
) -> tuple[Int[Tensor, "N"], Float[Tensor, "N *C"]]:
    """The different data, by id, and each one's sum over its occurrences; by position, where the scores are.

    >>> datum_totals(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[7, 5], [5, 9]]))
    (tensor([5, 7, 9]), tensor([5., 1., 4.]))
    """
    ids, place = datum.flatten().unique(return_inverse=True)
    return ids, scores.new_zeros(len(ids), *scores.shape[2:]).index_add_(0, place, scores.flatten(0, 1))


# ---- an effect beside chance


def mean_interval(chance: Sequence[float]) -> Interval | None:
    """95 % interval of the mean of random draws (Student's t); None for fewer than two.

    >>> tuple(round(x, 3) for x in mean_interval([1.0, 3.0]))
    (-10.706, 14.706)
    """
    if len(chance) < 2:
        return None
    x = np.array(chance)
    low, high = distributions.t.interval(0.95, len(x) - 1, x.mean(), x.std(ddof=1) / len(x) ** 0.5)
    return float(low), float(high)


def distance_from_chance(effect: float, chance: Sequence[float]) -> Distance | None:
    """How many standard deviations of random draws an effect lies from their mean, with the exact 95 % interval.

    The draws are taken to be normal, the effect as given: the interval is of the noncentral t distribution. None for
    fewer than two draws, and where all are equal.
    """
    x, root = np.array(chance), len(chance) ** 0.5
    if len(x) < 2 or not x.std():
        return None
    value = float((effect - x.mean()) / x.std(ddof=1))
    low, high = (float(special.nctdtrinc(len(x) - 1, p, root * value)) / root for p in (0.975, 0.025))
    return Distance(value, low, high)
