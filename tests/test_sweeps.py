"""Laws of sweeps.py and margins.py: the shortcuts give the predictions of a forward pass for each neuron."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import CONFIGS, SMALL, batch, few, seeds, weights

from devinterp_func import ablation, margins, neurons, sweeps
from devinterp_func.neurons import Neuron
from devinterp_func.transformer import Config

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
    """Predictions with each neuron switched off."""
    found = sweep.intact.repeat(n_neurons, 1)
    found[sweep.neuron, sweep.position] = sweep.after
    return found


@pytest.mark.parametrize("axis", ["in", "out"])
@pytest.mark.parametrize("config", [*CONFIGS, WIDE], ids=["small", "odd heads, sin", "odd width", "wide"])
def test_a_sweep_is_a_forward_pass_for_each_neuron(config, axis):
    params, (tokens, _) = sharp(config), batch(config, n=4)
    every = every_neuron(params, axis)
    assert same(sweeps.sweep(params, tokens, config, every), sweeps.sweep_naive(params, tokens, config, every))


@given(seeds, st.sampled_from([0.01, 1.0, 30.0]), st.sampled_from(["in", "out"]))
@few
def test_a_sweep_is_a_forward_pass_for_each_neuron_of_any_model(seed, by, axis):
    params, (tokens, _) = sharp(WIDE, seed, by), batch(WIDE, n=2, seed=seed)
    some = every_neuron(params, axis)[seed % 7 :: 7]
    assert same(sweeps.sweep(params, tokens, WIDE, some), sweeps.sweep_naive(params, tokens, WIDE, some))


def test_where_nothing_is_proven_the_decoder_decides():
    params, (tokens, _) = sharp(WIDE, by=1e-3), batch(WIDE, n=4)
    params["decoder.bias"] = params["decoder.bias"] * 1e-3
    every = every_neuron(params, "in")
    found = sweeps.sweep(params, tokens, WIDE, every)
    assert found.work.decoded > 0
    assert same(found, sweeps.sweep_naive(params, tokens, WIDE, every))


def test_where_logits_tie_the_definition_is_asked():
    params, (tokens, _) = sharp(WIDE), batch(WIDE, n=2)
    params["decoder.weight"][75:] = params["decoder.weight"][:75]
    params["decoder.bias"][75:] = params["decoder.bias"][:75]
    every = every_neuron(params, "in")[::3]
    found, naive = sweeps.sweep(params, tokens, WIDE, every), sweeps.sweep_naive(params, tokens, WIDE, every)
    assert found.work.repeated > 0
    assert torch.equal(after(found, len(every)) % 75, after(naive, len(every)) % 75)  # which twin, rounding decides


def test_the_order_of_neurons_and_of_data_does_not_matter():
    params, (tokens, _) = sharp(WIDE), batch(WIDE, n=5)
    every = every_neuron(params, "in")
    count, flips = sweeps.flip_counts(sweeps.sweep(params, tokens, WIDE, every), len(every), WIDE.vocab_size)
    turned = sweeps.sweep(params, tokens.flip(0), WIDE, every[::-1])
    other = sweeps.flip_counts(turned, len(every), WIDE.vocab_size)
    assert torch.equal(count, other[0].flip(0)) and torch.equal(flips, other[1].flip(0))


def test_flip_counts_are_those_of_the_flip_table():
    params, (tokens, _) = sharp(WIDE), batch(WIDE, n=5)
    some = every_neuron(params, "in")[::5]
    count, flips = sweeps.flip_counts(sweeps.sweep(params, tokens, WIDE, some), len(some), WIDE.vocab_size)
    before = ablation.predictions(params, tokens, WIDE)
    for row, neuron in enumerate(some):
        after = ablation.predictions(ablation.zero(params, neuron), tokens, WIDE)
        table = ablation.flips(before, after, WIDE.vocab_size)
        assert count[row][table.token].tolist() == table.count.tolist() and int(count[row].sum()) == table.count.sum()
        assert flips[row][table.token].tolist() == table.flips.tolist()


def test_blocks_of_data_join(monkeypatch):
    params, (tokens, _) = sharp(WIDE), batch(WIDE, n=5)
    some = every_neuron(params, "in")[::4]
    whole = sweeps.sweep(params, tokens, WIDE, some)
    monkeypatch.setattr(ablation, "LOGITS", 2 * WIDE.vocab_size * tokens.shape[1])
    parts = list(sweeps.stream(params, tokens, WIDE, some))
    assert len(parts) == 3 and same(sweeps.join(parts), whole)


@pytest.mark.parametrize("config", CONFIGS, ids=["small", "odd heads, sin", "odd width"])
def test_no_neurons_flip_nothing(config):
    found = sweeps.sweep(weights(config), batch(config)[0], config, [])
    assert len(found.neuron) == 0 and len(found.intact) == batch(config)[0].numel()


@given(seeds)
@few
def test_bounds_hold_for_every_other_token(seed):
    params, g = sharp(WIDE, seed), torch.Generator().manual_seed(seed)
    residual, step = torch.randn(2, 9, 8, generator=g, dtype=torch.float64)
    logits = ablation.decode(params, residual)
    known = margins.measure(params, residual, logits.clone())
    assert torch.equal(known.candidates[:, 0], logits.argmax(1))
    for size in (0.0, 0.1, 0.4, 1.5, 10.0):
        changed = residual + size * step
        ceiling = margins._ceiling(known, (changed - residual).norm(dim=1, keepdim=True))[:, 0]
        others = ablation.decode(params, changed).scatter_(1, known.candidates, -torch.inf)
        assert bool((others.amax(1) <= ceiling + 1e-9).all())


def test_an_unknown_neuron_is_refused_and_the_units_are_listed():
    with pytest.raises(ValueError, match="has no neurons; units that have are .*layers.0.linear1.weight"):
        sweeps.sweep(weights(SMALL), batch(SMALL)[0], SMALL, [Neuron("decoder.weight", 0)])


def test_float32_agrees_but_for_ties():
    config = dataclasses.replace(WIDE, vocab_size=400)
    params = {name: weight.float() for name, weight in sharp(config).items()}
    tokens, _ = batch(config, n=6)
    every = every_neuron(params, "in")
    assert same(sweeps.sweep(params, tokens, config, every), sweeps.sweep_naive(params, tokens, config, every))
