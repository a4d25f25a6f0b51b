"""Laws of changes.py: planted change points are found and no others, smooth drift is told from phases, chance is beaten
by what coincides alone."""

import numpy as np
import pytest

from devinterp_func import changes

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
    return rows, changes.standard(course + 0.05 * rng.normal(size=(W, m)), "abc"[:m])


def test_planted_change_points_are_found_exactly_and_seldom_others():
    exact = 0
    for seed in range(30):
        rows, x = planted(seed)
        found = changes.cut(x, STEP)
        assert set(rows) <= set(found.rows)
        assert found.segments.min() < found.smooth.min()
        exact += found.rows == rows
    assert exact >= 27


@pytest.mark.parametrize("m", [1, 4])
def test_white_noise_has_no_phases(m):
    cut = [changes.cut(noise(seed, m), STEP).rows for seed in range(20)]
    assert sum(rows == () for rows in cut) >= 19


def test_a_smooth_drift_is_cut_but_a_smooth_course_is_preferred():
    drift = np.log1p(STEP)[:, None] * [1, -2] + noise(3, 2, 0.05)
    found = changes.cut(changes.standard(drift, ["a", "b"]), STEP)
    assert found.rows and found.smooth.min() < found.segments.min()
    assert "a smooth course by" in repr(found)
    rest = drift - changes.smooth(drift, STEP, 2)
    assert changes.cut(rest, STEP).rows == ()


def test_the_segmentation_is_the_best_of_all():
    x = noise(5, 2).cumsum(0)[:14]
    found = changes.cut(x, STEP[:14], most=3, least=2)
    splits = [(i, j) for i in range(2, 13) for j in range(i + 2, 13)]
    pieces = {rows: ((x - changes.means(x, rows)) ** 2).sum() for rows in splits}
    best = min(pieces, key=pieces.__getitem__)
    assert found.segments[2] == pytest.approx(changes.bic(x - changes.means(x, best), 2 * 3 + 2 * 2))


def test_standard_takes_logarithms_of_positive_series_only():
    x = np.stack([np.exp(np.arange(9.0)), np.arange(9.0) - 4], 1)
    found = changes.standard(x, ["positive", "both"])
    np.testing.assert_allclose(found[:, 0], found[:, 1])
    np.testing.assert_allclose([found.mean(0), found.std(0)], [[0, 0], [1, 1]], atol=1e-12)


# ---- together?


@pytest.mark.parametrize("null", [changes.rotated, changes.placed])
def test_what_coincides_beats_chance_and_what_does_not_does_not(null):
    rng, span = np.random.default_rng(0), (0.0, 1000.0)
    common = np.array([120.0, 480.0, 700.0])
    near = changes.agreement([common + rng.normal(0, 5, 3) for _ in range(4)], span, null, key=0)
    assert near.distance < 15 < near.chance and near.p < 0.01
    p = [changes.agreement(list(rng.uniform(*span, (4, 3))), span, null, key=seed).p for seed in range(40)]
    assert 0.3 < np.mean(p) < 0.7


def test_distance_is_to_the_nearest_in_each_other_series():
    sets = [np.array([10.0, 50.0]), np.array([12.0]), np.array([])]
    found = changes.agreement(sets, (0.0, 100.0), changes.placed, key=0)
    assert found.distance == pytest.approx(((2 + 38) / 2 + 2) / 2)
    assert np.isnan(changes.agreement(sets[1:], (0.0, 100.0), changes.placed, key=0).distance)


def test_draws_stay_in_the_span_and_rotations_keep_the_gaps():
    points, rng = np.array([15.0, 20.0, 60.0]), np.random.default_rng(1)
    for null in (changes.rotated, changes.placed):
        drawn = null(points, (10.0, 90.0), 50, rng)
        assert drawn.shape == (50, 3) and drawn.min() >= 10 and drawn.max() < 90
    turned = changes.rotated(points, (10.0, 90.0), 50, rng)
    np.testing.assert_allclose((turned[:, 1] - turned[:, 0]) % 80, 5)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="b is constant, or not finite, over 5 rows"):
        changes.standard(np.stack([np.arange(5.0), np.ones(5)], 1), ["a", "b"])
    with pytest.raises(ValueError, match="3 rows, at most 10 segments: it takes more than 3 rows"):
        changes.cut(np.zeros((3, 1)), np.arange(3.0))
