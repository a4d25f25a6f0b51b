"""Laws of dips: the deepest fall that comes back, and courses in which there is none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import some

from devinterp_func import keys, stats

STEP = np.arange(0.0, 400.0, 10.0)


def course(*parts, noise=0.01, seed=0):
    """Parts (level, rows), with noise."""
    levels = np.concatenate([np.full(rows, level) for level, rows in parts])
    return levels + noise * keys.generator(seed).standard_normal(len(levels))


@pytest.mark.parametrize(
    "parts, first, stop, depth",
    [
        ([(0.0, 10), (-2.0, 5), (1.0, 25)], 10, 15, 2.0),  # below the lower side
        ([(3.0, 10), (-2.0, 5), (1.0, 25)], 10, 15, 3.0),
        ([(2.0, 10), (-3.0, 5), (-2.0, 5), (2.0, 20)], 10, 20, 5.0),  # what is nearer to its mean belongs to it
        ([(2.0, 10), (1.0, 5), (-3.0, 5), (2.0, 20)], 15, 20, 5.0),  # ... and what is nearer to the rim does not
        ([(0.0, 8), (-1.0, 8), (0.0, 8), (-3.0, 8), (0.0, 8)], 24, 32, 3.0),  # the deepest of two
    ],
)
def test_a_dip_is_below_both_sides(parts, first, stop, depth):
    x = course(*parts)
    found = stats.find_dip(x, STEP)
    assert (found.first, found.stop) == (first, stop) and found.depth == pytest.approx(depth, abs=0.02)
    means = [x[:first].mean(), x[first:stop].mean(), x[stop:].mean()]
    assert [found.before, found.inside, found.after] == pytest.approx(means)


@pytest.mark.parametrize("parts", [[(0.0, 20), (3.0, 20)], [(3.0, 20), (0.0, 20)], [(0.0, 10), (3.0, 10), (0.0, 20)]])
def test_what_rises_or_falls_for_good_has_no_dip(parts):
    found = stats.find_dip(course(*parts), STEP)
    assert found.depth == 0 and found.first == found.stop == 0 and np.isnan(found.inside)
    assert stats.find_dip(np.ones(40), STEP).depth == 0


@some
@given(levels=st.lists(st.integers(-5, 5), min_size=2, max_size=6), rows=st.integers(5, 9))
def test_depth_is_the_largest_over_all_segments(levels, rows):
    x = course(*((level, rows) for level in levels), noise=0.001)
    step = np.arange(len(x)) * 10.0
    found = stats.find_dip(x, step)
    cut = stats.cut(((x - x.mean()) / x.std())[:, None], step)
    means = [float(part.mean()) for part in np.split(x, cut.rows)]
    depths = [0.0]
    for k in range(1, len(means) - 1):
        depths.append(min(max(means[:k]), max(means[k + 1 :])) - means[k])
    assert found.depth == pytest.approx(max(depths))
    assert found.over_smooth == pytest.approx(cut.smooth.min() - cut.segments.min())
    if found.depth:
        edges = [0, *cut.rows, len(x)]
        assert {found.first, found.stop} <= set(edges[1:-1])
        assert found.inside == pytest.approx(x[found.first : found.stop].mean())


def test_noise_is_like_the_courses_own():
    """A line in log step with correlated noise: as large, as correlated, around the same line."""
    rng, W, correlation = keys.generator(3), 2000, 0.6
    step, noise = np.arange(W) * 10.0, [0.0]
    for shock in rng.standard_normal(W - 1):
        noise.append(correlation * noise[-1] + 0.8 * shock)
    x = 2 * np.log1p(step) + np.array(noise)
    dip = stats.Dip(0, 0, 0.0, np.nan, np.nan, np.nan, 0.0)
    drawn = stats.noise_courses(x, step, dip, "all", 40, key=1)
    rest = drawn - stats.smooth_course(x[:, None], step, 2)[:, 0]
    assert drawn.shape == (40, W) and rest.mean() == pytest.approx(0, abs=0.15)
    assert rest.std() == pytest.approx(np.std(noise), rel=0.1)
    assert np.corrcoef(rest[:, :-1].ravel(), rest[:, 1:].ravel())[0, 1] == pytest.approx(correlation, abs=0.06)
    assert np.array_equal(drawn, stats.noise_courses(x, step, dip, "all", 40, key=1))


def test_noise_outside_the_dip_leaves_it_out():
    x = course((0.0, 15), (-5.0, 5), (0.0, 20), noise=0.1)
    dip = stats.find_dip(x, STEP)
    whole, outside = (stats.noise_courses(x, STEP, dip, kind, 100, key=0) for kind in ("all", "outside"))
    assert outside.std() == pytest.approx(0.1, rel=0.3) and whole.std() > 10 * outside.std()
    assert np.abs(outside.mean(0)).max() < 0.1


def test_chance_finds_a_dip_of_its_own_size_as_often_as_it_should():
    """Courses without any: the share of them with p below 0.2 is about that."""
    rng, p = keys.generator(5), []
    for draw in range(60):
        x = rng.standard_normal(40) + np.log1p(STEP)
        dip = stats.find_dip(x, STEP)
        depths = [stats.find_dip(y, STEP).depth for y in stats.noise_courses(x, STEP, dip, "all", 39, key=draw)]
        p.append((1 + sum(depth >= dip.depth for depth in depths)) / 40)
    assert np.mean(np.array(p) <= 0.2) < 0.37  # 0.2, and three standard errors
