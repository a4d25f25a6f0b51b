"""Which data are removed, or stepped on once more, and at random beside them."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devinterp_func import keys

RANDOM = "random"  # the name of draws, among scores; the names of other pools begin with it
EQUAL_NORM = f"{RANDOM}, equal norm: "  # begins the name of draws that are matched with a removal, which it ends with
NORM = "norm"  # the score by norm, whose removals have no match: nothing else is as large
NEAREST = 10  # as many data next in norm are drawn from


class Choice(NamedTuple):
    """What is removed, or stepped on once more: the highest by a score, or a random draw of as many."""

    score: str
    share: float  # of all occurrences, or of all different data
    draw: int = 0


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
    norms: Float[Tensor, "S n"] | None = None,
) -> dict[Choice, Bool[Tensor, "S n"]]:
    """For each share the top of each score, and random draws of the same size, from all and from some occurrences.

    Args:
        scores: by name, at least one; "random" is the name of the draws.
        shares: of all occurrences.
        draws: how many random ones.
        key: of them.
        among: occurrences that others are drawn from, by the name of these draws.
        given: occurrences that are removed as they are, by name, each beside random draws of as many, from all and from
            those of ``among`` that have more.
        norms: of the occurrences' deltas; where they are known, the top of each score but "norm", and what is given,
            stand beside draws ``of_equal_norm`` too, whose name is ``EQUAL_NORM`` and theirs; but not what is given and
            more than half of all, of which there are no others.

    Raises:
        ValueError: as of ``top_mask`` and ``of_equal_norm``, there are too few occurrences to draw from, or those given
            are none or all.
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
        for kind, pool in among.items():
            if int(pool.sum()) > count:
                chosen |= {Choice(kind, count / n, i): _top_of(pool, x, count / n) for i, x in enumerate(chance)}
    names = [*scores, *(name for name, own in given.items() if 2 * int(own.sum()) <= own.numel())]
    return chosen if norms is None else chosen | _matched(chosen, names, norms, draws, key)


def _matched(
    chosen: Mapping[Choice, Tensor], names: Sequence[str], norms: Tensor, draws: int, key: keys.Key | int
) -> dict[Choice, Tensor]:
    """Draws of equal norm for each choice that has one of these names, but that by norm."""
    wanted = {choice: removed for choice, removed in chosen.items() if choice.score in names and choice.score != NORM}
    return {
        Choice(EQUAL_NORM + name, share, draw): of_equal_norm(
            removed, norms, key=keys.fold_in(key, "equal norm", name, f"{share:g}", draw)
        )
        for (name, share, _), removed in wanted.items()
        for draw in range(draws)
    }


def of_equal_norm(
    removed: Bool[Tensor, "S n"], norms: Float[Tensor, "S n"], *, key: keys.Key | int
) -> Bool[Tensor, "S n"]:
    """Other occurrences, as many: in place of each one at random of the ``NEAREST`` that are next to it in norm.

    None is taken twice, and none that is removed; in random order each takes from what the earlier ones left.

    Raises:
        ValueError: more than half of all are removed.

    >>> of_equal_norm(torch.tensor([[True, False]]), torch.tensor([[1.0, 5.0]]), key=0)
    tensor([[False,  True]])
    """
    out, size = removed.flatten().nonzero()[:, 0], norms.flatten().double()
    if 2 * len(out) > len(size):
        raise ValueError(
            f"{len(out)} of {len(size)} occurrences are removed; others of equal norm are too few for that"
        )
    rng, free = keys.generator(key), ~removed.flatten()
    drawn = torch.zeros_like(free)
    for place in out[torch.from_numpy(rng.permutation(len(out)))].tolist():
        far = (size - size[place]).abs().masked_fill(~free, torch.inf)
        near = far.argsort(stable=True)[: min(NEAREST, int(free.sum()))]
        one = near[int(rng.integers(len(near)))]
        drawn[one], free[one] = True, False
    return drawn.view(removed.shape)


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
