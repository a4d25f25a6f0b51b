"""Controls: counts are those of the ablation, controls are what they say, and chance is not attributed."""

from collections import Counter

import pytest
import torch
from scipy.stats import hypergeom
from small_transformers import SMALL, batch, weights
from strategies import graph_of

from devinterp_func import keys, neurons
from devinterp_func.neurons import Ablation, FlipCounts, Neuron, Replacement, Trial

NEURON = Neuron("layers.1.linear2.weight", 2)


def trial_of(notable, flipped, size=300, seed=0):
    """A trial in which these tokens flip at every position, and no others."""
    count = torch.full((size,), 10)
    flips = torch.zeros(size, dtype=torch.int64)
    flips[list(flipped)] = 10
    nothing = FlipCounts(count, torch.zeros_like(flips))
    return Trial(NEURON, torch.tensor(sorted(notable)), FlipCounts(count, flips), nothing, nothing)


def test_a_trial_counts_what_ablation_flips():
    params, (tokens, _) = weights(SMALL), batch(SMALL, n=6)
    params["decoder.weight"] *= 5
    others = neurons.other_neurons(NEURON, SMALL.d_hidden, 2, key=0)
    elsewhere = neurons.flip_counts_of(graph_of(SMALL), params, (tokens[3:],), [NEURON, *others])
    found = neurons.try_neuron(graph_of(SMALL), params, (tokens[:3],), NEURON, torch.tensor([1]), others, elsewhere[0])

    def flips_of(neuron, tokens):
        before = neurons.predictions(graph_of(SMALL), params, (tokens,))
        after = neurons.predictions(graph_of(SMALL), neurons.zero(params, neuron), (tokens,))
        table = neurons.flips(before, after, SMALL.vocab_size)
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
    found = neurons.other_neurons(NEURON, 6, 10, key=3)
    assert sorted(other.index for other in found) == [0, 1, 3, 4, 5]
    assert {other.unit for other in found} == {NEURON.unit}
    assert found == neurons.other_neurons(NEURON, 6, 10, key=3)


def test_a_sample_is_of_attributed_data_each_once():
    events = torch.tensor([0, 3, 0, 1, 1, 0, 2])
    assert neurons.sample_attributed(events, 99, key=0).tolist() == [1, 3, 4, 6]
    some = neurons.sample_attributed(events, 2, key=0)
    assert len(set(some.tolist())) == 2 and set(some.tolist()) <= {1, 3, 4, 6}


@pytest.mark.parametrize("kind", ["mean", "resample"])
def test_other_ablations_go_through_the_same_controls(kind):
    params, (tokens, _) = weights(SMALL), batch(SMALL, n=6)
    params["decoder.weight"] *= 5
    others = neurons.other_neurons(NEURON, SMALL.d_hidden, 2, key=0)
    ablation = Ablation(kind, (tokens[3:],), 5)
    (elsewhere,) = neurons.flip_counts_of(graph_of(SMALL), params, (tokens[3:],), [NEURON], ablation)
    trial = neurons.try_neuron(
        graph_of(SMALL), params, (tokens[:3],), NEURON, torch.tensor([1]), others, elsewhere, ablation
    )

    def flips_of(neuron, tokens):
        before = neurons.predictions(graph_of(SMALL), params, (tokens,))
        values = neurons.replacements(graph_of(SMALL), params, (tokens,), [neuron], ablation)
        assert values is not None
        after = neurons.predictions(graph_of(SMALL), params, (tokens,), Replacement(neuron, values[0]))
        return torch.bincount(torch.cat([x[before != after] for x in (before, after)]), minlength=SMALL.vocab_size)

    assert trial.attributed.flips.tolist() == flips_of(NEURON, tokens[:3]).tolist()
    assert trial.random_data.flips.tolist() == flips_of(NEURON, tokens[3:]).tolist()
    mean = torch.stack([flips_of(other, tokens[:3]) for other in others]).double().mean(0).round()
    assert trial.random_neurons.flips.tolist() == mean.tolist()


def test_random_data_are_as_many_as_the_attributed():
    params, (tokens, _) = weights(SMALL), batch(SMALL, n=6)
    sizes = {NEURON: 2, NEURON._replace(index=0): 4, Neuron("layers.0.linear1.weight", 1): 2}
    found = dict(neurons.on_random_data(graph_of(SMALL), params, (tokens,), sizes))
    assert found.keys() == sizes.keys()
    for neuron, size in sizes.items():
        (alone,) = neurons.flip_counts_of(graph_of(SMALL), params, (tokens[:size],), [neuron])
        assert found[neuron].flips.tolist() == alone.flips.tolist()
        assert int(found[neuron].count.sum() - found[neuron].flips.sum() // 2) == size * tokens.shape[1]


def test_excerpts_of_flips_to_or_from_notable_tokens_come_first():
    params, (tokens, _) = weights(SMALL), batch(SMALL, n=60)
    params[NEURON.unit] = params[NEURON.unit] * 5
    before = neurons.predictions(graph_of(SMALL), params, (tokens,))
    after = neurons.predictions(graph_of(SMALL), neurons.zero(params, NEURON), (tokens,))
    everything = list(neurons.excerpts(tokens, before, after))
    tokens_of = Counter(token for e in everything for token in (e.before, e.after))
    notable = torch.tensor([min(tokens_of, key=lambda token: tokens_of[token])])
    first = [e for e in everything if int(notable[0]) in (e.before, e.after)]
    assert 0 < len(first) < len(everything) and everything[0] not in first
    found = neurons.flip_excerpts(graph_of(SMALL), params, tokens, NEURON, notable, len(first) + 1)
    assert found[:-1] == first and found[-1] == next(e for e in everything if e not in first)
    assert neurons.flip_excerpts(graph_of(SMALL), params, tokens, NEURON, notable, 0) == []


def test_a_verdict_is_what_loops_and_the_hypergeometric_say():
    reference = torch.full((300,), 50)
    count, flips = torch.full((300,), 10), torch.zeros(300, dtype=torch.int64)
    flips[:30] = 10
    count[200:] = 4  # too rare to count
    flips[200:230] = 4
    own = FlipCounts(count, flips)
    notable = torch.tensor([*range(6), *range(100, 110), *range(210, 220)])
    found = neurons.judge([Trial(NEURON, notable, own, own, own)], reference, key=0)
    assert found.both.tolist() == [6]
    assert found.expected.tolist() == pytest.approx([16 * 30 / 200])  # 16 notable and 30 flipped of 200 tokens
    assert found.p.tolist() == pytest.approx([float(hypergeom(200, 16, 30).sf(5))])


def test_but_for_discovery_a_verdict_is_the_same_in_any_company():
    reference = torch.arange(300)
    trials = [trial_of(range(i, i + 6), range(8)) for i in range(4)]
    trials = [trial._replace(neuron=Neuron(NEURON.unit, i)) for i, trial in enumerate(trials)]
    together = neurons.judge(trials, reference, key=7)
    for i, trial in enumerate(trials):
        alone = neurons.judge([trial], reference, key=7)
        for field in ("p", "p_frequency", "both", "expected"):
            assert getattr(alone, field)[0] == getattr(together, field)[i], field


def test_tokens_that_flip_as_the_record_says_are_attributed():
    reference = torch.full((300,), 50)
    found = neurons.judge([trial_of(range(5), range(8)), trial_of(range(5), range(100, 108))], reference, key=0)
    assert found.attributed.tolist() == [True, False]
    assert found.both.tolist() == [5, 0] and found.p[1] == 1 and found.p[0] < 1e-6
    assert found.p_frequency[0] < 0.01


def test_chance_is_rarely_attributed():
    rng = keys.generator(0)
    draw = lambda n: set(rng.permutation(300)[:n].tolist())  # noqa: E731
    trials = [trial_of(draw(10), draw(30)) for _ in range(200)]
    found = neurons.judge(trials, torch.full((300,), 50), key=0)
    assert int(found.attributed.sum()) <= 1
    assert float((found.p < 0.05).double().mean()) < 0.1


def test_frequency_alone_is_not_attributed_among_tokens_of_like_frequency():
    reference = torch.ones(300, dtype=torch.int64)
    reference[:10] = 100_000  # the frequent tokens are notable, and flip
    found = neurons.judge([trial_of(range(10), range(10))], reference, key=0)
    assert found.p[0] < 1e-6 and found.p_frequency[0] == 1


def test_a_trial_without_controls_is_an_error():
    params, (tokens, _) = weights(SMALL), batch(SMALL)
    with pytest.raises(ValueError, match="there are no other neurons to compare layers.1.linear2.weight:2 with"):
        neurons.try_neuron(
            graph_of(SMALL),
            params,
            (tokens,),
            NEURON,
            torch.tensor([1]),
            [],
            FlipCounts(torch.zeros(11).long(), torch.zeros(11).long()),
        )


def test_nothing_to_judge_is_an_error():
    with pytest.raises(ValueError, match="no trials to judge"):
        neurons.judge([], torch.ones(3).long(), key=0)
