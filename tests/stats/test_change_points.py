"""Laws of change points: planted ones are found and no others, smooth drift is told from phases, chance is beaten by
what coincides alone."""

import math
from itertools import combinations

import numpy as np
import pytest

from devinterp_func import stats

W = 60
STEP = np.arange(W) * 50.0


def noise(seed, m, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=(W, m))


def planted(seed):
    """One to three series that jump at the same one to four rows, and little noise."""
    rng = np.random.default_rng(seed)
    gaps, m = rng.integers(4, 13, rng.integers(1, 5)), rng.integers(1, 4)
    rows, number = tuple(np.cumsum(gaps).tolist()), np.arange(len(gaps) + 1)
    level = number % 2 * 3.0 + number  # each differs from the one before
    course = np.repeat(level, np.diff([0, *rows, W]))[:, None] * [1, -2, 0.5][:m]
    return rows, stats.standardise(course + 0.05 * rng.normal(size=(W, m)), "abc"[:m])


def test_planted_change_points_are_found_exactly_and_seldom_others():
    exact = 0
    for seed in range(30):
        rows, x = planted(seed)
        found = stats.cut(x, STEP)
        assert set(rows) <= set(found.rows)
        assert found.segments.min() < found.smooth.min()
        exact += found.rows == rows
    assert exact >= 27


@pytest.mark.parametrize("m", [1, 4])
def test_white_noise_has_no_phases(m):
    cut = [stats.cut(noise(seed, m), STEP).rows for seed in range(20)]
    assert sum(rows == () for rows in cut) >= 19


def test_a_smooth_drift_is_cut_but_a_smooth_course_is_preferred():
    drift = np.log1p(STEP)[:, None] * [1, -2] + noise(3, 2, 0.05)
    found = stats.cut(stats.standardise(drift, ["a", "b"]), STEP)
    assert found.rows and found.smooth.min() < found.segments.min()
    assert "a smooth course by" in repr(found)
    rest = drift - stats.smooth_course(drift, STEP, 2)
    assert stats.cut(rest, STEP).rows == ()


def bic_by_hand(x, fitted, parameters):
    """Σ_m W log (RSS_m / W) + p log W."""
    n, m = x.shape
    squares = [sum((x[w, i] - fitted[w, i]) ** 2 for w in range(n)) for i in range(m)]
    return sum(n * math.log(rss / n) for rss in squares) + parameters * math.log(n)


def with_means(x, rows):
    """Each segment's mean in place of its rows."""
    out, borders = np.empty_like(x), [0, *rows, len(x)]
    for start, stop in zip(borders[:-1], borders[1:], strict=True):
        out[start:stop] = sum(x[start:stop]) / (stop - start)
    return out


def test_the_segmentation_is_the_best_of_all():
    x, least = noise(5, 2).cumsum(0)[:14], 2
    found = stats.cut(x, STEP[:14], most=4, least=least)
    assert len(found.segments) == len(found.smooth) == 4
    for k in range(1, 5):
        splits = [
            rows
            for rows in combinations(range(14), k - 1)
            if all(b - a >= least for a, b in zip([0, *rows], [*rows, 14], strict=True))
        ]
        best = min(splits, key=lambda rows: ((x - with_means(x, rows)) ** 2).sum())
        assert found.segments[k - 1] == pytest.approx(bic_by_hand(x, with_means(x, best), 2 * k + 2 * (k - 1)))
        if found.segments[k - 1] == found.segments.min():
            assert found.rows == best
        powers = np.log(STEP[:14] + 1)[:, None] ** np.arange(k)
        smooth = powers @ np.linalg.lstsq(powers, x, rcond=None)[0]
        assert found.smooth[k - 1] == pytest.approx(bic_by_hand(x, smooth, 2 * k))


def test_there_are_as_many_segments_as_rows_allow():
    assert len(stats.cut(noise(0, 1)[:10], STEP[:10]).segments) == 3  # of three rows each
    assert len(stats.cut(noise(0, 1)[:10], STEP[:10], least=1).segments) == 10
    assert len(stats.cut(noise(0, 1), STEP).segments) == 10


def test_standard_takes_logarithms_of_positive_series_only():
    x = np.stack([np.exp(np.arange(9.0)), np.arange(9.0) - 4], 1)
    found = stats.standardise(x, ["positive", "both"])
    np.testing.assert_allclose(found[:, 0], found[:, 1])
    np.testing.assert_allclose([found.mean(0), found.std(0)], [[0, 0], [1, 1]], atol=1e-12)
    touching = np.stack([np.arange(9.0)], 1)  # 0 has no logarithm
    np.testing.assert_allclose(stats.standardise(touching, ["x"]), (touching - 4) / touching.std())


# ---- together?


@pytest.mark.parametrize("null", [stats.rotated_points, stats.placed_points])
def test_what_coincides_beats_chance_and_what_does_not_does_not(null):
    rng, span = np.random.default_rng(0), (0.0, 1000.0)
    common = np.array([120.0, 480.0, 700.0])
    near = stats.agreement([common + rng.normal(0, 5, 3) for _ in range(4)], span, null, key=0)
    assert near.distance < 15 < near.chance and near.p < 0.01
    p = [stats.agreement(list(rng.uniform(*span, (4, 3))), span, null, key=seed).p for seed in range(40)]
    assert 0.3 < np.mean(p) < 0.7


def test_distance_is_to_the_nearest_in_each_other_series():
    sets = [np.array([10.0, 50.0]), np.array([12.0]), np.array([])]
    found = stats.agreement(sets, (0.0, 100.0), stats.placed_points, key=0)
    assert found.distance == pytest.approx(((2 + 38) / 2 + 2) / 2)
    assert np.isnan(stats.agreement(sets[1:], (0.0, 100.0), stats.placed_points, key=0).distance)


def test_draws_stay_in_the_span_and_rotations_keep_the_gaps():
    points, rng = np.array([15.0, 20.0, 60.0]), np.random.default_rng(1)
    for null in (stats.rotated_points, stats.placed_points):
        drawn = null(points, (10.0, 90.0), 50, rng)
        assert drawn.shape == (50, 3) and drawn.min() >= 10 and drawn.max() < 90
    turned = stats.rotated_points(points, (10.0, 90.0), 50, rng)
    np.testing.assert_allclose((turned[:, 1] - turned[:, 0]) % 80, 5)
    np.testing.assert_allclose((turned[:, 2] - turned[:, 1]) % 80, 40)
    assert turned.min() < 20 and turned.max() > 80 and len(np.unique(turned[:, 0].round(6))) == 50


def test_chance_is_the_mean_distance_of_the_draws_and_p_their_share_as_near():
    def null(points, span, draws, rng):
        """Every point moved by 0, 1, 2, ... to the right, draw by draw."""
        return points + np.arange(draws)[:, None] * (points[0] > 20)

    found = stats.agreement([np.array([10.0]), np.array([25.0])], (0.0, 100.0), null, key=0, draws=9)
    assert found == (15.0, pytest.approx(np.mean([15 + d for d in range(9)])), (1 + 1) / (1 + 9))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="b is constant, or not finite, over 5 rows"):
        stats.standardise(np.stack([np.arange(5.0), np.ones(5)], 1), ["a", "b"])
    with pytest.raises(ValueError, match="3 rows, at most 10 segments: it takes more than 3 rows"):
        stats.cut(np.zeros((3, 1)), np.arange(3.0))
