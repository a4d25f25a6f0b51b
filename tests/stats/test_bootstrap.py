"""Laws of the bootstrap: its interval against every resample there is, and estimates against what they estimate."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import few, seeds

from devinterp_func import keys, stats
from devinterp_func.stats import _bootstrap


def mean(x: np.ndarray) -> Any:
    return x.mean(-1)


def median(x: np.ndarray) -> Any:
    return np.median(x, -1)


def ratio_of_sums(x: np.ndarray, y: np.ndarray) -> Any:
    return x.sum(-1) / y.sum(-1)


def exact_share_up_to(statistic: Callable[..., Any], samples: list[list[float]], value: float) -> float:
    """Share of all n^n resamples whose statistic is at most a value."""
    n = len(samples[0])
    found = [statistic(*(np.array([x[i] for i in rows]) for x in samples)) for rows in product(range(n), repeat=n)]
    return float(np.mean([one <= value + 1e-12 for one in found]))


@pytest.mark.parametrize(
    "statistic, samples",
    [
        (mean, [[0.0, 1.0, 3.5, 9.0]]),
        (median, [[0.0, 1.0, 3.5, 9.0, 11.0]]),
        (ratio_of_sums, [[1.0, 2.0, 5.0, 3.0], [2.0, 2.5, 9.0, 1.0]]),
    ],
)
@pytest.mark.parametrize("level", [0.5, 0.8])
def test_the_interval_holds_its_level_of_all_resamples(
    statistic: Callable[..., Any], samples: list[list[float]], level: float
) -> None:
    """The low end has (1 - level)/2 of the n^n resamples below it, the high end as many above: paired where paired."""
    found = stats.bootstrap(statistic, *map(torch.tensor, samples), key=3, resamples=20_000, level=level)
    assert found.value == pytest.approx(statistic(*map(np.array, samples)), rel=1e-6) and found.n == len(samples[0])
    tail, noise = (1 - level) / 2, 0.015
    for end, share in ((found.low, tail), (found.high, 1 - tail)):
        # the exact distribution is discrete: the quantile is where it passes the share
        assert exact_share_up_to(statistic, samples, end - 1e-4) - noise <= share
        assert exact_share_up_to(statistic, samples, end + 1e-4) + noise >= share


def test_samples_are_resampled_together() -> None:
    x = torch.from_numpy(keys.generator(0).random(50))
    found = stats.bootstrap(lambda a, b: mean(a) - mean(b), x, x + 2, key=0)
    assert (found.value, found.low, found.high) == pytest.approx((-2, -2, -2))


def test_the_interval_is_that_of_the_normal_distribution_for_many_rows() -> None:
    values = torch.from_numpy(keys.generator(0).random(1000))
    found = stats.mean_average_precision(values, key=1, resamples=4000)
    half = 1.96 * float(values.std()) / 1000**0.5
    assert found.low == pytest.approx(float(values.mean()) - half, abs=0.1 * half)
    assert found.high == pytest.approx(float(values.mean()) + half, abs=0.1 * half)
    narrow = stats.mean_average_precision(values, key=1, resamples=4000, level=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * half * 0.6745 / 1.96, rel=0.07)


@pytest.mark.parametrize("block", [1, 7, 40])
def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    values = torch.from_numpy(keys.generator(0).random(5))
    whole = stats.bootstrap(median, values, key=1, resamples=33)
    monkeypatch.setattr(_bootstrap, "BLOCK", block)
    assert stats.bootstrap(median, values, key=1, resamples=33) == whole


def test_the_key_decides() -> None:
    values = torch.from_numpy(keys.generator(0).random(30))
    assert stats.bootstrap(mean, values, key=0) == stats.bootstrap(mean, values, key=0)
    assert stats.bootstrap(mean, values, key=0) != stats.bootstrap(mean, values, key=1)


def test_one_row_has_no_interval_and_none_no_value() -> None:
    one, none = (stats.bootstrap(median, torch.tensor([2.5])[:n], key=0) for n in (1, 0))
    assert (one.value, one.n) == (2.5, 1) and math.isnan(one.low) and math.isnan(one.high)
    assert none.n == 0 and all(math.isnan(x) for x in none[:3])
    assert repr(stats.bootstrap(mean, torch.ones(3), key=0)) == "1 [1, 1] of 3"


@pytest.mark.parametrize(
    "samples, options, message",
    [
        ((torch.ones(3), torch.ones(2)), {}, r"the samples have shapes \[\(3,\), \(2,\)\]; all must be \(n,\)"),
        ((torch.ones(3, 2),), {}, r"the samples have shapes \[\(3, 2\)\]"),
        ((), {}, r"the samples have shapes \[\]"),
        ((torch.ones(3),), {"resamples": 0}, "resamples is 0; it must be at least 1"),
        ((torch.ones(3),), {"level": 95.0}, "level is 95.0; it must be between 0 and 1"),
    ],
)
def test_bad_input_is_named(samples: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stats.bootstrap(lambda *x: x[0].mean(-1), *samples, key=0, **options)


# ---- of rankings


@few
@given(seeds)
def test_a_mean_is_within_its_interval_and_leaves_out_what_is_not_there(seed: int) -> None:
    values = torch.from_numpy(keys.generator(seed).random(30))
    found = stats.mean_average_precision(values, key=seed)
    assert found.low <= found.value <= found.high and found.n == 30
    assert found == stats.mean_average_precision(torch.cat([values, torch.tensor([math.nan] * 3)]), key=seed)
    assert found.value == pytest.approx(float(values.mean()))


@few
@given(seeds)
def test_comparing_a_score_with_itself_finds_no_difference(seed: int) -> None:
    values = torch.from_numpy(keys.generator(seed).random(9)) + 0.1
    same = stats.compare_scores(values, values, key=seed)
    assert (same.difference.low, same.difference.high) == (0, 0) and (same.ratio.low, same.ratio.high) == (1, 1)
    doubled = stats.compare_scores(2 * values, values, key=seed)
    assert doubled.ratio.low == pytest.approx(2) and doubled.ratio.high == pytest.approx(2)
    alone = stats.mean_average_precision(values, key=seed)
    assert doubled.difference[:3] == pytest.approx(alone[:3])


def test_scores_are_compared_on_neurons_that_both_judge() -> None:
    a, b = torch.tensor([0.5, math.nan, 1.0, 0.9]), torch.tensor([0.25, 0.3, math.nan, 0.1])
    found = stats.compare_scores(a, b, key=0)
    assert found.difference.n == found.ratio.n == 2
    assert found.difference.value == pytest.approx(0.7 - 0.175) and found.ratio.value == pytest.approx(0.7 / 0.175)


def test_without_relevant_tokens_there_is_no_estimate() -> None:
    found = stats.mean_average_precision(torch.tensor([math.nan, math.nan]), key=0)
    assert found.n == 0 and math.isnan(found.value)


def test_groups_are_estimated_apart_in_order_of_appearance() -> None:
    found = stats.by_group(torch.tensor([0.25, 1.0, 0.75]), ["late", "early", "late"], key=0)
    assert [(group, e.value, e.n) for group, e in found.items()] == [("late", 0.5, 2), ("early", 1.0, 1)]
    assert found["late"].low == 0.25 and found["late"].high == 0.75
    values = torch.from_numpy(keys.generator(0).random(30))
    twice = stats.by_group(values.repeat(2), ["a"] * 30 + ["b"] * 30, key=0)  # the same values, resampled apart
    assert twice["a"].value == twice["b"].value and twice["a"].low != twice["b"].low


@few
@given(st.lists(st.integers(-3, 3), min_size=3, max_size=20), st.randoms(use_true_random=False))
def test_rank_correlation_is_that_of_the_order_alone(x: list[int], random: Any) -> None:
    y = [random.uniform(-1, 1) for _ in x]
    a, b = torch.tensor(x).double(), torch.tensor(y).double()
    expected = stats.rank_correlation(a, b)
    np.testing.assert_allclose(stats.rank_correlation(a.exp(), b**3), expected)
    np.testing.assert_allclose(stats.rank_correlation(-a, b), -expected)


@given(st.integers(0, 60), st.integers(1, 60))
def test_the_interval_of_a_share_is_where_its_score_test_keeps_it(k, n):
    k = min(k, n)
    found = stats.share(torch.arange(n) < k)
    assert (found.value, found.n) == (k / n, n) and 0 <= found.low <= found.value <= found.high <= 1
    for end in {found.low, found.high} - {0.0, 1.0}:
        z = (k / n - end) / math.sqrt(end * (1 - end) / n)
        assert abs(z) == pytest.approx(1.959964, abs=1e-4)
    assert (found.low == 0) == (k == 0) and (found.high == 1) == (k == n)
    assert math.isnan(stats.share(torch.zeros(0, dtype=torch.bool)).value)
