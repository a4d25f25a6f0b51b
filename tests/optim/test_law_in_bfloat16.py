"""The law where mean gradients are rounded to bfloat16: what it misses is within the bound that ``_law.py`` states."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizers import OPTIMIZERS, Made, step, warm

from devinterp_func import keys, optim, per_example, tree
from devinterp_func.per_example import Bias, Gain, Lookup, Outer, Sum

RULES = {name: optimizer for name, optimizer in OPTIMIZERS.items() if "muon" not in name}
each_rule = pytest.mark.parametrize("optimizer", RULES.values(), ids=RULES)


def normal(key, *shape):
    return torch.from_numpy(keys.generator(keys.fold_in(key, *shape)).standard_normal(shape)).float()


def drawn_factors(key, n, C):
    """Factors of a step of n data: of maps in bfloat16, one of which is tied to a table, and of what is in float32."""
    a, b, c, e = (normal(keys.fold_in(key, i), n, C, width).bfloat16() for i, width in enumerate((4, 3, 4, 4)))
    tokens = torch.from_numpy(keys.generator(key).integers(0, 3, (n, C)))
    tied = Sum((Lookup(tokens, normal(key, n, C, 4), 3), Outer(c, b), Outer(e, b * 8)))
    gain = Gain(normal(keys.fold_in(key, "x"), n, C, 3), b)
    return {"map": Outer(a, b), "tied": tied, "bias": Bias(b), "gain": gain}


def mean_of(factor, rounding):
    """The mean gradient as capture makes it: a product in 16 bits is rounded once."""
    if isinstance(factor, Sum):
        return sum(mean_of(part, rounding) for part in factor.parts)
    found = per_example.total(factor)
    return (rounding(found) if isinstance(factor, Outer) else found) / per_example.n_data(factor)


def bfloat16(x):
    return x.bfloat16().float()


class Step(NamedTuple):
    made: Made
    found: optim.Summed


def a_step(optimizer, key, n=4, C=3, cut=None, max_norm=1.0, scale=0.1, warmup=1, rounding=bfloat16):
    """A step in float32 of a batch that is captured in parts, cut at a row."""
    factors = drawn_factors(key, n, C)
    rows = [slice(0, n)] if cut is None else [slice(0, cut), slice(cut, n)]
    each = [{name: per_example.take_data(factor, part) for name, factor in factors.items()} for part in rows]
    parts = [
        {name: mean_of(factor, rounding) * per_example.n_data(factor) / n for name, factor in own.items()}
        for own in each
    ]
    gradient = {name: sum(part[name] for part in parts) for name in factors}
    before = {name: scale * normal(keys.fold_in(key, name), *g.shape) for name, g in gradient.items()}
    state = warm(optimizer, before, warmup, 3)
    made = step(optimizer, before, factors, gradient, state, lr=0.1, max_norm=max_norm)
    deltas = [{name: per_example.take_data(made.factors[name], part) for name in factors} for part in rows]
    found = [optim.summed(own, made.split) for own in deltas]
    return Step(made, found[0] if len(found) == 1 else optim.add_summed(*found))


@each_rule
@given(
    st.integers(0, 2**32),
    st.integers(2, 6),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([1e-3, 1.0, math.inf]),
    st.sampled_from([0.0, 0.1, 100.0]),
    st.integers(0, 2),
)
@settings(max_examples=12)
def test_what_is_missed_is_within_the_bound(optimizer, seed, n, C, whole, max_norm, scale, warmup):
    made, found = a_step(optimizer, seed, n, C, None if whole else 1, max_norm, scale, warmup)
    missed, bound = optim.missed(made, found.sums), optim.missed_bound(made, found)
    assert missed.keys() == bound.keys() == made.factors.keys()
    assert all(missed[unit] <= bound[unit] for unit in missed)
    if whole:
        assert missed == optim.missed(made) and bound == optim.missed_bound(made)


@each_rule
def test_the_bound_is_one_rounding_of_the_present_and_little_more(optimizer):
    made, _ = a_step(optimizer, 5)
    bound, formed = optim.missed_bound(made), per_example.gradients(made.factors)
    for unit, most in (("map", 2.0**-8), ("bias", 0.0), ("gain", 0.0)):
        change = (made.after[unit] - made.before[unit]).norm()
        rest = bound[unit] * change - most * formed[unit].sum(0).norm()
        sizes = sum(x.norm() for x in (made.split.past(unit), made.split.decay(unit), made.before[unit]))
        assert 0 <= rest <= 1e-4 * (sizes + formed[unit].abs().sum(0).norm())


@each_rule
def test_it_finds_a_rounding_too_many(optimizer):
    """To 6 bits in place of 8: what a wrong cast would make is more than the bound allows."""

    def rougher(x):
        mantissa, exponent = torch.frexp(x)
        return torch.ldexp((mantissa * 2**5).round() / 2**5, exponent)

    made, _ = a_step(optimizer, 5, n=6, C=4, rounding=rougher)
    assert optim.missed(made)["map"] > 1.2 * optim.missed_bound(made)["map"]
    assert optim.missed(made)["bias"] <= optim.missed_bound(made)["bias"]


def test_float32_misses_by_its_own_rounding_alone():
    factors = tree.map(
        lambda x: x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, drawn_factors(1, 4, 3)
    )
    gradient = {name: per_example.total(factor) / 4 for name, factor in factors.items()}
    before = {name: 0.1 * normal(keys.fold_in(1, name), *g.shape) for name, g in gradient.items()}
    made = step(optim.adamw(), before, factors, gradient)
    missed, bound = optim.missed(made), optim.missed_bound(made)
    assert all(missed[unit] <= bound[unit] <= 1e-3 for unit in missed)


def test_nothing_is_stated_of_a_gain_that_is_a_matrix():
    made, _ = a_step(OPTIMIZERS["muon"], 2)
    bound = optim.missed_bound(made)
    assert math.isnan(bound["map"]) and optim.missed(made)["bias"] <= bound["bias"]


def test_where_nothing_changed_nothing_is_missed():
    factors = tree.map(lambda x: x * 0 if isinstance(x, torch.Tensor) else x, drawn_factors(1, 2, 1))
    gradient = {name: per_example.total(factor) for name, factor in factors.items()}
    made = step(optim.sgd(), {name: torch.ones_like(g) for name, g in gradient.items()}, factors, gradient)
    assert set(optim.missed_bound(made).values()) == set(optim.missed(made).values()) == {0.0}
