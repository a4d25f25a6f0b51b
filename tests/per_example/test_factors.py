"""Factors: what is had of them is what their definitions say, and they say which token moved what."""

import itertools
from typing import Any, cast
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_close, assert_equal, flat_parts, relative_error, token_parts
from small_transformers import SMALL
from strategies import SHAPES, factor_of, few, fields_of, integers, mixed_arrays, mixture, small, some, uses

from devinterp_func import models, per_example, tree
from devinterp_func.per_example import Bias, Dense, Factor, Gain, Lookup, Outer, Sum, _products


@given(mixed_arrays())
@some
def test_gradients_and_token_gradients_are_the_sums_of_the_definition(drawn):
    factors = mixture(drawn)
    parts = {name: token_parts(factor) for name, factor in factors.items()}
    assert_equal(per_example.token_gradients(factors), parts)
    assert_equal(per_example.gradients(factors), tree.map(lambda part: part.sum(1), parts))


@given(mixed_arrays())
@some
def test_contributions_are_the_entries_of_the_token_gradients(drawn):
    for factor in mixture(drawn).values():
        n, size = per_example.n_data(factor), per_example.size_of(factor)
        datum, index = (x.flatten() for x in torch.meshgrid(torch.arange(n), torch.arange(size), indexing="ij"))
        expected = flat_parts(factor)[datum, :, index]
        assert_equal(per_example.contributions(factor, datum, index), expected)


@given(mixed_arrays())
@few
def test_form_overwrites_what_it_is_given(drawn):
    for factor in mixture(drawn).values():
        out = torch.full((per_example.n_data(factor), *per_example.shape_of(factor)), float("nan"), dtype=torch.float64)
        assert per_example.form(factor, out=out) is out
        assert_equal(out, per_example.form(factor))


@given(mixed_arrays(), st.sampled_from([-0.5, 2.0, torch.tensor(-4.0)]))
@few
def test_scaled_factors_have_scaled_gradients(drawn, factor):
    factors = mixture(drawn)
    expected = tree.scale(per_example.gradients(factors), factor)
    assert_equal(per_example.gradients(per_example.scale_factors(factors, factor)), expected)


@given(mixed_arrays(), st.integers(0, 3), st.integers(0, 5))
@few
def test_some_datas_factors_have_their_gradients(drawn, start, length):
    rows = slice(start, start + length)
    for factor in mixture(drawn).values():
        assert_equal(per_example.form(per_example.take_data(factor, rows)), per_example.form(factor)[rows])


@given(mixed_arrays())
@some
def test_factors_know_their_sizes(drawn):
    for factor in mixture(drawn).values():
        parts = token_parts(factor)
        assert (per_example.n_data(factor), per_example.n_positions(factor)) == parts.shape[:2]
        assert per_example.shape_of(factor) == parts.shape[2:]
        assert per_example.size_of(factor) == parts[0, 0].numel()


def test_factors_know_the_shape_and_size_of_their_unit():
    factors = small().capture().factors
    assert {name: per_example.shape_of(f) for name, f in factors.items()} == models.shapes(SMALL)
    assert {name: per_example.size_of(f) for name, f in factors.items()} == tree.map(torch.numel, small().params)


def test_token_gradients_sum_to_the_gradients():
    factors = small().capture().factors
    parts = per_example.token_gradients(factors)
    assert all(part.shape[:2] == (3, 5) for part in parts.values())
    assert_close(tree.map(lambda part: part.sum(1), parts), per_example.gradients(factors), 1e-13)


def test_embedding_and_decoder_are_captured_in_factored_form():
    own = small(masked=False)
    factors = own.capture(units=("embedding.*", "decoder.*")).factors
    embedding, decoder, bias = cast(list[Any], list(factors.values()))
    assert list(factors) == ["embedding.weight", "decoder.weight", "decoder.bias"]
    assert torch.equal(embedding.tokens, own.tokens) and embedding.signals.shape == (3, 5, 8)
    assert decoder.inputs.shape == (3, 5, 8) and decoder.signals.shape == bias.signals.shape == (3, 5, 11)
    logits = torch.stack([models.apply(own.params, x, own.config) for x in own.tokens])
    expected = (logits.softmax(-1) - F.one_hot(own.targets, 11)) / 5
    assert relative_error(decoder.signals, expected) <= 1e-13 and torch.equal(decoder.signals, bias.signals)


# ---- what is had of factors without forming a gradient


@given(mixed_arrays())
@some
def test_the_total_is_the_sum_over_the_data(drawn):
    for factor in mixture(drawn).values():
        assert_equal(per_example.total(factor), token_parts(factor).sum((0, 1)))


@given(mixed_arrays())
@some
def test_norms_are_those_of_the_formed_gradients(drawn):
    factors = mixture(drawn)
    parts = [flat_parts(factor).sum(1) for factor in factors.values()]
    torch.testing.assert_close(per_example.delta_norms(factors), torch.cat(parts, 1).norm(dim=1), rtol=1e-12, atol=0.0)


def test_norms_of_large_tied_units_form_nothing(monkeypatch):
    monkeypatch.setattr(_products, "form", None)
    draw = torch.Generator().manual_seed(0)
    a, b, c, d = (torch.randint(-3, 4, (2, 3, width), generator=draw).double() for width in (5, 7, 5, 7))
    lookup = Lookup(torch.randint(7, (2, 3), generator=draw), c, 7)
    parts: list[Factor] = [Outer(a, b), lookup, Outer(c, d)]
    for one, other in itertools.product(parts, parts):
        tied = Sum((one, Sum((other, Outer(c, b)))))
        expected = token_parts(tied).sum(1).flatten(1).norm(dim=1)
        torch.testing.assert_close(per_example.delta_norms({"w": tied}), expected, rtol=1e-12, atol=0.0)


def test_norms_of_units_smaller_than_the_gram_matrix_form_them_instead(monkeypatch):
    monkeypatch.setattr(_products, "_gram", None)
    draw = torch.Generator().manual_seed(0)
    inputs, signals = torch.randint(-3, 4, (2, 2, 3, 3), generator=draw).double()
    factor = Outer(inputs, signals)
    expected = flat_parts(factor).sum(1).norm(dim=1)
    torch.testing.assert_close(per_example.delta_norms({"w": factor}), expected, rtol=1e-12, atol=0.0)


def test_norms_of_a_unit_whose_uses_fold_it_in_different_ways():
    draw = torch.Generator().manual_seed(0)
    a, b, c = (torch.randint(-3, 4, (2, 1, width), generator=draw).double() for width in (2, 6, 4))
    tied = Sum((Outer(a, b, (2, 3, 2)), Outer(b, a, (2, 3, 2)), Outer(c[..., :3], c, (2, 3, 2))))
    expected = flat_parts(tied).sum(1).norm(dim=1)
    torch.testing.assert_close(per_example.delta_norms({"w": tied}), expected, rtol=1e-12, atol=0.0)


@given(mixed_arrays(), st.sampled_from([1, 9, 2**18]), st.data())
@some
def test_norms_of_what_has_a_gain_for_each_entry_are_those_of_the_formed_gradients(drawn, formed_at_once, data):
    factors = mixture(drawn)
    gains = {name: data.draw(integers(per_example.shape_of(factor))) for name, factor in factors.items()}
    scaled = {name: per_example.scale(factor, gains[name]) for name, factor in factors.items()}
    mixed: dict[str, Factor] = {name: Sum((scaled[name], factor)) for name, factor in factors.items()}
    with mock.patch.object(_products, "FORMED", formed_at_once):
        for given_, by in ((scaled, gains), (mixed, tree.map(lambda gain: gain + 1, gains))):
            rows = [flat_parts(factor).sum(1) * by[name].flatten() for name, factor in factors.items()]
            expected = torch.cat(rows, 1).norm(dim=1)
            torch.testing.assert_close(per_example.delta_norms(given_), expected, rtol=1e-12, atol=0.0)


def test_norms_of_uses_that_cancel_are_0_to_rounding():
    draw = torch.Generator().manual_seed(0)
    inputs, signals = torch.randn(2, 99, 1, 2, generator=draw)
    factor = Outer(inputs, signals)
    tied = Sum(tuple(factor._replace(inputs=by * factor.inputs) for by in (1.0, 3.0, -1.0, -3.0)))
    assert per_example.delta_norms({"w": tied}).le(1e-2).all()  # a NaN is not


@given(mixed_arrays(), st.integers(0, 99))
@some
def test_amounts_are_inner_products_with_each_positions_part(drawn, seed):
    factors = mixture(drawn)
    draw = torch.Generator().manual_seed(seed)
    direction = {
        name: torch.randint(-2, 3, per_example.shape_of(factor), generator=draw).double()
        for name, factor in factors.items()
    }
    expected = [(flat_parts(f) * direction[name].flatten()).sum(2) for name, f in factors.items()]
    if len({part.shape for part in expected}) > 1:  # no common positions: whole data
        expected = [part.sum(1, keepdim=True) for part in expected]
    assert_equal(per_example.amounts(direction, factors), torch.stack(expected).sum(0))


@pytest.mark.parametrize("shape", [None, (41, 5, 1)])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 41])
def test_amounts_of_a_direction_with_few_rows_leave_none_out(rows, shape):
    draw = torch.Generator().manual_seed(0)
    inputs, signals = (torch.randint(-3, 4, (2, 3, width), generator=draw).double() for width in (5, 41))
    factor = Outer(inputs, signals, shape)
    direction = torch.zeros(41, 5).double()
    direction[torch.arange(rows) * 41 // max(rows, 1)] = torch.randint(1, 4, (rows, 5), generator=draw).double()
    direction = direction.reshape(per_example.shape_of(factor))
    expected = (token_parts(factor) * direction).flatten(2).sum(2)
    assert_equal(per_example.amounts({"w": direction}, {"w": factor}), expected)


# ---- several uses of a unit


@st.composite
def uses_of_one_unit(draw):
    n, shape = draw(st.integers(1, 3)), draw(st.sampled_from(SHAPES))
    positions = draw(st.sampled_from([None, 1, 2]))
    return [draw(uses(n, shape, depth=1, positions=positions)) for _ in range(draw(st.integers(1, 4)))]


@given(uses_of_one_unit(), st.integers(1, 3))
@some
def test_joined_uses_have_the_sum_of_their_gradients_in_whatever_order_they_are_joined(drawn, split):
    parts = [factor_of(part) for part in drawn]
    joined = per_example.join(parts)
    assert_equal(per_example.form(joined), sum(token_parts(part).sum(1) for part in parts))
    first, rest = parts[:split], parts[split:]
    again = per_example.join([per_example.join(first), per_example.join(rest)]) if rest else per_example.join(first)
    assert_equal(per_example.form(again), per_example.form(joined))


@pytest.mark.parametrize("kind", [Outer, Bias, Gain, Lookup])
@given(st.data(), st.integers(2, 4), st.sampled_from(SHAPES))
@few
def test_uses_of_one_row_each_are_positions(kind, data, n_uses, shape):
    parts = [kind(**data.draw(fields_of(kind, 2, shape, 1)) | {"shape": shape}) for _ in range(n_uses)]
    joined = per_example.join(parts)
    assert type(joined) is kind
    assert_equal(token_parts(joined), torch.cat([token_parts(part) for part in parts], 1))


def test_a_single_use_stays_itself_and_other_uses_are_a_sum():
    signals = torch.ones(2, 1, 3)
    bias, dense = Bias(signals), Dense(signals[:, 0])
    assert per_example.join([bias]) is bias
    assert per_example.join([dense, dense]) == Sum((dense, dense))
    assert per_example.join([bias, dense]) == Sum((bias, dense))
    longer = Bias(torch.ones(2, 4, 3))
    assert per_example.join([longer, longer]) == Sum((longer, longer))
    assert per_example.join([bias, longer]) == Sum((bias, longer))
    assert per_example.n_positions(Sum((longer, longer))) == 4
    assert per_example.n_positions(Sum((longer, longer, bias))) == 9
