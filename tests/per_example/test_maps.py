"""Linear maps of factors are those of what they form, position by position where positions are left to tell apart."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_equal, flat_parts, relative_error, token_parts
from strategies import factor_of, few, integers, mixed_arrays, mixture, some, uses

from devinterp_func import optim, per_example
from devinterp_func.per_example import Bias, Dense, Factor, Gain, Lookup, Outer, Scaled, Sum, _form, _maps

OUTER = Outer(torch.ones(1, 1, 4), torch.ones(1, 1, 5))
MATRICES = [(3, 2), (2, 5), (4, 4), (1, 3), (3, 1)]


def gain_of(data, factor):
    return data.draw(integers(per_example.shape_of(factor)))


# ---- entry by entry


@given(mixed_arrays(), st.data())
@some
def test_a_gain_is_of_each_positions_part(drawn, data):
    for factor in mixture(drawn).values():
        gain = gain_of(data, factor)
        scaled = per_example.scale(factor, gain)
        assert_equal(token_parts(scaled), token_parts(factor) * gain)
        assert_equal(per_example.form(scaled), per_example.form(factor) * gain)
        twice = per_example.scale(scaled, gain)
        assert_equal(per_example.form(twice), per_example.form(factor) * gain * gain)


@given(mixed_arrays(), st.data())
@some
def test_what_is_had_of_factors_with_gains_is_what_is_had_of_the_formed(drawn, data):
    factors = {name: per_example.scale(f, gain_of(data, f)) for name, f in mixture(drawn).items()}
    parts = {name: token_parts(factor) for name, factor in factors.items()}
    for name, factor in factors.items():
        assert_equal(per_example.total(factor), parts[name].sum((0, 1)))
        out = torch.ones(per_example.shape_of(factor), dtype=torch.float64)
        assert _form.add_total(out, factor) is out
        assert_equal(out, 1 + parts[name].sum((0, 1)))
        rows = slice(data.draw(st.integers(0, 2)), 3)
        assert_equal(per_example.form(per_example.take_data(factor, rows)), parts[name][rows].sum(1))
        assert (per_example.n_data(factor), per_example.n_positions(factor)) == parts[name].shape[:2]
        assert per_example.shape_of(factor) == parts[name].shape[2:]
        n, _, size = flat_parts(factor).shape
        datum, index = torch.arange(n).repeat_interleave(size), torch.arange(size).repeat(n)
        assert_equal(per_example.contributions(factor, datum, index), flat_parts(factor)[datum, :, index])
    assert_equal(per_example.token_gradients(factors), parts)
    norms = torch.cat([flat_parts(factor).sum(1) for factor in factors.values()], 1).norm(dim=1)
    torch.testing.assert_close(per_example.delta_norms(factors), norms, rtol=1e-12, atol=1e-12)
    direction = {name: data.draw(integers(tuple(part.shape[2:]))) for name, part in parts.items()}
    expected = sum((flat_parts(f).sum(1) * direction[name].flatten()).sum(1) for name, f in factors.items())
    assert_equal(per_example.amounts(direction, factors).sum(1), expected)


@given(mixed_arrays(), st.sampled_from([-0.5, 2.0, torch.tensor(-4.0), 0.0]))
@few
def test_a_number_is_of_all_entries_alike(drawn, number):
    for factor in mixture(drawn).values():
        scaled = per_example.scale(factor, number)
        assert type(scaled) is type(factor)
        assert_equal(token_parts(scaled), token_parts(factor) * number)


def test_gains_form_nothing(monkeypatch):
    monkeypatch.setattr(_maps, "form", None)
    a, b = torch.ones(2, 3, 4), torch.ones(2, 3, 5)
    made = per_example.scale(Sum((Outer(a, b), Lookup(torch.zeros(2, 3).long(), a, 5))), torch.ones(5, 4))
    assert isinstance(made, Sum) and [type(part) for part in made.parts] == [Scaled, Lookup]
    assert type(per_example.scale(Bias(a), torch.ones(4))) is Bias
    assert type(per_example.scale(Gain(a, a), torch.ones(4))) is Gain


@pytest.mark.parametrize("shape", [(4,), (4, 5), (1, 1), (5, 4, 1)])
def test_a_gain_of_another_shape_is_refused(shape):
    factor = Outer(torch.ones(2, 3, 4), torch.ones(2, 3, 5))
    with pytest.raises(ValueError, match=r"the gain is \(.*\); it must be a number or \(5, 4\), as the unit"):
        per_example.scale(factor, torch.ones(shape))


# ---- by a matrix


@given(st.sampled_from(MATRICES), st.booleans(), st.data())
@some
def test_a_product_with_a_matrix_is_that_of_the_formed_gradients(shape, left, data):
    n = data.draw(st.integers(1, 3))
    factor = factor_of(data.draw(uses(n, shape, depth=2)))
    size = shape[0 if left else 1]
    matrix = data.draw(integers((size, size)))
    made = per_example.multiply(factor, matrix, left)
    formed = token_parts(factor).sum(1)
    assert_equal(per_example.form(made), matrix @ formed if left else formed @ matrix.mT)
    assert per_example.shape_of(made) == shape and per_example.n_data(made) == n
    if type(factor) in (Outer, Lookup):
        parts = token_parts(factor)
        assert_equal(token_parts(made), matrix @ parts if left else parts @ matrix.mT)


def test_products_keep_factors_where_they_can(monkeypatch):
    monkeypatch.setattr(_maps, "form", None)
    a, b, tokens = torch.ones(2, 3, 4), torch.ones(2, 3, 5), torch.zeros(2, 3).long()
    tied = Sum((Outer(a, b), Lookup(tokens, a, 5), Outer(a, b, (5, 4))))
    kinds = {left: per_example.multiply(tied, torch.eye(5 if left else 4), left) for left in (True, False)}
    found = {left: [type(part) for part in made.parts] for left, made in kinds.items() if isinstance(made, Sum)}
    assert found == {True: [Outer, Outer, Outer], False: [Outer, Lookup, Outer]}


@pytest.mark.parametrize(
    ("factor", "size", "left", "message"),
    [
        (OUTER, 4, True, r"a matrix of 4 rows on the left does not fit a unit of shape \(5, 4\)"),
        (OUTER, 5, False, r"a matrix of 5 rows on the right does not fit a unit of shape \(5, 4\)"),
        (Bias(torch.ones(1, 1, 4)), 4, True, r"a matrix of 4 rows on the left does not fit a unit of shape \(4,\)"),
        (Dense(torch.ones(1, 2, 2, 2)), 2, True, r"2 rows on the left does not fit a unit of shape \(2, 2, 2\)"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(factor, size, left, message):
    with pytest.raises(ValueError, match=message):
        per_example.multiply(factor, torch.eye(size), left)


# ---- uses with gains


def test_uses_with_gains_are_joined_as_a_sum():
    outer = Outer(torch.ones(2, 1, 4), torch.ones(2, 1, 5))
    parts: list[Factor] = [Scaled(outer, torch.full((5, 4), by)) for by in (1.0, 2.0)]
    joined = per_example.join(parts)
    assert isinstance(joined, Sum) and len(joined.parts) == 2
    assert_equal(per_example.form(joined), torch.full((2, 5, 4), 3.0))


@pytest.mark.parametrize("name", ["rooted", "left", "right", "number"])
def test_the_factor_of_a_gain_is_the_gain_of_the_formed(name):
    draw = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=draw).double()  # noqa: E731
    factor = Outer(normal(2, 3, 4), normal(2, 3, 5))
    gains: dict[str, float | optim.Rooted | optim.Matrix] = {
        "rooted": optim.Rooted(-0.1, normal(5, 4).square(), 0.5, 1e-3),
        "left": optim.Matrix(normal(5, 5), True),
        "right": optim.Matrix(normal(4, 4), False),
        "number": -0.25,
    }
    made = optim.apply_gain_to_factor(gains[name], factor, 0.5)
    expected = optim.apply_gain(gains[name], 0.5 * per_example.form(factor))
    assert relative_error(per_example.form(made), expected) <= 1e-14
