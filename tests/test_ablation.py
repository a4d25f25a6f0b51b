"""Laws of ablation.py: what is switched off is off, what is counted adds up, and excerpts stay in their datum."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import CONFIGS, SMALL, batch, few, seeds, weights

from devinterp_func import ablation, activations, neurons, transformer
from devinterp_func.ablation import Replacement
from devinterp_func.neurons import Neuron
from devinterp_func.text import Vocab


def every_neuron(params, axis="in"):
    return neurons.every({name: tuple(w.shape) for name, w in params.items() if name.startswith("layers.")}, axis)


def test_no_ablation_changes_nothing():
    params = weights(SMALL)
    assert ablation.zero(params) == params


@pytest.mark.parametrize("axis", ["in", "out"])
def test_zero_is_idempotent_leaves_its_argument_alone_and_takes_several_at_once(axis):
    params = weights(SMALL)
    before = {name: weight.clone() for name, weight in params.items()}
    some = every_neuron(params, axis)[::7]
    at_once, one_by_one = ablation.zero(params, *some), params
    for neuron in some:
        one_by_one = ablation.zero(one_by_one, neuron)
    again = ablation.zero(at_once, *some)
    for name in params:
        assert torch.equal(params[name], before[name])
        assert torch.equal(at_once[name], one_by_one[name]) and torch.equal(at_once[name], again[name])
    for neuron in some:
        assert not neurons.weights(at_once, neuron).any()


def test_a_column_of_zeros_flips_nothing():
    neuron = Neuron("layers.1.linear2.weight", 3)
    params = ablation.zero(weights(SMALL), neuron)
    tokens, _ = batch(SMALL)
    before = ablation.predictions(params, tokens, SMALL)
    assert torch.equal(before, ablation.predictions(ablation.zero(params, neuron), tokens, SMALL))


@pytest.mark.parametrize("config", CONFIGS, ids=["small", "odd heads, sin", "odd width"])
def test_predictions_are_the_argmax_of_apply(config):
    params, (tokens, _) = weights(config), batch(config)
    expected = torch.stack([transformer.apply(params, example, config).argmax(1) for example in tokens])
    assert torch.equal(ablation.predictions(params, tokens, config), expected)


@given(seeds)
@few
def test_zeroing_a_column_is_replacing_its_activation_by_zero(seed):
    params, (tokens, targets) = weights(SMALL, seed=seed), batch(SMALL, seed=seed)
    neuron = every_neuron(params)[seed % len(every_neuron(params))]
    off = ablation.outcomes(ablation.zero(params, neuron), tokens, targets, SMALL, [1])
    replaced = ablation.outcomes(params, tokens, targets, SMALL, [1], Replacement(neuron, torch.zeros(()).double()))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(off, replaced, strict=True))


@pytest.mark.parametrize("axis", ["in", "out"])
def test_replacing_an_activation_by_itself_changes_nothing(axis):
    params, (tokens, targets) = weights(SMALL), batch(SMALL)
    before = ablation.outcomes(params, tokens, targets, SMALL, [0, 2])
    for neuron in every_neuron(params, axis)[::5]:
        own = activations.collect(params, tokens, SMALL, neuron.unit, axis)[..., neuron.index]
        after = ablation.outcomes(params, tokens, targets, SMALL, [0, 2], Replacement(neuron, own))
        assert max(float(part.abs().max()) for part in ablation.effects(before, after)) < 1e-12


def test_outcomes_are_loss_and_softmax():
    params, (tokens, targets) = weights(SMALL), batch(SMALL)
    found = ablation.outcomes(params, tokens, targets, SMALL, [4])
    for i, (example, target) in enumerate(zip(tokens, targets, strict=True)):
        probability = transformer.apply(params, example, SMALL).softmax(1)
        assert torch.allclose(found.chosen[i, :, 0], probability[:, 4])
        assert torch.allclose(found.target[i], probability.gather(1, target[:, None])[:, 0])
        assert torch.allclose(found.loss[i].mean(), transformer.loss(params, example, target, SMALL))


def test_mean_and_resample():
    activation = torch.arange(12.0).view(4, 3)
    assert torch.equal(ablation.mean(activation), torch.full((4, 3), 5.5))
    drawn = ablation.resample(activation, key=0)
    assert all(row.tolist() in activation.tolist() for row in drawn)
    assert not (drawn == activation).all(1).any()  # never a datum's own


PREDICTIONS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12)


@given(PREDICTIONS, st.sets(st.integers(0, 4)))
@few
def test_flips_are_counted_token_by_token_and_add_up(pairs, notable):
    before, after = (torch.tensor([pair[i] for pair in pairs], dtype=torch.int64) for i in (0, 1))
    found = ablation.flips(before, after, 5, notable)
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


def test_excerpts_stay_in_their_datum():
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    before, after = torch.zeros(2, 4).long(), torch.tensor([[0, 0, 0, 9], [9, 0, 0, 0]])
    first, second = ablation.excerpts(tokens, before, after, width=2)
    assert (first.datum, first.position, first.leading, first.following) == (0, 3, (3, 4), ())
    assert (second.datum, second.position, second.leading, second.following) == (1, 0, (5,), (6, 7))
    vocab = Vocab(("<unk>", *"abcdefghi"))
    assert first.text(vocab) == "… c d ( <unk> | i )"
    assert second.text(vocab) == "e ( <unk> | i ) f g …"
    assert list(ablation.excerpts(tokens, before, after, of=[3])) == []


def test_means_by_token_add_up():
    params, (tokens, targets) = weights(SMALL), batch(SMALL, n=6)
    found = ablation.outcomes(params, tokens, targets, SMALL, [1, 2])
    means = ablation.by_token(found, targets)
    assert torch.allclose((means.loss * means.count).sum(), found.loss.sum())
    token = int(means.token[0])
    assert torch.allclose(means.chosen[0], found.chosen[targets == token].mean(0))


def test_an_unknown_neuron_is_refused_and_the_units_are_listed():
    with pytest.raises(ValueError, match="has no neurons; units that have are .*layers.0.linear1.weight"):
        ablation.zero(weights(SMALL), Neuron("layers.9.linear1.weight", 0))
    with pytest.raises(ValueError, match="no column 6; its columns are 0 to 5"):
        ablation.zero(weights(SMALL), Neuron("layers.0.linear2.weight", 6))
