"""Ablation: what is ablated is gone, what is counted adds up, and excerpts stay in their datum."""

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_transformers import CONFIGS, SMALL, batch, weights
from strategies import few, graph_of, seeds

from devinterp_func import models, neurons
from devinterp_func.neurons import Ablation, Neuron, Replacement
from devinterp_func.neurons._ablation import _streams


def every_neuron(params, axis="in"):
    return neurons.every({name: tuple(w.shape) for name, w in params.items() if name.startswith("layers.")}, axis)


def test_no_ablation_changes_nothing():
    params = weights(SMALL)
    assert neurons.zero(params) == params


@pytest.mark.parametrize("axis", ["in", "out"])
def test_zero_is_idempotent_leaves_its_argument_alone_and_takes_several_at_once(axis):
    params = weights(SMALL)
    before = {name: weight.clone() for name, weight in params.items()}
    some = every_neuron(params, axis)[::7]
    at_once, one_by_one = neurons.zero(params, *some), params
    for neuron in some:
        one_by_one = neurons.zero(one_by_one, neuron)
    again = neurons.zero(at_once, *some)
    for name in params:
        assert torch.equal(params[name], before[name])
        assert torch.equal(at_once[name], one_by_one[name]) and torch.equal(at_once[name], again[name])
    for neuron in some:
        assert not neurons.weights(at_once, neuron).any()


def test_a_column_of_zeros_flips_nothing():
    neuron = Neuron("layers.1.linear2.weight", 3)
    params = neurons.zero(weights(SMALL), neuron)
    tokens, _ = batch(SMALL)
    before = neurons.predictions(graph_of(SMALL), params, (tokens,))
    assert torch.equal(before, neurons.predictions(graph_of(SMALL), neurons.zero(params, neuron), (tokens,)))


@pytest.mark.parametrize("config", CONFIGS, ids=["small", "odd heads, sin", "odd width"])
def test_predictions_are_the_argmax_of_apply(config):
    params, (tokens, _) = weights(config), batch(config)
    expected = torch.stack([models.apply(params, example, config).argmax(1) for example in tokens])
    assert torch.equal(neurons.predictions(graph_of(config), params, (tokens,)), expected)


def streams(params, tokens, replacement=None):
    return torch.cat(list(_streams(graph_of(SMALL), params, (tokens,), replacement)))


@given(seeds)
@few
def test_zeroing_a_column_is_replacing_its_activation_by_zero(seed):
    params, (tokens, _) = weights(SMALL, seed=seed), batch(SMALL, seed=seed)
    neuron = every_neuron(params)[seed % len(every_neuron(params))]
    zeroed = streams(neurons.zero(params, neuron), tokens)
    replaced = streams(params, tokens, Replacement(neuron, torch.zeros(()).double()))
    torch.testing.assert_close(zeroed, replaced, rtol=0, atol=1e-12)


@pytest.mark.parametrize("axis", ["in", "out"])
def test_replacing_an_activation_by_itself_changes_nothing(axis):
    params, (tokens, _) = weights(SMALL), batch(SMALL)
    before = streams(params, tokens)
    for neuron in every_neuron(params, axis)[::5]:
        own = neurons.activations(graph_of(SMALL), params, (tokens,), neuron.unit, axis)[..., neuron.index]
        torch.testing.assert_close(streams(params, tokens, Replacement(neuron, own)), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("axis", ["in", "out"])
def test_replacements_are_means_and_other_datas_activations(axis):
    params, (tokens, _) = weights(SMALL), batch(SMALL, n=4)
    others, chosen = batch(SMALL, n=6, seed=1)[0], [Neuron("layers.1.linear1.weight", i, axis) for i in (1, 4)]

    def active(tokens):
        return neurons.activations(graph_of(SMALL), params, (tokens,), chosen[0].unit, axis)[..., [1, 4]]

    def values(*ablation):
        return neurons.replacements(graph_of(SMALL), params, (tokens,), chosen, Ablation(*ablation))

    def stacked(*ablation):
        return torch.stack(values(*ablation), dim=-1)

    assert values("zero") is None
    torch.testing.assert_close(stacked("mean"), active(tokens).mean((0, 1)).expand(4, 5, 2))
    torch.testing.assert_close(stacked("mean", (others,)), active(others).mean((0, 1)).expand(4, 5, 2))
    drawn, here = stacked("resample", None, 3), active(tokens)
    assert torch.equal(drawn, stacked("resample", None, 3)) and not torch.equal(drawn, stacked("resample", None, 4))
    for g in range(2):
        for datum in range(4):
            sources = [j for j in range(4) if torch.equal(drawn[datum, :, g], here[j, :, g])]
            assert len(sources) == 1 and sources[0] != datum
    unknown: Any = "half"
    with pytest.raises(ValueError, match="the ablation is 'half'; it must be one of zero, mean, resample"):
        inspect.unwrap(neurons.replacements)(graph_of(SMALL), params, (tokens,), chosen, Ablation(unknown))


def test_mean_and_resample():
    activation = torch.arange(12.0).view(4, 3)
    assert torch.equal(neurons.mean(activation), torch.full((4, 3), 5.5))
    drawn = neurons.resample(activation, key=0)
    assert all(row.tolist() in activation.tolist() for row in drawn)
    assert not (drawn == activation).all(1).any()  # never a datum's own


PREDICTIONS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12)


@given(PREDICTIONS, st.sets(st.integers(0, 4)))
@few
def test_flips_are_counted_token_by_token_and_add_up(pairs, notable):
    before, after = (torch.tensor([pair[i] for pair in pairs], dtype=torch.int64) for i in (0, 1))
    found = neurons.flips(before, after, 5, notable)
    rows = {}
    for token in range(5):
        either = [(b, a) for b, a in pairs if token in (b, a)]
        if either:
            flipped = sum(b != a for b, a in either)
            rows[token] = (flipped / len(either), len(either), flipped, token in notable)
    columns = (found.proportion, found.count, found.flips, found.notable)
    assert rows == dict(zip(found.token.tolist(), zip(*(c.tolist() for c in columns), strict=True), strict=True))
    flipped = int((before != after).sum())
    assert int(found.count.sum()) == len(pairs) + flipped and int(found.flips.sum()) == 2 * flipped
    assert found.flips.tolist() == sorted(found.flips.tolist(), reverse=True)


def test_a_token_truly_flips_from_five_positions_and_a_tenth_of_them_on():
    count, flips = torch.tensor([5, 4, 30, 30, 0]), torch.tensor([1, 4, 3, 2, 0])
    assert neurons.truly_flips(count, flips).tolist() == [True, False, True, False, False]
    assert neurons.truly_flips(count, flips, 31).tolist() == [False] * 5
    assert neurons.truly_flips(count, flips, 4, 1.0).tolist() == [False, True, False, False, False]


def test_excerpts_stay_in_their_datum():
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    before, after = torch.zeros(2, 4).long(), torch.tensor([[0, 0, 0, 9], [9, 0, 0, 0]])
    first, second = neurons.excerpts(tokens, before, after, width=2)
    assert (first.datum, first.position, first.leading, first.following) == (0, 3, (3, 4), ())
    assert (second.datum, second.position, second.leading, second.following) == (1, 0, (5,), (6, 7))
    assert (first.cut, second.cut) == ((True, False), (False, True))
    assert (first.before, first.after, second.before, second.after) == (0, 9, 0, 9)
    assert list(neurons.excerpts(tokens, before, after, of=[3])) == []


def test_an_unknown_neuron_is_refused_and_the_units_are_listed():
    with pytest.raises(ValueError, match="has no neurons; units that have are .*layers.0.linear1.weight"):
        neurons.zero(weights(SMALL), Neuron("layers.9.linear1.weight", 0))
    with pytest.raises(ValueError, match="no column 6; its columns are 0 to 5"):
        neurons.zero(weights(SMALL), Neuron("layers.0.linear2.weight", 6))
