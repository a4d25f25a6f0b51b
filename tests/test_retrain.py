"""Laws of retrain.py and causes.py: a removal is the step without the datum, choices are exact, causes are found."""

from dataclasses import replace

import numpy as np
import oracles
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_builders import PLANTED as CORPUS
from run_builders import recorded
from scipy import stats
from strategies import few, some

from devinterp_func import (
    batches,
    causes,
    ledger,
    per_example,
    probes,
    results,
    retrain,
    text,
    training,
    transformer,
    tree,
)
from devinterp_func.retrain import Choice, Window
from devinterp_func.training import Recipe
from devinterp_func.transformer import Config

CONFIG = Config(len(CORPUS.vocab), d_model=12, n_heads=2, d_hidden=8, n_layers=1)
RECIPE = Recipe(context=10, batch_size=6, epochs=2, n_steps=12, k=5, snapshot_every=5)
DATA = batches.chunk(CORPUS.train, RECIPE.context)
START = {name: w.double() for name, w in training.initial(CONFIG, RECIPE).items()}
WINDOW = Window(START, DATA, CONFIG, RECIPE, 0, 4)
SHAPE = (4, RECIPE.batch_size)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def brute_force(window, removed):
    """Training from the definition: each datum's gradient apart, those that are left added up over the whole n."""

    def loss(params, tokens, targets, masks):
        return transformer.loss(params, tokens, targets, window.config, masks)

    order = batches.schedule(len(DATA.tokens), window.recipe.batch_size, epoch=0, key=window.recipe.seed)
    params = window.params
    for step in range(window.start, window.stop):
        left = [int(j) for j, out in zip(order[step], removed[step - window.start], strict=True) if not out]
        if not left:
            continue
        masks = training.masks_of(window.config, window.recipe, 0, torch.tensor(left))
        each = per_example.grads(loss)(params, DATA.tokens[left], DATA.targets[left], masks)
        mean = tree.map(lambda g: g.sum(0) / window.recipe.batch_size, each)
        params = oracles.clip_and_step(params, mean, window.recipe.lr, window.recipe.max_norm)
    return params


# ---- training again


@settings(max_examples=5, deadline=None)
@given(out=st.sets(st.integers(0, 23)), max_norm=st.sampled_from([0.1, 10.0]))
def test_a_removal_is_the_definitions_training_on_what_is_left(out, max_norm):
    window = WINDOW._replace(recipe=replace(RECIPE, max_norm=max_norm))
    removed = torch.tensor([i in out for i in range(24)]).view(SHAPE)
    oracles.assert_close(retrain.without(window, removed), brute_force(window, removed), 1e-9)


def test_nothing_removed_leaves_every_bit():
    nothing = torch.zeros(SHAPE, dtype=torch.bool)
    assert same(retrain.without(WINDOW), retrain.without(WINDOW, nothing))


def test_all_removed_leaves_the_weights():
    everything = torch.ones(SHAPE, dtype=torch.bool)
    assert same(retrain.without(WINDOW, everything), START)
    assert not same(retrain.without(WINDOW), START)


@pytest.mark.parametrize("j", [0, 3, 5])
def test_without_clipping_the_last_steps_datum_takes_its_delta_away(j):
    """The definition of the marginal: f(w + Δw) − f(w + Δw − Δ_j)."""
    recipe = replace(RECIPE, max_norm=1e6, units=ledger.UNITS)
    *_, move = training.moves(START, DATA, CONFIG, recipe, stop=4)
    removed = torch.zeros(SHAPE, dtype=torch.bool)
    removed[3, j] = True
    found = retrain.without(WINDOW._replace(recipe=recipe), removed)
    deltas = per_example.gradients(move.factors)
    oracles.assert_close(tree.sub(move.after, found), {name: deltas[name][j] for name in found}, 1e-9)
    probe = probes.bigram(3, 5)
    expected = float(ledger.left_out(move, probe)[j])
    assert float(probe.value(move.after) - probe.value(found)) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_what_is_left_is_clipped_anew_and_obeys_the_law():
    removed = torch.zeros(SHAPE, dtype=torch.bool)
    removed[:, ::2] = True
    recipe = replace(RECIPE, max_norm=0.05, units=ledger.UNITS)
    for move in training.moves(START, DATA, CONFIG, recipe, stop=4, removed=removed):
        deltas = per_example.gradients(move.factors)
        assert len(move.datum) == 3 and float(move.info.clip) < 1
        moved = tree.sub(move.after, move.before)
        assert float(tree.norm(moved)) == pytest.approx(recipe.lr * recipe.max_norm, rel=1e-4)
        oracles.assert_close(tree.map(lambda d: d.sum(0), deltas), {name: moved[name] for name in deltas}, 1e-9)


def test_a_patch_is_one_step_on_its_data_without_dropout_at_the_windows_last_rate():
    per_epoch = batches.n_batches(len(DATA.tokens), RECIPE.batch_size)
    window, ids = WINDOW._replace(stop=per_epoch + 1), torch.tensor([2, 7, 1])

    def loss(params, tokens, targets):
        return transformer.loss(params, tokens, targets, CONFIG)

    mean = tree.map(lambda g: g.mean(0), per_example.grads(loss)(START, DATA.tokens[ids], DATA.targets[ids]))
    expected = oracles.clip_and_step(START, mean, RECIPE.lr * RECIPE.gamma, RECIPE.max_norm)
    oracles.assert_close(retrain.patched(START, ids, window), expected, 1e-9)


# ---- choices

SCORES = st.lists(st.integers(-3, 3), min_size=12, max_size=12).map(lambda x: torch.tensor(x).double().view(4, 3))


@some
@given(scores=SCORES, share=st.floats(0.01, 0.99))
def test_the_top_is_the_highest_scores_and_of_ties_the_first(scores, share):
    found, flat = retrain.top(scores, share).flatten().tolist(), scores.flatten().tolist()
    order = sorted(range(12), key=lambda i: (-flat[i], i))
    assert {i for i in range(12) if found[i]} == set(order[: max(1, round(12 * share))])


@few
@given(scores=SCORES, draws=st.integers(0, 3))
def test_choices_are_of_one_size_and_larger_shares_hold_smaller_ones(scores, draws):
    found = retrain.choices({"credit": scores, "norm": -scores}, [0.1, 0.5], draws, key=0)
    assert len(found) == 2 * (2 + draws)
    for choice, removed in found.items():
        assert int(removed.sum()) == {0.1: 1, 0.5: 6}[choice.share]
        assert bool((found[choice._replace(share=0.5)] | ~removed).all())
    random = [removed for choice, removed in found.items() if choice.score == "random" and choice.share == 0.5]
    assert len({tuple(removed.flatten().tolist()) for removed in random}) == draws


def test_patches_are_the_ends_of_the_summed_scores():
    datum = torch.tensor([[4, 1], [2, 4], [3, 0]])
    score = torch.tensor([[1.0, 5.0], [3.0, 1.5], [-1.0, 0.0]])
    found = retrain.patches({"credit": score}, datum, 2, key=0)
    assert {choice.score: ids.tolist() for choice, ids in found.items() if choice.score != "random"} == {
        "highest credit": [1, 2],
        "lowest credit": [0, 3],
    }
    drawn = [ids.tolist() for choice, ids in found.items() if choice.score == "random"]
    assert len(drawn) == 2 and all(len(set(ids)) == 2 and set(ids) <= set(range(5)) for ids in drawn)


def test_done_choices_are_skipped_when_read_back(tmp_path):
    wanted = list(retrain.choices({"credit, loss": torch.arange(12.0).view(3, 4)}, [0.1, 1 / 3], 2, key=0))
    assert retrain.missing(wanted, None) == wanted
    part = pl.concat([retrain.outcome_frame(choice, 1, {"loss": 0.1}) for choice in wanted[::2]])
    results.write_table(tmp_path, "outcomes", part)
    assert retrain.missing(wanted, results.read_table(tmp_path, "outcomes")) == wanted[1::2]


# ---- what came of it


def test_forecasts_are_minus_the_sums_of_what_is_removed():
    moves = list(training.moves(START, DATA, CONFIG, replace(RECIPE, units=ledger.UNITS), stop=4))
    followed = [probes.bigram(3, 5), probes.log_probability(DATA.tokens[0], 4, CONFIG)]
    entries = [ledger.of_move(move, followed, 2) for move in moves]
    amounts = retrain.Amounts(
        *map(torch.stack, zip(*(retrain.of_move(move, followed, 2) for move in moves), strict=True))
    )
    removed = retrain.top(amounts.norm, 0.3)
    frame = retrain.forecast_frame(removed, amounts, [probe.name for probe in followed])
    for i, row in enumerate(frame.iter_rows(named=True)):
        gone = [(s, j) for s in range(4) for j in range(6) if removed[s, j]]
        assert row["by credit"] == pytest.approx(-sum(float(entries[s].credit[i, j].sum()) for s, j in gone))
        assert row["by marginal"] == pytest.approx(-sum(float(entries[s].marginal[i, j].sum()) for s, j in gone))
    for move, norm in zip(moves, amounts.norm, strict=True):
        torch.testing.assert_close(norm, ledger.norms(move.factors))


def test_effects_stand_beside_chance():
    chance = [0.1, 0.3, 0.2, 0.5]
    parts = [retrain.outcome_frame(Choice("random", 0.1, i), 7, {"loss": x}) for i, x in enumerate(chance)]
    frame = retrain.effect_frame(pl.concat([retrain.outcome_frame(Choice("norm", 0.1), 7, {"loss": 2.0}), *parts]))
    norm, random = frame.sort("score").iter_rows(named=True)
    expected = stats.ttest_1samp(chance, 0).confidence_interval()
    assert (random["low"], random["high"]) == pytest.approx((expected.low, expected.high))
    assert random["effect"] == pytest.approx(np.mean(chance)) and random["SDs"] is None
    assert norm["SDs"] == pytest.approx((2 - np.mean(chance)) / np.std(chance, ddof=1))
    assert norm["SDs low"] < norm["SDs"] < norm["SDs high"] and norm["low"] is None


def test_the_interval_of_the_distance_holds_the_truth_as_often_as_it_says():
    drawn = np.random.Generator(np.random.Philox(0)).normal(size=(400, 5))
    held = 0
    for sample in drawn:
        _, low, high = retrain._distance(2.0, pl.Series(sample)).values()
        assert low is not None and high is not None
        held += low <= 2.0 <= high
    assert 0.95 - 3 * (0.05 * 0.95 / 400) ** 0.5 < held / 400 < 0.95 + 3 * (0.05 * 0.95 / 400) ** 0.5


@some
@given(scores=SCORES, truth=st.integers(0, 2**12 - 1), k=st.integers(1, 3))
def test_precision_counts_the_true_among_the_first(scores, truth, k):
    true = torch.tensor([bool(truth >> i & 1) for i in range(12)]).view(4, 3)
    for row, hits, found in zip(scores.tolist(), true.tolist(), retrain.precision_at(scores, true, [k]), strict=True):
        order = sorted(range(3), key=lambda i: (-row[i], i))
        assert float(found) == pytest.approx(sum(hits[i] for i in order[:k]) / k)


# ---- a cause that is known


def test_credits_find_planted_causes_and_the_controls_do_not():
    corpus = text.planted(key=0)
    config = Config(len(corpus.vocab), d_model=24, n_heads=2, d_hidden=24, n_layers=1, dropout=0.0)
    study = causes.study(corpus, config, Recipe(n_steps=25, units=ledger.UNITS), n=2)
    base = float(study.truth.double().mean())
    precision = {name: float(retrain.precision_at(x, study.truth, [10]).mean()) for name, x in study.scores.items()}
    assert precision["credit"] > 0.7 > 5 * base
    assert max(precision["norm of the datum's delta"], precision["random"]) < 3 * base


def test_the_cause_is_the_data_with_the_pair():
    pair = next(iter(text.planted_bigrams(CORPUS.vocab).items()))
    stream, context = CORPUS.train.tolist(), RECIPE.context
    for datum, found in enumerate(causes.contains(DATA, *pair).tolist()):
        own = stream[datum * context : (datum + 1) * context + 1]
        assert found == (pair in zip(own[:-1], own[1:], strict=True))


# ---- bad input


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("runs") / "run", RECIPE, config=CONFIG)


def test_a_window_of_a_run_ends_in_the_runs_own_weights(run):
    *_, move = training.moves(training.initial(CONFIG, RECIPE), DATA, CONFIG, RECIPE)
    assert same(retrain.without(retrain.window(run, 5, 7)), move.after)


def test_bad_windows_are_named(run):
    with pytest.raises(ValueError, match="no snapshot before step 3; it has them before 0, 5, 10, 12"):
        retrain.window(run, 3, 2)
    with pytest.raises(ValueError, match="the walk is from step 5 to 13; .* has 12 recorded steps"):
        retrain.window(run, 5, 8)


def test_bad_choices_are_named():
    for share in (0.0, 1.0, -0.1, 5.0):
        with pytest.raises(ValueError, match=f"share is {share}; it must be between 0 and 1"):
            retrain.top(torch.ones(2, 2), share)
    with pytest.raises(ValueError, match="1 of the scores are NaN"):
        retrain.top(torch.tensor([[1.0, torch.nan]]), 0.5)
    with pytest.raises(ValueError, match=r"removed is \(2, 6\); of steps 0 to 4 it must be \(4, 6\)"):
        retrain.without(WINDOW, torch.zeros(2, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"k is 4; it must be in 1\.\.3"):
        retrain.precision_at(torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool), [4])
    with pytest.raises(ValueError, match="no 10 tokens of the stream end in token 3"):
        causes.after(torch.zeros(20, dtype=torch.int64), 3, 4, CONFIG)
