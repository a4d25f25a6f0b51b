"""Laws of skill.py: average precision against loops over permutations, and estimates against what they estimate."""

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

from devinterp_func import keys, skill


def precision_of_order(hits: list[bool]) -> float:
    """Average precision of tokens in this order."""
    found = [sum(hits[: rank + 1]) / (rank + 1) for rank, hit in enumerate(hits) if hit]
    return sum(found) / len(found) if found else math.nan


def precision_by_permuting(scores: list[float], hits: list[bool]) -> float:
    """The mean over all orders that the scores allow: over all permutations, sorted stably."""
    orders = [sorted(order, key=lambda v: -scores[v]) for order in permutations(range(len(scores)))]
    return float(np.mean([precision_of_order([hits[v] for v in order]) for order in orders]))


def place(row: list[float], value: float) -> float:
    """Share of a row below a value, ties counting half."""
    return sum((other < value) + (other == value) / 2 for other in row) / len(row)


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
    np.testing.assert_allclose(skill.average_precision(scores, hits), expected, rtol=1e-12)


@few
@given(seeds, st.integers(1, 200))
def test_average_precision_without_ties_is_that_of_the_sorted_tokens(seed: int, size: int) -> None:
    scores, hits = many(seed, (5, size))
    expected = [
        precision_of_order(hit[score.argsort(descending=True)].tolist())
        for score, hit in zip(scores, hits, strict=True)
    ]
    np.testing.assert_allclose(skill.average_precision(scores, hits), expected, rtol=1e-12)


@few
@given(rankings(most=40, levels=9))
def test_a_perfect_ranking_has_precision_one(ranking: tuple[Tensor, Tensor]) -> None:
    precision = skill.average_precision(ranking[1].float(), ranking[1])
    assert torch.equal(precision.isnan(), ~ranking[1].any(1))
    torch.testing.assert_close(precision.nan_to_num(1.0), torch.ones_like(precision))


@few
@given(rankings(most=40, levels=9), st.integers(1, 60))
def test_blocks_of_rows_change_nothing(ranking: tuple[Tensor, Tensor], block: int) -> None:
    whole = skill.average_precision(*ranking), skill.rank_normalise(ranking[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(skill, "BLOCK", block)
        parts = skill.average_precision(*ranking), skill.rank_normalise(ranking[0])
    assert torch.equal(whole[0].nan_to_num(-1.0), parts[0].nan_to_num(-1.0)) and torch.equal(whole[1], parts[1])


def test_a_score_that_is_no_number_is_refused_and_named() -> None:
    scores = torch.tensor([[0.0, 1.0], [math.nan, 1.0]])
    with pytest.raises(ValueError, match="score of token 0 for neuron 1 is NaN"):
        skill.average_precision(scores, torch.ones(2, 2, dtype=torch.bool))


@some
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1), st.integers(0, 9), st.integers(1, 10))
def test_relevant_tokens_are_those_that_fractions_say(drawn: list[tuple[int, int]], least: int, tenths: int) -> None:
    count, flips = (torch.tensor(column) for column in zip(*((max(pair), min(pair)) for pair in drawn), strict=True))
    expected = [
        n >= least and n > 0 and Fraction(f, n) >= Fraction(tenths, 10)
        for n, f in zip(count.tolist(), flips.tolist(), strict=True)
    ]
    assert skill.relevant(count, flips, least, tenths / 10).tolist() == expected


@few
@given(rankings(most=40, levels=9))
def test_rank_normalise_is_the_share_of_the_row_below(ranking: tuple[Tensor, Tensor]) -> None:
    expected = [[place(row, value) for value in row] for row in ranking[0].tolist()]
    np.testing.assert_allclose(skill.rank_normalise(ranking[0]), expected, rtol=1e-5)


@few
@given(seeds)
def test_rank_product_of_one_score_ranks_as_it_does(seed: int) -> None:
    scores, hits = many(seed, (3, 50))
    alone = skill.average_precision(scores, hits)
    torch.testing.assert_close(skill.average_precision(skill.rank_product(scores), hits), alone, equal_nan=True)
    torch.testing.assert_close(skill.average_precision(skill.rank_product(scores, scores), hits), alone, equal_nan=True)


def test_rank_product_is_the_mean_log_depth() -> None:
    a, b = torch.tensor([[3.0, 2.0, 1.0, 0.0]]), torch.tensor([[0.0, 2.0, 1.0, 3.0]])
    depths = torch.tensor([[1 * 7, 3 * 3, 5 * 5, 7 * 1]]) / 8**2
    torch.testing.assert_close(skill.rank_product(a, b), -depths.log() / 2)


@few
@given(seeds, st.integers(2, 30))
def test_swapped_gives_every_neuron_another_ones_scores(seed: int, n: int) -> None:
    owner = skill.swapped(torch.arange(float(n))[:, None], key=seed).flatten()
    assert sorted(owner.tolist()) == list(range(n))
    assert bool((owner != torch.arange(n)).all())


def test_baselines_know_nothing_of_neurons() -> None:
    _, hits = many(0, (300, 400), share=0.05)
    counts = torch.arange(400)
    for scores in (skill.random(300, 400, key=0), skill.frequency(counts, 300)):
        found = skill.mean_average_precision(skill.average_precision(scores, hits), key=0)
        assert found.low < 0.07 < found.high + 0.01  # 20 relevant among 400 at random: a little above their share
    assert torch.equal(skill.frequency(counts, 2)[1], counts.double())


@few
@given(seeds)
def test_a_mean_is_within_its_interval_and_leaves_out_what_is_not_there(seed: int) -> None:
    values = torch.from_numpy(keys.generator(seed).random(30))
    found = skill.mean_average_precision(values, key=seed)
    assert found.low <= found.value <= found.high and found.neurons == 30
    assert found == skill.mean_average_precision(torch.cat([values, torch.tensor([math.nan] * 3)]), key=seed)
    assert found.value == pytest.approx(float(values.mean()))


def test_the_interval_is_that_of_the_normal_distribution_for_many_neurons() -> None:
    values = torch.from_numpy(keys.generator(0).random(1000))
    found = skill.mean_average_precision(values, key=1, resamples=4000)
    half = 1.96 * float(values.std()) / 1000**0.5
    assert found.high - found.low == pytest.approx(2 * half, rel=0.05)


@few
@given(seeds)
def test_comparing_a_score_with_itself_finds_no_difference(seed: int) -> None:
    values = torch.from_numpy(keys.generator(seed).random(9)) + 0.1
    same = skill.compare_scores(values, values, key=seed)
    assert (same.difference.low, same.difference.high) == (0, 0) and (same.ratio.low, same.ratio.high) == (1, 1)
    doubled = skill.compare_scores(2 * values, values, key=seed)
    assert doubled.ratio.low == pytest.approx(2) and doubled.ratio.high == pytest.approx(2)
    alone = skill.mean_average_precision(values, key=seed)
    assert doubled.difference[:3] == pytest.approx(alone[:3])


def test_without_relevant_tokens_there_is_no_estimate() -> None:
    found = skill.mean_average_precision(torch.tensor([math.nan, math.nan]), key=0)
    assert found.neurons == 0 and math.isnan(found.value)


def test_groups_are_estimated_apart() -> None:
    units = ["layers.2.linear1.weight", "layers.2.linear2.weight", "layers.2.linear1.weight"]
    found = skill.by_group(torch.tensor([0.25, 1.0, 0.75]), [skill.sublayer(unit) for unit in units], key=0)
    assert {group: (e.value, e.neurons) for group, e in found.items()} == {
        (2, "linear1"): (0.5, 2),
        (2, "linear2"): (1.0, 1),
    }
    with pytest.raises(ValueError, match="'decoder.weight' is not a layer's weight"):
        skill.sublayer("decoder.weight")
