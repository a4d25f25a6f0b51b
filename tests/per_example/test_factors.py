"""Factors: what is had of them is what their definitions say, and they say which token moved what."""

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_close, assert_equal, relative_error, token_parts
from strategies import SMALL, factor_arrays, factors_of, few, small, some

from devinterp_func import models, per_example, tree, units
from devinterp_func.per_example import capture


@given(factor_arrays())
@some
def test_gradients_and_token_gradients_are_the_sums_of_the_definition(drawn):
    factors = factors_of(drawn)
    parts = {name: token_parts(factor) for name, factor in factors.items()}
    assert_equal(per_example.token_gradients(factors), parts)
    assert_equal(per_example.gradients(factors), tree.map(lambda part: part.sum(1), parts))


@given(factor_arrays())
@some
def test_contributions_are_the_entries_of_the_token_gradients(drawn):
    for factor in factors_of(drawn).values():
        n, size = len(factor.signals), per_example.size_of(factor)
        datum, index = (x.flatten() for x in torch.meshgrid(torch.arange(n), torch.arange(size), indexing="ij"))
        expected = token_parts(factor).flatten(2)[datum, :, index]
        assert_equal(per_example.contributions(factor, datum, index), expected)


@given(factor_arrays())
@few
def test_form_overwrites_what_it_is_given(drawn):
    for factor in factors_of(drawn).values():
        out = torch.full((len(factor.signals), *per_example.shape_of(factor)), float("nan"), dtype=torch.float64)
        assert per_example.form(factor, out=out) is out
        assert_equal(out, per_example.form(factor))


@given(factor_arrays(), st.sampled_from([-0.5, 2.0, torch.tensor(-4.0)]))
@few
def test_scaled_factors_have_scaled_gradients(drawn, factor):
    factors = factors_of(drawn)
    expected = tree.scale(per_example.gradients(factors), factor)
    assert_equal(per_example.gradients(per_example.scale_factors(factors, factor)), expected)


@given(factor_arrays(), st.integers(0, 3), st.integers(0, 5))
@few
def test_some_datas_factors_have_their_gradients(drawn, start, length):
    rows = slice(start, start + length)
    for factor in factors_of(drawn).values():
        assert_equal(per_example.form(per_example.take_data(factor, rows)), per_example.form(factor)[rows])


def test_factors_know_the_shape_and_size_of_their_unit():
    factors = capture(*small(), units=units.EVERY).factors
    assert {name: per_example.shape_of(f) for name, f in factors.items()} == models.shapes(SMALL)
    assert {name: per_example.size_of(f) for name, f in factors.items()} == tree.map(torch.numel, small()[0])


def test_token_gradients_sum_to_the_gradients():
    factors = capture(*small(), units=units.EVERY).factors
    parts = per_example.token_gradients(factors)
    assert all(part.shape[:2] == (3, 5) for part in parts.values())
    assert_close(tree.map(lambda part: part.sum(1), parts), per_example.gradients(factors), 1e-13)


def test_embedding_and_decoder_are_captured_in_factored_form():
    params, tokens, targets, config, masks = small()
    factors = capture(*small(), units=("embedding.*", "decoder.*")).factors
    embedding, decoder, bias = cast(list[Any], list(factors.values()))
    assert list(factors) == ["embedding.weight", "decoder.weight", "decoder.bias"]
    assert torch.equal(embedding.tokens, tokens) and embedding.signals.shape == (3, 5, 8)
    assert decoder.inputs.shape == (3, 5, 8) and decoder.signals.shape == bias.signals.shape == (3, 5, 11)
    logits = torch.stack(
        [models.apply(params, x, config, tree.map(lambda m, j=j: m[j], masks)) for j, x in enumerate(tokens)]
    )
    expected = (logits.softmax(-1) - F.one_hot(targets, 11)) / 5
    assert relative_error(decoder.signals, expected) <= 1e-13 and torch.equal(decoder.signals, bias.signals)


# ---- what is had of factors without forming a gradient


@given(factor_arrays())
@some
def test_the_total_is_the_sum_over_the_data(drawn):
    for factor in factors_of(drawn).values():
        assert_equal(per_example.total(factor), token_parts(factor).sum((0, 1)))


@given(factor_arrays())
@some
def test_norms_are_those_of_the_formed_gradients(drawn):
    factors = factors_of(drawn)
    parts = [token_parts(factor).sum(1).flatten(1) for factor in factors.values()]
    torch.testing.assert_close(per_example.delta_norms(factors), torch.cat(parts, 1).norm(dim=1), rtol=1e-12, atol=0.0)


@given(factor_arrays(), st.integers(0, 99))
@some
def test_amounts_are_inner_products_with_each_positions_part(drawn, seed):
    factors = factors_of(drawn)
    draw = torch.Generator().manual_seed(seed)
    direction = {
        name: torch.randint(-2, 3, per_example.shape_of(factor), generator=draw).double()
        for name, factor in factors.items()
    }
    expected = sum((token_parts(f).flatten(2) * direction[name].flatten()).sum(2) for name, f in factors.items())
    assert_equal(per_example.amounts(direction, factors), expected)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 41])
def test_amounts_of_a_direction_with_few_rows_leave_none_out(rows):
    draw = torch.Generator().manual_seed(0)
    factor = per_example.Outer(*(torch.randint(-3, 4, (2, 3, width), generator=draw).double() for width in (5, 41)))
    direction = torch.zeros(41, 5).double()
    direction[torch.arange(rows) * 41 // max(rows, 1)] = torch.randint(1, 4, (rows, 5), generator=draw).double()
    expected = (token_parts(factor) * direction).sum((2, 3))
    assert_equal(per_example.amounts({"w": direction}, {"w": factor}), expected)
