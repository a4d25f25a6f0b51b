"""Sweeps: the shortcuts give the predictions of a forward pass for each neuron."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_transformers import CONFIGS, SMALL, batch, weights
from strategies import few, graph_of, seeds

from devinterp_func import graph, neurons
from devinterp_func.graph import _batches
from devinterp_func.models import Config
from devinterp_func.neurons import Neuron, _argmax_bound

WIDE = Config(vocab_size=150, d_model=8, n_heads=2, d_hidden=6, n_layers=2)  # more tokens than candidates


def every_neuron(params, axis):
    return neurons.every({name: tuple(w.shape) for name, w in params.items() if name.startswith("layers.")}, axis)


def sharp(config, seed=0, by=3.0):
    """A model whose logits differ much, or hardly."""
    params = weights(config, seed=seed)
    return params | {"decoder.weight": params["decoder.weight"] * by}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a[:5], b[:5], strict=True))


def after(sweep, n_neurons):
    """Predictions with each neuron ablated."""
    found = sweep.intact.repeat(n_neurons, 1)
    found[sweep.neuron, sweep.position] = sweep.after
    return found


@pytest.mark.parametrize("axis", ["in", "out"])
@pytest.mark.parametrize("config", [*CONFIGS, WIDE], ids=["small", "odd heads, sin", "odd width", "wide"])
def test_a_sweep_is_a_forward_pass_for_each_neuron(config, axis):
    params, (tokens, _) = sharp(config), batch(config, n=4)
    every = every_neuron(params, axis)
    assert same(
        neurons.sweep(graph_of(config), params, (tokens,), every),
        neurons.sweep_naive(graph_of(config), params, (tokens,), every),
    )


@given(seeds, st.sampled_from([0.01, 1.0, 30.0]), st.sampled_from(["in", "out"]))
@few
def test_a_sweep_is_a_forward_pass_for_each_neuron_of_any_model(seed, by, axis):
    params, (tokens, _) = sharp(WIDE, seed, by), batch(WIDE, n=2, seed=seed)
    some = every_neuron(params, axis)[seed % 7 :: 7]
    assert same(
        neurons.sweep(graph_of(WIDE), params, (tokens,), some),
        neurons.sweep_naive(graph_of(WIDE), params, (tokens,), some),
    )


@pytest.mark.parametrize("axis", ["in", "out"])
@pytest.mark.parametrize("kind", ["mean", "resample"])
def test_a_sweep_of_replacements_is_a_forward_pass_for_each_neuron(kind, axis):
    params, (tokens, _) = sharp(WIDE), batch(WIDE, n=4)
    every = every_neuron(params, axis)[::3]
    values = neurons.replacements(graph_of(WIDE), params, (tokens,), every, neurons.Ablation(kind, None, 1))
    naive = neurons.sweep_naive(graph_of(WIDE), params, (tokens,), every, values)
    assert (
        values is not None
        and len(naive.neuron)
        and same(neurons.sweep(graph_of(WIDE), params, (tokens,), every, values), naive)
    )
    before = neurons.predictions(graph_of(WIDE), params, (tokens,))
    for number, neuron in enumerate(every):
        flipped = (
            neurons.predictions(graph_of(WIDE), params, (tokens,), neurons.Replacement(neuron, values[number]))
            != before
        )
        assert naive.position[naive.neuron == number].tolist() == flipped.flatten().nonzero()[:, 0].tolist()


@pytest.mark.parametrize("axis", ["in", "out"])
def test_sweeping_zeros_is_zeroing_weights_but_for_a_rows_bias(axis):
    params, (tokens, _) = sharp(WIDE), batch(WIDE, n=4)
    every = every_neuron(params, axis)
    values = [torch.zeros(tokens.shape, dtype=torch.float64) for _ in every]
    if axis == "out":
        values = [params[f"{n.unit.removesuffix('weight')}bias"][n.index].expand(tokens.shape) for n in every]
    assert same(
        neurons.sweep(graph_of(WIDE), params, (tokens,), every, values),
        neurons.sweep(graph_of(WIDE), params, (tokens,), every),
    )


def test_where_replaced_logits_tie_the_definition_is_asked():
    params, (tokens, _) = sharp(WIDE), batch(WIDE, n=2)
    params["decoder.weight"][75:] = params["decoder.weight"][:75]
    params["decoder.bias"][75:] = params["decoder.bias"][:75]
    every = every_neuron(params, "in")[::3]
    values = neurons.replacements(graph_of(WIDE), params, (tokens,), every, neurons.Ablation("resample"))
    found, naive = (f(graph_of(WIDE), params, (tokens,), every, values) for f in (neurons.sweep, neurons.sweep_naive))
    assert found.work.repeated > 0
    assert torch.equal(after(found, len(every)) % 75, after(naive, len(every)) % 75)


def test_where_nothing_is_proven_the_decoder_decides():
    params, (tokens, _) = sharp(WIDE, by=1e-3), batch(WIDE, n=4)
    params["decoder.bias"] = params["decoder.bias"] * 1e-3
    every = every_neuron(params, "in")
    found = neurons.sweep(graph_of(WIDE), params, (tokens,), every)
    assert found.work.decoded > 0
    assert same(found, neurons.sweep_naive(graph_of(WIDE), params, (tokens,), every))


def test_where_logits_tie_the_definition_is_asked():
    params, (tokens, _) = sharp(WIDE), batch(WIDE, n=2)
    params["decoder.weight"][75:] = params["decoder.weight"][:75]
    params["decoder.bias"][75:] = params["decoder.bias"][:75]
    every = every_neuron(params, "in")[::3]
    found, naive = (
        neurons.sweep(graph_of(WIDE), params, (tokens,), every),
        neurons.sweep_naive(graph_of(WIDE), params, (tokens,), every),
    )
    assert found.work.repeated > 0
    assert torch.equal(after(found, len(every)) % 75, after(naive, len(every)) % 75)  # which twin, rounding decides


def test_the_order_of_neurons_and_of_data_does_not_matter():
    params, (tokens, _) = sharp(WIDE), batch(WIDE, n=5)
    every = every_neuron(params, "in")
    count, flips = neurons.flip_counts(
        neurons.sweep(graph_of(WIDE), params, (tokens,), every), len(every), WIDE.vocab_size
    )
    turned = neurons.sweep(graph_of(WIDE), params, (tokens.flip(0),), every[::-1])
    other = neurons.flip_counts(turned, len(every), WIDE.vocab_size)
    assert torch.equal(count, other[0].flip(0)) and torch.equal(flips, other[1].flip(0))


def test_flip_counts_are_those_of_the_flip_table():
    params, (tokens, _) = sharp(WIDE), batch(WIDE, n=5)
    some = every_neuron(params, "in")[::5]
    count, flips = neurons.flip_counts(
        neurons.sweep(graph_of(WIDE), params, (tokens,), some), len(some), WIDE.vocab_size
    )
    before = neurons.predictions(graph_of(WIDE), params, (tokens,))
    for row, neuron in enumerate(some):
        after = neurons.predictions(graph_of(WIDE), neurons.zero(params, neuron), (tokens,))
        table = neurons.flips(before, after, WIDE.vocab_size)
        assert count[row][table.token].tolist() == table.count.tolist() and int(count[row].sum()) == table.count.sum()
        assert flips[row][table.token].tolist() == table.flips.tolist()


@pytest.mark.parametrize("kind", ["zero", "resample"])
def test_blocks_of_data_join(kind, monkeypatch):
    params, (tokens, _) = sharp(WIDE), batch(WIDE, n=5)
    some = every_neuron(params, "in")[::4]
    values = neurons.replacements(graph_of(WIDE), params, (tokens,), some, neurons.Ablation(kind))
    whole = neurons.sweep(graph_of(WIDE), params, (tokens,), some, values)
    monkeypatch.setattr(_batches, "LOGITS", 2 * WIDE.vocab_size * tokens.shape[1])
    parts = list(neurons.sweep_in_parts(graph_of(WIDE), params, (tokens,), some, values))
    assert len(parts) == 3 and same(neurons.join_sweeps(parts), whole)


@pytest.mark.parametrize("config", CONFIGS, ids=["small", "odd heads, sin", "odd width"])
def test_no_neurons_flip_nothing(config):
    found = neurons.sweep(graph_of(config), weights(config), (batch(config)[0],), [])
    assert len(found.neuron) == 0 and len(found.intact) == batch(config)[0].numel()


@given(seeds)
@few
def test_bounds_hold_for_every_other_token(seed):
    params, g = sharp(WIDE, seed), torch.Generator().manual_seed(seed)
    stream, step = torch.randn(2, 9, 8, generator=g, dtype=torch.float64)
    logits = graph.decode(graph_of(WIDE), params, stream)
    known = _argmax_bound.measure_margins(graph_of(WIDE), params, stream, logits.clone())
    assert torch.equal(known.candidates[:, 0], logits.argmax(1))
    for size in (0.0, 0.1, 0.4, 1.5, 10.0):
        changed = stream + size * step
        ceiling = _argmax_bound._ceiling(known, (changed - stream).norm(dim=1, keepdim=True))[:, 0]
        others = graph.decode(graph_of(WIDE), params, changed).scatter_(1, known.candidates, -torch.inf)
        assert bool((others.amax(1) <= ceiling + 1e-9).all())


def test_an_unknown_neuron_is_refused_and_the_units_are_listed():
    with pytest.raises(ValueError, match="has no neurons; units that have are .*layers.0.linear1.weight"):
        neurons.sweep(graph_of(SMALL), weights(SMALL), (batch(SMALL)[0],), [Neuron("decoder.bias", 0)])


def test_float32_agrees_but_for_ties():
    config = dataclasses.replace(WIDE, vocab_size=400)
    params = {name: weight.float() for name, weight in sharp(config).items()}
    tokens, _ = batch(config, n=6)
    every = every_neuron(params, "in")
    assert same(
        neurons.sweep(graph_of(config, torch.float32), params, (tokens,), every),
        neurons.sweep_naive(graph_of(config, torch.float32), params, (tokens,), every),
    )
