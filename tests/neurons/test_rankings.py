"""Rankings: every score is its formula, looped over neurons and tokens, and chance is chance."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_transformers import SMALL, batch, weights
from strategies import graph_of

from devinterp_func import neurons, stats
from devinterp_func.batches import Data
from devinterp_func.neurons import Neuron, _rankings, _record_rankings

PARAMS, (TOKENS, _) = weights(SMALL), batch(SMALL, n=40)
GRAPH, V, UNITS = (
    graph_of(SMALL),
    SMALL.vocab_size,
    ("layers.0.linear1.weight", "layers.1.linear1.weight", "layers.1.linear2.weight"),
)
REFERENCE = torch.bincount(TOKENS.flatten(), minlength=V)
PREDICTED = neurons.predictions(GRAPH, PARAMS, (TOKENS,))


def random_counts(width, high=40, seed=0):
    return torch.randint(0, high, (width, V), generator=torch.Generator().manual_seed(seed))


def same(found, expected):
    """A score is what a function of neuron and token says."""
    for g in range(len(found)):
        for v in range(V):
            assert float(found[g, v]) == pytest.approx(expected(g, v), rel=1e-5, abs=1e-7), (g, v)


def direct_effect(unit):
    """What a column's unit of activity adds to each logit through the last norm, by loops: (columns, V)."""
    layer = unit.rpartition(".")[0].rpartition(".")[0]
    outer, gain = PARAMS[f"{layer}.linear2.weight"], PARAMS["layers.1.norm2.weight"]
    if unit.endswith("linear2.weight"):
        written = [outer[:, i] for i in range(outer.shape[1])]
    else:
        hidden = neurons.activations(GRAPH, PARAMS, (TOKENS,), f"{layer}.linear2.weight").flatten(0, 1)
        slope = [float((hidden[:, h] > 0).double().mean()) for h in range(hidden.shape[1])]
        assert any(0 < s < 1 for s in slope)
        inner = PARAMS[unit]
        none = torch.zeros(len(outer))
        parts = [[outer[:, h] * slope[h] * inner[h, i] for h in range(len(slope))] for i in range(inner.shape[1])]
        written = [sum(part, none) for part in parts]
    return [[float((gain * (w - w.mean())) @ PARAMS["decoder.weight"][v]) for v in range(V)] for w in written]


def activations_where(unit, labels):
    """(column, token) -> the unit's activations at the positions with that label."""
    values = neurons.activations(GRAPH, PARAMS, (TOKENS,), unit).flatten(0, 1)
    return lambda g, v: values[labels.flatten() == v][:, g].double()


def test_every_statistic_of_every_reading_is_a_score():
    counts = {reading: random_counts(4, seed=i) for i, reading in enumerate(("bag", "target"))}
    found = dict(_record_rankings.record_rankings(counts, REFERENCE))
    assert len(found) == 1 + 2 * len(stats.STATISTICS)
    for reading, count in counts.items():
        for name, statistic in stats.STATISTICS.items():
            assert torch.equal(found[f"{reading}, {name.replace('_', ' ')}"], statistic(count, REFERENCE))


def test_the_posts_ranking_holds_the_posts_tokens_first():
    bag = random_counts(4)
    score = dict(_record_rankings.record_rankings({"bag": bag}, REFERENCE))[neurons.POST]
    for row, count in zip(score, bag, strict=True):
        order = row.argsort(descending=True, stable=True)[: int((count >= 20).sum())]
        assert set(order.tolist()) == set((count >= 20).nonzero()[:, 0].tolist())
        # with f = d the heuristic is the first d of this ranking
        assert set(stats.univariate_heuristic(count, REFERENCE, 20, 2, 2).tolist()) == set(order[:2].tolist())


@pytest.mark.parametrize("unit", UNITS)
def test_logit_effects_are_the_slope_of_the_direct_path(unit):
    effect = neurons.logit_effects(GRAPH, PARAMS, (TOKENS,), unit)
    assert effect.shape == (PARAMS[unit].shape[1], V)
    expected = direct_effect(unit)
    same(effect, lambda g, v: expected[g][v])
    if unit == "layers.1.linear2.weight":
        for index in range(SMALL.d_hidden):
            torch.testing.assert_close(
                effect[index], neurons.logit_effect(GRAPH, PARAMS, Neuron(unit, index), norm=True)
            )


def test_logit_effects_of_attention_are_those_of_each_column():
    unit = "layers.0.self_attn.out_proj.weight"
    effect = neurons.logit_effects(GRAPH, PARAMS, (TOKENS,), unit)
    for index, row in enumerate(effect):
        torch.testing.assert_close(row, neurons.logit_effect(GRAPH, PARAMS, Neuron(unit, index), norm=True))


def test_logit_effects_of_other_units_are_refused():
    message = "'decoder.weight' neither writes to the stream nor feeds an MLP; units that do: layers.0.self_attn.out"
    with pytest.raises(ValueError, match=message):
        neurons.logit_effects(GRAPH, PARAMS, (TOKENS,), "decoder.weight")


@pytest.mark.parametrize("unit", UNITS)
def test_the_models_scores_are_their_formulas(unit):
    effects = neurons.logit_effects(GRAPH, PARAMS, (TOKENS,), unit)
    found = dict(_rankings.model_rankings(GRAPH, PARAMS, TOKENS, PREDICTED, unit, REFERENCE, effect=effects))
    width, effect = PARAMS[unit].shape[1], direct_effect(unit)
    assert len(found) == 9 and all(score.shape == (width, V) for score in found.values())
    often = torch.bincount(PREDICTED.flatten(), minlength=V).tolist()
    assert any(often) and often != REFERENCE.tolist()
    where = activations_where(unit, PREDICTED)

    def mean(g, v):
        return float(where(g, v).mean()) if often[v] else 0.0

    same(found["token frequency"], lambda g, v: int(REFERENCE[v]))
    same(found["prediction frequency"], lambda g, v: often[v])
    same(found["logit effect"], lambda g, v: effect[g][v])
    same(found["|logit effect|"], lambda g, v: abs(effect[g][v]))
    same(found["|logit effect| × √prediction frequency"], lambda g, v: abs(effect[g][v]) * often[v] ** 0.5)
    same(found["|logit effect × activation where predicted|"], lambda g, v: abs(effect[g][v] * mean(g, v)))
    same(found[_rankings.MOVED], lambda g, v: abs(effect[g][v] * mean(g, v)) * often[v] / (often[v] + 5))
    for name, labels in (("input token", TOKENS), ("predicted token", PREDICTED)):
        same(found[f"activations by {name}"], standard_scores(unit, labels))


def standard_scores(unit, labels):
    """How far the mean on a label is from the mean of all positions, in standard errors of a draw without return."""
    where = activations_where(unit, labels)
    values = neurons.activations(GRAPH, PARAMS, (TOKENS,), unit).flatten(0, 1)
    n = len(values)

    def z(g, v):
        here = where(g, v)
        if len(here) in (0, n):
            return 0.0
        error = math.sqrt(float(values[:, g].var(correction=0)) / len(here) * (n - len(here)) / (n - 1))
        return float(here.mean() - values[:, g].mean()) / error if error else 0.0

    return z


def test_joint_scores_are_their_formulas():
    there, target, often = random_counts(3), random_counts(3, seed=1), torch.arange(V) * 7 + 100
    moved = torch.arange(3 * V).view(3, V).double()
    effect = torch.linspace(-2, 2, 3 * V, dtype=torch.float64).view(3, V)
    found = dict(_rankings.joint_rankings(there, target, REFERENCE, often, effect, moved))
    assert len(found) == 8

    def share(g, v):
        return int(there[g, v]) / (int(often[v]) + 60)

    likely = stats.log_likelihood(target, REFERENCE)
    assert (likely < 0).any()
    same(found["where it predicts, share"], share)
    same(found["where it predicts, share × |logit effect|"], lambda g, v: share(g, v) * abs(float(effect[g, v])))
    same(found["where it predicts, share × moved logit"], lambda g, v: share(g, v) * float(moved[g, v]))
    same(
        found["target, log likelihood × |logit effect|"],
        lambda g, v: max(float(likely[g, v]), 0) * abs(float(effect[g, v])),
    )
    shares = torch.tensor([[share(g, v) for v in range(V)] for g in range(3)])
    products = {
        "where it predicts and moved logit, rank product": (shares, moved),
        "target and where it predicts, rank product": (likely.clamp(min=0), shares),
    }
    for name, parts in products.items():
        torch.testing.assert_close(found[name], stats.rank_product(*parts))
    assert torch.equal(found["where it predicts, log likelihood"], stats.log_likelihood(there, often))
    assert torch.equal(found["where it predicts, log odds"], stats.log_odds(there, often))


def test_growth_is_ranked_with_and_without_its_sign_by_how_often_a_token_occurs():
    amounts = random_counts(3).double() - 20
    found = dict(_record_rankings.norm_rankings({"growth": amounts, "first order": amounts / 2}, REFERENCE))
    assert len(found) == 12 and all(score.shape == (3, V) for score in found.values())
    for g in range(3):
        for v in range(V):
            often, amount = int(REFERENCE[v]) + 60, float(amounts[g, v])
            assert float(found["growth by target"][g, v]) == amount
            assert float(found["|first order| by target"][g, v]) == abs(amount) / 2
            assert float(found["growth by target, per occurrence"][g, v]) == pytest.approx(amount / often)
            assert float(found["|growth| by target, per √occurrence"][g, v]) == pytest.approx(abs(amount) / often**0.5)


def test_chance_is_reproducible_and_swaps_whole_rows():
    best = random_counts(5).double()
    a, b = (dict(_rankings.chance_rankings(best, key=3)) for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a) and len(a) == 2
    swapped = a["another neuron's: where it predicts, share"]
    assert sorted(map(tuple, swapped.tolist())) == sorted(map(tuple, best.tolist()))
    assert not any(torch.equal(x, y) for x, y in zip(swapped, best, strict=True))
    assert len(dict(_rankings.chance_rankings(best[:1], key=3))) == 1  # there is no other neuron


@pytest.mark.parametrize("columns", [[4, 1, 2], [3]])
def test_all_rankings_are_those_of_the_chosen_columns(columns):
    unit, index = UNITS[0], torch.tensor(columns)
    material = neurons.Material(GRAPH, PARAMS, TOKENS, PREDICTED, REFERENCE, torch.arange(V) * 7 + 100)
    counts = {name: random_counts(len(columns), seed=i) for i, name in enumerate(("bag", "target", "input"))}
    there, norms = random_counts(len(columns), seed=9), {"growth": random_counts(len(columns), seed=8).double()}
    found = list(neurons.rankings(material, unit, index, counts, there, norms, key=0))
    assert len(found) == len({(kind, name) for kind, name, _ in found}) == neurons.n_rankings(len(columns), 1)
    by_name = {(kind, name): score for kind, name, score in found}
    effects = neurons.logit_effects(GRAPH, PARAMS, (TOKENS,), unit)
    model = dict(_rankings.model_rankings(GRAPH, PARAMS, TOKENS, PREDICTED, unit, REFERENCE, effect=effects))
    for name, score in model.items():
        assert torch.equal(by_name["model", name], score[index])
    record = dict(_record_rankings.record_rankings(counts, REFERENCE)) | dict(
        _record_rankings.norm_rankings(norms, REFERENCE)
    )
    effect = neurons.logit_effects(GRAPH, PARAMS, (TOKENS,), unit)[index]
    moved = model[_rankings.MOVED][index]
    joint = _rankings.joint_rankings(there, counts["target"], REFERENCE, material.predictions, effect, moved)
    for kind, scores in (("record", record), ("record and model", dict(joint))):
        for name, score in scores.items():
            assert torch.equal(by_name[kind, name], score), name
    assert {kind for kind, *_ in found} == {"record", "record and model", "model", "chance"}
    if len(columns) > 1:
        swapped = by_name["chance", "another neuron's: where it predicts, share"]
        share = (there / (material.predictions + 60)).tolist()
        assert sorted(swapped.tolist()) == sorted(share) and swapped.tolist() != share


@pytest.mark.parametrize(
    ("unit", "axis", "effects"),
    [
        ("layers.1.linear1.weight", "in", True),
        ("layers.1.linear1.weight", "out", False),
        ("layers.0.self_attn.out_proj.weight", "in", True),
        ("layers.0.self_attn.in_proj_weight", "out", False),
        ("layers.0.self_attn.in_proj_weight", "in", False),
    ],
)
def test_neurons_without_an_effect_on_the_logits_have_the_other_rankings(unit, axis, effects):
    assert neurons.has_effect(GRAPH, unit, axis) == effects
    material = neurons.Material(GRAPH, PARAMS, TOKENS, PREDICTED, REFERENCE, torch.arange(V) * 7 + 100)
    counts = {name: random_counts(2, seed=i) for i, name in enumerate(("bag", "target", "input"))}
    index, expected = torch.tensor([3, 0]), random_counts(2, seed=5).double() + 1
    there = random_counts(2, seed=9)
    ranked = neurons.rankings(material, unit, index, counts, there, {}, key=0, axis=axis, expected=expected)
    found = {(kind, name): score for kind, name, score in ranked}
    assert len(found) == neurons.n_rankings(2, 0, effects, expected=True)
    assert ("model", "|logit effect|") in found if effects else not any("effect" in name for _, name in found)
    means = neurons.activations_by_token(GRAPH, PARAMS, (TOKENS,), unit, axis)
    assert torch.equal(found["model", "activations by input token"], neurons.selectivity(means)[index])
    assert all(score.shape == (2, V) for score in found.values())


@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 5))
def test_expected_targets_follow_the_inputs_as_in_the_corpus(seed, n_types, n):
    rng = np.random.default_rng(seed)
    data = Data(*(torch.from_numpy(rng.integers(n_types, size=(n, 4))) for _ in range(2)))
    pairs = list(zip(data.tokens.flatten().tolist(), data.targets.flatten().tolist(), strict=True))
    at = [[pair for pair in pairs if rng.random() < 0.5] for _ in range(3)]  # where each neuron has outliers
    tables = [torch.zeros(3, n_types, dtype=torch.int32) for _ in range(2)]
    for g, own in enumerate(at):
        for pair in own:
            for table, token in zip(tables, pair, strict=True):
                table[g, token] += 1
    found = neurons.expected_targets(tables[0], data)
    for g in range(3):
        for t in range(n_types):
            expected = 0.0
            for i, _ in at[g]:
                following = [target for read, target in pairs if read == i]
                expected += following.count(t) / len(following)
            assert float(found[g, t]) == pytest.approx(expected)
    everywhere = torch.bincount(data.tokens.flatten(), minlength=n_types)[None]
    targets = torch.bincount(data.targets.flatten(), minlength=n_types)
    torch.testing.assert_close(neurons.expected_targets(everywhere, data)[0], targets.double())


def test_targets_given_the_input_are_held_against_each_neurons_own_expectation():
    target, expected = random_counts(3, seed=1), random_counts(3, seed=2).double() + 1
    target[2], expected[2] = 0, 0  # a neuron without outliers
    found = dict(_record_rankings.given_input_rankings(target, expected))
    assert len(found) == 3
    for g in range(2):
        assert torch.equal(found["target given input, log odds"][g], stats.log_odds(target[g], expected[g]))
        assert torch.equal(found["target given input, log likelihood"][g], stats.log_likelihood(target[g], expected[g]))
    same(found["target given input, share"], lambda g, v: int(target[g, v]) / (float(expected[g, v]) + 60))
    assert not any(score[2].any() for score in found.values())
