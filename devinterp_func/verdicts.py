"""Ablation beside its controls, and the verdict on each neuron: do its notable tokens flip more than by chance?

A neuron's flips on the data attributed to it mean little alone: frequent tokens flip for any neuron. So beside them
stand the same neuron's flips on as many random data, and those that random other neurons of its unit cause on the
attributed data. The verdict asks whether the notable tokens flip more often than a random set of as many tokens
would: the hypergeometric tail over the tokens that occur often enough among the predictions, with a false discovery
rate of 5 % (Benjamini and Hochberg 1995) over all neurons of a table.

Source: the tables and Appendix III of *Training Process Transparency through Gradient Interpretability: Early
Experiments on Toy Language Models* (Krzyzanowski and Hubinger 2023), which had no controls and judged by eye.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from devinterp_func import keyness, keys, skill, sweeps
from devinterp_func.neurons import Neuron
from devinterp_func.transformer import Config
from devinterp_func.tree import Params


class Counts(NamedTuple):
    """For every token: positions where it is the prediction before or after an ablation, and how many flipped."""

    count: Int[Tensor, "V"]  # type: ignore[assignment]  # a tuple's own method
    flips: Int[Tensor, "V"]

    def proportion(self) -> Float[Tensor, "V"]:
        """Share of the positions that flipped; 0 where there are none."""
        return self.flips / self.count.clamp(min=1)

    def flipped(self) -> Bool[Tensor, "V"]:
        """Tokens that truly flip, by ``skill.relevant``: at five positions or more, and at a tenth of them."""
        return skill.relevant(self.count, self.flips)

    def __repr__(self) -> str:
        return f"Counts({int((self.flips > 0).sum())} of {int((self.count > 0).sum())} predicted tokens flip)"


class Trial(NamedTuple):
    """A neuron's ablation and its controls."""

    neuron: Neuron
    notable: Int[Tensor, "m"]  # token ids, from the training record
    attributed: Counts  # on the data attributed to it
    random_data: Counts  # on as many random data
    random_neurons: Counts  # other neurons of its unit on the attributed data, their mean, rounded


class Verdict(NamedTuple):
    """Whether notable tokens flip beyond chance, for G trials."""

    p: Float64[Tensor, "G"]  # hypergeometric
    p_frequency: Float64[Tensor, "G"]  # the same among tokens of like frequency, by permutation
    attributed: Bool[Tensor, "G"]  # p at the false discovery rate
    both: Int[Tensor, "G"]  # tokens that are notable and flip
    expected: Float64[Tensor, "G"]  # of them by chance


def trial(
    params: Params,
    attributed: Int[Tensor, "n C"],
    config: Config,
    neuron: Neuron,
    notable: Int[Tensor, "k"],
    others: Sequence[Neuron],
    random_data: Counts,
) -> Trial:
    """Ablates a neuron, and others for control, on the data attributed to it.

    Args:
        params: weights.
        attributed: tokens of the data.
        config: the model.
        neuron: to switch off.
        notable: ids of its notable tokens.
        others: random neurons of the same unit.
        random_data: ``counts_of`` the neuron on as many random data.

    Raises:
        ValueError: no other neurons are given.
    """
    own, *controls = counts_of(params, attributed, config, [neuron, *others])
    if not controls:
        raise ValueError(f"there are no other neurons to compare {neuron} with; there must be at least one")
    mean = Counts(*(torch.stack(part).double().mean(0).round().long() for part in zip(*controls, strict=True)))
    return Trial(neuron, notable, own, random_data, mean)


def counts_of(params: Params, tokens: Int[Tensor, "n C"], config: Config, neurons: Sequence[Neuron]) -> list[Counts]:
    """``Counts`` of the ablation of each of some neurons of a unit on the same data."""
    found = sweeps.sweep(params, tokens, config, neurons)
    return list(map(Counts, *sweeps.flip_counts(found, len(neurons), config.vocab_size)))


def others(neuron: Neuron, size: int, n: int, *, key: keys.Key | int) -> list[Neuron]:
    """Random other neurons of a unit.

    Args:
        neuron: the one they are to be compared with.
        size: neurons of its unit.
        n: how many; all others if there are fewer.
        key: of the choice; the neuron is folded in.
    """
    order = keys.permutation(size, key=keys.fold_in(key, str(neuron))).tolist()
    return [neuron._replace(index=i) for i in order if i != neuron.index][:n]


def sample(events: Int[Tensor, "N"], n: int, *, key: keys.Key | int) -> Int[Tensor, "m"]:
    """Ids of data attributed to a neuron, each once, ascending; a random n of them where there are more.

    Args:
        events: of the neuron, a column of ``attribution.Tally.events``.
        n: at most.
        key: of the draw.
    """
    attributed = events.nonzero().squeeze(1)
    return attributed[keys.permutation(len(attributed), key=key)[:n]].sort().values


def judge(
    trials: Sequence[Trial],
    reference: Int[Tensor, "V"],
    *,
    key: keys.Key | int,
    level: float = 0.05,
    draws: int = 2000,
) -> Verdict:
    """The verdict on each trial.

    Args:
        trials: of at least one neuron.
        reference: counts of the tokens in the training data, whose logarithms to base 2 make strata of like frequency.
        key: of the permutations.
        level: false discovery rate over all trials.
        draws: permutations.

    Raises:
        ValueError: no trials.
    """
    if not trials:
        raise ValueError("no trials to judge; there must be at least one")
    flipped = torch.stack([trial.attributed.flipped() for trial in trials])
    universe = torch.stack([trial.attributed.count >= skill.LEAST_COUNT for trial in trials])
    notable = torch.stack([keyness.as_set(trial.notable, flipped.shape[1]) for trial in trials]) & universe
    both = (notable & flipped).sum(1)
    strata = (1 + reference).log2().long()
    permuted = keyness.permuted_overlaps(notable, flipped, universe, draws, key=key, strata=strata)
    p = keyness.overlap(notable, flipped, universe)
    return Verdict(
        p,
        keyness.permutation_p_values(both, permuted),
        keyness.false_discovery(p, level),
        both,
        notable.sum(1) * flipped.sum(1) / universe.sum(1).clamp(min=1).double(),
    )
