"""How well a ranking of tokens predicts what ablation truly flips: average precision, and whether two scores differ.

For each of G neurons a score ranks all V tokens; relevant are those that the neuron's ablation flips
(``relevant``). A neuron's average precision is the mean, over its relevant tokens, of the precision at that token's
rank:

    AP = 1/R · Σ_{v relevant} (relevant tokens ranked no lower than v) / (tokens ranked no lower than v)

where tied tokens count as if in random order: AP is the exact mean over their permutations. A score is a (G, V) array,
higher where the token is thought more affected; it may come from a training record, from weights or from activations.
Estimates are means over neurons with a bootstrap interval over neurons (Efron 1979).

Source of the mean over ties: McSherry and Najork 2008, *Computing information retrieval performance measures
efficiently in the presence of tied scores*.
"""

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devinterp_func import keys

BLOCK = 2**21  # scores ranked at once
LEAST_COUNT, LEAST_PROPORTION = 5, 0.1  # of a token's positions, and of flips among them, for it to be relevant
Label = TypeVar("Label", bound=Hashable)
Array = npt.NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean over neurons, or a function of two, and its bootstrap interval over neurons."""

    value: float
    low: float
    high: float
    neurons: int  # that it is over: those with a relevant token

    def __repr__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}] of {self.neurons}"


class Contrast(NamedTuple):
    """Score a against score b on the same neurons."""

    difference: Estimate  # mean a − mean b
    ratio: Estimate  # mean a / mean b


class Ranks(NamedTuple):
    """Rows in descending order, each entry with its group of ties: the entries [first, last) of its row."""

    order: Int[Tensor, "G V"]
    first: Int[Tensor, "G V"]
    last: Int[Tensor, "G V"]


def relevant(
    count: Int[Tensor, "*G V"],
    flips: Int[Tensor, "*G V"],
    least_count: int = LEAST_COUNT,
    least_proportion: float = LEAST_PROPORTION,
) -> Bool[Tensor, "*G V"]:
    """Whether ablating the neuron truly affects the token.

    Args:
        count: positions at which the token is the prediction before or after.
        flips: those of them at which the prediction changed.
        least_count: of positions, for the proportion to mean something.
        least_proportion: of positions that flipped.

    >>> relevant(torch.tensor([50, 50, 4]), torch.tensor([5, 4, 4]))
    tensor([ True, False, False])
    """
    return (count >= least_count) & (flips.double() / count.clamp(min=1) >= least_proportion)


def average_precision(scores: Float[Tensor, "G V"], relevant: Bool[Tensor, "G V"]) -> Float[Tensor, "G"]:
    """Average precision of each neuron's ranking, the mean over all orders of tied tokens; float64.

    Args:
        scores: higher is ranked first; every token takes part.
        relevant: the truth.

    Returns:
        In (0, 1]; NaN where no token is relevant.

    Raises:
        ValueError: a score is NaN; neuron and token are named.

    >>> average_precision(torch.tensor([[0.9, 0.1, 0.5], [0.0, 0.0, 0.0]]), torch.tensor([[True, True, False]] * 2))
    tensor([0.8333, 0.8056], dtype=torch.float64)
    """
    if bool((bad := scores.isnan()).any()):
        row, token = bad.nonzero()[0].tolist()
        raise ValueError(f"the score of token {token} for neuron {row} is NaN; scores must be numbers, or infinite")
    return torch.cat([_average_precision(*part) for part in _blocks(scores, relevant)])


def mean_average_precision(
    precision: Float[Tensor, "G"], *, key: keys.Key | int, resamples: int = 2000, level: float = 0.95
) -> Estimate:
    """Mean of ``average_precision`` over the neurons that have one.

    Args:
        precision: of each neuron; NaN is left out.
        key: of the bootstrap.
        resamples: bootstrap samples of neurons.
        level: of the interval, from the samples' quantiles.
    """
    return _bootstrap(lambda means: means[0], _present(precision), resamples, level, key)


def compare_scores(
    a: Float[Tensor, "G"], b: Float[Tensor, "G"], *, key: keys.Key | int, resamples: int = 2000, level: float = 0.95
) -> Contrast:
    """Mean average precision of one score against another's, bootstrapped over neurons in pairs.

    Args:
        a, b: ``average_precision`` by two scores of the same neurons; neurons with a NaN are left out.
        key, resamples, level: as in ``mean_average_precision``.
    """
    values = _present(a, b)
    return Contrast(
        _bootstrap(lambda means: means[0] - means[1], values, resamples, level, key),
        _bootstrap(lambda means: means[0] / means[1], values, resamples, level, key),
    )


def by_group(
    precision: Float[Tensor, "G"], groups: Sequence[Label], *, key: keys.Key | int, resamples: int = 2000
) -> dict[Label, Estimate]:
    """``mean_average_precision`` of each group of neurons, in order of first appearance.

    Args:
        precision: of each neuron.
        groups: the neurons' labels, such as ``sublayer(neuron.unit)``.
        key, resamples: as in ``mean_average_precision``.
    """
    rows = {label: [i for i, other in enumerate(groups) if other == label] for label in dict.fromkeys(groups)}
    return {
        label: mean_average_precision(precision[of], key=keys.fold_in(key, i), resamples=resamples)
        for i, (label, of) in enumerate(rows.items())
    }


def sublayer(unit: str) -> tuple[int, str]:
    """Layer and kind of a unit.

    >>> sublayer("layers.2.linear1.weight"), sublayer("layers.0.self_attn.in_proj_weight")
    ((2, 'linear1'), (0, 'self_attn.in_proj'))
    """
    match = re.fullmatch(r"layers\.(\d+)\.(.+)[._]weight", unit)
    if match is None:
        raise ValueError(f"{unit!r} is not a layer's weight, such as layers.2.linear1.weight")
    return int(match[1]), match[2]


# ---- scores


def rank_normalise(scores: Float[Tensor, "G V"]) -> Float[Tensor, "G V"]:
    """Each score's place in its row: the share of tokens ranked below it, ties counting half; float32 in (0, 1).

    >>> rank_normalise(torch.tensor([[-7.0, 3.0, 3.0, 99.0]]))
    tensor([[0.1250, 0.5000, 0.5000, 0.8750]])
    """
    return 1 - _depth(scores)


def rank_product(*scores: Float[Tensor, "G V"]) -> Float[Tensor, "G V"]:
    """One score from several: minus the mean log of the ranks from the top, so that a low rank anywhere costs.

        S[v] = −1/m · Σ_m ln((rank from the top of v by score m) / V)

    Source: the rank product (Breitling et al. 2004).
    """
    return -sum((_depth(score).log_() for score in scores), torch.zeros(())) / len(scores)


def frequency(reference: Int[Tensor, "V"], n_neurons: int) -> Float[Tensor, "G V"]:
    """The baseline that ranks tokens by how often they occur, for every neuron alike."""
    return reference.double().expand(n_neurons, -1)


def random(n_neurons: int, vocab_size: int, *, key: keys.Key | int) -> Float[Tensor, "G V"]:
    """The baseline that knows nothing."""
    return keys.uniform((n_neurons, vocab_size), 0.0, 1.0, key=key)


def swapped(scores: Float[Tensor, "G V"], *, key: keys.Key | int) -> Float[Tensor, "G V"]:
    """The control for what a score says of tokens, not of neurons: every neuron gets another neuron's scores.

    Args:
        scores: of at least two neurons.
        key: of the exchange, one random cycle through all neurons.
    """
    cycle = keys.permutation(len(scores), key=key)
    return scores[cycle.roll(1)[cycle.argsort()]]


# ---- helpers


def _average_precision(scores: Float[Tensor, "G V"], relevant: Bool[Tensor, "G V"]) -> Float[Tensor, "G"]:
    order, first, last = _ranks(scores)
    hits = torch.nn.functional.pad(relevant.gather(1, order).cumsum(1), (1, 0))  # hits[:, r]: among the r first
    above, within = hits.gather(1, first), hits.gather(1, last) - hits.gather(1, first)
    size, rank = (last - first).double(), torch.arange(1, scores.shape[1] + 1)
    # Given that a relevant token has this rank, the entries of its group before it are a random draw of the others.
    before = above + (rank - first - 1) * (within - 1) / (size - 1).clamp(min=1)
    return (within / size * (before + 1) / rank).sum(1) / hits[:, -1]


def _depth(scores: Float[Tensor, "G V"]) -> Float[Tensor, "G V"]:
    """Share of tokens ranked above each, ties (and itself) counting half; float32 in (0, 1)."""
    return torch.cat([_depth_of(part) for (part,) in _blocks(scores)])


def _depth_of(scores: Float[Tensor, "G V"]) -> Float[Tensor, "G V"]:
    order, first, last = _ranks(scores)
    depth = (first + last).float() / (2 * scores.shape[1])
    return torch.empty_like(depth).scatter_(1, order, depth)


def _ranks(scores: Float[Tensor, "G V"]) -> Ranks:
    value, order = scores.sort(dim=1, descending=True)
    size = scores.shape[1]
    rank = torch.arange(size).expand_as(order)
    starts = torch.ones_like(value, dtype=torch.bool)
    starts[:, 1:] = value[:, 1:] != value[:, :-1]
    ends = torch.ones_like(starts)
    ends[:, :-1] = starts[:, 1:]
    first = torch.where(starts, rank, 0).cummax(1).values
    last = torch.where(ends, rank + 1, size).flip(1).cummin(1).values.flip(1)
    return Ranks(order, first, last)


def _blocks(*arrays: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of all arrays, few enough at a time."""
    rows = max(1, BLOCK // arrays[0].shape[1])
    return zip(*(array.split(rows) for array in arrays), strict=True)


def _present(*precision: Float[Tensor, "G"]) -> Array:
    """Rows of average precisions, only of neurons that have one."""
    values = torch.stack(precision).double().numpy()
    return values[:, ~np.isnan(values).any(0)]


def _bootstrap(
    of: Callable[[Array], Array], values: Array, resamples: int, level: float, key: keys.Key | int
) -> Estimate:
    """A function of the rows' means over columns, with quantiles over samples of the columns."""
    n = values.shape[1]
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    times = keys.generator(key).multinomial(n, np.full(n, 1 / n), size=resamples)  # each column is in each sample
    low, high = np.quantile(of(values @ times.T / n), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(of(values.mean(1))), float(low), float(high), n)
