"""Laws of the training generator and of replay."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_builders import recorded

from devinterp_func import batches, keys, per_example, recording, records, sgd, text, training, transformer, tree
from devinterp_func.training import Recipe
from devinterp_func.transformer import Config

CORPUS = text.planted(key=0)
CONFIG = Config(len(CORPUS.vocab), d_model=12, n_heads=2, d_hidden=8, n_layers=2)
RECIPE = Recipe(context=10, batch_size=6, epochs=2, n_steps=25, k=15, snapshot_every=10)
DATA = batches.chunk(CORPUS.train[:1500], RECIPE.context)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("runs") / "run", RECIPE, CORPUS, CONFIG)


def test_a_step_is_the_definitions_step():
    params = training.initial(CONFIG, RECIPE)
    move = next(training.moves(params, DATA, CONFIG, RECIPE))
    masks = training.masks_of(CONFIG, RECIPE, 0, move.datum)

    def loss(params, tokens, targets, masks):
        return transformer.loss(params, tokens, targets, CONFIG, masks)

    each = per_example.grads(loss)(params, DATA.tokens[move.datum], DATA.targets[move.datum], masks)
    mean = tree.map(lambda g: g.mean(0), each)
    after, info = sgd.update(params, mean, lr=RECIPE.lr, max_norm=RECIPE.max_norm)
    deltas = sgd.deltas(each, info)
    for name in params:
        torch.testing.assert_close(move.after[name], after[name], rtol=1e-5, atol=1e-6)
    for name, factor in move.factors.items():
        torch.testing.assert_close(per_example.form(factor), deltas[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("start", [0, 7, 20])
def test_the_order_is_that_of_the_recorded_steps(run, start):
    n_data = len(batches.chunk(CORPUS.train, RECIPE.context).tokens)
    made = list(training.order(RECIPE, n_data, start, 25))
    for (step, epoch, batch, ids), record in zip(made, records.scan(run, start, 25), strict=True):
        assert (step, epoch, batch) == (record.step, record.epoch, record.batch)
        assert torch.equal(ids, record.datum)


def test_a_model_without_dropout_trains_and_replays(tmp_path):
    config = replace(CONFIG, dropout=0.0)
    for _ in recording.record(tmp_path / "run", CORPUS, config, replace(RECIPE, n_steps=3)):
        pass
    again = training.replay(tmp_path / "run", 2)
    assert training.masks_of(config, RECIPE, 0, again.record.datum) is None
    assert training.same_bits(again.record, records.read(tmp_path / "run", 2))


def test_every_step_obeys_the_law():
    recipe = replace(RECIPE, units=("*",))
    for move in training.moves(training.initial(CONFIG, recipe), DATA, CONFIG, recipe, stop=12):
        residual = sgd.residual(move.before, move.after, per_example.gradients(move.factors))
        assert residual.keys() == move.before.keys()
        for name, missed in residual.items():
            # float32 weights round their sum with a small update: eps · ‖w‖ / ‖Δw‖
            moved = (move.after[name] - move.before[name]).norm()
            assert missed <= 1e-5 + 1.2e-7 * float(move.before[name].norm() / moved)


def test_steps_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in training.steps(training.initial(CONFIG, RECIPE), DATA, CONFIG, RECIPE, stop=3):
        pass
    assert not list(tmp_path.iterdir())


def test_steps_leave_the_given_params_and_the_global_generators_alone():
    params = training.initial(CONFIG, RECIPE)
    copy, state = tree.map(torch.clone, params), torch.get_rng_state()
    list(training.steps(params, DATA, CONFIG, RECIPE, stop=3))
    assert all(torch.equal(params[name], copy[name]) for name in params)
    assert torch.equal(state, torch.get_rng_state())


@pytest.fixture(scope="module")
def whole():
    return list(training.steps(training.initial(CONFIG, RECIPE), DATA, CONFIG, RECIPE))


@settings(max_examples=6, deadline=None)
@given(cut=st.integers(15, 24))
def test_steps_go_on_from_any_step_with_the_same_bits(whole, cut):
    middle = dict(reversed(whole[cut - 1][0].items()))  # the order of a dict must not matter
    middle = {name: tensor.clone() for name, tensor in middle.items()}
    rest = list(training.steps(middle, DATA, CONFIG, RECIPE, start=cut))
    assert len(rest) == len(whole) - cut
    for (after, made), (expected, kept) in zip(rest, whole[cut:], strict=True):
        assert training.same_bits(made, kept)
        assert all(torch.equal(after[name], expected[name]) for name in expected)


def test_masks_depend_on_datum_and_epoch_not_on_the_place_in_the_batch():
    masks = training.masks_of(CONFIG, RECIPE, 0, torch.tensor([3, 1, 4]))
    turned = training.masks_of(CONFIG, RECIPE, 0, torch.tensor([4, 3, 1]))
    later = training.masks_of(CONFIG, RECIPE, 1, torch.tensor([3, 1, 4]))
    assert masks is not None and turned is not None and later is not None
    for site, mask in masks.items():
        assert torch.equal(mask[[2, 0, 1]], turned[site])
        assert not torch.equal(mask, later[site])


def test_the_schedule_ends_with_the_epochs_or_with_n_steps():
    assert training.schedule_length(Recipe(), 58_571) == 14_640
    assert training.schedule_length(Recipe(n_steps=300), 58_571) == 300
    assert training.schedule_length(Recipe(n_steps=10**9), 58_571) == 14_640


def test_the_learning_rate_falls_after_each_epoch(run):
    per_epoch = batches.n_batches((len(CORPUS.train) - 1) // RECIPE.context, RECIPE.batch_size)
    assert {record.lr for record in records.scan(run)} == {5.0}
    short = replace(RECIPE, batch_size=60, epochs=3, n_steps=None)
    made = [record for _, record in training.steps(training.initial(CONFIG, short), DATA, CONFIG, short)]
    assert [(r.epoch, r.batch, r.lr) for r in made] == [
        (epoch, batch, pytest.approx(5.0 * 0.9**epoch)) for epoch in range(3) for batch in range(2)
    ]
    assert per_epoch > 25  # the run above stays in its first epoch


@pytest.mark.parametrize("step", [0, 7, 10, 24])
def test_replay_gives_the_recorded_outliers_bit_for_bit(run, step):
    again, recorded = training.replay(run, step), records.read(run, step)
    assert training.same_bits(again.record, recorded)
    flat = torch.cat([delta.flatten(1) for delta in again.deltas.values()], dim=1)
    assert torch.equal(flat.gather(1, recorded.outliers.parameter.long()), recorded.outliers.delta)
    assert max(again.residual.values()) < 1e-4


def test_replay_gives_the_deltas_of_any_unit(run):
    again = training.replay(run, 13, units=lambda name: True)
    assert again.deltas.keys() == again.before.keys()
    for name, delta in again.deltas.items():
        torch.testing.assert_close(delta.sum(0), again.after[name] - again.before[name], rtol=1e-3, atol=1e-6)


def test_replay_of_an_unrecorded_step_says_what_is_there(run):
    with pytest.raises(records.RecordError, match="no step 25: it holds 25 steps"):
        training.replay(run, 25)


def test_evaluation_is_the_mean_loss_of_every_position():
    params = training.initial(CONFIG, RECIPE)
    stream = CORPUS.valid[:405]  # a last batch that is not full
    data = batches.chunk(stream, RECIPE.context)
    each = [float(transformer.loss(params, x, y, CONFIG)) for x, y in zip(*data, strict=True)]
    assert training.evaluate(params, stream, CONFIG, RECIPE) == pytest.approx(math.fsum(each) / len(each), rel=1e-5)


def test_a_nan_names_step_unit_and_datum():
    params = training.initial(CONFIG, RECIPE)
    order = batches.schedule(len(DATA.tokens), RECIPE.batch_size, epoch=0, key=keys.Key(RECIPE.seed))
    culprit = int(order[0][2])
    others = torch.cat([DATA.tokens[j] for j in order[0] if j != culprit])
    own = next(int(token) for token in DATA.tokens[culprit] if token not in others)
    params["embedding.weight"][own] = math.nan  # only the culprit reads this row
    with pytest.raises(FloatingPointError, match=rf"step 0: the gradient of \S+ is NaN.* through datum {culprit}\."):
        next(training.moves(params, DATA, CONFIG, RECIPE))


def test_parameters_of_another_model_are_refused():
    params = training.initial(CONFIG, RECIPE)
    with pytest.raises(ValueError, match="differ in decoder.bias"):
        next(training.moves({n: w for n, w in params.items() if n != "decoder.bias"}, DATA, CONFIG, RECIPE))
    with pytest.raises(ValueError, match=r"decoder.bias has shape \(3,\)"):
        next(training.moves(params | {"decoder.bias": torch.zeros(3)}, DATA, CONFIG, RECIPE))


@pytest.mark.parametrize("wrong", [{"k": 0}, {"lr": -1.0}, {"batch_size": 0}, {"n_steps": 0}, {"gamma": math.nan}])
def test_a_recipe_names_its_wrong_value(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        Recipe(**wrong)


def test_units_are_chosen_by_pattern():
    shapes = transformer.shapes(CONFIG)
    assert len(per_example.choose(shapes, training.units_of(RECIPE))) == 8
    biases = training.units_of(Recipe(units=("layers.0.*bias", "decoder.weight")))
    assert per_example.choose(shapes, biases) == [
        *(name for name in shapes if name.startswith("layers.0") and name.endswith("bias")),
        "decoder.weight",
    ]
    with pytest.raises(ValueError, match="choose among embedding.weight"):
        per_example.choose(shapes, training.units_of(Recipe(units=("nothing",))))


def test_a_run_knows_its_own_text_model_and_recipe(run):
    config, recipe, corpus = training.load(run)
    assert (config, recipe) == (CONFIG, RECIPE)
    assert text.fingerprint(corpus) == text.fingerprint(CORPUS)
    curve = training.curve(run)
    assert curve.loss.tolist() == pytest.approx([float(r.loss.double().mean()) for r in records.scan(run)])
