"""A ranking chosen on one half of the neurons and judged on the other: no neuron has a say in its own ranking.

Rankings are chosen by a *measure* of each neuron: the average precision, or how much of it another neuron's scores do
not have. The second says nothing for a ranking that orders tokens for all neurons alike, however good it is.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from devinterp_func import keys, stats


class Nested(NamedTuple):
    """Each neuron under the ranking that is best on the half it is not in."""

    names: tuple[str, str]  # chosen for the first half, and for the second
    second: Bool[Tensor, "G"]  # which half a neuron is in
    precision: Float64[Tensor, "G"]  # measure of each neuron under its half's ranking; NaN without flips


def halves(n: int, *, key: keys.Key | int) -> Bool[Tensor, "n"]:
    """Whether each of n neurons is in the second of two random halves; the first has the odd one."""
    second = torch.zeros(n, dtype=torch.bool)
    second[keys.permutation(n, key=key)[: n // 2]] = True
    return second


def nested(
    precisions: Mapping[str, Float64[Tensor, "G"]],
    second: Bool[Tensor, "G"],
) -> Nested | None:
    """For each half of the neurons, the ranking of the highest mean measure on the other half.

    Args:
        precisions: ranking -> measure of each neuron; NaN where it flips nothing. The first of equals wins.
        second: of ``halves``.

    Returns:
        None where in one half no neuron flips anything.
    """
    chosen = []
    for judges in (second, ~second):
        means = {name: float(p[judges].nanmean()) for name, p in precisions.items()}
        known = {name: mean for name, mean in means.items() if mean == mean}
        if not known:
            return None
        chosen.append(max(known, key=lambda name: known[name]))
    first, last = chosen
    return Nested((first, last), second, torch.where(second, precisions[last], precisions[first]))


def nested_difference(
    a: Mapping[str, Float64[Tensor, "G"]],
    b: Mapping[str, Float64[Tensor, "G"]],
    second: Bool[Tensor, "G"],
    *,
    key: keys.Key | int,
    resamples: int = 2000,
    level: float = 0.95,
) -> stats.Estimate:
    """How much higher the mean of ``nested(a, second)`` is than that of ``nested(b, second)``, over the same neurons.

    The bootstrap draws neurons within each half, and chooses both rankings anew each time: its interval has in it that
    another sample of neurons would have chosen others.

    Args:
        a, b: as in ``nested``; both NaN for the same neurons.
        second: of ``halves``.
        key, resamples, level: as in ``stats.bootstrap``.

    Returns:
        NaN where in one half no neuron flips anything; NaN as the interval where in one half only one does.
    """
    both = [torch.stack([*group.values()]) for group in (a, b)]
    there = ~both[0][0].isnan()
    parts = [half & there for half in (~second, second)]
    n = [int(part.sum()) for part in parts]
    if not all(n):
        return stats.Estimate(torch.nan, torch.nan, torch.nan, sum(n))
    of_a, of_b = nested(a, second), nested(b, second)
    assert of_a is not None and of_b is not None
    value = float((of_a.precision - of_b.precision)[there].mean())
    if min(n) == 1:
        return stats.Estimate(value, torch.nan, torch.nan, sum(n))
    rng = keys.generator(key)
    drawn = [torch.from_numpy(rng.multinomial(m, [1 / m] * m, resamples) / m) for m in n]
    own, other = (_chosen(group, parts, drawn) for group in both)
    found = (n[0] * (own[0] - other[0]) + n[1] * (own[1] - other[1])) / sum(n)
    low, high = np.quantile(found.numpy(), [(1 - level) / 2, (1 + level) / 2])
    return stats.Estimate(value, float(low), float(high), sum(n))


def _chosen(
    group: Float64[Tensor, "k G"], parts: list[Bool[Tensor, "G"]], weights: list[Tensor]
) -> tuple[Float64[Tensor, "r"], Float64[Tensor, "r"]]:
    """Each half's mean measure under the ranking that is best on the other half, for each row of weights."""
    first, last = (weight @ group[:, part].T for weight, part in zip(weights, parts, strict=True))
    best = [torch.from_numpy(means.numpy().argmax(1))[:, None] for means in (last, first)]  # the first of equals
    return first.gather(1, best[0])[:, 0], last.gather(1, best[1])[:, 0]


def nested_p_values(
    found: Nested,
    scores: Mapping[str, Float[Tensor, "G V"]],
    relevant: Bool[Tensor, "G V"],
    strata: Int[Tensor, "V"],
    draws: int,
    *,
    key: keys.Key | int,
    enough: int | None = None,
) -> Float64[Tensor, "G"]:
    """``stats.matched_p_values`` of each neuron, under its half's ranking.

    Args:
        found: which ranking that is.
        scores: of the rankings chosen, by name.
        relevant, strata, draws, key, enough: as there.
    """
    p = torch.full((len(relevant),), torch.nan, dtype=torch.float64)
    for i, (name, half) in enumerate(zip(found.names, (~found.second, found.second), strict=True)):
        of_half = scores[name][half], relevant[half]
        p[half] = stats.matched_p_values(*of_half, strata, draws, key=keys.fold_in(key, i), enough=enough)
    return p
