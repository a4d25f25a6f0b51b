"""Laws of verdicts.py: counts are those of the ablation, controls are what they say, and chance is not attributed."""

import pytest
import torch
from strategies import SMALL, batch, weights

from devinterp_func import ablation, keys, verdicts
from devinterp_func.neurons import Neuron
from devinterp_func.verdicts import Counts, Trial

NEURON = Neuron("layers.1.linear2.weight", 2)


def trial_of(notable, flipped, size=300, seed=0):
    """A trial in which these tokens flip at every position, and no others."""
    count = torch.full((size,), 10)
    flips = torch.zeros(size, dtype=torch.int64)
    flips[list(flipped)] = 10
    nothing = Counts(count, torch.zeros_like(flips))
    return Trial(NEURON, torch.tensor(sorted(notable)), Counts(count, flips), nothing, nothing)


def test_a_trial_counts_what_ablation_flips():
    params, (tokens, _) = weights(SMALL), batch(SMALL, n=6)
    params["decoder.weight"] *= 5
    others = verdicts.others(NEURON, SMALL.d_hidden, 2, key=0)
    elsewhere = verdicts.counts_of(params, tokens[3:], SMALL, [NEURON, *others])
    found = verdicts.trial(params, tokens[:3], SMALL, NEURON, torch.tensor([1]), others, elsewhere[0])

    def flips_of(neuron, tokens):
        before = ablation.predictions(params, tokens, SMALL)
        after = ablation.predictions(ablation.zero(params, neuron), tokens, SMALL)
        table = ablation.flips(before, after, SMALL.vocab_size)
        dense = torch.zeros(2, SMALL.vocab_size, dtype=torch.int64)
        dense[0, table.token], dense[1, table.token] = table.count, table.flips
        return dense

    for counts, expected in (
        (found.attributed, flips_of(NEURON, tokens[:3])),
        (found.random_data, flips_of(NEURON, tokens[3:])),
    ):
        assert counts.count.tolist() == expected[0].tolist() and counts.flips.tolist() == expected[1].tolist()
    mean = torch.stack([flips_of(other, tokens[:3]) for other in others]).double().mean(0).round()
    assert found.random_neurons.flips.tolist() == mean[1].tolist()


def test_others_are_other_neurons_of_the_unit_and_depend_on_the_key_alone():
    found = verdicts.others(NEURON, 6, 10, key=3)
    assert sorted(other.index for other in found) == [0, 1, 3, 4, 5]
    assert {other.unit for other in found} == {NEURON.unit}
    assert found == verdicts.others(NEURON, 6, 10, key=3)


def test_a_sample_is_of_attributed_data_each_once():
    events = torch.tensor([0, 3, 0, 1, 1, 0, 2])
    assert verdicts.sample(events, 99, key=0).tolist() == [1, 3, 4, 6]
    some = verdicts.sample(events, 2, key=0)
    assert len(set(some.tolist())) == 2 and set(some.tolist()) <= {1, 3, 4, 6}


def test_tokens_that_flip_as_the_record_says_are_attributed():
    reference = torch.full((300,), 50)
    found = verdicts.judge([trial_of(range(5), range(8)), trial_of(range(5), range(100, 108))], reference, key=0)
    assert found.attributed.tolist() == [True, False]
    assert found.both.tolist() == [5, 0] and found.p[1] == 1 and found.p[0] < 1e-6
    assert found.p_frequency[0] < 0.01


def test_chance_is_rarely_attributed():
    rng = keys.generator(0)
    draw = lambda n: set(rng.permutation(300)[:n].tolist())  # noqa: E731
    trials = [trial_of(draw(10), draw(30)) for _ in range(200)]
    found = verdicts.judge(trials, torch.full((300,), 50), key=0)
    assert int(found.attributed.sum()) <= 1
    assert float((found.p < 0.05).double().mean()) < 0.1


def test_frequency_alone_is_not_attributed_among_tokens_of_like_frequency():
    reference = torch.ones(300, dtype=torch.int64)
    reference[:10] = 100_000  # the frequent tokens are notable, and flip
    found = verdicts.judge([trial_of(range(10), range(10))], reference, key=0)
    assert found.p[0] < 1e-6 and found.p_frequency[0] == 1


def test_a_trial_without_controls_is_an_error():
    params, (tokens, _) = weights(SMALL), batch(SMALL)
    with pytest.raises(ValueError, match="there are no other neurons to compare layers.1.linear2.weight:2 with"):
        verdicts.trial(
            params, tokens, SMALL, NEURON, torch.tensor([1]), [], Counts(torch.zeros(11).long(), torch.zeros(11).long())
        )


def test_nothing_to_judge_is_an_error():
    with pytest.raises(ValueError, match="no trials to judge"):
        verdicts.judge([], torch.ones(3).long(), key=0)
