"""Ablation beside its controls, and the verdict on each neuron: do its notable tokens flip more than by chance?

A neuron's flips on the data attributed to it mean little alone: frequent tokens flip for any neuron. So beside them
stand the same neuron's flips on as many random data, and those that random other neurons of its unit cause on the
attributed data. The verdict asks whether the notable tokens flip more often than a random set of as many tokens
would: the hypergeometric tail over the tokens that occur often enough among the predictions, with a false discovery
rate of 5 % (Benjamini and Hochberg 1995) over all neurons of a table.

Source: the tables and Appendix III of *Training Process Transparency through Gradient Interpretability: Early
Experiments on Toy Language Models* (Krzyzanowski and Hubinger 2023), which had no controls and judged by eye.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from devinterp_func import keys, stats
from devinterp_func.graph import Graph, check_batch
from devinterp_func.neurons._ablation import Ablation, replacements
from devinterp_func.neurons._flips import LEAST_COUNT, Excerpt, excerpts, truly_flips
from devinterp_func.neurons._neuron import Neuron
from devinterp_func.neurons._sweep import flip_counts, sweep
from devinterp_func.tree import Params

ZERO = Ablation()


class FlipCounts(NamedTuple):
    """For every token or class: positions where it is the prediction before or after an ablation, and its flips."""

    count: Int[Tensor, "V"]  # type: ignore[assignment]  # a tuple's own method
    flips: Int[Tensor, "V"]

    def proportion(self) -> Float[Tensor, "V"]:
        """Share of the positions that flipped; 0 where there are none."""
        return self.flips / self.count.clamp(min=1)

    def flipped(self) -> Bool[Tensor, "V"]:
        """Tokens that truly flip, by ``neurons.truly_flips``: at five positions or more, and at a tenth of them."""
        return truly_flips(self.count, self.flips)

    def __repr__(self) -> str:
        return f"FlipCounts({int((self.flips > 0).sum())} of {int((self.count > 0).sum())} predicted tokens flip)"


class Trial(NamedTuple):
    """A neuron's ablation and its controls."""

    neuron: Neuron
    notable: Int[Tensor, "m"]  # token ids, from the training record; none where the data are no text
    attributed: FlipCounts  # on the data attributed to it
    random_data: FlipCounts  # on as many random data
    random_neurons: FlipCounts  # other neurons of its unit on the attributed data, their mean, rounded


class Verdict(NamedTuple):
    """Whether notable tokens flip beyond chance, for G trials."""

    p: Float64[Tensor, "G"]  # hypergeometric
    p_frequency: Float64[Tensor, "G"]  # the same among tokens of like frequency, by permutation
    attributed: Bool[Tensor, "G"]  # p at the false discovery rate
    both: Int[Tensor, "G"]  # tokens that are notable and flip
    expected: Float64[Tensor, "G"]  # of them by chance


def try_neuron(
    graph: Graph,
    params: Params,
    attributed: tuple[Any, ...],
    neuron: Neuron,
    notable: Int[Tensor, "k"],
    others: Sequence[Neuron],
    random_data: FlipCounts,
    ablation: Ablation = ZERO,
) -> Trial:
    """Ablates a neuron, and others for control, on the data attributed to it.

    Args:
        graph, params: the model.
        attributed: the data.
        neuron: to ablate.
        notable: ids of its notable tokens.
        others: random neurons of the same unit.
        random_data: ``flip_counts_of`` the neuron on as many random data.
        ablation: of which kind; the same as on the random data.

    Raises:
        ValueError: no other neurons are given.
    """
    if not others:
        raise ValueError(f"there are no other neurons to compare {neuron} with; there must be at least one")
    flips, *controls = flip_counts_of(graph, params, attributed, [neuron, *others], ablation)
    mean = FlipCounts(*(torch.stack(part).double().mean(0).round().long() for part in zip(*controls, strict=True)))
    return Trial(neuron, notable, flips, random_data, mean)


def flip_counts_of(
    graph: Graph,
    params: Params,
    batch: tuple[Any, ...],
    neurons: Sequence[Neuron],
    ablation: Ablation = ZERO,
) -> list[FlipCounts]:
    """``FlipCounts`` of the ablation of each of some neurons, one at a time, on the same data.

    Args:
        graph, params: the model.
        batch: the data; may be cut short, such as ``(tokens,)``.
        neurons: any.
        ablation: of which kind.
    """
    values = replacements(graph, params, batch, neurons, ablation)
    flipped = sweep(graph, params, batch, neurons, values)
    return list(map(FlipCounts, *flip_counts(flipped, len(neurons), graph.vocab_size)))


def on_random_data(
    graph: Graph,
    params: Params,
    random: tuple[Any, ...],
    sizes: Mapping[Neuron, int],
    ablation: Ablation = ZERO,
) -> Iterator[tuple[Neuron, FlipCounts]]:
    """Each neuron's flips on as many random data as were attributed to it; neurons with as many go together.

    Args:
        graph, params: the model.
        random: random data, from which the first are taken.
        sizes: neuron -> how many.
        ablation: of which kind.
    """
    leaves = check_batch(graph, random)
    for size in dict.fromkeys(sizes.values()):
        alike, first = [neuron for neuron, own in sizes.items() if own == size], tuple(x[:size] for x in leaves)
        yield from zip(alike, flip_counts_of(graph, params, first, alike, ablation), strict=True)


def flip_excerpts(
    graph: Graph,
    params: Params,
    tokens: Int[Tensor, "n C"],
    neuron: Neuron,
    notable: Int[Tensor, "k"],
    n: int,
    ablation: Ablation = ZERO,
) -> list[Excerpt]:
    """At most n flipped predictions of a neuron's ablation, those from or to notable tokens first.

    Args:
        graph, params: a language model.
        tokens: of some data.
        neuron: to ablate.
        notable: ids of its notable tokens.
        n: how many.
        ablation: of which kind.
    """
    values = replacements(graph, params, (tokens,), [neuron], ablation)
    flipped = sweep(graph, params, (tokens,), [neuron], values)
    before, after = flipped.intact, flipped.intact.clone()
    after[flipped.position] = flipped.after
    shaped = before.view(tokens.shape), after.view(tokens.shape)
    first = list(islice(excerpts(tokens, *shaped, of=notable.tolist()), n))
    others = (excerpt for excerpt in excerpts(tokens, *shaped) if excerpt not in first)
    return first + list(islice(others, n - len(first)))


def other_neurons(neuron: Neuron, size: int, n: int, *, key: keys.Key | int) -> list[Neuron]:
    """Random other neurons of a unit.

    Args:
        neuron: the one they are to be compared with.
        size: neurons of its unit.
        n: how many; all others if there are fewer.
        key: of the choice; the neuron is folded in.
    """
    order = keys.permutation(size, key=keys.fold_in(key, str(neuron))).tolist()
    return [neuron._replace(index=i) for i in order if i != neuron.index][:n]


def sample_attributed(events: Int[Tensor, "N"], n: int, *, key: keys.Key | int) -> Int[Tensor, "m"]:
    """Ids of data attributed to a neuron, each once, ascending; a random n of them where there are more.

    Args:
        events: of the neuron, a column of ``neurons.Tally.events``.
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
    """The verdict on each trial; but for ``attributed`` it is the same whatever trials are judged with it.

    Args:
        trials: of at least one neuron.
        reference: counts of the tokens in the training data, whose logarithms to base 2 make strata of like frequency.
        key: of the permutations; the neuron is folded in.
        level: false discovery rate over all trials.
        draws: permutations.

    Raises:
        ValueError: no trials.
    """
    if not trials:
        raise ValueError("no trials to judge; there must be at least one")
    flipped = torch.stack([trial.attributed.flipped() for trial in trials])
    universe = torch.stack([trial.attributed.count >= LEAST_COUNT for trial in trials])
    notable = torch.stack([stats.as_set(trial.notable, flipped.shape[1]) for trial in trials]) & universe
    both, strata = (notable & flipped).sum(1), (1 + reference).log2().long()
    permuted = [
        stats.permuted_overlaps(a, b, within, draws, key=keys.fold_in(key, str(trial.neuron)), strata=strata)
        for trial, a, b, within in zip(trials, notable, flipped, universe, strict=True)
    ]
    p = stats.overlap(notable, flipped, universe)
    return Verdict(
        p,
        stats.permutation_p_values(both, torch.stack(permuted, dim=1)),
        stats.false_discovery(p, level),
        both,
        notable.sum(1) * flipped.sum(1) / universe.sum(1).clamp(min=1).double(),
    )
