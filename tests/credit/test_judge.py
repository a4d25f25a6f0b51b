"""Laws of judging: exact forecasts are seen as exact, in rank and size; correlations and intervals by brute force."""

import math

import numpy as np
import pytest
import torch
import windows
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as distributions
from strategies import few, seeds

from devinterp_func import credit, keys, stats
from devinterp_func.credit import Bank, _judge, probes


def uniform(*shape, key):
    return keys.uniform(shape, -1.0, 1.0, key=key).double()


def bank_of(scores, horizons=(3, 6), draws=12, noise=0.0, size=1.0, seed=0, share=0.2):
    """Removals that do just what scores say, times a size, and noise."""
    P, S, n = scores.shape
    removed = torch.stack(
        [
            credit.draw_removal(torch.zeros(S, n, dtype=torch.long), "subset", i, share=share, key=seed)
            for i in range(draws)
        ]
    )
    exact = torch.stack([credit.predicted_effects(scores, removed, h) for h in horizons], 1)
    effect = size * exact + noise * uniform(*exact.shape, key=keys.Key(seed, ("noise",)))
    return Bank(horizons, removed, torch.zeros(len(horizons), P, dtype=torch.float64), effect)


# ---- predictions


@few
@given(seed=seeds, horizon=st.integers(1, 4))
def test_predictions_are_minus_the_sums_of_what_is_removed(seed, horizon):
    scores, removed = uniform(2, 4, 3, key=seed), uniform(5, 4, 3, key=seed + 1) > 0
    found = credit.predicted_effects(scores, removed, horizon)
    for d in range(5):
        for p in range(2):
            expected = -sum(float(scores[p, s, j]) for s in range(horizon) for j in range(3) if removed[d, s, j])
            assert float(found[d, p]) == pytest.approx(expected, abs=1e-12)


def test_a_trainings_influences_are_exact_where_its_loss_is_linear():
    """Nothing depends on what came before, so influences foretell every removal: rank and slope are 1."""
    window = windows.linear()
    probe = probes.of("w0", lambda p: p["w"][0] + 2 * p["w"][2])
    datum = credit.window_data(window)
    removed = torch.stack([credit.draw_removal(datum, "subset", i, share=0.2, key=0) for i in range(10)])
    intact = credit.horizon_values(window, [probe], [3, 8])
    effect = torch.stack([credit.horizon_values(window, [probe], [3, 8], removed=one) - intact for one in removed])
    bank = Bank((3, 8), removed, intact, effect)
    for horizon in (3, 8):
        scores = credit.window_influences(window._replace(stop=horizon), [probe]).scores()
        (found,) = credit.judge(bank, horizon, {"influence": scores}, key=0)
        assert found.rank.value == pytest.approx(1) and found.linear.value == pytest.approx(1)
        for bound in found.slope[:3]:
            assert bound == pytest.approx(1, abs=1e-6)


# ---- correlations


@few
@given(seed=seeds, noise=st.floats(0.1, 3))
def test_the_datamodeling_score_is_scipys_spearman_over_removals_its_mean_over_probes(seed, noise):
    scores, other = uniform(3, 6, 4, key=seed), uniform(3, 6, 4, key=seed + 1)
    bank = bank_of(scores, noise=noise, seed=seed)
    found = credit.judge(bank, 6, {"influence": scores, "other": other}, key=1, resamples=50)
    touched = bank.touched(6)
    for own, row in zip((scores, other), found, strict=True):
        x, y = credit.predicted_effects(own, bank.removed, 6)[touched], bank.effect[touched, 1]
        pairs = [(x[:, p].numpy(), y[:, p].numpy()) for p in range(3)]
        assert row.rank.value == pytest.approx(np.mean([distributions.spearmanr(*pair)[0] for pair in pairs]))
        assert row.linear.value == pytest.approx(np.mean([distributions.pearsonr(*pair)[0] for pair in pairs]))
        slopes = [np.linalg.lstsq(x[:, None], y, rcond=None)[0][0] for x, y in pairs]
        assert row.slope.value == pytest.approx(np.mean(slopes))
    assert found[1].behind.value == pytest.approx(found[0].rank.value - found[1].rank.value)
    assert found[0].behind[:3] == (0, 0, 0)


def test_ties_share_their_rank():
    x, y = np.array([1.0, 1.0, 2.0, 3.0, 3.0]), np.array([2.0, 1.0, 1.0, 5.0, 4.0])
    assert stats.rank_correlations(x, y) == pytest.approx(distributions.spearmanr(x, y)[0])
    assert np.isnan(stats.rank_correlations(x, np.zeros(5))) and np.isnan(stats.correlations(np.full(5, 0.1), y))


@few
@given(size=st.floats(-3, 3).filter(lambda x: abs(x) > 0.01), seed=seeds)
def test_sizes_are_seen_apart_from_ranks(size, seed):
    scores = uniform(2, 6, 4, key=seed)
    (found,) = credit.judge(bank_of(scores, size=size), 3, {"influence": scores}, key=0, resamples=20)
    assert found.slope.value == pytest.approx(size) and found.rank.value == pytest.approx(math.copysign(1, size))


# ---- intervals


def test_with_one_probe_the_interval_is_the_one_bootstraps():
    scores = uniform(1, 6, 4, key=3)
    bank = bank_of(scores, noise=0.5, draws=30)
    (found,) = credit.judge(bank, 6, {"influence": scores}, key=0, resamples=4000)
    x, y = credit.predicted_effects(scores, bank.removed, 6)[:, 0], bank.effect[:, 1, 0]
    expected = stats.bootstrap(stats.rank_correlations, x, y, key=1, resamples=4000)
    assert found.rank.n == expected.n == 30
    assert found.rank.value == pytest.approx(expected.value)
    assert found.rank.low == pytest.approx(expected.low, abs=0.03)
    assert found.rank.high == pytest.approx(expected.high, abs=0.03)


def test_few_probes_that_disagree_widen_the_interval():
    """Half of the probes are foretold exactly, half the wrong way round: over other probes the mean may be ±1."""
    scores = uniform(2, 6, 4, key=3)
    bank = bank_of(scores)
    wrong = bank._replace(effect=bank.effect * torch.tensor([1.0, -1.0]))
    (sure,), (unsure,) = (credit.judge(b, 6, {"influence": scores}, key=0, resamples=500) for b in (bank, wrong))
    assert sure.rank[:3] == pytest.approx((1, 1, 1))
    assert unsure.rank[:3] == pytest.approx((0, -1, 1))


def test_differences_are_paired():
    """Two scores that differ by little in every resample: each interval is wide, that of their difference narrow."""
    scores = uniform(1, 6, 4, key=3)
    bank = bank_of(scores, noise=1.0, draws=40)
    close = scores + 0.02 * uniform(1, 6, 4, key=9)
    own, other = credit.judge(bank, 6, {"influence": scores, "close": close}, key=0)
    assert other.behind.high - other.behind.low < 0.3 * (own.rank.high - own.rank.low)
    assert other.behind.low <= other.behind.value <= other.behind.high


@pytest.mark.parametrize("seed", [0, 1])
def test_nineteen_of_twenty_intervals_hold_the_truth(seed):
    """Effects are predictions plus noise of as much variance: the correlation of all possible subsets is 1 / √2."""
    scores, held = uniform(1, 6, 4, key=3), 0
    for i in range(60):
        bank = bank_of(scores, draws=80, seed=1000 * seed + i)
        spread = bank.effect.std()
        noise = torch.from_numpy(np.random.default_rng(i).normal(0, float(spread), bank.effect.shape))
        (found,) = credit.judge(
            bank._replace(effect=bank.effect + noise), 6, {"influence": scores}, key=i, resamples=300
        )
        held += found.linear.low <= 0.5**0.5 <= found.linear.high
    assert 48 <= held <= 60


def test_removals_that_an_early_horizon_does_not_see_are_left_out():
    scores = uniform(1, 6, 4, key=3)
    datum = torch.zeros(6, 4, dtype=torch.long)
    removed = torch.stack([credit.draw_removal(datum, "visit", i, key=0) for i in range(24)])
    exact = torch.stack([credit.predicted_effects(scores, removed, h) for h in (2, 6)], 1)
    bank = Bank((2, 6), removed, torch.zeros(2, 1), exact)
    early, late = (credit.judge(bank, h, {"influence": scores}, key=0, resamples=20)[0] for h in (2, 6))
    assert (early.rank.n, late.rank.n) == (8, 24)
    assert early.rank.value == pytest.approx(1)


def test_what_cannot_be_judged_is_nan_and_what_does_not_fit_is_refused():
    scores = uniform(1, 6, 4, key=3)
    bank = bank_of(scores)
    still = credit.judge(bank._replace(effect=bank.effect * 0), 6, {"influence": scores}, key=0, resamples=20)[0]
    assert math.isnan(still.rank.value) and math.isnan(still.rank.low)
    (alone,) = credit.judge(bank, 6, {"credit": scores}, key=0, resamples=20)
    assert math.isnan(alone.behind.value)
    none = bank._replace(removed=bank.removed & False)
    assert math.isnan(credit.judge(none, 6, {"influence": scores}, key=0)[0].rank.value)
    with pytest.raises(ValueError, match="horizon is 4; the bank has 3, 6"):
        credit.judge(bank, 4, {"influence": scores}, key=0)
    with pytest.raises(ValueError, match="'credit' is of 2 probes; the bank's are 1"):
        credit.judge(bank, 6, {"credit": scores.expand(2, -1, -1)}, key=0)
    with pytest.raises(ValueError, match="scores are of 5 steps of 4 data; they must be of at least 6 steps of 4"):
        credit.judge(bank, 6, {"credit": scores[:, :5]}, key=0)
    with pytest.raises(ValueError, match="resamples is 0"):
        credit.judge(bank, 6, {"credit": scores}, key=0, resamples=0)


# ---- how far


@pytest.mark.parametrize(
    "ranks, expected",
    [
        ([0.9, 0.8, 0.7], math.inf),
        ([0.4, 0.8, 0.7], 0.0),
        ([1.0, 0.5, 0.0], 100.0),
        ([0.9, 0.7, 0.3], math.sqrt(100 * 1000)),
        ([0.9, 0.1, 0.9], 10 ** (1 + 0.5)),  # the first fall counts
        ([0.9, math.nan, 0.9], 10 ** (1 + 0.4 / 1.4)),
    ],
)
def test_the_first_fall_is_found_on_a_straight_line_over_the_logarithm(ranks, expected):
    found = _judge._falls(np.log([10.0, 100.0, 1000.0]), np.array(ranks)[:, None], 0.5)
    assert found[0] == pytest.approx(expected)


def test_a_score_that_turns_round_between_two_horizons_falls_a_quarter_of_the_way():
    """Ranks are 1, 1, about -1: over the logarithm, 0.5 is a quarter of the way from 16 to 64."""
    scores = uniform(1, 64, 2, key=3)
    bank = bank_of(scores, horizons=(4, 16, 64), draws=40, share=0.3)
    noise = uniform(40, 1, key=8) * bank.effect[:, 2].std()
    effect = torch.stack([bank.effect[:, 0], bank.effect[:, 1], noise - bank.effect[:, 2]], 1)
    found = credit.reach(bank._replace(effect=effect), dict.fromkeys((4, 16, 64), scores), key=0, resamples=300)
    assert 16 * 4**0.25 <= found.low < found.value < found.high < 16 * 4**0.4
    assert credit.reach(bank, {4: scores, 16: scores}, key=0, resamples=20) == (math.inf, math.inf, math.inf)
    assert math.isnan(credit.reach(bank._replace(removed=bank.removed & False), {4: scores}, key=0).value)
    with pytest.raises(ValueError, match="there are no horizons"):
        credit.reach(bank, {}, key=0)
