"""Neurons: columns and rows partition the parameters, and names lead back to them."""

import inspect
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small_transformers import CONFIGS, SMALL, weights
from strategies import few, graph_of, seeds, some

from devinterp_func import graph, keys, neurons
from devinterp_func.neurons import Neuron
from devinterp_func.units import locate

SHAPES = {"layers.0.linear1.weight": (2, 3), "layers.0.linear1.bias": (2,), "layers.0.linear2.weight": (3, 2)}
AXES = ("in", "out")
each_axis = pytest.mark.parametrize("axis", AXES)

shapes_of_units = st.dictionaries(
    st.text("ab.", min_size=1, max_size=3), st.lists(st.integers(1, 4), max_size=4).map(tuple), max_size=4
)


def size_of(shapes):
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def neuron_at(shapes, parameter, axis):
    """By the parameter's coordinates; None where its unit has no neurons."""
    place = locate(shapes, parameter)
    return Neuron(place.unit, place.coordinates[axis == "in"], axis) if len(place.coordinates) > 1 else None


# ---- names


@given(st.text(min_size=1), st.integers(0, 10**9), st.sampled_from(AXES))
@some
def test_parse_reads_what_str_writes(unit, index, axis):
    neuron = Neuron(unit, index, axis)
    assert neurons.parse(str(neuron)) == neuron


@given(st.integers(0, 999), st.sampled_from(AXES), st.integers(0, 999), st.sampled_from(AXES))
@some
def test_different_neurons_have_different_names(i, axis_i, j, axis_j):
    a, b = Neuron("layers.0.linear1.weight", i, axis_i), Neuron("layers.0.linear1.weight", j, axis_j)
    assert (str(a) == str(b)) == (a == b)


def test_the_axis_of_a_column_may_be_spelled_out():
    assert neurons.parse("layers.0.linear1.weight:3:in") == Neuron("layers.0.linear1.weight", 3)


@pytest.mark.parametrize("text", ["", "layers.0.linear1.weight", "a:", ":3", "a:-1", "a:3:up", "a:x", "a:3 "])
def test_what_is_no_neuron_is_refused_and_the_form_named(text):
    with pytest.raises(ValueError, match=re.escape(f"{text!r} is not a neuron; write UNIT:INDEX, such as layers.2.")):
        neurons.parse(text)


# ---- neurons of the units


@each_axis
@given(shapes_of_units)
@few
def test_groups_are_the_neurons_at_each_parameters_coordinates(axis, shapes):
    everyone, groups = neurons.groups(shapes, axis)
    assert everyone == tuple(neurons.every(shapes, axis)) and groups.shape == (size_of(shapes),)
    found = [None if group < 0 else everyone[group] for group in groups.tolist()]
    assert found == [neuron_at(shapes, parameter, axis) for parameter in range(len(groups))]


@each_axis
@given(shapes_of_units)
@few
def test_neurons_partition_the_parameters_of_their_units(axis, shapes):
    everyone, groups = neurons.every(shapes, axis), neurons.groups(shapes, axis).of
    sizes = torch.bincount(groups[groups >= 0], minlength=len(everyone)).tolist()
    assert sizes == [size_of({"": shapes[n.unit]}) // shapes[n.unit][axis == "in"] for n in everyone]
    assert len(set(everyone)) == len(everyone)
    assert sum(sizes) == size_of({unit: shape for unit, shape in shapes.items() if len(shape) > 1})


def test_a_column_and_a_row_share_one_parameter():
    for parameter in range(size_of({"a": (3, 4)})):
        i, j = (neurons.groups({"a": (3, 4)}, axis)[1][parameter] for axis in ("out", "in"))
        assert 4 * i + j == parameter


@each_axis
def test_every_neuron_is_one_that_require_knows(axis):
    everyone = neurons.every(SHAPES, axis)
    assert [neurons.require(SHAPES, neuron) for neuron in everyone] == everyone
    assert [str(neuron) for neuron in everyone] == [
        f"{unit}:{index}" + (":out" if axis == "out" else "")
        for unit, size in (("layers.0.linear1.weight", (2, 3)), ("layers.0.linear2.weight", (3, 2)))
        for index in range(size[axis == "in"])
    ]


def test_every_neuron_of_some_units():
    both = ["layers.0.linear2.weight", "layers.0.linear1.weight"]
    assert neurons.every(SHAPES, units=both) == neurons.every(SHAPES)
    assert neurons.every(SHAPES, "out", both[:1]) == [Neuron(both[0], i, "out") for i in range(3)]
    assert neurons.every(SHAPES, units=[]) == neurons.every({}) == []


@given(shapes_of_units, st.data())
@few
def test_each_unit_may_have_an_axis_of_its_own(shapes, data):
    axes = data.draw(st.fixed_dictionaries({unit: st.sampled_from(AXES) for unit in shapes}))
    everyone, groups = neurons.groups(shapes, axes)
    assert everyone == tuple(neurons.every(shapes, axes))
    found = [None if group < 0 else everyone[group] for group in groups.tolist()]
    own = [axes[locate(shapes, parameter).unit] for parameter in range(len(groups))]
    assert found == [neuron_at(shapes, parameter, axis) for parameter, axis in enumerate(own)]
    one = {neuron: of for neuron, of in neurons.of_parameters(shapes, range(len(groups)), axes).items()}
    assert {neuron: [i for i, other in enumerate(found) if other == neuron] for neuron in one} == one


def test_a_unit_without_an_axis_is_named():
    with pytest.raises(ValueError, match="'layers.0.linear2.weight' is given no axis; those that are: layers.0.li"):
        inspect.unwrap(neurons.every)(SHAPES, {"layers.0.linear1.weight": "in"})
    with pytest.raises(ValueError, match="axis is 'up'"):
        inspect.unwrap(neurons.every)(SHAPES, dict.fromkeys(SHAPES, "up"))


@each_axis
@given(shapes_of_units, st.data())
@few
def test_of_parameters_agrees_with_groups_and_keeps_the_order(axis, shapes, data):
    given_ = data.draw(st.lists(st.integers(0, max(size_of(shapes) - 1, 0)), max_size=9 if size_of(shapes) else 0))
    expected: dict = {}
    for parameter in given_:
        neuron = neuron_at(shapes, parameter, axis)
        if neuron is not None:
            expected[neuron] = [*expected.get(neuron, []), parameter]
    found = neurons.of_parameters(shapes, given_, axis)
    assert list(found.items()) == list(expected.items())


def test_single_parameters_are_groups_of_their_own():
    found = neurons.parameter_groups(torch.tensor([4, 0, 13]), 14)
    assert found.members == (4, 0, 13)
    assert found.of.tolist() == [1, -1, -1, -1, 0, *[-1] * 8, 2]
    assert repr(found) == "Groups(3 groups of 3 of 14 parameters)"


@pytest.mark.parametrize("number", [-1, 14, 99])
def test_of_parameters_refuses_a_number_out_of_range(number):
    with pytest.raises(ValueError, match=f"parameter {number} is out of range: the units have 14 parameters"):
        neurons.of_parameters(SHAPES, [0, number])


@pytest.mark.parametrize("unit", ["layers.0.linear1.bias", "linear1", ""])
def test_require_names_the_units_that_have_neurons(unit):
    having = "layers.0.linear1.weight, layers.0.linear2.weight"
    with pytest.raises(ValueError, match=f"{unit!r} has no neurons; units that have are {having}"):
        neurons.require(SHAPES, Neuron(unit, 0))
    with pytest.raises(ValueError, match=f"{unit!r} has no neurons"):
        neurons.every(SHAPES, units=[unit])


@pytest.mark.parametrize("index", [-1, 3, 99])
def test_require_names_the_range_of_columns_and_rows(index):
    with pytest.raises(ValueError, match=f"layers.0.linear1.weight has no column {index}; its columns are 0 to 2"):
        neurons.require(SHAPES, Neuron("layers.0.linear1.weight", index))
    with pytest.raises(ValueError, match=f"layers.0.linear2.weight has no row {index}; its rows are 0 to 2"):
        neurons.require(SHAPES, Neuron("layers.0.linear2.weight", index, "out"))


def test_axis_is_in_or_out():
    with pytest.raises(ValueError, match="axis is 'up'; it must be 'in' or 'out'"):
        inspect.unwrap(neurons.every)(SHAPES, "up")
    spoilt: Any = "up"
    with pytest.raises(ValueError, match="axis is 'up'; it must be 'in' or 'out'"):
        neurons.require(SHAPES, Neuron("layers.0.linear1.weight", 0, spoilt))


# ---- weights


@pytest.mark.parametrize("config", CONFIGS)
def test_weights_are_columns_and_rows(config):
    params = weights(config)
    for unit in ("layers.0.linear1.weight", "layers.0.self_attn.in_proj_weight"):
        for index in range(params[unit].shape[1]):
            assert torch.equal(neurons.weights(params, Neuron(unit, index)), params[unit].T[index])
        for index in range(params[unit].shape[0]):
            assert torch.equal(neurons.weights(params, Neuron(unit, index, "out")), params[unit][index])


def test_weights_refuse_a_neuron_that_is_not_there():
    with pytest.raises(ValueError, match="layers.0.linear1.weight has no column 8; its columns are 0 to 7"):
        neurons.weights(weights(SMALL), Neuron("layers.0.linear1.weight", 8))


@pytest.mark.parametrize("config", CONFIGS)
@given(seeds)
@few
def test_logit_effect_is_what_a_perturbed_stream_adds_to_the_logits(config, seed):
    params, neuron = _some_writer(config, seed)
    stream = torch.from_numpy(keys.generator(seed).standard_normal((4, config.d_model)))
    decoder = params["decoder.weight"], params["decoder.bias"]
    added = F.linear(stream + params[neuron.unit][:, neuron.index], *decoder) - F.linear(stream, *decoder)
    torch.testing.assert_close(neurons.logit_effect(graph_of(config), params, neuron).expand_as(added), added)


@pytest.mark.parametrize("config", CONFIGS)
@given(seeds)
@few
def test_logit_effect_through_the_norm_at_unchanged_deviation(config, seed):
    params, neuron = _some_writer(config, seed)
    stream = torch.from_numpy(keys.generator(seed).standard_normal((4, config.d_model)))
    sigma = stream.std(1, correction=0, keepdim=True)
    gain, bias = (params[f"layers.{config.n_layers - 1}.norm2.{name}"] for name in ("weight", "bias"))

    def logits(x):
        return F.linear((x - x.mean(1, keepdim=True)) / sigma * gain + bias, params["decoder.weight"])

    added = (logits(stream + params[neuron.unit][:, neuron.index]) - logits(stream)) * sigma
    torch.testing.assert_close(
        neurons.logit_effect(graph_of(config), params, neuron, norm=True).expand_as(added), added
    )


def test_logit_effect_of_a_hidden_unit_is_what_its_activity_adds_at_the_end():
    params, batch = weights(SMALL), (torch.arange(5)[None],)
    neuron, small = Neuron("layers.1.linear2.weight", 2), graph_of(SMALL)
    more = params | {"layers.1.linear2.bias": params["layers.1.linear2.bias"] + 1e-6 * neurons.weights(params, neuron)}
    before, after = (graph.streams(small, p, batch)[0] for p in (params, more))
    found = (after - before) @ params["decoder.weight"].T * 1e6
    gain, shift = (params[f"layers.1.norm2.{name}"] for name in ("weight", "bias"))
    written, standardised = neurons.weights(params, neuron), (before - shift) / gain
    # what logit_effect leaves out: σ changes too, by the part of w along the stream
    along = standardised * (standardised @ written)[:, None] / SMALL.d_model
    gone = (params["layers.1.norm2.weight"] * along) @ params["decoder.weight"].T
    effect = neurons.logit_effect(graph_of(SMALL), params, neuron, norm=True) - gone
    cosine = F.cosine_similarity(found, effect, dim=1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), atol=1e-6, rtol=0)


def _some_writer(config, seed):
    params = weights(config, seed=seed)
    units = [f"layers.{i}.{kind}.weight" for i in range(config.n_layers) for kind in ("self_attn.out_proj", "linear2")]
    unit = units[seed % len(units)]
    return params, Neuron(unit, seed % params[unit].shape[1])


@pytest.mark.parametrize(
    "neuron",
    [
        Neuron("layers.0.linear1.weight", 0),
        Neuron("layers.0.self_attn.in_proj_weight", 0),
        Neuron("layers.0.linear2.weight", 0, "out"),
        Neuron("embedding.weight", 0),
    ],
    ids=str,
)
def test_logit_effect_refuses_what_does_not_write_to_the_stream(neuron):
    message = r" does not write to the stream; columns \(axis 'in'\) of layers.0.self_attn.out_proj.weight, "
    with pytest.raises(ValueError, match=re.escape(str(neuron)) + message):
        neurons.logit_effect(graph_of(SMALL), weights(SMALL), neuron)
