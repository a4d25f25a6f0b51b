"""Rankings chosen on one half of the neurons and judged on the other."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from devinterp_func import keys, neurons, stats


@given(st.integers(0, 50), st.integers(0, 99))
def test_halves_are_as_large_as_can_be(n, key):
    assert int(neurons.halves(n, key=key).sum()) == n // 2


@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 4))
def test_no_neuron_has_a_say_in_its_own_ranking(seed, n, rankings):
    rng = np.random.default_rng(seed)
    second = neurons.halves(n, key=seed)
    some = {str(i): torch.from_numpy(rng.random(n)) for i in range(rankings)}
    flat = torch.from_numpy(rng.random(n) < 0.3)
    some = {name: torch.where(flat, torch.nan, p) for name, p in some.items()}
    found = neurons.nested(some, second)
    empty = [not bool((~flat[half]).any()) for half in (second, ~second)]
    assert (found is None) == any(empty)
    if found is None:
        return
    for half, name, judges in ((~second, found.names[0], second), (second, found.names[1], ~second)):
        means = {other: float(p[judges].nanmean()) for other, p in some.items()}
        assert means[name] == max(means.values())
        assert torch.equal(found.precision[half].nan_to_num(-1), some[name][half].nan_to_num(-1))
        changed = {other: torch.where(half, torch.rand(n).double(), p) for other, p in some.items()}
        again = neurons.nested(changed, second)
        assert again is None or name in again.names


def test_p_values_are_those_of_each_halfs_ranking():
    rng = np.random.default_rng(0)
    relevant = torch.from_numpy(rng.random((6, 30)) < 0.2)
    scores = {name: torch.from_numpy(rng.random((6, 30))) for name in "ab"}
    second, strata = neurons.halves(6, key=1), torch.arange(30) % 3
    found = neurons.Nested(("a", "b"), second, torch.zeros(6).double())
    p = neurons.nested_p_values(found, scores, relevant, strata, 50, key=3)
    for i, (name, half) in enumerate((("a", ~second), ("b", second))):
        own = stats.matched_p_values(scores[name][half], relevant[half], strata, 50, key=keys.fold_in(3, i))
        assert torch.equal(p[half].nan_to_num(-1), own.nan_to_num(-1))


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(4, 12), st.integers(1, 4), st.integers(1, 4))
def test_the_difference_of_nested_choices_is_theirs_and_its_interval_chooses_anew(seed, n, of_a, of_b):
    rng = np.random.default_rng(seed)
    second, flat = neurons.halves(n, key=seed), torch.from_numpy(rng.random(n) < 0.2)
    a, b = (
        {str(i): torch.where(flat, torch.nan, torch.from_numpy(rng.random(n))) for i in range(size)}
        for size in (of_a, of_b)
    )
    found = neurons.nested_difference(a, b, second, key=3, resamples=40)
    ours, theirs = neurons.nested(a, second), neurons.nested(b, second)
    if ours is None or theirs is None:
        assert math.isnan(found.value)
        return
    difference = (ours.precision - theirs.precision)[~flat]
    assert found.value == pytest.approx(float(difference.mean())) and found.n == int((~flat).sum())
    parts = [(half & ~flat).nonzero()[:, 0] for half in (~second, second)]
    if min(map(len, parts)) == 1:
        assert math.isnan(found.low)
        return
    drawn = keys.generator(3)
    counts = [drawn.multinomial(len(part), [1 / len(part)] * len(part), 40) for part in parts]
    values = []
    for r in range(40):
        rows = [part.repeat_interleave(torch.from_numpy(count[r])) for part, count in zip(parts, counts, strict=True)]
        again = torch.cat(rows)
        halves = torch.arange(len(again)) >= len(rows[0])
        own, other = (neurons.nested({name: p[again] for name, p in group.items()}, halves) for group in (a, b))
        assert own is not None and other is not None
        values.append(float((own.precision - other.precision).mean()))
    low, high = np.quantile(values, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high))
