"""Laws of rankings: average precision against loops over permutations, and what a random ranking scores."""

import math
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from strategies import few, seeds, some
from torch import Tensor

from devinterp_func import keys, neurons, stats
from devinterp_func.neurons import _rankings
from devinterp_func.stats import _ranking


def precision_of_order(hits: list[bool]) -> float:
    """Average precision of tokens in this order."""
    found = [sum(hits[: rank + 1]) / (rank + 1) for rank, hit in enumerate(hits) if hit]
    return sum(found) / len(found) if found else math.nan


def precision_by_permuting(scores: list[float], hits: list[bool]) -> float:
    """The mean over all orders that the scores allow: over all permutations, sorted stably."""
    orders = [sorted(order, key=lambda v: -scores[v]) for order in permutations(range(len(scores)))]
    return float(np.mean([precision_of_order([hits[v] for v in order]) for order in orders]))


def depth(row: list[float], value: float) -> float:
    """Share of a row above a value, ties (and itself) counting half."""
    return sum((other > value) + (other == value) / 2 for other in row) / len(row)


@st.composite
def rankings(draw: st.DrawFn, most: int = 5, levels: int = 3) -> tuple[Tensor, Tensor]:
    """Scores of few levels, so that ties abound, and what is relevant."""
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, most)))
    scores = draw(arrays(np.float32, shape, elements=st.sampled_from([0.0, -0.0, *range(levels), math.inf])))
    return torch.from_numpy(scores), torch.from_numpy(draw(arrays(np.bool_, shape)))


def many(seed: int, shape: tuple[int, int], share: float = 0.2) -> tuple[Tensor, Tensor]:
    rng = keys.generator(seed)
    return torch.from_numpy(rng.standard_normal(shape)), torch.from_numpy(rng.random(shape) < share)


@some
@given(rankings())
def test_average_precision_is_the_mean_over_the_orders_of_ties(ranking: tuple[Tensor, Tensor]) -> None:
    scores, hits = ranking
    expected = [precision_by_permuting(*row) for row in zip(scores.tolist(), hits.tolist(), strict=True)]
    np.testing.assert_allclose(stats.average_precision(scores, hits), expected, rtol=1e-12)


@few
@given(seeds, st.integers(1, 200))
def test_average_precision_without_ties_is_that_of_the_sorted_tokens(seed: int, size: int) -> None:
    scores, hits = many(seed, (5, size))
    expected = [
        precision_of_order(hit[score.argsort(descending=True)].tolist())
        for score, hit in zip(scores, hits, strict=True)
    ]
    np.testing.assert_allclose(stats.average_precision(scores, hits), expected, rtol=1e-12)


@few
@given(rankings(most=40, levels=9))
def test_a_perfect_ranking_has_precision_one(ranking: tuple[Tensor, Tensor]) -> None:
    precision = stats.average_precision(ranking[1].float(), ranking[1])
    assert torch.equal(precision.isnan(), ~ranking[1].any(1))
    torch.testing.assert_close(precision.nan_to_num(1.0), torch.ones_like(precision))


@few
@given(rankings(most=40, levels=9), st.integers(1, 60))
def test_blocks_of_rows_change_nothing(ranking: tuple[Tensor, Tensor], block: int) -> None:
    whole = stats.average_precision(*ranking), stats.rank_product(ranking[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ranking, "BLOCK", block)
        parts = stats.average_precision(*ranking), stats.rank_product(ranking[0])
    assert torch.equal(whole[0].nan_to_num(-1.0), parts[0].nan_to_num(-1.0)) and torch.equal(whole[1], parts[1])


def test_a_score_that_is_no_number_is_refused_and_named() -> None:
    scores = torch.tensor([[0.0, 1.0], [math.nan, 1.0]])
    with pytest.raises(ValueError, match="score of token 0 for neuron 1 is NaN"):
        stats.average_precision(scores, torch.ones(2, 2, dtype=torch.bool))


@some
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1), st.integers(0, 9), st.integers(1, 10))
def test_relevant_tokens_are_those_that_fractions_say(drawn: list[tuple[int, int]], least: int, tenths: int) -> None:
    count, flips = (torch.tensor(column) for column in zip(*((max(pair), min(pair)) for pair in drawn), strict=True))
    expected = [
        n >= least and n > 0 and Fraction(f, n) >= Fraction(tenths, 10)
        for n, f in zip(count.tolist(), flips.tolist(), strict=True)
    ]
    assert neurons.truly_flips(count, flips, least, tenths / 10).tolist() == expected


@few
@given(rankings(most=40, levels=9), rankings(most=40, levels=9))
def test_rank_product_is_the_mean_log_of_the_ranks_from_the_top(
    one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]
) -> None:
    rows, size = min(len(one[0]), len(two[0])), min(one[0].shape[1], two[0].shape[1])
    scores = [ranking[0][:rows, :size] for ranking in (one, two)]
    for row, found in enumerate(stats.rank_product(*scores)):
        depths = [[depth(score[row].tolist(), value) for value in score[row].tolist()] for score in scores]
        expected = [-(math.log(a) + math.log(b)) / 2 for a, b in zip(*depths, strict=True)]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@few
@given(seeds)
def test_rank_product_of_one_score_ranks_as_it_does(seed: int) -> None:
    scores, hits = many(seed, (3, 50))
    alone = stats.average_precision(scores, hits)
    torch.testing.assert_close(stats.average_precision(stats.rank_product(scores), hits), alone, equal_nan=True)
    torch.testing.assert_close(stats.average_precision(stats.rank_product(scores, scores), hits), alone, equal_nan=True)


@few
@given(seeds, st.integers(2, 30))
def test_swapped_gives_every_neuron_another_ones_scores(seed: int, n: int) -> None:
    owner = neurons.swapped_scores(torch.arange(float(n))[:, None], key=seed).flatten()
    assert sorted(owner.tolist()) == list(range(n))
    assert bool((owner != torch.arange(n)).all())


def test_baselines_know_nothing_of_neurons() -> None:
    _, hits = many(0, (300, 400), share=0.05)
    counts = torch.arange(400)
    for scores in (neurons.random_scores(300, 400, key=0), _rankings.frequency_scores(counts, 300)):
        found = stats.mean_average_precision(stats.average_precision(scores, hits), key=0)
        assert found.low < 0.07 < found.high + 0.01  # 20 relevant among 400 at random: a little above their share
    assert torch.equal(_rankings.frequency_scores(counts, 2)[1], counts.double())


@few
@given(rankings(most=9, levels=3))
def test_precision_at_counts_hits_among_the_first_of_a_stable_sort(ranking: tuple[Tensor, Tensor]) -> None:
    scores, truth = ranking
    size = scores.shape[1]
    found = stats.precision_at(scores, truth, range(1, size + 1))
    for row in range(len(scores)):
        order = sorted(range(size), key=lambda v: (-float(scores[row, v]), v))
        hits = [bool(truth[row, v]) for v in order]
        assert found[row].tolist() == pytest.approx([sum(hits[:k]) / k for k in range(1, size + 1)])


@pytest.mark.parametrize("k", [0, 3])
def test_a_k_out_of_range_is_named(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k is {k}; it must be in 1\.\.2"):
        stats.precision_at(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), [1, k])
