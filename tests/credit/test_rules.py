"""Credit of steps of any optimizer: books balance over data, past and decay; amounts are the definition's."""

import functools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import masked, relative_error
from run_builders import MODEL, recorded
from run_builders import PLANTED as CORPUS
from run_builders import SMALL as CONFIG
from strategies import few, floats, graph_of, like, trees

from devinterp_func import batches, credit, neurons, optim, per_example, records, training, tree, units
from devinterp_func.credit import Entries, _coherence, _directions, _norms, probes, split_change
from devinterp_func.credit._ledger import between, nodes
from devinterp_func.credit._rest import rest
from devinterp_func.neurons import Neuron
from devinterp_func.per_example import Outer, Scaled, Sum
from devinterp_func.training import Recipe

RULES = {
    "sgd": (optim.sgd(), 2.0),
    "decay": (optim.sgd(weight_decay=0.1), 2.0),
    "momentum": (optim.sgd(momentum=0.9, dampening=0.5), 1.0),
    "nesterov": (optim.sgd(momentum=0.9, nesterov=True, weight_decay=0.1), 0.5),
    "adam": (optim.adam(betas=(0.8, 0.9), weight_decay=0.1), 0.02),
    "adamw": (optim.adamw(betas=(0.8, 0.9), weight_decay=0.5, matrices_only=True), 0.02),
    "muon": (optim.muon(but=("embedding.*", "decoder.*")), 0.02),
}
each_rule = pytest.mark.parametrize("name", RULES)
DATA, GRAPH, C, STEPS = batches.chunk(CORPUS.train, 10), graph_of(CONFIG, context=10), 10, 4
HELD = batches.chunk(CORPUS.valid, 10)
MATRIX, BIAS = "layers.0.linear1.weight", "layers.1.linear2.bias"


def recipe_of(name):
    optimizer, lr = RULES[name]
    return Recipe(context=C, batch_size=4, n_steps=STEPS, lr=lr, max_norm=0.05, optimizer=optimizer)  # it clips


@functools.lru_cache
def moves(name):
    """Steps in float64, so that rounding does not hide the laws."""
    recipe = recipe_of(name)
    start = tree.map(torch.Tensor.double, training.initial(MODEL, recipe))
    found = list(training.moves(GRAPH, start, DATA, recipe, captured=units.EVERY))
    assert all(move.split.clip < 1 for move in found)
    return found


def deltas(move, name):
    """Every datum's delta of every parameter, from the definition."""
    masks = training.masks_of(GRAPH, recipe_of(name), move.epoch, move.datum)
    each = per_example.grads(masked(MODEL.loss))(move.before, *batches.take(DATA, move.datum), masks)
    return optim.deltas(each, move.split)


def inner(gradient, parts):
    return float(sum((gradient[unit] * parts[unit]).sum() for unit in parts))


# ---- the ledger


def power(params, degree):
    return (params[MATRIX] ** degree).sum() + (params[BIAS] ** degree).sum() + params[MATRIX].sum()


@each_rule
def test_books_of_a_polynomial_balance_to_rounding(name):
    move = moves(name)[-1]
    for m in (1, 2):
        probe = probes.of("power", functools.partial(power, degree=2 * m))
        found = split_change(move, [probe], m)
        scale = max(1.0, *(float(x.abs().sum()) for x in (found.before, found.credit, found.past, found.decay)))
        assert float(found.missed().abs()) < 1e-12 * scale
        short = split_change(move, [probe], m)._replace(past=torch.zeros(1), decay=torch.zeros(1))
        assert (float(short.missed().abs()) > 1e-9) == (name != "sgd")


@each_rule
def test_amounts_past_and_decay_are_inner_products_with_the_definitions_parts(name):
    move, probe = moves(name)[2], probes.loss(GRAPH, batches.take(HELD, torch.arange(3)))
    found, own = split_change(move, [probe], 2, at_start=True), deltas(move, name)
    past, decay = ({unit: part(unit) for unit in move.before} for part in (move.split.past, move.split.decay))
    places = [0.0, 1.0, *nodes(2)[0]]
    start, end, *middle = (probe.value_and_grad(between(move.before, move.after, place))[1] for place in places)
    mean = {unit: sum(w * g[unit] for w, g in zip(nodes(2)[1], middle, strict=True)) for unit in start}
    for amounts, gradient in ((found.at_start, start), (found.marginal, end), (found.credit, mean)):
        for j, amount in enumerate(amounts[0].sum(-1).tolist()):
            expected = inner(gradient, {unit: delta[j] for unit, delta in own.items()})
            assert amount == pytest.approx(expected, rel=1e-8, abs=1e-12)
    assert float(found.past) == pytest.approx(inner(mean, past), rel=1e-9, abs=1e-14)
    assert float(found.decay) == pytest.approx(inner(mean, decay), rel=1e-9, abs=1e-14)
    for total, gradient in ((found.rest_at_start, start), (found.rest_at_end, end)):
        assert float(total) == pytest.approx(inner(gradient, past) + inner(gradient, decay), rel=1e-9, abs=1e-14)
    assert bool(found.past) == RULES[name][0].remembers
    assert bool(found.decay) == (name not in ("sgd", "momentum"))
    assert split_change(move, [probe]).rest_at_end.isnan().all()


@few
@given(params=trees(), data=st.data(), name=st.sampled_from([name for name in RULES if name != "muon"]))
def test_the_rest_along_any_gradient_is_that_of_past_and_decay(params, data, name):
    optimizer, lr = RULES[name]
    state, weights = optimizer.init(params), params
    for _ in range(2):
        grads = data.draw(like(params))
        weights, state, split = optimizer.update(weights, grads, state, lr, 5.0)
    gradient = data.draw(like(params))
    found = rest(gradient, split)
    for part, of in ((found.past, split.past), (found.decay, split.decay)):
        terms = torch.cat([(gradient[unit] * of(unit)).flatten() for unit in params])
        assert float(part) == pytest.approx(float(terms.sum()), rel=1e-9, abs=1e-9 * float(1 + terms.abs().sum()))
    assert found.sum() == found.past + found.decay


@given(floats((3, 4)), floats((3, 4)), floats((3, 4)), st.booleans())
@few
def test_the_rest_of_a_matrix_gain_is_pulled_from_its_own_side(first, second, along, tall):
    turned = [x.mT if tall else x for x in (first, second, along)]
    optimizer = optim.muon(momentum=0.5, weight_decay=0.3)
    start = {"w": torch.ones_like(turned[0])}
    weights, state, _ = optimizer.update(start, {"w": turned[0]}, optimizer.init(start), 0.1)
    *_, split = optimizer.update(weights, {"w": turned[1]}, state, 0.1)
    share = split.shares["w"]
    assert isinstance(share.gain, optim.Matrix)
    crooked = share.gain._replace(matrix=share.gain.matrix.triu())  # Newton-Schulz's own is symmetric
    split = replace(split, shares={"w": share._replace(gain=crooked)})
    found = rest({"w": turned[2]}, split)
    for part, dense in ((found.past, split.past("w")), (found.decay, split.decay("w"))):
        terms = turned[2] * dense
        assert float(part) == pytest.approx(float(terms.sum()), rel=1e-9, abs=1e-9 * float(1 + terms.abs().sum()))


def test_a_step_that_all_data_are_removed_from_is_past_and_decay():
    recipe, before = recipe_of("adamw"), moves("adamw")[2]
    nothing = torch.ones(1, 4, dtype=torch.bool)
    [move] = training.moves(
        GRAPH,
        before.before,
        DATA,
        recipe,
        state=before.state_before,
        captured=units.EVERY,
        start=2,
        stop=3,
        removed=nothing,
    )
    probe = probes.squared_norm(Neuron(MATRIX, 1))
    found = split_change(move, [probe], 1)
    assert found.credit.shape == (1, 0, C)
    assert float(found.change()) == pytest.approx(float(found.past + found.decay), rel=1e-9)
    assert credit.leave_one_out(move, probe).shape == (0,)
    assert credit.rerun_without(move, [probe], recipe).shape == (1, 0)


# ---- leaving a datum out


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw", "muon"])
def test_a_rerun_is_the_training_step_without_the_datum(name):
    recipe, move = recipe_of(name), moves(name)[2]
    followed = [probes.squared_norm(Neuron(MATRIX, 1)), probes.bigram(GRAPH, 3, 5)]
    found = credit.rerun_without(move, followed, recipe)
    for j in range(4):
        removed = torch.zeros(1, 4, dtype=torch.bool)
        removed[0, j] = True
        again = training.moves(
            GRAPH, move.before, DATA, recipe, state=move.state_before, start=2, stop=3, removed=removed
        )
        [without] = again
        for p, probe in enumerate(followed):
            expected = float(probe.value(move.after) - probe.value(without.after))
            assert float(found[p, j]) == pytest.approx(expected, rel=1e-6, abs=1e-13)


@pytest.mark.parametrize("name", ["nesterov", "adamw", "muon"])
def test_taking_a_delta_away_leaves_the_gain_and_a_rerun_does_not(name):
    move, probe = moves(name)[3], probes.loss(GRAPH, batches.take(HELD, torch.arange(5)))
    found, own = credit.leave_one_out(move, probe), deltas(move, name)
    for j, change in enumerate(found.tolist()):
        without = {unit: w - own[unit][j] for unit, w in move.after.items()}
        assert change == pytest.approx(float(probe.value(move.after) - probe.value(without)), rel=1e-6, abs=1e-12)
    rerun = credit.rerun_without(move, [probe], recipe_of(name))[0]
    apart = float((rerun - found).norm() / rerun.norm())
    assert 1e-3 < apart  # how far, on real steps: experiments/counterfactual.py


# ---- what reads factors


@pytest.mark.parametrize("axis", ["in", "out"])
@each_rule
def test_norms_grow_by_credits_past_and_decay_as_a_ledger_says(name, axis):
    own = [
        move._replace(factors={u: f for u, f in move.factors.items() if units.is_layer_matrix(u)})
        for move in moves(name)
    ]
    growth = _norms.init_norms(own[0], axis, len(CORPUS.vocab), C)
    for move in own:
        growth = _norms.add_norms(growth, move, DATA.tokens[move.datum], DATA.targets[move.datum])
    assert float((growth.missed() / growth.before).abs().max()) < 1e-12
    firsts = growth.linear.sum(0) + growth.remainder + growth.past + growth.decay
    torch.testing.assert_close(firsts, growth.growth(), rtol=1e-9, atol=1e-12)
    assert bool(growth.past.any()) == RULES[name][0].remembers
    terms = [_norms.norm_terms(move, axis, C) for move in own]
    for i in range(0, len(growth.neurons), 23):
        probe, past, decay = probes.squared_norm(growth.neurons[i]), 0.0, 0.0
        for move, (credits, starts) in zip(moves(name), terms, strict=True):
            found = split_change(move, [probe], 1, at_start=True)
            torch.testing.assert_close(credits[..., i], found.credit[0], rtol=1e-8, atol=1e-14)
            torch.testing.assert_close(starts[..., i], found.at_start[0], rtol=1e-8, atol=1e-14)
            past, decay = past + float(found.past), decay + float(found.decay)
        assert float(growth.past[i]) == pytest.approx(past, rel=1e-9, abs=1e-13)
        assert float(growth.decay[i]) == pytest.approx(decay, rel=1e-9, abs=1e-13)


@few
@given(inputs=floats((2, 3, 4), 9), signals=floats((2, 3, 5), 9), gain=floats((5, 4), 9), twice=st.booleans())
def test_directions_and_neurons_of_products_with_a_gain_are_those_of_their_sum(inputs, signals, gain, twice):
    one = Scaled(Outer(inputs, signals), gain)
    factor = Sum((one, Scaled(Outer(inputs.flip(0), signals.flip(1)), gain.flip(0)))) if twice else one
    formed = per_example.form(factor)
    pair = _directions.rotated_directions(torch.ones(5, 4).double(), 2, key=0)
    found = _directions.direction_amounts({"w": pair}, {"w": factor})
    expected = torch.einsum("ro,noi,ri->nr", pair.output, formed, pair.input)
    assert found.shape == (2, 3, 2)
    torch.testing.assert_close(found.sum(1), expected, rtol=1e-9, atol=1e-7)
    weight = torch.arange(20.0).double().view(5, 4) - 7
    axes: tuple[tuple[neurons.Axis, int], ...] = (("in", 1), ("out", 2))
    for axis, over in axes:
        terms = _norms.norm_positions(weight, credit._matrices.outers(factor), axis)
        torch.testing.assert_close(terms.sum(1), 2 * (weight * formed).sum(over), rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("name", ["nesterov", "adamw", "muon"])
def test_coherence_is_of_the_present_deltas(name):
    last, move = moves(name)[2:]
    found = _coherence.measure_step(move, last, torch.zeros(1))
    now, then = deltas(move, name), deltas(last, name)
    for u, unit in enumerate(move.factors):
        each, before = now[unit].flatten(1), then[unit].flatten(1).sum(0)
        change = each.sum(0)
        assert relative_error(change.view_as(move.before[unit]), move.split.present(unit)) < 1e-9
        torch.testing.assert_close(found.along[u], each @ change, rtol=1e-7, atol=1e-15)
        torch.testing.assert_close(found.square[u], each.square().sum(1), rtol=1e-7, atol=1e-15)
        torch.testing.assert_close(found.turn[u], change @ before, rtol=1e-7, atol=1e-13)
        torch.testing.assert_close(found.last[u], before @ before, rtol=1e-7, atol=1e-15)


# ---- a run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = Recipe(context=C, batch_size=4, n_steps=9, lr=0.02, max_norm=0.05, optimizer=RULES["adamw"][0])
    return recorded(tmp_path_factory.mktemp("runs") / "run", recipe, records.Recording(k=5, snapshot_every=3))


def test_a_ledger_of_a_run_leads_from_each_step_to_the_next(run, tmp_path):
    followed = [probes.squared_norm(Neuron(MATRIX, 1)), probes.bigram(run.graph, 3, 5)]
    list(credit.ledger(run, tmp_path / "ledger", followed, stop=5, m=1))
    list(credit.ledger(run, tmp_path / "ledger", followed, m=1))
    found = records.read_walk(tmp_path / "ledger", Entries)
    assert found.past[1:].all() and found.decay.all() and not found.past[0].any()
    parts = found.credit.sum((0, 2, 3)) + found.past.sum(0) + found.decay.sum(0)
    torch.testing.assert_close(parts, found.after[-1] - found.before[0], rtol=1e-4, atol=1e-6)
    courses = credit.probe_courses(found, 4)
    assert torch.equal(courses.past[0], found.past[:4].sum(0)) and torch.equal(courses.decay[2], found.decay[8])


def test_norms_of_a_run_balance(run):
    *_, found = credit.norms(run)
    growth = found["in"]
    assert growth.neurons == neurons.every(run.shapes, "in") and float(growth.past.abs().max()) > 0
    assert float((growth.missed().abs() / growth.before).max()) < 1e-5  # the steps are float32
    one, other = (list(credit.norms(run, start=a, stop=b))[-1]["in"] for a, b in ((0, 4), (4, 9)))
    for part in ("target", "input", "linear", "positions", "remainder", "past", "decay"):
        a, b, both = (getattr(x, part) for x in (one, other, growth))
        torch.testing.assert_close(a + b, both, rtol=1e-9, atol=1e-12)
