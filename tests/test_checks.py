"""What is checked at the doors: each value comes out in one form or is refused by name."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from devinterp_func import checks


@pytest.mark.parametrize("value", [5, np.int64(5), np.uint8(5), torch.tensor(5), torch.tensor(5, dtype=torch.uint8)])
def test_any_integer_becomes_pythons(value):
    found = checks.integer("k", value)
    assert found == 5 and type(found) is int


@pytest.mark.parametrize(
    "value",
    [None, 5.0, np.float64(5), "5", True, np.bool_(True), torch.tensor(True), torch.tensor([5, 5]), [5], math.nan],
)
def test_what_is_no_integer_is_refused_by_name(value):
    with pytest.raises(TypeError, match=r"(?s)k is .*; it must be an integer of at least 1"):
        checks.integer("k", value)


@pytest.mark.parametrize(("least", "allowed"), [(0, 0), (1, 1), (-3, -3)])
def test_the_least_integer_is_the_least_allowed(least, allowed):
    assert checks.integer("k", allowed, least=least) == allowed
    with pytest.raises(ValueError, match=f"k is {least - 1}; it must be at least {least}"):
        checks.integer("k", least - 1, least=least)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), Fraction(4, 2), torch.tensor(2.0)])
def test_any_number_becomes_a_float(value):
    for found in (checks.number("lr", value), checks.positive("lr", value)):
        assert found == 2.0 and type(found) is float


@pytest.mark.parametrize("value", [None, "2", b"2", True, [2.0], torch.ones(2), 1j])
def test_what_is_no_number_is_refused_by_name(value):
    for check in (checks.number, checks.positive):
        with pytest.raises(TypeError, match="lr is .*; it must be a number"):
            check("lr", value)


@pytest.mark.parametrize("value", [0, -1, -math.inf, math.nan, math.inf])
def test_positive_numbers_are_finite_unless_infinity_means_something(value):
    with pytest.raises(ValueError, match="lr is .*; it must be positive and finite$"):
        checks.positive("lr", value)
    if value == math.inf:
        assert checks.positive("max_norm", value, infinite=True) == math.inf
    else:
        with pytest.raises(ValueError, match="max_norm is .*; it must be positive$"):
            checks.positive("max_norm", value, infinite=True)


@pytest.mark.parametrize("values", [(0, 0.5), [0, np.float32(0.5)], torch.tensor([0.0, 0.5]), iter((0, 0.5))])
def test_numbers_become_a_tuple_of_floats(values):
    found = checks.numbers("betas", values, 2)
    assert found == (0.0, 0.5) and type(found) is tuple and {type(x) for x in found} == {float}


@pytest.mark.parametrize(("values", "kind"), [((0.5,), ValueError), ((1, 2, 3), ValueError), ((), ValueError)])
def test_other_than_so_many_numbers_are_refused_by_name(values, kind):
    with pytest.raises(kind, match=r"betas is \(.*\); it must be 2 numbers"):
        checks.numbers("betas", values, 2)


@pytest.mark.parametrize("values", [0.5, None, "ab", ("a", 1), (True, 0.5), [[1.0, 2.0], 3]])
def test_what_are_no_numbers_are_refused_by_name(values):
    with pytest.raises(TypeError, match="betas is .*; it must be 2 numbers"):
        checks.numbers("betas", values, 2)


@pytest.mark.parametrize("value", [True, False, np.bool_(True), np.bool_(False)])
def test_flags_become_pythons(value):
    assert checks.flag("nesterov", value) is bool(value)


@pytest.mark.parametrize("value", [0, 1, None, "no", "", torch.tensor(True), [True], np.array([True])])
def test_what_is_no_flag_is_refused_by_name(value):
    with pytest.raises(TypeError, match=r"nesterov is .*; it must be True or False"):
        checks.flag("nesterov", value)


@pytest.mark.parametrize("value", [0, 0.0, 2, torch.tensor(0.5)])
def test_non_negative_numbers_become_floats(value):
    found = checks.non_negative("end", value)
    assert found == float(value) and type(found) is float


@pytest.mark.parametrize("value", [-1e-300, -1, math.nan, math.inf, -math.inf])
def test_what_is_negative_or_infinite_is_refused_by_name(value):
    with pytest.raises(ValueError, match="end is .*; it must be at least 0 and finite$"):
        checks.non_negative("end", value)


@pytest.mark.parametrize("ids", [[], [0], [6, 0, 3], [[0, 6], [5, 5]]])
def test_ids_of_the_vocabulary_pass(ids):
    checks.token_ids("tokens", torch.tensor(ids, dtype=torch.int64), 7)
    checks.token_ids("tokens", torch.tensor(ids, dtype=torch.int32), 7)


@pytest.mark.parametrize(("ids", "bad"), [([0, 7], 7), ([-1, 3], -1), ([3, -100, 99], -100), ([[1], [7]], 7)])
def test_ids_beyond_the_vocabulary_are_named(ids, bad):
    with pytest.raises(ValueError, match=f"tokens hold the id {bad}; ids must be in 0..6, and nothing is padded"):
        checks.token_ids("tokens", torch.tensor(ids), 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool])
def test_ids_are_integers(unchecked, dtype):
    with pytest.raises(ValueError, match=f"tokens are {dtype}; token ids must be integers"):
        checks.token_ids("tokens", torch.zeros(3, dtype=dtype), 7)


def test_gradients_are_allowed_but_in_inference_mode():
    checks.gradients_allowed()
    with torch.no_grad():
        checks.gradients_allowed()
    with torch.inference_mode(), pytest.raises(RuntimeError, match="leave it, or use torch.no_grad"):
        checks.gradients_allowed()
