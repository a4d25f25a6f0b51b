"""Names say layer, kind and role; numbers say unit, entry and coordinates: by hand and by loops."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from devinterp_func import models, units
from devinterp_func.models import Config
from devinterp_func.units import Place

NAMES = list(models.shapes(Config(5, d_model=4, n_heads=2, d_hidden=3, n_layers=12)))
MATRICES = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
SHAPES = {"a": (2, 3), "b": (4,), "scalar": (), "c": (1, 2, 2), "empty": (0, 3), "d": (1,)}


# ---- names


@pytest.mark.parametrize(
    ("unit", "layer", "kind", "label", "post"),
    [
        ("layers.0.self_attn.in_proj_weight", 0, "in_proj", "0.in_proj", None),
        ("layers.0.self_attn.in_proj_bias", 0, "in_proj", "0.in_proj", None),
        ("layers.1.self_attn.out_proj.weight", 1, "out_proj", "1.out_proj", None),
        ("layers.2.linear1.weight", 2, "linear1", "2.linear1", "3.1"),
        ("layers.2.linear2.weight", 2, "linear2", "2.linear2", "3.2"),
        ("layers.11.linear2.bias", 11, "linear2", "11.linear2", "12.2"),
        ("layers.10.norm1.weight", 10, "norm1", "10.norm1", None),
        ("transformer.h.3.attn.c_proj.weight", 3, "attn.c_proj", "3.attn.c_proj", None),
        ("transformer.h.3.mlp.c_proj.bias", 3, "mlp.c_proj", "3.mlp.c_proj", None),
        ("gpt_neox.layers.0.attention.dense.weight", 0, "attention.dense", "0.attention.dense", None),
        ("model.layers.1.self_attn.q_proj.weight", 1, "q_proj", "1.q_proj", None),
        ("encoder.layers.1.linear1.weight", 1, "linear1", "encoder.layers.1.linear1", None),
        ("decoder.layers.1.linear1.weight", 1, "linear1", "decoder.layers.1.linear1", None),
        ("blocks.0.1.weight", 0, "1", "blocks.0.1", None),
    ],
)
def test_a_units_name_says_where_it_is(unit, layer, kind, label, post):
    assert (units.layer(unit), units.kind(unit), units.label(unit), units.post_label(unit)) == (
        layer,
        kind,
        label,
        post,
    )
    assert units.is_in_layer(unit)


OUTSIDE = {
    "embedding.weight": "embedding",
    "decoder.weight": "decoder",
    "decoder.bias": "decoder",
    "transformer.wte.weight": "wte",
    "model.norm.weight": "norm",
    "features.0.weight": "features.0",
    "0.bias": "0",
    "model.weight": "model",
    "w": "w",
}


@pytest.mark.parametrize(("unit", "kind"), OUTSIDE.items())
def test_outside_the_layers_there_is_no_layer(unit, kind):
    assert (units.kind(unit), units.label(unit), units.post_label(unit)) == (kind, kind, None)
    assert not units.is_in_layer(unit)
    with pytest.raises(ValueError, match=f"'{unit}' is not in a layer"):
        units.layer(unit)


@pytest.mark.parametrize("unit", ["layers.x.linear1.weight", "layers.3", "layers.-1.linear1.weight", "layers..a"])
def test_a_malformed_name_is_in_no_layer(unit):
    with pytest.raises(ValueError, match="is not in a layer; names of those that are have a number, as in layers.2."):
        units.layer(unit)


def test_roles_of_units():
    first = [name for name in NAMES if name.startswith("layers.0.") or not name.startswith("layers.")]
    short = {role: [n.removeprefix("layers.0.") for n in first if getattr(units, role)(n)] for role in ROLES}
    assert short == ROLES


ROLES = {
    "is_layer_matrix": MATRICES,
    "is_mlp_weight": ["linear1.weight", "linear2.weight"],
    "is_norm": ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"],
}


def test_operations_and_their_parameters_are_inverse():
    for name in NAMES:
        assert name in units.weight_and_bias(units.operation(name))
    assert units.weight_and_bias("layers.1.linear1") == ("layers.1.linear1.weight", "layers.1.linear1.bias")
    assert units.weight_and_bias("a.in_proj") == ("a.in_proj_weight", "a.in_proj_bias")


# ---- choosing


def test_by_default_the_weight_matrices_of_the_layers_are_chosen():
    assert units.choose(NAMES) == [f"layers.{i}.{name}" for i in range(12) for name in MATRICES]
    assert units.choose(NAMES, units.EVERY) == NAMES


def test_the_order_is_that_of_the_names():
    assert units.choose("badc", ("d", "a", "[b]")) == ["b", "a", "d"]
    assert units.choose(reversed(NAMES), ("*linear2.bias", "decoder.bias"))[0] == "decoder.bias"


@pytest.mark.parametrize("patterns", ["layers.2.*", "*", "decoder.weight"])
def test_a_string_is_not_taken_for_its_characters(unchecked, patterns):
    with pytest.raises(TypeError, match="it must be a tuple of patterns, such as "):
        units.choose(NAMES, patterns)


@pytest.mark.parametrize("patterns", [("nothing",), ("*", "layers.12.*"), ("Layers.0.*",), ("",)])
def test_each_pattern_matches_something(patterns):
    with pytest.raises(ValueError) as refusal:
        units.choose(NAMES, patterns)
    first, *nearest = str(refusal.value).split("\n  ")
    assert first == f"no parameter is called {patterns[-1]!r}; nearest are"
    assert len(nearest) == 8 and set(nearest) < set(NAMES)


def test_the_nearest_names_are_near():
    with pytest.raises(ValueError, match=r"nearest are\n(  .*\n)*  layers.2.linear2.weight"):
        units.choose(NAMES, ("layers.2.linear3.weight",))


def test_names_without_a_layer_matrix_leave_nothing_to_capture():
    with pytest.raises(ValueError, match="no parameter is captured; choose among\n  weight"):
        units.choose(["weight", "bias"])


# ---- numbers


def by_loops():
    """Unit, flat index and coordinates of every parameter of SHAPES, counted one by one."""
    return [
        Place(unit, flat, coordinates)
        for unit, shape in SHAPES.items()
        for flat, coordinates in enumerate(product(*map(range, shape)))
    ]


def test_parameters_are_numbered_row_major_through_the_units():
    expected = by_loops()
    assert [units.locate(SHAPES, number) for number in range(len(expected))] == expected
    assert units.n_parameters(SHAPES) == len(expected) == 16


@given(st.lists(st.integers(0, 15), max_size=8), st.sampled_from([torch.int64, torch.int32, torch.int16]))
def test_places_are_those_of_locate(numbers, dtype):
    expected = [by_loops()[number] for number in numbers]
    unit, flat = units.places(SHAPES, torch.tensor(numbers, dtype=dtype))
    assert [list(SHAPES)[u] for u in unit.tolist()] == [place.unit for place in expected]
    assert flat.tolist() == [place.flat for place in expected]


def test_places_keep_the_shape():
    numbers = torch.tensor([[0, 6], [9, 15]])
    unit, flat = units.places(SHAPES, numbers)
    assert unit.tolist() == [[0, 1], [1, 5]]
    assert flat.tolist() == [[0, 0], [3, 0]]


@pytest.mark.parametrize("number", [-1, -16, 16, 99, 2**40])
def test_a_number_out_of_range_is_refused(number):
    message = f"parameter {number} is out of range: the units have 16 parameters"
    with pytest.raises(ValueError, match=message):
        units.locate(SHAPES, number)
    with pytest.raises(ValueError, match=message):
        units.places(SHAPES, torch.tensor([[0, number]]))


def test_split_gives_each_unit_its_own():
    values = torch.arange(32).view(2, 16)
    parts = units.split(values, SHAPES)
    assert {name: part.shape[1] for name, part in parts.items()} == {
        "a": 6,
        "b": 4,
        "scalar": 1,
        "c": 4,
        "empty": 0,
        "d": 1,
    }
    for number, place in enumerate(by_loops()):
        assert parts[place.unit][1, place.flat] == 16 + number


@pytest.mark.parametrize("size", [15, 17, 0])
def test_split_refuses_other_numbers_of_values(size):
    with pytest.raises(ValueError, match=f"there are {size} values, but the units have 16 parameters"):
        units.split(torch.zeros(size), SHAPES)
