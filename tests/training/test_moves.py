"""The training generator: each step is the definition's, and depends on nothing but weights, recipe and step."""

import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_equal, definition, masked, without_dropout

from devinterp_func import batches, graph, keys, models, optim, per_example, text, training, tree, units
from devinterp_func.models import Config
from devinterp_func.training import Recipe

CORPUS = text.planted(key=0)
CONFIG = Config(len(CORPUS.vocab), d_model=12, n_heads=2, d_hidden=8, n_layers=2)
RECIPE = Recipe(context=10, batch_size=6, epochs=2, n_steps=25)
DATA = batches.chunk(CORPUS.train[:1500], RECIPE.context)
MODEL = models.transformer(CONFIG)
GRAPH = graph.of(MODEL.loss, MODEL.init(0), *batches.example(DATA, 0))


def test_a_step_is_the_definitions_step():
    params = training.initial(MODEL, RECIPE)
    move = next(moves(params))
    masks = training.masks_of(GRAPH, RECIPE, 0, move.datum)
    each = per_example.grads(masked(MODEL.loss))(params, *batches.take(DATA, move.datum), masks)
    mean = tree.map(lambda g: g.mean(0), each)
    after, split = sgd_step(params, mean)
    deltas = optim.deltas(each, split)
    for name in params:
        torch.testing.assert_close(move.after[name], after[name], rtol=1e-5, atol=1e-6)
    for name, factor in move.factors.items():
        torch.testing.assert_close(per_example.form(factor), deltas[name], rtol=1e-4, atol=1e-7)


def sgd_step(params, mean, recipe=RECIPE):
    """Weights after a step of a recipe's first learning rate, and how it came about."""
    optimizer = recipe.optimizer
    after, _, split = optimizer.update(params, mean, optimizer.init(params), recipe.lr, recipe.max_norm)
    return after, split


def moves(params=None, data=DATA, recipe=RECIPE, **options):
    params = training.initial(MODEL, recipe) if params is None else params
    return training.moves(GRAPH, params, data, recipe, **options)


@pytest.mark.parametrize("max_norm", [0.5, math.inf], ids=["clipped", "not clipped"])
def test_every_step_obeys_the_law(max_norm):
    recipe = replace(RECIPE, max_norm=max_norm, lr=1.0)
    clips = []
    for move in moves(recipe=recipe, captured=units.EVERY, stop=12):
        assert optim.missed(move).keys() == move.before.keys()
        for name, missed in optim.missed(move).items():
            # float32 weights round their sum with a small update: eps · ‖w‖ / ‖Δw‖
            changed = (move.after[name] - move.before[name]).norm()
            assert missed <= 1e-5 + 1.2e-7 * float(move.before[name].norm() / changed)
        clips.append(float(move.split.clip))
    assert max(clips) == 1.0 if max_norm == math.inf else min(clips) < 1.0


def test_steps_follow_from_each_other():
    made = list(moves(stop=4))
    for before, after in zip(made, made[1:], strict=False):
        assert_equal(before.after, after.before)
    assert [move.step for move in made] == [0, 1, 2, 3]
    assert repr(made[0]) == f"Move(step=0, loss={made[0].losses.mean():.4f}, {made[0].split})"


def test_a_move_carries_the_factors_of_the_captured_units_only():
    move = next(moves(captured=("layers.1.*bias", "decoder.weight")))
    chosen = [name for name in move.before if name.startswith("layers.1") and name.endswith("bias")]
    assert list(move.factors) == [*chosen, "decoder.weight"]
    assert list(next(moves()).factors) == graph.choose(GRAPH)


def test_moves_write_nothing_and_leave_the_given_params_and_the_global_generators_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = training.initial(MODEL, RECIPE)
    copy, state = tree.map(torch.clone, params), torch.get_rng_state()
    list(moves(params, stop=3))
    assert_equal(params, copy)
    assert torch.equal(state, torch.get_rng_state())
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def whole():
    return list(moves())


@settings(max_examples=6, deadline=None)
@given(cut=st.integers(15, 24))
def test_steps_go_on_from_any_step_with_the_same_bits(whole, cut):
    middle = dict(reversed(whole[cut - 1].after.items()))  # the order of a dict must not matter
    rest = list(moves(tree.map(torch.clone, middle), start=cut))
    assert len(rest) == len(whole) - cut
    for made, expected in zip(rest, whole[cut:], strict=True):
        assert_equal(made, expected)
        assert list(made.factors) == list(expected.factors)


def test_masks_depend_on_datum_and_epoch_not_on_the_place_in_the_batch():
    masks = training.masks_of(GRAPH, RECIPE, 0, torch.tensor([3, 1, 4]))
    turned = training.masks_of(GRAPH, RECIPE, 0, torch.tensor([4, 3, 1]))
    later = training.masks_of(GRAPH, RECIPE, 1, torch.tensor([3, 1, 4]))
    assert masks is not None and turned is not None and later is not None
    for site, mask in masks.items():
        assert torch.equal(mask[[2, 0, 1]], turned[site])
        assert not torch.equal(mask, later[site])


def test_the_learning_rate_falls_after_each_epoch():
    short = replace(RECIPE, batch_size=60, epochs=3, n_steps=None)
    made = [(move.epoch, move.batch, float(move.split.lr)) for move in moves(recipe=short)]
    expected = [(epoch, batch, pytest.approx(5.0 * 0.9**epoch)) for epoch in range(3) for batch in range(2)]
    assert made == expected
    assert made == [(e, b, training.learning_rate(short, len(DATA.tokens), 2 * e + b)) for e, b, _ in made]


# ---- some data left out


def test_steps_without_some_data_are_the_definitions_steps_without_them():
    removed = torch.zeros(2, 6, dtype=torch.bool)
    removed[0, [1, 4]], removed[1, 0] = True, True
    for move in moves(start=0, stop=2, removed=removed, captured=units.EVERY):
        assert len(move.datum) == (4 if move.step == 0 else 5)
        mean, each = gradients_of(move, divisor=6)
        after, split = sgd_step(move.before, mean)
        assert split.grad_norm.item() == pytest.approx(move.split.grad_norm.item(), rel=1e-5)
        for name in mean:
            torch.testing.assert_close(move.after[name], after[name], rtol=1e-5, atol=1e-6)
            delta = -float(split.lr * split.clip) * each[name] / 6
            torch.testing.assert_close(per_example.form(move.factors[name]), delta, rtol=1e-4, atol=1e-6)
        assert max(optim.missed(move).values()) < 1e-3


def gradients_of(move, divisor):
    """The sum of a move's data's gradients over a divisor, and each datum's, by their definition."""
    masks = training.masks_of(GRAPH, RECIPE, move.epoch, move.datum)
    tokens, targets = (x[move.datum] for x in DATA)
    each = definition(move.before, tokens, targets, CONFIG, masks)[1]
    return tree.map(lambda g: (g.sum(0) / divisor).float(), each), tree.map(lambda g: g.float(), each)


def test_the_data_left_out_are_those_places_of_the_batch():
    removed = torch.zeros(3, 6, dtype=torch.bool)
    removed[1, [0, 5]] = True
    ids = [ids for *_, ids in training.order(RECIPE, len(DATA.tokens), 7, 10)]
    made = [move.datum.tolist() for move in moves(start=7, stop=10, removed=removed)]
    assert made == [ids[0].tolist(), ids[1][1:5].tolist(), ids[2].tolist()]


def test_a_step_without_data_is_one_whose_gradient_is_zero():
    removed = torch.zeros(3, 6, dtype=torch.bool)
    removed[1] = True
    made = list(moves(start=2, stop=5, removed=removed, captured=units.EVERY))
    assert [(move.step, len(move.datum), len(move.losses)) for move in made] == [(2, 6, 6), (3, 0, 0), (4, 6, 6)]
    assert_equal(made[1].after, made[1].before)
    assert float(made[1].split.grad_norm) == 0 and float(made[1].split.clip) == 1
    assert {len(per_example.form(factor)) for factor in made[1].factors.values()} == {0}
    assert set(optim.missed(made[1]).values()) == {0.0}


def test_a_gradient_that_is_left_out_may_be_infinite():
    params = training.initial(MODEL, RECIPE)
    params["decoder.bias"][:] = math.inf
    every = torch.ones(2, 6, dtype=torch.bool)
    for move in moves(params, stop=2, removed=every):
        assert_equal(move.after, move.before)


@pytest.mark.parametrize("shape", [(2, 6), (3, 5), (3, 0)])
def test_what_is_left_out_is_of_these_steps(shape):
    with pytest.raises(ValueError, match=rf"removed is {re.escape(str(shape))}; of steps 2 to 5 it must be \(3, 6\)"):
        next(moves(start=2, stop=5, removed=torch.zeros(shape, dtype=torch.bool)))


# ---- data that count by weights


def test_weights_of_one_leave_every_bit_and_weights_of_none_remove():
    assert_equal(list(moves(stop=3, weights=torch.ones(3, 6))), list(moves(stop=3)))
    removed = torch.zeros(3, 6, dtype=torch.bool)
    removed[0, [1, 4]], removed[1] = True, True
    without = list(moves(stop=3, removed=removed))[-1]
    weighed = list(moves(stop=3, weights=(~removed).float()))[-1]
    for name, weight in without.after.items():
        torch.testing.assert_close(weighed.after[name], weight, rtol=1e-4, atol=1e-5)


def test_steps_of_weights_are_the_definitions_steps_with_some_data_left_out_or_none():
    removed, weights = torch.zeros(1, 6, dtype=torch.bool), torch.tensor([[2.0, -1.0, 0.5, 0.0, 1.0, 3.0]])
    for out in ([], [0, 3]):
        removed[0, out] = True
        (move,) = moves(stop=1, weights=weights, removed=removed, captured=units.EVERY)
        _, each = gradients_of(move, divisor=6)
        own = weights[0, ~removed[0]]
        mean = tree.map(lambda g, own=own: torch.einsum("n...,n->...", g, own) / 6, each)
        after, _ = sgd_step(move.before, mean)
        for name in mean:
            torch.testing.assert_close(move.after[name], after[name], rtol=1e-5, atol=1e-6)
        assert max(optim.missed(move).values()) < 1e-3


@pytest.mark.parametrize("shape", [(2, 6), (3, 5)])
def test_weights_are_of_these_steps(shape):
    with pytest.raises(ValueError, match=rf"weights is {re.escape(str(shape))}; of steps 2 to 5 it must be \(3, 6\)"):
        next(moves(start=2, stop=5, weights=torch.ones(shape)))


# ---- evaluation, and what is refused


def test_evaluation_is_the_mean_loss_of_every_position():
    params = training.initial(MODEL, RECIPE)
    data = batches.chunk(CORPUS.valid[:405], RECIPE.context)  # a last batch that is not full
    each = [float(models.loss(params, x, y, CONFIG, training=False)) for x, y in zip(*data, strict=True)]
    found = training.evaluate(GRAPH, params, data, RECIPE.batch_size)
    assert found == pytest.approx(math.fsum(each) / len(each), rel=1e-5)


def test_a_nan_names_step_unit_and_datum():
    params = training.initial(MODEL, RECIPE)
    order = batches.schedule(len(DATA.tokens), RECIPE.batch_size, epoch=0, key=keys.Key(RECIPE.seed))
    culprit = int(order[0][2])
    others = torch.cat([DATA.tokens[j] for j in order[0] if j != culprit])
    own = next(int(token) for token in DATA.tokens[culprit] if token not in others)
    params["embedding.weight"][own] = math.nan  # only the culprit reads this row
    with pytest.raises(FloatingPointError, match=rf"step 0: the gradient of \S+ is NaN.* through datum {culprit}\."):
        next(moves(params))


def test_parameters_of_another_model_are_refused():
    params = training.initial(MODEL, RECIPE)
    with pytest.raises(ValueError, match="differ in 'decoder.bias'"):
        next(moves({n: w for n, w in params.items() if n != "decoder.bias"}))
    with pytest.raises(ValueError, match=r"'decoder.bias' has shape \(3,\)"):
        next(moves(params | {"decoder.bias": torch.zeros(3)}))


@pytest.mark.parametrize("part", ["tokens", "targets"])
def test_ids_that_the_vocabulary_lacks_are_refused_before_the_first_step(part):
    ids = getattr(DATA, part).clone()
    ids[-1, -1] = len(CORPUS.vocab)
    with pytest.raises(ValueError, match=f"{part} hold the id 150; ids must be in 0..149"):
        next(moves(data=DATA._replace(**{part: ids})))
    with pytest.raises(ValueError, match=f"{part} hold the id 150; ids must be in 0..149"):
        training.evaluate(GRAPH, training.initial(MODEL, RECIPE), DATA._replace(**{part: ids}))


def test_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(RuntimeError, match="leave it, or use torch.no_grad"):
        next(moves())


def test_another_default_dtype_changes_nothing(float64_by_default):
    made = next(moves(captured=units.EVERY))
    torch.set_default_dtype(torch.float32)
    assert_equal(made, next(moves(captured=units.EVERY)))


# ---- other losses and other data


class Pictures(torch.nn.Module):
    """A convolution, dropout and a head."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.GroupNorm(1, 3)
        self.drop, self.head = torch.nn.Dropout(0.3), torch.nn.Linear(12, 4)

    def forward(self, x):
        h = torch.nn.functional.max_pool2d(self.norm(self.conv(x)).relu(), 2)
        return self.head(self.drop(h.flatten(1)))


def classified(model, x, y):
    return torch.nn.functional.cross_entropy(model(x[None])[0], y)


def regressed(params, example):
    return (params["w"] @ example["x"] + params["b"] - example["y"]).square()


def normal(*shape, seed=0):
    return torch.from_numpy(keys.generator(seed).standard_normal(shape)).float()


OTHERS = {
    "pictures": (
        models.module(Pictures(), classified),
        (normal(40, 1, 4, 4), torch.from_numpy(keys.generator(1).integers(0, 4, 40))),
    ),
    "regression": (
        models.Model("line", regressed, lambda key: {"w": normal(3), "b": normal()}, {"w": (3,), "b": ()}, {}),
        ({"x": normal(40, 3, seed=2), "y": normal(40, seed=3)},),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_steps_of_any_loss_are_the_definitions_steps_and_obey_the_law(name):
    model, data = OTHERS[name]
    recipe = Recipe(batch_size=6, lr=0.5, n_steps=3)
    made = graph.of(model.loss, model.init(0), *batches.example(data, 0))
    for move in training.moves(made, training.initial(model, recipe), data, recipe, captured=units.EVERY):
        masks = training.masks_of(made, recipe, move.epoch, move.datum)
        batch = (*batches.take(data, move.datum), masks or {})
        each = per_example.grads(masked(model.loss))(move.before, *batch)
        after, split = sgd_step(move.before, tree.map(lambda g: g.mean(0), each), recipe)
        for unit, delta in optim.deltas(each, split).items():
            torch.testing.assert_close(move.after[unit], after[unit], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(per_example.form(move.factors[unit]), delta, rtol=1e-4, atol=1e-6)
        assert max(optim.missed(move).values()) <= 1e-4


@pytest.mark.parametrize("name", OTHERS)
def test_evaluation_of_any_loss_is_the_mean_of_the_loop(name):
    model, data = OTHERS[name]
    params = model.init(0)
    made = graph.of(model.loss, params, *batches.example(data, 0))
    each = [float(without_dropout(model.loss)(params, *batches.example(data, j))) for j in range(40)]
    assert training.evaluate(made, params, data, 7) == pytest.approx(math.fsum(each) / 40, rel=1e-5)


def test_a_nan_in_a_loss_without_a_head_names_its_datum():
    model, (datum,) = OTHERS["regression"]
    assert isinstance(datum, dict)
    made = graph.of(model.loss, model.init(0), *batches.example((datum,), 0))
    order = batches.schedule(40, 6, epoch=0, key=keys.Key(RECIPE.seed))
    culprit = int(order[0][2])
    y = datum["y"].index_fill(0, torch.tensor([culprit]), math.nan)
    with pytest.raises(FloatingPointError, match=rf"step 0: the gradient of \S+ is NaN.* through datum {culprit}\."):
        next(training.moves(made, model.init(0), (datum | {"y": y},), Recipe(batch_size=6)))
