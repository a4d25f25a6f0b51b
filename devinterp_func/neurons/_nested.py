"""A ranking chosen on one half of the neurons and judged on the other: no neuron has a say in its own ranking."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from devinterp_func import keys, stats


class Nested(NamedTuple):
    """Each neuron under the ranking that is best on the half it is not in."""

    names: tuple[str, str]  # chosen for the first half, and for the second
    second: Bool[Tensor, "G"]  # which half a neuron is in
    precision: Float64[Tensor, "G"]  # average precision of each neuron under its half's ranking; NaN without flips


def halves(n: int, *, key: keys.Key | int) -> Bool[Tensor, "n"]:
    """Whether each of n neurons is in the second of two random halves; the first has the odd one."""
    second = torch.zeros(n, dtype=torch.bool)
    second[keys.permutation(n, key=key)[: n // 2]] = True
    return second


def nested(
    precisions: Mapping[str, Float64[Tensor, "G"]],
    second: Bool[Tensor, "G"],
) -> Nested | None:
    """For each half of the neurons, the ranking of the highest mean average precision on the other half.

    Args:
        precisions: ranking -> average precision of each neuron; NaN where it flips nothing. The first of equals wins.
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


def nested_p_values(
    found: Nested,
    scores: Mapping[str, Float[Tensor, "G V"]],
    relevant: Bool[Tensor, "G V"],
    strata: Int[Tensor, "V"],
    draws: int,
    *,
    key: keys.Key | int,
) -> Float64[Tensor, "G"]:
    """``stats.matched_p_values`` of each neuron, under its half's ranking.

    Args:
        found: which ranking that is.
        scores: of the rankings chosen, by name.
        relevant, strata, draws, key: as there.
    """
    p = torch.full((len(relevant),), torch.nan, dtype=torch.float64)
    for i, (name, half) in enumerate(zip(found.names, (~found.second, found.second), strict=True)):
        of_half = scores[name][half], relevant[half]
        p[half] = stats.matched_p_values(*of_half, strata, draws, key=keys.fold_in(key, i))
    return p
