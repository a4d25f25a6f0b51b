"""Laws of scores.py: shapes, names, and what each kind of score may look at."""

import pytest
import torch
from strategies import SMALL, batch, weights

from devinterp_func import ablation, keyness, neurons, scores
from devinterp_func.neurons import Neuron

PARAMS, (TOKENS, _) = weights(SMALL), batch(SMALL, n=40)
V, UNITS = SMALL.vocab_size, ("layers.0.linear1.weight", "layers.1.linear1.weight", "layers.1.linear2.weight")
REFERENCE = torch.bincount(TOKENS.flatten(), minlength=V)


def random_counts(width, high=40, seed=0):
    return torch.randint(0, high, (width, V), generator=torch.Generator().manual_seed(seed))


def test_every_statistic_of_every_reading_is_a_score():
    counts = {reading: random_counts(4, seed=i) for i, reading in enumerate(("bag", "target"))}
    found = dict(scores.of_record(counts, REFERENCE))
    assert len(found) == 1 + 2 * len(keyness.STATISTICS)
    assert all(score.shape == (4, V) for score in found.values())


def test_the_posts_ranking_holds_the_posts_tokens_first():
    bag = random_counts(4)
    (score,) = (score for name, score in scores.of_record({"bag": bag}, REFERENCE) if name == scores.POST)
    for row, count in zip(score, bag, strict=True):
        order = row.argsort(descending=True, stable=True)[: int((count >= 20).sum())]
        assert set(order.tolist()) == set((count >= 20).nonzero()[:, 0].tolist())
        # with f = d the heuristic is the first d of this ranking
        assert set(keyness.univariate_heuristic(count, REFERENCE, 20, 2, 2).tolist()) == set(order[:2].tolist())


@pytest.mark.parametrize("unit", UNITS)
def test_logit_effects_are_the_slope_of_the_direct_path(unit):
    effect = scores.logit_effects(PARAMS, TOKENS, SMALL, unit)
    assert effect.shape == (PARAMS[unit].shape[1], V)
    if unit == "layers.1.linear2.weight":
        for index in range(SMALL.d_hidden):
            own = neurons.logit_effect(PARAMS, Neuron(unit, index), norm=True)
            torch.testing.assert_close(effect[index], own)


def test_logit_effects_of_other_units_are_refused():
    with pytest.raises(ValueError, match="'decoder.weight' is not in an MLP"):
        scores.logit_effects(PARAMS, TOKENS, SMALL, "decoder.weight")


@pytest.mark.parametrize("unit", UNITS)
def test_the_models_scores_have_a_row_for_every_column(unit):
    predicted = ablation.predictions(PARAMS, TOKENS, SMALL)
    found = dict(scores.of_model(PARAMS, TOKENS, predicted, SMALL, unit, REFERENCE))
    assert len(found) == 9
    for name, score in found.items():
        assert score.shape == (PARAMS[unit].shape[1], V), name
    often = torch.bincount(predicted.flatten(), minlength=V)
    assert torch.equal(found["prediction frequency"][0], often.double())


def test_a_share_is_of_the_predictions_that_the_outliers_sit_on():
    there, often = random_counts(3), torch.full((V,), 100)
    moved = torch.arange(V).expand(3, V).double()
    ranked = scores.of_record_and_model(there, random_counts(3, seed=1), REFERENCE, often, torch.ones(3, V), moved)
    found = dict(ranked)
    torch.testing.assert_close(found["where it predicts, share"], there / 160)
    torch.testing.assert_close(found["where it predicts, share × moved logit"], there / 160 * moved)
    order = found["target and where it predicts, rank product"].argsort(descending=True)
    assert order.shape == (3, V)
    assert len(found) == 8


def test_growth_is_ranked_with_and_without_its_sign_by_how_often_a_token_occurs():
    amounts = random_counts(3).double() - 20
    found = dict(scores.of_growth({"growth": amounts, "first order": amounts / 2}, REFERENCE))
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
    a, b = (dict(scores.of_chance(best, key=3)) for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a) and len(a) == 2
    swapped = a["another neuron's: where it predicts, share"]
    assert sorted(map(tuple, swapped.tolist())) == sorted(map(tuple, best.tolist()))
    assert not any(torch.equal(x, y) for x, y in zip(swapped, best, strict=True))
    assert len(dict(scores.of_chance(best[:1], key=3))) == 1  # there is no other neuron
