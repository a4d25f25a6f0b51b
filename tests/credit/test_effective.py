"""Laws of effective sample sizes: of windows, of steps, of some data; and the dips in their courses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import some

from devinterp_func import credit, keys, stats
from devinterp_func.credit import Coherence, StepSums


def steps_of(square, start=0):
    """Steps whose data have these ‖Δ_j‖² in each unit, (S, U, n)."""
    S, U, _ = square.shape
    nothing = torch.full((S, U), torch.nan)
    return Coherence(torch.arange(start, start + S), square, square, nothing, nothing, torch.zeros(S, 1))


def drawn(S=12, U=2, n=5, seed=0):
    return steps_of(torch.from_numpy(keys.generator(seed).exponential(size=(S, U, n)) ** 2))


@some
@given(seed=st.integers(0, 99), width=st.integers(1, 12), left_out=st.floats(0, 0.8))
def test_the_share_of_a_window_is_that_of_its_pooled_data_and_a_product(seed, width, left_out):
    steps = drawn(seed=seed)
    chosen = torch.from_numpy(keys.generator(seed + 1000).random((12, 5)) >= left_out)
    chosen[:, 0] = True
    found = credit.effective_shares(credit.step_sums(steps, chosen), width)
    for w, first in enumerate(found.step.tolist()):
        own = [
            [float(steps.square[t, :, j].sum()) for j in range(5) if chosen[t, j]] for t in range(first, first + width)
        ]
        data = np.array([x for step in own for x in step])
        assert found.pooled[w] == pytest.approx(data.sum() ** 2 / (data**2).sum() / len(data))
        sizes = np.array([sum(step) for step in own])
        assert found.between[w] == pytest.approx(sizes.sum() ** 2 / (sizes**2).sum() / width)
        single = [sum(step) ** 2 / sum(x * x for x in step) / len(step) for step in own]
        assert found.single[w] == pytest.approx(np.median(single))
    assert np.allclose(found.pooled, found.between * found.within)
    assert len(found.step) == 12 // width and (found.between <= 1 + 1e-12).all()


def test_equal_steps_are_within_alone_and_equal_data_between_alone():
    square = torch.ones(4, 1, 5).double()
    square[:, :, 0] = 9.0
    equal_steps = credit.effective_shares(credit.step_sums(steps_of(square)), 4)
    assert equal_steps.between == pytest.approx(1) and equal_steps.within == pytest.approx(13**2 / 85 / 5)
    equal_data = torch.ones(4, 1, 5).double() * torch.tensor([1.0, 1, 1, 9])[:, None, None]
    found = credit.effective_shares(credit.step_sums(steps_of(equal_data)), 4)
    assert found.between == pytest.approx(12**2 / 84 / 4) and found.within == pytest.approx(1)
    assert found.single == pytest.approx(1)


def test_a_window_without_any_length_has_no_share():
    square = torch.ones(4, 1, 5).double()
    square[2:] = 0
    found = credit.effective_shares(credit.step_sums(steps_of(square)), 2)
    assert found.pooled[0] == 1 and np.isnan([found.pooled[1], found.single[1]]).all()
    with pytest.raises(ValueError, match="the window is 5 steps; there are 4"):
        credit.effective_shares(credit.step_sums(steps_of(square)), 5)


def many_sums(dip=(100, 140), depth=8.0, S=300, seed=0):
    """Steps of 20 data, in some of which a few do most; the first window has a huge step."""
    square = keys.generator(seed).exponential(size=(S, 1, 20)) + 1
    square[dip[0] : dip[1], :, :2] *= depth
    square[0] *= 1e4
    return credit.step_sums(steps_of(torch.from_numpy(square)))


@pytest.mark.parametrize("series", list(credit.SERIES))
def test_a_dip_is_found_where_it_is_and_chance_finds_none(series):
    sums = many_sums()
    found = credit.effective_dip(sums, 10, series, key=0, draws=59)
    assert found.step[found.dip.first] == 100 and found.step[found.dip.stop - 1] == 130
    shares = credit.effective_shares(sums, 10)
    logs = np.log(credit.SERIES[series](shares)[1:])
    assert found.step.tolist() == shares.step[1:].tolist()
    assert found.dip == stats.find_dip(logs, shares.step[1:].astype(float))
    assert set(found.chance) == {credit.SHUFFLED, credit.NOISE, credit.NOISE_OUTSIDE}
    for null in (credit.SHUFFLED, credit.NOISE_OUTSIDE):
        assert found.p(null) == pytest.approx(1 / 60)
    assert found.chance[credit.NOISE].max() > found.chance[credit.NOISE_OUTSIDE].max()


def test_p_is_the_share_of_draws_as_deep():
    sums = many_sums(depth=1.0, seed=1)
    found = credit.effective_dip(sums, 10, "of a window", key=0, draws=39)
    for null, depths in found.chance.items():
        deep = sum(depth >= found.dip.depth - 1e-12 for depth in depths)
        assert len(depths) == 39 and found.p(null) == pytest.approx((1 + deep) / 40)
    assert found.p(credit.SHUFFLED) > 0.05


def test_shuffled_steps_keep_their_sums_together():
    sums = many_sums(S=20)
    taken = sums.take(np.array([3, 1, 2]))
    assert taken.step.tolist() == [0, 1, 2] and taken.square.tolist() == sums.square[[3, 1, 2]].tolist()
    assert taken.fourth.tolist() == sums.fourth[[3, 1, 2]].tolist() and taken.number.tolist() == [20] * 3


def test_a_course_with_a_window_that_nothing_moved_is_refused():
    sums = many_sums()
    still = StepSums(sums.step, sums.number, sums.square * (sums.step // 10 != 7), sums.fourth * (sums.step // 10 != 7))
    with pytest.raises(ValueError, match="in the window from step 70 on no datum moved the weights"):
        credit.effective_dip(still, 10, "of a window", key=0, draws=3)
