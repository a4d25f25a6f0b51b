"""The ledger: credits are complete, positions sum to data, and both amounts are what they say."""

from statistics import median

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import masked
from run_builders import MODEL, recorded
from run_builders import PLANTED as CORPUS
from run_builders import SMALL as CONFIG
from scipy.stats import spearmanr
from strategies import few, graph_of

from devinterp_func import batches, credit, optim, per_example, records, training, tree, units
from devinterp_func.credit import Entries, probes, split_change
from devinterp_func.credit._ledger import between, nodes
from devinterp_func.neurons import Neuron
from devinterp_func.records import Recording
from devinterp_func.training import Recipe

RECIPE = Recipe(context=10, batch_size=6, epochs=2, n_steps=30)
RECORDING = Recording(k=5, snapshot_every=10)
DATA = batches.chunk(CORPUS.train, RECIPE.context)
HELD = batches.chunk(CORPUS.valid, RECIPE.context)
GRAPH = graph_of(CONFIG, context=10)
NEURON = Neuron("layers.0.linear2.weight", 3)


def smooth(graph):
    """A loss on other texts first."""
    return [
        probes.loss(graph, batches.take(HELD, torch.arange(5))),
        probes.log_probability(graph, HELD.tokens[0], 4),
        probes.squared_norm(NEURON),
        probes.bigram(graph, 3, 5),
    ]


SMOOTH = smooth(GRAPH)
LOSS = SMOOTH[0]


def double(move):
    """The step in float64, computed again from its weights, so that rounding does not hide the law."""
    before = tree.map(torch.Tensor.double, move.before)
    masks = training.masks_of(GRAPH, RECIPE, move.epoch, move.datum)
    captured = per_example.capture(GRAPH, before, *batches.take(DATA, move.datum), masks=masks, units=units.EVERY)
    after, state, split = RECIPE.optimizer.update(
        before, captured.mean_grads, move.state_before, RECIPE.lr, RECIPE.max_norm
    )
    factors = optim.delta_factors(captured.factors, split, len(move.datum))
    return move._replace(before=before, after=after, split=split, state=state, factors=factors)


@pytest.fixture(scope="module")
def moves():
    params, single = training.initial(MODEL, RECIPE), graph_of(CONFIG, torch.float32, 10)
    return [double(m) for m in training.moves(single, params, DATA, RECIPE, captured=units.EVERY, stop=12)]


def dense(move):
    """Every datum's delta of every parameter, from the definition."""
    return optim.deltas(gradients(move), move.split)


def gradients(move):
    """Every datum's gradient of every parameter, from the definition."""
    masks = training.masks_of(GRAPH, RECIPE, move.epoch, move.datum)
    return per_example.grads(masked(MODEL.loss))(move.before, *batches.take(DATA, move.datum), masks)


def inner(gradient, deltas):
    return sum(torch.einsum("...,n...->n", gradient[name], deltas[name]) for name in deltas)


def test_amounts_are_inner_products_with_the_definitions_deltas(moves):
    move = moves[7]
    found, deltas = split_change(move, SMOOTH, 2, at_start=True), dense(move)
    for i, probe in enumerate(SMOOTH):
        at = [probe.value_and_grad(params)[1] for params in (move.before, move.after)]
        torch.testing.assert_close(found.at_start[i].sum(-1), inner(at[0], deltas), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.marginal[i].sum(-1), inner(at[1], deltas), rtol=1e-9, atol=1e-12)
        places, shares = nodes(2)
        credit = sum(
            share * inner(probe.value_and_grad(between(move.before, move.after, place))[1], deltas)
            for place, share in zip(places, shares, strict=True)
        )
        torch.testing.assert_close(found.credit[i].sum(-1), credit, rtol=1e-9, atol=1e-12)


def test_positions_are_those_of_the_token_gradients(moves):
    move = moves[3]
    _, gradient = LOSS.value_and_grad(move.after)
    by_token = per_example.token_gradients(move.factors)
    expected = sum(torch.einsum("...,nc...->nc", gradient[name], by_token[name]) for name in by_token)
    torch.testing.assert_close(per_example.amounts(gradient, move.factors), expected, rtol=1e-9, atol=1e-12)


def test_data_sum_to_the_quadrature_of_the_step(moves):
    for move in moves:
        _, gradient = LOSS.value_and_grad(move.after)
        moved = sum(float((gradient[name] * (move.after[name] - move.before[name])).sum()) for name in gradient)
        assert float(per_example.amounts(gradient, move.factors).sum()) == pytest.approx(moved, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_polynomial_probes_of_degree_2m_leave_only_rounding(moves, m):
    unit = NEURON.unit
    for degree in (1, 2, 2 * m):

        def power(params, degree=degree):
            return (params[unit] ** degree).sum() + params[unit].sum()

        probe = probes.of("power", power)
        found = credit.split_change(moves[5], [probe], m)
        scale = max(1.0, float(found.before.abs()), float(found.change().abs()))
        assert float(found.missed().abs()) < 1e-12 * scale


def test_a_degree_beyond_the_nodes_is_missed(moves):
    probe = probes.of("fourth power", lambda params: (params[NEURON.unit] ** 4).sum())
    found = credit.split_change(moves[5], [probe], 1)
    assert float(found.missed().abs()) > 1e-9 * float(found.before)


@pytest.mark.parametrize("m", [1, 2])
def test_what_is_missed_shrinks_at_the_quadratures_order(moves, m):
    """Of a smooth probe, with half the step: what m nodes miss is of order 2m + 1 in its size."""
    move, misses = moves[9], []
    moved = move.after["decoder.bias"] - move.before["decoder.bias"]
    probe = probes.of("exp", lambda params: (params["decoder.bias"] @ (moved / (moved @ moved))).exp())
    for scale in (0.5, 0.25, 0.125):  # the exponent's own change
        short = move._replace(
            after=between(move.before, move.after, scale), factors=per_example.scale_factors(move.factors, scale)
        )
        misses.append(float(credit.split_change(short, [probe], m).missed().abs()))
    for wide, narrow in zip(misses[:-1], misses[1:], strict=True):
        assert wide / narrow == pytest.approx(2 ** (2 * m + 1), rel=0.2)


def test_more_nodes_miss_less(moves):
    """Of a network with ReLU, whose gradient jumps where a hidden unit comes alive: to a small share, not to 0."""
    share = []
    for m in (1, 2, 8):
        found = [credit.split_change(move, SMOOTH[1:], m) for move in moves]
        missed = sum(float(entry.missed().abs().sum()) for entry in found)
        share.append(missed / sum(float(entry.change().abs().sum()) for entry in found))
    assert share[0] > share[1] > share[2] and share[2] < 0.01


def test_the_start_is_tracin_and_first_order_in_run_data_shapley(moves):
    """TracIn: lr times the dot product of the datum's and the probe's gradients; here times the clip coefficient."""
    move = moves[0]
    gradient = LOSS.value_and_grad(move.before)[1]
    tracin = -move.split.lr * move.split.clip / len(move.datum) * inner(gradient, gradients(move))
    torch.testing.assert_close(credit.split_change(move, [LOSS], at_start=True).at_start[0].sum(-1), tracin)


def test_the_marginal_is_leave_one_out_for_small_data(moves):
    """A datum whose part of the step is made small: leaving it out changes the probe by its marginal."""
    move = moves[4]
    deltas = {name: delta[0] * 1e-4 for name, delta in per_example.form_units(move.factors).items()}
    without = {name: w - deltas[name] for name, w in move.after.items()}
    change = float(SMOOTH[1].value(move.after) - SMOOTH[1].value(without))
    marginal = float(credit.split_change(move, [SMOOTH[1]]).marginal[0, 0].sum()) * 1e-4
    assert change == pytest.approx(marginal, rel=1e-3)


def test_leaving_a_datum_out_takes_its_delta_away(moves):
    move, probe = moves[6], SMOOTH[1]
    found, deltas = credit.leave_one_out(move, probe), dense(move)
    for j, change in enumerate(found.tolist()):
        without = {name: w - deltas[name][j] for name, w in move.after.items()}
        assert change == pytest.approx(float(probe.value(move.after) - probe.value(without)), abs=1e-12)


def test_the_marginal_ranks_data_as_leaving_them_out_does_and_the_start_does_not(moves):
    """On real steps, at the post's learning rate; the probe is a loss on other texts."""
    marginals, starts = [], []
    for move in moves:
        entry, truth = credit.split_change(move, [LOSS], 1, at_start=True), credit.leave_one_out(move, LOSS)
        marginals.append(spearmanr(entry.marginal[0].sum(-1), truth).statistic)
        starts.append(spearmanr(entry.at_start[0].sum(-1), truth).statistic)
    assert median(marginals) > 0.8 > median(starts) + 0.2


def test_norms_are_those_of_the_dense_deltas(moves):
    deltas = dense(moves[8])
    expected = sum(delta.flatten(1).square().sum(1) for delta in deltas.values()).sqrt()
    torch.testing.assert_close(per_example.delta_norms(moves[8].factors), expected)


@few
@given(order=st.permutations(range(6)), step=st.integers(0, 11))
def test_a_permutation_of_the_data_permutes_the_amounts(moves, order, step):
    move = moves[step]
    gradient = SMOOTH[1].value_and_grad(move.after)[1]
    turned = {
        name: tree.map(lambda x: x[order] if isinstance(x, torch.Tensor) else x, f) for name, f in move.factors.items()
    }
    torch.testing.assert_close(
        per_example.amounts(gradient, turned), per_example.amounts(gradient, move.factors)[order]
    )


def test_known_values_save_a_pass_and_change_nothing(moves):
    plain = credit.split_change(moves[2], SMOOTH)
    assert torch.isnan(plain.at_start).all() and not torch.isnan(plain.credit).any()
    known = credit.split_change(moves[2], SMOOTH, before=plain.before)
    assert torch.equal(known.credit, plain.credit) and torch.equal(known.missed(), plain.missed())


# ---- over a run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("runs") / "run", RECIPE, RECORDING)


def test_a_walk_is_its_steps_and_goes_on_where_it_stopped(run, tmp_path):
    followed = smooth(run.graph)
    list(credit.ledger(run, tmp_path / "ledger", followed, stop=15, m=1))
    list(credit.ledger(run, tmp_path / "ledger", followed, m=1))
    list(credit.ledger(run, tmp_path / "whole", followed, m=1))
    found, whole = (records.read_walk(tmp_path / name, Entries) for name in ("ledger", "whole"))
    assert found.step.tolist() == list(range(30))
    for one, other in zip(found, whole, strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())
    # what a step leaves the next one finds, to float32
    torch.testing.assert_close(found.after[:-1], found.before[1:], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.change().sum(0), found.after[-1] - found.before[0], rtol=1e-5, atol=1e-5)
    for record in run.steps():
        assert found.datum[record.step].tolist() == record.datum.tolist()
    assert repr(found).startswith("Entries of 30 steps, 4 probes: misses ")


def test_a_ledger_of_other_probes_nodes_or_texts_is_refused(run, tmp_path):
    several = smooth(run.graph)
    one = several[:1]
    list(credit.ledger(run, tmp_path / "ledger", one, stop=2, m=1, about={"texts": 5}))
    for followed, m, about in ((several, 1, {"texts": 5}), (one, 2, {"texts": 5}), (one, 1, {"texts": 6})):
        with pytest.raises(records.RecordError):
            list(credit.ledger(run, tmp_path / "ledger", followed, stop=3, m=m, about=about))
    assert len(list(credit.ledger(run, tmp_path / "ledger", one, stop=3, m=1, about={"texts": 5}))) == 1


def test_bad_input_is_named(run, moves, tmp_path):
    with pytest.raises(ValueError, match="m is 0 and there are 1 probes"):
        credit.split_change(moves[0], [LOSS], 0)
    with pytest.raises(ValueError, match="there are 0 probes"):
        list(credit.ledger(run, tmp_path / "ledger", []))
    short = moves[0]._replace(factors={name: f for name, f in moves[0].factors.items() if name != "decoder.bias"})
    with pytest.raises(ValueError, match=r"no factors of decoder.bias; replay it with captured="):
        credit.split_change(short, [LOSS])


def test_several_numbers_of_nodes_at_once_are_each_by_itself(moves):
    found = credit.split_by_nodes(moves[4], SMOOTH, (1, 3), at_start=True)
    assert list(found) == [1, 3]
    for m, entries in found.items():
        for together, alone in zip(entries, credit.split_change(moves[4], SMOOTH, m, at_start=True), strict=True):
            assert torch.equal(together, alone)
    assert not torch.equal(found[1].credit, found[3].credit)
