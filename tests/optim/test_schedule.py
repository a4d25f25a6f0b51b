"""Schedules are torch's: LinearLR, CosineAnnealingLR and, by epoch, ExponentialLR, each after a linear warm-up."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import rates_of
from strategies import few, some
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, ExponentialLR, LinearLR, SequentialLR, StepLR

from devinterp_func.optim import Schedule

N, PER_EPOCH, LR = 30, 6, 0.3


def ours(schedule, n=N):
    return [LR * schedule.factor(step, step // PER_EPOCH, n) for step in range(n)]


def warmed(then, warmup):
    """One of torch's schedulers after a linear rise."""

    def make(optimizer):
        if not warmup:
            return then(optimizer)
        rise = LinearLR(optimizer, 1 / (warmup + 1), 1.0, warmup)
        return SequentialLR(optimizer, [rise, then(optimizer)], [warmup])

    return make


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("end", [0.0, 0.1, 1.0])
def test_linear_and_cosine_are_torchs(warmup, end):
    left = N - warmup
    linear = rates_of(warmed(lambda optimizer: LinearLR(optimizer, 1.0, end, left), warmup), LR, N)
    cosine = rates_of(warmed(lambda optimizer: CosineAnnealingLR(optimizer, left, LR * end), warmup), LR, N)
    assert ours(Schedule("linear", warmup=warmup, end=end)) == pytest.approx(linear, rel=1e-12)
    assert ours(Schedule("cosine", warmup=warmup, end=end)) == pytest.approx(cosine, rel=1e-12)


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_constant_is_torchs(warmup):
    expected = rates_of(warmed(lambda optimizer: ConstantLR(optimizer, 1.0, 1), warmup), LR, N)
    assert ours(Schedule(warmup=warmup)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("gamma", [0.9, 0.95, 1.0, 1.1])
def test_step_is_torchs_by_epoch(gamma):
    each = [rate for rate in rates_of(lambda o: ExponentialLR(o, gamma), LR, N // PER_EPOCH) for _ in range(PER_EPOCH)]
    assert ours(Schedule("step", gamma=gamma)) == pytest.approx(each, rel=1e-14)
    each = rates_of(lambda o: StepLR(o, PER_EPOCH, gamma), LR, N)
    assert ours(Schedule("step", gamma=gamma)) == pytest.approx(each, rel=1e-14)


@given(st.integers(0, 40), st.integers(0, 12), st.integers(1, 40), st.fractions(0, 1), st.integers(0, 5))
@some
def test_factors_are_the_formulas(step, warmup, n_steps, end, epoch):
    rise = min(Fraction(1), Fraction(step + 1, warmup + 1))
    done = min(Fraction(1), Fraction(max(0, step - warmup), max(1, n_steps - warmup)))
    expected = {
        "constant": rise,
        "step": rise * Fraction(3, 4) ** epoch,
        "linear": rise * (1 - done + done * end),
        "cosine": rise * (end + (1 - end) * Fraction((1 + math.cos(math.pi * done)) / 2)),
    }
    made = {
        "constant": Schedule(warmup=warmup),
        "step": Schedule("step", 0.75, warmup),
        "linear": Schedule("linear", warmup=warmup, end=float(end)),
        "cosine": Schedule("cosine", warmup=warmup, end=float(end)),
    }
    for kind, schedule in made.items():
        assert schedule.factor(step, epoch, n_steps) == pytest.approx(float(expected[kind]), rel=1e-12, abs=1e-15)


@given(st.sampled_from(["linear", "cosine"]), st.integers(0, 30), st.floats(0, 1), st.integers(1, 30))
@few
def test_rates_rise_then_fall_to_the_end_and_never_are_0_within_the_training(kind, warmup, end, n_steps):
    schedule = Schedule(kind, warmup=warmup, end=end)
    found = [schedule.factor(step, 0, n_steps) for step in range(n_steps)]
    assert all(a <= b + 1e-12 for a, b in zip(found[:warmup], found[1 : warmup + 1], strict=False))
    assert all(a >= b - 1e-12 for a, b in zip(found[warmup:], found[warmup + 1 :], strict=False))
    assert 0 < min(found) and max(found) <= 1
    if n_steps > warmup:
        assert found[warmup] == 1
        assert schedule.factor(n_steps, 0, n_steps) == pytest.approx(end, abs=1e-15)
        assert schedule.factor(n_steps + 9, 0, n_steps) == schedule.factor(n_steps, 0, n_steps)


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        (
            {"kind": "exponential"},
            ValueError,
            "schedule is 'exponential'; it must be one of constant, step, linear, ",
        ),
        ({"kind": "step", "gamma": 0.0}, ValueError, "gamma is 0.0; it must be positive and finite"),
        ({"kind": "step", "gamma": "0.9"}, TypeError, "gamma is '0.9'; it must be a number"),
        ({"warmup": -1}, ValueError, "warmup is -1; it must be at least 0"),
        ({"warmup": 0.1}, TypeError, "warmup is 0.1; it must be an integer of at least 0"),
        ({"kind": "linear", "end": -0.1}, ValueError, "end is -0.1; it must be at least 0 and finite"),
        ({"kind": "cosine", "gamma": 0.9}, ValueError, "gamma is 0.9, which means nothing to a cosine schedule: leave"),
        ({"gamma": 0.9}, ValueError, "gamma is 0.9, which means nothing to a constant schedule: leave it out"),
        ({"kind": "step", "end": 0.1}, ValueError, "end is 0.1, which means nothing to a step schedule: leave it out"),
        ({"end": 0.1}, ValueError, "end is 0.1, which means nothing to a constant schedule: leave it out"),
    ],
)
def test_settings_are_refused_by_name(unchecked, settings, kind, message):
    with pytest.raises(kind, match=message):
        Schedule(**settings)
