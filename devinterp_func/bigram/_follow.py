"""Which pairs a walk follows, entry by entry: a group of characteristic ones, the same tokens shuffled, single ones."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch

from devinterp_func import keys
from devinterp_func.bigram._corpus import PairCounts, Pairs, characteristic_pairs, shuffled_pairs


class Followed(NamedTuple):
    """Pairs whose entries a walk follows: a group, the same tokens shuffled, and single ones."""

    pairs: Pairs  # all, in this order
    n_group: int  # in the group, and as many shuffled

    def group(self) -> slice:
        return slice(0, self.n_group)

    def shuffled(self) -> slice:
        return slice(self.n_group, 2 * self.n_group)

    def single(self) -> range:
        return range(2 * self.n_group, len(self.pairs.output))


def follow(
    counts: PairCounts, named: Sequence[tuple[int, ...]] = (), group: int = 100, least: int = 20, *, key: keys.Key | int
) -> Followed:
    """What pairs a walk should follow.

    Args:
        counts: of the training text.
        named: pairs (input, output) to follow one by one; by default six of the most characteristic, no token twice.
        group: how many characteristic pairs, and how many of the same tokens shuffled, are followed in the mean.
        least: how often a pair of the group must occur.
        key: of the shuffle.

    Raises:
        ValueError: no pair occurs so often, and none is named.
    """
    ranked = characteristic_pairs(counts, len(counts.number), least)
    if not named and not len(ranked.output):
        raise ValueError(f"no pair of tokens occurs {least} times; the commonest {int(counts.times.max())} times")
    single = ranked.take(torch.tensor(spaced(ranked, most=6, each=1), dtype=torch.int64))
    if named:
        input, output = torch.tensor(named).T
        single = Pairs(output, input)
    characteristic = ranked.take(slice(group))
    shuffled = shuffled_pairs(characteristic, key=key)
    columns = zip(characteristic, shuffled, single, strict=True)
    return Followed(Pairs(*(torch.cat(column) for column in columns)), len(characteristic.output))


def spaced(pairs: Pairs, most: int, each: int) -> list[int]:
    """Places of pairs in their order, without repetition, at most ``each`` of a token on either side.

    >>> spaced(Pairs(torch.tensor([1, 1, 1, 2]), torch.tensor([3, 3, 4, 4])), most=3, each=1)
    [0, 3]
    """
    places: list[int] = []
    seen, outputs, inputs = set[tuple[int, int]](), Counter[int](), Counter[int]()
    for i, (output, input) in enumerate(zip(*(column.tolist() for column in pairs), strict=True)):
        if len(places) == most:
            break
        if (output, input) not in seen and outputs[output] < each and inputs[input] < each:
            places.append(i)
            seen.add((output, input))
            outputs[output] += 1
            inputs[input] += 1
    return places
