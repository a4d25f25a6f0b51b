"""Laws of retraining: a removal is the step without the datum, choices are exact, effects stand beside chance."""

from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_builders import PLANTED as CORPUS
from run_builders import recorded
from scipy import stats as distributions
from strategies import few, graph_of, some

from devinterp_func import batches, credit, keys, models, optim, per_example, records, stats, training, tree, units
from devinterp_func.credit import DatumAmounts, Retrained, Window, probes
from devinterp_func.models import Config
from devinterp_func.records import Recording
from devinterp_func.training import Recipe

CONFIG = Config(len(CORPUS.vocab), d_model=12, n_heads=2, d_hidden=8, n_layers=1)
MODEL, GRAPH = models.transformer(CONFIG), graph_of(CONFIG, context=10)
RECIPE = Recipe(context=10, batch_size=6, epochs=2, n_steps=12)
DATA = batches.chunk(CORPUS.train, RECIPE.context)
START = {name: w.double() for name, w in training.initial(MODEL, RECIPE).items()}
WINDOW = Window(GRAPH, START, RECIPE.optimizer.init(START), DATA, RECIPE, 0, 4)
SHAPE = (4, RECIPE.batch_size)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def brute_force(window, removed):
    """Training from the definition: each datum's gradient apart, those that are left added up over the whole n."""
    order = batches.schedule(len(DATA.tokens), window.recipe.batch_size, epoch=0, key=window.recipe.seed)
    params = window.params
    for step in range(window.start, window.stop):
        left = [int(j) for j, out in zip(order[step], removed[step - window.start], strict=True) if not out]
        if not left:
            continue
        masks = training.masks_of(GRAPH, window.recipe, 0, torch.tensor(left))
        each = per_example.grads(oracles.masked(MODEL.loss))(params, DATA.tokens[left], DATA.targets[left], masks)
        mean = tree.map(lambda g: g.sum(0) / window.recipe.batch_size, each)
        params = oracles.clip_and_step(params, mean, window.recipe.lr, window.recipe.max_norm)
    return params


# ---- training again


@settings(max_examples=5, deadline=None)
@given(out=st.sets(st.integers(0, 23)), max_norm=st.sampled_from([0.1, 10.0]))
def test_a_removal_is_the_definitions_training_on_what_is_left(out, max_norm):
    window = WINDOW._replace(recipe=replace(RECIPE, max_norm=max_norm))
    removed = torch.tensor([i in out for i in range(24)]).view(SHAPE)
    oracles.assert_close(credit.retrain(window, removed).params, brute_force(window, removed), 1e-9)


def test_nothing_removed_leaves_every_bit():
    nothing = torch.zeros(SHAPE, dtype=torch.bool)
    assert same(credit.retrain(WINDOW).params, credit.retrain(WINDOW, nothing).params)


def test_all_removed_leaves_the_weights():
    everything = torch.ones(SHAPE, dtype=torch.bool)
    assert same(credit.retrain(WINDOW, everything).params, START)
    assert not same(credit.retrain(WINDOW).params, START)


@pytest.mark.parametrize("j", [0, 3, 5])
def test_without_clipping_the_last_steps_datum_takes_its_delta_away(j):
    """The definition of the marginal: f(w + Δw) − f(w + Δw − Δ_j)."""
    recipe = replace(RECIPE, max_norm=1e6)
    *_, move = training.moves(GRAPH, START, DATA, recipe, captured=units.EVERY, stop=4)
    removed = torch.zeros(SHAPE, dtype=torch.bool)
    removed[3, j] = True
    found = credit.retrain(WINDOW._replace(recipe=recipe), removed).params
    deltas = per_example.gradients(move.factors)
    oracles.assert_close(tree.sub(move.after, found), {name: deltas[name][j] for name in found}, 1e-9)
    probe = probes.bigram(GRAPH, 3, 5)
    expected = float(credit.leave_one_out(move, probe)[j])
    assert float(probe.value(move.after) - probe.value(found)) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_what_is_left_is_clipped_anew_and_obeys_the_law():
    removed = torch.zeros(SHAPE, dtype=torch.bool)
    removed[:, ::2] = True
    recipe = replace(RECIPE, max_norm=0.05)
    for move in training.moves(GRAPH, START, DATA, recipe, captured=units.EVERY, stop=4, removed=removed):
        deltas = per_example.gradients(move.factors)
        assert len(move.datum) == 3 and float(move.split.clip) < 1
        moved = tree.sub(move.after, move.before)
        assert float(tree.norm(moved)) == pytest.approx(recipe.lr * recipe.max_norm, rel=1e-4)
        oracles.assert_close(tree.map(lambda d: d.sum(0), deltas), {name: moved[name] for name in deltas}, 1e-9)


def test_a_patch_is_one_step_on_its_data_without_dropout_at_the_windows_last_rate():
    per_epoch = batches.n_batches(len(DATA.tokens), RECIPE.batch_size)
    window, ids = WINDOW._replace(stop=per_epoch + 1), torch.tensor([2, 7, 1])
    each = per_example.grads(oracles.without_dropout(MODEL.loss))(START, DATA.tokens[ids], DATA.targets[ids])
    mean = tree.map(lambda g: g.mean(0), each)
    expected = oracles.clip_and_step(START, mean, RECIPE.lr * RECIPE.schedule.gamma, RECIPE.max_norm)
    end = Retrained(START, RECIPE.optimizer.init(START))
    oracles.assert_close(credit.tail_patch(end, ids, window), expected, 1e-9)


# ---- an optimizer that remembers

REMEMBERING = {
    "nesterov": (
        optim.sgd(momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda weights: torch.optim.SGD(weights, momentum=0.9, nesterov=True, weight_decay=0.01),
    ),
    "adamw": (optim.adamw(weight_decay=0.1), lambda weights: torch.optim.AdamW(weights, weight_decay=0.1)),
}


@pytest.mark.parametrize("name", REMEMBERING)
def test_memory_goes_on_from_what_is_left_and_a_patch_steps_from_the_windows_end(name):
    """Against torch's optimizer, with a rate that rises and falls, and a step that all data are removed from."""
    optimizer, build = REMEMBERING[name]
    schedule = optim.Schedule("cosine", warmup=2, end=0.1)
    recipe = replace(RECIPE, optimizer=optimizer, schedule=schedule, lr=0.05, max_norm=0.1)
    removed = torch.zeros(SHAPE, dtype=torch.bool)
    removed[1, 2] = removed[2] = True
    window = Window(GRAPH, START, optimizer.init(START), DATA, recipe, 0, 4)
    own = {unit: torch.nn.Parameter(weight.clone()) for unit, weight in START.items()}
    theirs, order = build(own.values()), batches.schedule(len(DATA.tokens), 6, epoch=0, key=recipe.seed)

    def step(gradients, rate):
        for unit, parameter in own.items():
            parameter.grad = gradients[unit].clone()
        torch.nn.utils.clip_grad_norm_(own.values(), recipe.max_norm)
        theirs.param_groups[0]["lr"] = rate
        theirs.step()

    rates = [recipe.lr * schedule.factor(t, 0, 12) for t in range(4)]
    for t, rate in enumerate(rates):
        left, now = order[t][~removed[t]], {unit: w.detach() for unit, w in own.items()}
        gradients = tree.map(torch.zeros_like, now)
        if len(left):
            masks = training.masks_of(GRAPH, recipe, 0, left)
            each = per_example.grads(oracles.masked(MODEL.loss))(now, DATA.tokens[left], DATA.targets[left], masks)
            gradients = tree.map(lambda g: g.sum(0) / 6, each)
        step(gradients, rate)
    end = credit.retrain(window, removed)
    assert end.state.steps == 4 and repr(end).endswith("parameters, " + repr(end.state))
    oracles.assert_close(end.params, {unit: w.detach() for unit, w in own.items()}, 1e-9)
    ids, now = torch.tensor([2, 7, 1]), {unit: w.detach() for unit, w in own.items()}
    each = per_example.grads(oracles.without_dropout(MODEL.loss))(now, DATA.tokens[ids], DATA.targets[ids])
    step(tree.map(lambda g: g.mean(0), each), rates[-1])
    oracles.assert_close(credit.tail_patch(end, ids, window), {unit: w.detach() for unit, w in own.items()}, 1e-9)


def test_a_window_of_a_run_starts_from_the_runs_memory(tmp_path):
    recipe = replace(RECIPE, optimizer=optim.sgd(momentum=0.9), lr=0.5)
    run = recorded(tmp_path / "run", recipe, Recording(k=5, snapshot_every=5), model=MODEL)
    window = credit.window(run, 5, 7)
    assert window.state.steps == 5
    end = credit.retrain(window)
    assert same(end.params, run.params(12)) and end.state.steps == 12
    for unit, buffers in run.state(12).buffers.items():
        assert same(end.state.buffers[unit], buffers)


# ---- choices

SCORES = st.lists(st.integers(-3, 3), min_size=12, max_size=12).map(lambda x: torch.tensor(x).double().view(4, 3))


@some
@given(scores=SCORES, share=st.floats(0.01, 0.99))
def test_the_top_is_the_highest_scores_and_of_ties_the_first(scores, share):
    found, flat = credit.top_mask(scores, share).flatten().tolist(), scores.flatten().tolist()
    order = sorted(range(12), key=lambda i: (-flat[i], i))
    assert {i for i in range(12) if found[i]} == set(order[: max(1, round(12 * share))])


@few
@given(scores=SCORES, draws=st.integers(0, 3))
def test_choices_are_of_one_size_and_larger_shares_hold_smaller_ones(scores, draws):
    found = credit.removals({"credit": scores, "norm": -scores}, [0.1, 0.5], draws, key=0)
    assert len(found) == 2 * (2 + draws)
    for choice, removed in found.items():
        assert int(removed.sum()) == {0.1: 1, 0.5: 6}[choice.share]
        assert bool((found[choice._replace(share=0.5)] | ~removed).all())
    random = [removed for choice, removed in found.items() if choice.score == "random" and choice.share == 0.5]
    assert len({tuple(removed.flatten().tolist()) for removed in random}) == draws


@few
@given(pool=st.lists(st.booleans(), min_size=12, max_size=12), draws=st.integers(1, 3))
def test_random_choices_among_some_are_of_these_alone(pool, draws):
    pool = torch.tensor(pool).view(4, 3)
    asked = ({"credit": torch.arange(12.0).view(4, 3)}, [0.25], draws)
    if int(pool.sum()) < 3:
        with pytest.raises(ValueError, match=f"3 occurrences were to be drawn from {int(pool.sum())}; take a smaller"):
            credit.removals(*asked, key=0, among={"some": pool})
        return
    found = credit.removals(*asked, key=0, among={"some": pool})
    for choice, removed in found.items():
        assert int(removed.sum()) == 3
        assert choice.score != "some" or not bool((removed & ~pool).any())
    assert sum(choice.score == "some" for choice in found) == draws


@few
@given(own=st.lists(st.booleans(), min_size=12, max_size=12), draws=st.integers(0, 3))
def test_what_is_given_is_removed_as_it_is_beside_random_choices_of_as_many(own, draws):
    own, scores = torch.tensor(own).view(4, 3), {"credit": torch.arange(12.0).view(4, 3)}
    if (count := int(own.sum())) in (0, 12):
        with pytest.raises(ValueError, match=f"'mine' are {count} of 12 occurrences; they must be some and not all"):
            credit.removals(scores, [], draws, key=0, given={"mine": own})
        return
    found = credit.removals(scores, [], draws, key=0, given={"mine": own})
    assert torch.equal(found.pop(credit.Choice("mine", count / 12)), own)
    assert set(found) == {credit.Choice("random", count / 12, draw) for draw in range(draws)}
    assert all(int(removed.sum()) == count for removed in found.values())


@few
@given(data=st.data(), draws=st.integers(1, 3))
def test_beside_what_is_given_as_many_are_drawn_from_each_pool_that_has_more(data, draws):
    masks = st.lists(st.booleans(), min_size=12, max_size=12).map(lambda x: torch.tensor(x).view(4, 3))
    own, pool = data.draw(masks.filter(lambda x: 0 < int(x.sum()) < 12)), data.draw(masks)
    scores, count = {"credit": torch.arange(12.0).view(4, 3)}, int(own.sum())
    found = credit.removals(scores, [], draws, key=0, given={"mine": own}, among={"some": pool, "rest": ~pool})
    for name, of in (("some", pool), ("rest", ~pool)):
        drawn = [removed for choice, removed in found.items() if choice.score == name]
        assert len(drawn) == (draws if int(of.sum()) > count else 0)
        assert all(int(removed.sum()) == count and not bool((removed & ~of).any()) for removed in drawn)


@given(own=st.lists(st.booleans(), min_size=30, max_size=30), norms=st.permutations(range(30)), seed=st.integers(0, 9))
def test_each_removed_datum_is_matched_with_one_of_the_next_in_norm_that_are_left(own, norms, seed):
    removed, size = torch.tensor(own).view(10, 3), torch.tensor(norms).double().view(10, 3) ** 2
    if sum(own) > 15:
        with pytest.raises(ValueError, match=f"{sum(own)} of 30 occurrences are removed; others of equal norm are too"):
            credit.of_equal_norm(removed, size, key=seed)
        return
    found = credit.of_equal_norm(removed, size, key=seed)
    assert int(found.sum()) == sum(own) and not bool((found & removed).any())
    rng, flat = keys.generator(seed), size.flatten().tolist()
    left, drawn = [i for i in range(30) if not own[i]], set()
    for at in rng.permutation(sum(own)).tolist():
        place = [i for i in range(30) if own[i]][at]
        near = sorted(left, key=lambda i: (abs(flat[i] - flat[place]), i))[:10]
        drawn.add(one := near[int(rng.integers(len(near)))])
        left.remove(one)
    assert {i for i in range(30) if bool(found.flatten()[i])} == drawn


def test_matches_are_as_large_as_what_is_removed_and_every_near_one_may_be_drawn():
    norms = keys.uniform((40, 25), 1.0, 3.0, key=1).double() ** 4
    removed = credit.top_mask(keys.uniform((40, 25), 0.0, 1.0, key=2) * norms, 0.05)  # most are large
    draws = [credit.of_equal_norm(removed, norms, key=draw) for draw in range(20)]
    assert float(norms[removed].mean()) > 2 * float(norms.mean())
    assert all(float(norms[drawn].mean() / norms[removed].mean()) == pytest.approx(1, abs=0.05) for drawn in draws)
    one = torch.arange(1000).view(40, 25) == 0
    near = sorted(range(1, 1000), key=lambda i: abs(float(norms.flatten()[i] - norms[0, 0])))[:10]
    drawn = {int(credit.of_equal_norm(one, norms, key=draw).flatten().nonzero()) for draw in range(100)}
    assert drawn == set(near)


def test_what_is_removed_stands_beside_draws_of_equal_norm_but_what_is_largest_does_not():
    norms = keys.uniform((4, 10), 0.0, 1.0, key=3).double()
    scores, own = {"credit": -norms, "norm": norms}, torch.arange(40).view(4, 10) < 3
    found = credit.removals(scores, [0.05, 0.1], 3, key=0, given={"mine": own}, norms=norms)
    matched = {choice: drawn for choice, drawn in found.items() if choice.score.startswith(credit.EQUAL_NORM)}
    asked = {(credit.EQUAL_NORM + "credit", 0.05), (credit.EQUAL_NORM + "credit", 0.1)}
    assert set(matched) == {
        credit.Choice(name, share, draw)
        for name, share in (*asked, (credit.EQUAL_NORM + "mine", 3 / 40))
        for draw in range(3)
    }
    for choice, drawn in matched.items():
        removed = found[credit.Choice(choice.score.removeprefix(credit.EQUAL_NORM), choice.share)]
        assert int(drawn.sum()) == int(removed.sum()) and not bool((drawn & removed).any())
    assert len({tuple(drawn.flatten().tolist()) for drawn in matched.values()}) == 9
    without = credit.removals(scores, [0.05, 0.1], 3, key=0, given={"mine": own})
    assert set(without) == set(found) - set(matched) and all(torch.equal(without[c], found[c]) for c in without)


def test_what_is_given_and_more_than_half_has_no_draws_of_equal_norm():
    norms, own = keys.uniform((4, 10), 0.0, 1.0, key=3).double(), torch.arange(40).view(4, 10) < 21
    found = credit.removals({"credit": norms}, [], 2, key=0, given={"most": own, "rest": ~own}, norms=norms)
    matched = {choice.score for choice in found if choice.score.startswith(credit.EQUAL_NORM)}
    assert matched == {credit.EQUAL_NORM + "rest"}


def test_patches_are_the_ends_of_the_summed_scores():
    datum = torch.tensor([[4, 1], [2, 4], [3, 0]])
    score = torch.tensor([[1.0, 5.0], [3.0, 1.5], [-1.0, 0.0]])
    found = credit.tail_batches({"credit": score}, datum, 2, key=0)
    assert {choice.score: ids.tolist() for choice, ids in found.items() if choice.score != "random"} == {
        "highest credit": [1, 2],
        "lowest credit": [0, 3],
    }
    drawn = [ids.tolist() for choice, ids in found.items() if choice.score == "random"]
    assert len(drawn) == 2 and all(len(set(ids)) == 2 and set(ids) <= set(range(5)) for ids in drawn)
    many = torch.arange(60).view(4, 15)
    patches = credit.tail_batches({"credit": many.double()}, many, 3, key=0)
    assert len({tuple(ids.tolist()) for choice, ids in patches.items() if choice.score == "random"}) == 3


# ---- an effect beside chance

CHANCE = [0.1, 0.3, 0.2, 0.5]


def test_the_interval_of_the_mean_is_students():
    expected = distributions.ttest_1samp(CHANCE, 0).confidence_interval()
    assert credit.mean_interval(CHANCE) == pytest.approx((expected.low, expected.high))
    assert credit.mean_interval([0.1, 0.1]) == (0.1, 0.1)  # draws that are alike leave no doubt
    assert credit.mean_interval(CHANCE[:1]) is None and credit.mean_interval([]) is None


def test_the_interval_of_a_difference_is_that_of_one_new_draw():
    found = credit.difference_interval(2.0, CHANCE)
    assert found is not None and sum(found) / 2 == pytest.approx(2 - np.mean(CHANCE))
    t = (found[1] - found[0]) / 2 / (np.std(CHANCE, ddof=1) * (1 + 1 / 4) ** 0.5)
    assert 2 * distributions.t.sf(t, 3) == pytest.approx(0.05)
    assert credit.difference_interval(2.0, [0.1]) is None


def test_a_distance_is_in_standard_deviations_of_the_draws():
    found = credit.distance_from_chance(2.0, CHANCE)
    assert found is not None
    assert found.value == pytest.approx((2 - np.mean(CHANCE)) / np.std(CHANCE, ddof=1))
    for end, p in ((found.low, 0.975), (found.high, 0.025)):  # n = 4 draws: √n · distance is noncentral t
        assert distributions.nct.cdf(2 * found.value, 3, 2 * end) == pytest.approx(p, abs=1e-6)
    below = credit.distance_from_chance(2 * float(np.mean(CHANCE)) - 2.0, CHANCE)
    assert below == pytest.approx((-found.value, -found.high, -found.low))
    assert credit.distance_from_chance(2.0, [0.1]) is None and credit.distance_from_chance(2.0, [0.1, 0.1]) is None


def test_the_interval_of_the_distance_holds_the_truth_as_often_as_it_says():
    drawn = np.random.Generator(np.random.Philox(0)).normal(size=(400, 5))
    held = 0
    for sample in drawn:
        found = credit.distance_from_chance(2.0, sample.tolist())
        assert found is not None
        held += found.low <= 2.0 <= found.high
    assert 0.95 - 3 * (0.05 * 0.95 / 400) ** 0.5 < held / 400 < 0.95 + 3 * (0.05 * 0.95 / 400) ** 0.5


# ---- what each datum did


@pytest.fixture(scope="module")
def amounts():
    """Two probes over four steps: the ledger's entries, and their amounts by datum."""
    moves = list(training.moves(GRAPH, START, DATA, RECIPE, captured=units.EVERY, stop=4))
    followed = [probes.bigram(GRAPH, 3, 5), probes.log_probability(GRAPH, DATA.tokens[0], 4)]
    entries = [credit.split_change(move, followed, 2, at_start=True) for move in moves]
    each = [credit.datum_amounts(move, followed, 2, at_start=True) for move in moves]
    return moves, entries, tree.stack(each)


def test_amounts_are_sums_over_a_datums_positions(amounts):
    moves, entries, found = amounts
    for s, (move, entry) in enumerate(zip(moves, entries, strict=True)):
        assert int(found.step[s]) == s and torch.equal(found.datum[s], move.datum)
        for name in ("credit", "marginal", "at_start"):
            for p in range(2):
                for j in range(6):
                    expected = sum(float(x) for x in getattr(entry, name)[p, j])
                    assert float(getattr(found, name)[s, p, j]) == pytest.approx(expected)
        deltas = per_example.gradients(move.factors)
        for j in range(6):
            norm = sum(float(delta[j].square().sum()) for delta in deltas.values()) ** 0.5
            assert float(found.norm[s, j]) == pytest.approx(norm)


def test_predictions_are_minus_the_sums_of_what_is_removed(amounts):
    _, entries, found = amounts
    removed = credit.top_mask(found.norm, 0.3)
    gone = [(s, j) for s in range(4) for j in range(6) if removed[s, j]]
    predicted = found.predicted(removed)
    for p in range(2):
        assert float(predicted["credit"][p]) == pytest.approx(
            -sum(float(entries[s].credit[p, j].sum()) for s, j in gone)
        )
        expected = -sum(float(entries[s].marginal[p, j].sum()) for s, j in gone)
        assert float(predicted["marginal"][p]) == pytest.approx(expected)


def test_to_help_is_to_lower_a_loss_and_to_raise_any_other_probe(amounts):
    *_, found = amounts
    scores = found.scores(["loss", "bigram:a b"], ["credit", "at_start"])
    assert list(scores) == ["credit, loss", "credit, bigram:a b", "at_start, loss", "at_start, bigram:a b", "norm"]
    assert torch.equal(scores["credit, loss"], -found.credit[:, 0])
    assert torch.equal(scores["at_start, loss"], -found.at_start[:, 0])
    assert torch.equal(scores["credit, bigram:a b"], found.credit[:, 1]) and torch.equal(scores["norm"], found.norm)


def test_other_amounts_choose_and_predict_like_the_ledgers(amounts):
    *_, found = amounts
    more = {"other": 2 * found.credit}
    scores = found.scores(["loss", "bigram:a b"], ["other"], more)
    assert torch.equal(scores["other, loss"], -2 * found.credit[:, 0])
    predicted = found.predicted(found.norm > 0, more)
    assert torch.allclose(predicted["other"], 2 * predicted["credit"])


def test_a_replay_writes_the_amounts_of_its_steps(run, tmp_path):
    followed = [probes.bigram(run.graph, 3, 5)]
    steps = list(credit.datum_ledger(run, tmp_path / "walk", followed, {"seed": 0}, start=5, stop=8, m=2))
    assert [step for step, _ in steps] == [5, 6, 7]
    found = records.read_walk(tmp_path / "walk", DatumAmounts)
    for s, move in enumerate(run.moves(5, 8, units.EVERY)):
        expected = credit.datum_amounts(move, followed, 2)
        assert torch.equal(found.credit[s], expected.credit) and torch.equal(found.norm[s], expected.norm)
    assert found.at_start.isnan().all()
    with pytest.raises(records.RecordError, match="at start"):
        list(credit.datum_ledger(run, tmp_path / "walk", followed, {"seed": 0}, start=5, stop=8, m=2, at_start=True))


def test_probe_changes_are_against_the_reference():
    one, other = probes.bigram(GRAPH, 3, 5), probes.bigram(GRAPH, 2, 1)
    values = credit.probe_values([one, other], START)
    assert values == {probe.name: pytest.approx(float(probe.value(START))) for probe in (one, other)}
    assert credit.probe_changes([one], START, {one.name: 1.0})[one.name] == pytest.approx(values[one.name] - 1)


@some
@given(scores=SCORES, truth=st.integers(0, 2**12 - 1), k=st.integers(1, 3))
def test_precision_counts_the_true_among_the_first(scores, truth, k):
    true = torch.tensor([bool(truth >> i & 1) for i in range(12)]).view(4, 3)
    for row, hits, found in zip(scores.tolist(), true.tolist(), stats.precision_at(scores, true, [k]), strict=True):
        order = sorted(range(3), key=lambda i: (-row[i], i))
        assert float(found) == pytest.approx(sum(hits[i] for i in order[:k]) / k)


# ---- bad input


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("runs") / "run", RECIPE, Recording(k=5, snapshot_every=5), model=MODEL)


def test_a_window_of_a_run_ends_in_the_runs_own_weights(run):
    *_, move = training.moves(graph_of(CONFIG, torch.float32, 10), training.initial(MODEL, RECIPE), DATA, RECIPE)
    assert same(credit.retrain(credit.window(run, 5, 7)).params, move.after)


def test_bad_windows_are_named(run):
    with pytest.raises(ValueError, match="no snapshot before step 3; it has them before 0, 5, 10, 12"):
        credit.window(run, 3, 2)
    with pytest.raises(ValueError, match="steps 5 to 13 were asked for; .* has 12 recorded steps"):
        credit.window(run, 5, 8)


def test_bad_choices_are_named():
    for share in (0.0, 1.0, -0.1, 5.0):
        with pytest.raises(ValueError, match=f"share is {share}; it must be between 0 and 1"):
            credit.top_mask(torch.ones(2, 2), share)
    with pytest.raises(ValueError, match="1 of the scores are NaN"):
        credit.top_mask(torch.tensor([[1.0, torch.nan]]), 0.5)
    with pytest.raises(ValueError, match=r"removed is \(2, 6\); of steps 0 to 4 it must be \(4, 6\)"):
        credit.retrain(WINDOW, torch.zeros(2, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"k is 4; it must be in 1\.\.3"):
        stats.precision_at(torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool), [4])
