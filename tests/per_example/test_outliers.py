"""Outliers: whatever the shortcuts, the answer is that of sorting everything."""

import inspect
import math
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import largest_of_each, relative_error, sorted_entries, strongest_position, token_parts
from strategies import distinct_matrices, few, mixed_arrays, mixture, small, some, tied_matrices

from devinterp_func import keys, optim, per_example
from devinterp_func.models import Config
from devinterp_func.per_example import Bias, Dense, Factor, Lookup, Outer, Scaled, Sum, _outliers
from devinterp_func.per_example._outliers import BLOCK, select_by_sorting
from devinterp_func.units import locate

WHOLE_BLOCKS = (BLOCK, 2 * BLOCK, 3 * BLOCK, 9 * BLOCK)
ANY_WIDTH = (1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK)
SELECTS = [per_example.select, select_by_sorting]


@st.composite
def matrices_and_k(draw, widths):
    values = draw(tied_matrices(widths) | distinct_matrices(widths))
    return values, draw(st.integers(1, values.shape[1]) | st.integers(1, min(3, values.shape[1])))


def split(values):
    """The columns of a matrix as units of several shapes, in order."""
    half = values.shape[1] // 4 * 2
    parts = {"first": values[:, :half].unflatten(1, (2, -1)), "second": values[:, half:]}
    return {name: part for name, part in parts.items() if part.numel()}


def some_deltas(dtype=torch.float32, n=5, seed=0, optimizer=None):
    """Factors of the deltas of a small model's step, default units."""
    own = small(dtype, False, Config(vocab_size=11, d_model=8, n_heads=2, d_hidden=7, n_layers=1), n, seed=seed)
    captured = own.capture(units=())
    optimizer = optim.sgd() if optimizer is None else optimizer
    _, _, split = optimizer.update(own.params, captured.mean_grads, optimizer.init(own.params), 5.0, max_norm=0.5)
    return optim.delta_factors(captured.factors, split, n)


def zero_bias(size) -> dict[str, Factor]:
    """A bias whose deltas are all zero, of two data."""
    return {"bias": Bias(torch.zeros(2, 3, size))}


def assert_same(found, expected):
    """The same outliers, bit for bit."""
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# ---- select


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(matrices_and_k(ANY_WIDTH))
@few
def test_select_is_the_full_sort(select, dtype, pair):
    values, k = pair[0].to(dtype), pair[1]
    parameter, delta = select(values, k)
    assert torch.equal(parameter, largest_of_each(values, k))
    assert torch.equal(delta, values.gather(1, parameter))


@given(matrices_and_k(WHOLE_BLOCKS))
@some
def test_select_by_blocks_is_select_by_sorting(pair):
    values, k = pair
    found, expected = per_example.select(values, k), select_by_sorting(values, k)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("blocks", [4, 9, 17])
@pytest.mark.parametrize("first", [0.0, -0.0])
def test_zeros_of_either_sign_tie(first, blocks):
    values = torch.zeros(1, blocks * BLOCK)
    values[0, :BLOCK] = first
    assert per_example.select(values, 1)[0].tolist() == [[0]]


@given(st.integers(1, 9 * BLOCK), st.sampled_from([0.0, -1.5]))
@few
def test_of_equal_values_the_first_are_taken(k, value):
    values = torch.full((2, 9 * BLOCK), value)
    assert per_example.select(values, k)[0].tolist() == [list(range(k))] * 2


def test_more_outliers_begin_with_fewer():
    values = torch.from_numpy(keys.generator(0).standard_normal((3, 5 * BLOCK), dtype="f4"))
    everything = per_example.select(values, 5 * BLOCK)[0]
    assert all(torch.equal(per_example.select(values, k)[0], everything[:, :k]) for k in range(1, 5 * BLOCK))


def test_select_leaves_the_values_alone():
    values = torch.from_numpy(keys.generator(0).standard_normal((3, 5 * BLOCK), dtype="f4"))
    before = values.clone()
    per_example.select(values, 7)
    assert torch.equal(values, before)


@pytest.mark.parametrize("select_width", [BLOCK, BLOCK + 1], ids=["blocks", "sorting"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_select_refuses_what_is_not_finite_and_names_the_datum(select_width, dtype, bad):
    values = torch.zeros(3, select_width, dtype=dtype)
    values[2, 7] = bad
    with pytest.raises(FloatingPointError, match="datum 2"):
        per_example.select(values, 1)


# ---- top_k


@given(matrices_and_k(ANY_WIDTH))
@some
def test_top_k_of_each_datum_is_the_full_sort(pair):
    values, k = pair
    found = per_example.top_k(split(values), k)
    parameter = largest_of_each(values, k)
    assert_same(found[:2], (parameter, values.gather(1, parameter)))
    assert found.position.eq(-1).all() and found.position.shape == (len(values), k)
    assert torch.equal(found.datum, torch.arange(len(values))[:, None].expand(-1, k))


@given(matrices_and_k(ANY_WIDTH))
@some
def test_top_k_of_the_step_is_the_full_sort(pair):
    values, k = pair
    found = per_example.top_k(split(values), k, "step")
    expected = sorted_entries(values)[:k]
    assert list(zip(found.datum.tolist(), found.parameter.tolist(), strict=True)) == expected
    assert torch.equal(found.delta, values[found.datum, found.parameter])
    assert found.position.shape == (k,)


@given(matrices_and_k(ANY_WIDTH))
@few
def test_of_step_cuts_the_datums_outliers_to_the_steps(pair):
    values, k = pair
    of_step = per_example.top_k(split(values), k, "step")
    assert_same(per_example.top_k_of_step(per_example.top_k(split(values), k), k), of_step)
    assert_same(per_example.top_k_of_step(of_step, 1), [field[:1] for field in of_step])


def test_top_k_takes_units_of_one_parameter_each():
    deltas = {"scalar": torch.tensor([1.0, -4.0]), "vector": torch.tensor([[2.0, 3.0], [0.0, 1.0]])}
    assert per_example.top_k(deltas, 2).parameter.tolist() == [[2, 1], [0, 2]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_top_k_refuses_what_is_not_finite_and_names_unit_and_datum(bad):
    deltas = {"fine": torch.zeros(3, 2, 2), "layers.0.broken": torch.zeros(3, 4)}
    deltas["layers.0.broken"][1, 2] = bad
    with pytest.raises(FloatingPointError, match="layers.0.broken: datum 1 "):
        per_example.top_k(deltas, 1)


@pytest.mark.parametrize("k", [0, -1, 7])
@pytest.mark.parametrize("per", ["datum", "step"])
def test_k_out_of_range_is_refused(k, per):
    message = f"k is {k}; it must be between 1 and the 6 captured parameters"
    with pytest.raises(ValueError, match=message):
        per_example.top_k({"a": torch.zeros(2, 4), "b": torch.zeros(2, 2)}, k, per)
    with pytest.raises(ValueError, match=message):
        per_example.top_k_from_factors(zero_bias(6), k, per)


def test_outliers_print_short():
    assert repr(per_example.top_k({"w": torch.tensor([[1.0, -2.5]])}, 2)) == "Outliers[1, 2]: |delta| up to 2.5"


# ---- from factors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(mixed_arrays(), st.data(), st.sampled_from(["datum", "step"]))
@some
def test_outliers_of_factors_are_those_of_their_gradients(dtype, drawn, data, per):
    factors = mixture(drawn, dtype)
    k = data.draw(st.integers(1, sum(per_example.size_of(f) for f in factors.values())))
    found = per_example.top_k_from_factors(factors, k, per)
    assert_same(found._replace(position=found.datum), _by_gradients(factors, k, per))


def _by_gradients(factors, k, per):
    """By sorting the gradients, which are exact."""
    expected = per_example.top_k(per_example.gradients(factors), k, per)
    return expected._replace(position=expected.datum)


@given(mixed_arrays(), st.integers(1, 5))
@some
def test_positions_are_the_strongest_contributions(drawn, k):
    _check_positions(drawn, k)


@given(mixed_arrays(), st.integers(1, 5))
@few
def test_positions_are_the_same_when_sought_a_few_at_a_time(drawn, k):
    with mock.patch.object(_outliers, "CONTRIBUTIONS", 2):
        _check_positions(drawn, k)


def _check_positions(drawn, k):
    factors = mixture(drawn)
    parts = {name: token_parts(factor) for name, factor in factors.items()}
    found = per_example.top_k_from_factors(factors, min(k, sum(per_example.size_of(f) for f in factors.values())))
    entries = zip(*(field.flatten().tolist() for field in (found.datum, found.parameter)), strict=True)
    assert found.position.flatten().tolist() == [strongest_position(parts, *entry) for entry in entries]


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("optimizer", [optim.sgd(), optim.adamw()], ids=["sgd", "adamw"])
@pytest.mark.parametrize("per", ["datum", "step"])
def test_any_buffer_gives_the_same_outliers(rows, dtype, per, optimizer):
    factors = some_deltas(dtype, optimizer=optimizer)
    buffer = per_example.workspace(factors, rows)
    total = sum(per_example.size_of(factor) for factor in factors.values())
    buffer[:, :total] = 1e30  # only the padding need be zero
    expected = per_example.top_k_from_factors(factors, 50, per)
    assert_same(per_example.top_k_from_factors(factors, 50, per, buffer), expected)
    assert_same(per_example.top_k_from_factors(factors, 50, per, buffer), expected)  # nor does use spoil it


def test_padding_is_never_an_outlier():
    found = per_example.top_k_from_factors(zero_bias(BLOCK + 1), BLOCK + 1)
    assert found.parameter.tolist() == [list(range(BLOCK + 1))] * 2


@pytest.mark.parametrize("optimizer", [optim.sgd(), optim.adamw(), optim.muon()], ids=["sgd", "adamw", "muon"])
@pytest.mark.parametrize("per", ["datum", "step"])
def test_outliers_of_a_step_are_those_of_its_deltas(per, optimizer):
    factors = some_deltas(optimizer=optimizer)
    found = per_example.top_k_from_factors(factors, 30, per)
    expected = per_example.top_k(per_example.form_units(factors), 30, per)
    assert_same((found.parameter, found.delta, found.datum), (expected.parameter, expected.delta, expected.datum))
    contributed = per_example.token_gradients(factors)
    largest = [strongest_position(contributed, *entry) for entry in zip(*_entries(found), strict=True)]
    assert found.position.flatten().tolist() == largest


def _entries(found):
    return found.datum.flatten().tolist(), found.parameter.flatten().tolist()


@pytest.mark.parametrize("rows", [1, 3])
def test_deltas_formed_a_few_at_a_time_are_the_same_to_the_bit(rows):
    # the shapes of the post's layers: matrix products of that size are computed in other ways than small ones
    rng = keys.generator(0)
    a, b, c = (torch.from_numpy(rng.standard_normal((5, 35, width), dtype="f4")) for width in (200, 600, 200))
    lookup = Lookup(torch.from_numpy(rng.integers(0, 600, (5, 35))), a, 600)
    tied = Sum((Outer(c, b), lookup, Outer(a, b), Dense(b[:, :1].mT * c[:, :1])))
    scaled = Scaled(Outer(a, c), c[0].T @ a[0])
    factors: dict[str, Factor] = {"in_proj": Outer(a, b), "linear": scaled, "tied": tied}
    units = per_example.form_units(factors)
    buffer = per_example.workspace(factors, rows)
    for start in range(0, 5, rows):
        some_data = {
            name: per_example.take_data(factor, slice(start, start + rows)) for name, factor in factors.items()
        }
        flat = per_example.form_flat(some_data, buffer)[:, :280_000]
        assert torch.equal(flat, torch.cat([unit[start : start + rows].flatten(1) for unit in units.values()], dim=1))


def test_form_units_is_gradients_to_rounding():
    # not to the bit: a product written into rows of the flat deltas may be summed in another order than one by itself
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        factors = some_deltas(dtype)
        units, gradients = per_example.form_units(factors), per_example.gradients(factors)
        assert max(relative_error(units[name], gradients[name]) for name in units) <= tolerance


@given(mixed_arrays())
@few
def test_form_units_is_gradients_where_sums_are_exact(drawn):
    factors = mixture(drawn)
    units, gradients = per_example.form_units(factors), per_example.gradients(factors)
    assert list(units) == list(gradients)
    assert all(torch.equal(units[name], gradients[name]) for name in units)


@pytest.mark.parametrize("rows", [3, 1], ids=["whole", "one at a time"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_factors_that_are_not_finite_are_refused_and_unit_and_datum_named(rows, dtype, bad):
    signals = torch.zeros(3, 2, 4, dtype=dtype)
    broken = signals.clone()
    broken[1, 0, 2] = bad
    factors: dict[str, Factor] = {"fine": Bias(signals), "broken": Bias(broken)}
    with pytest.raises(FloatingPointError, match="datum 1 ") as refusal:
        per_example.top_k_from_factors(factors, 1, buffer=per_example.workspace(factors, rows))
    assert "broken" in str(refusal.value)


@pytest.mark.parametrize("per", ["epoch", ""])
def test_per_is_datum_or_step(per):
    with pytest.raises(ValueError, match=f"per is '{per}'; it must be 'datum' or 'step'"):
        inspect.unwrap(per_example.top_k)({"w": torch.zeros(1, 1)}, 1, per)


# ---- where an outlier lies


def test_locate_finds_the_delta():
    factors = some_deltas()
    units = per_example.form_units(factors)
    shapes = {name: tuple(unit.shape[1:]) for name, unit in units.items()}
    found = per_example.top_k_from_factors(factors, 20)
    for datum, parameter, delta in zip(*_entries(found), found.delta.flatten().tolist(), strict=True):
        place = locate(shapes, parameter)
        assert units[place.unit][(datum, *place.coordinates)].item() == delta
        assert units[place.unit][datum].flatten()[place.flat].item() == delta


def test_more_parameters_than_sort_exactly_are_refused_before_any_is_formed():
    factors: dict[str, Factor] = {"w": Outer(torch.ones(1, 1, 2**16), torch.ones(1, 1, 2**16 + 1))}
    with pytest.raises(ValueError, match="4295032832 parameters are captured; at most 4294967296 sort exactly"):
        per_example.top_k_from_factors(factors, 1)
