"""Laws of growth.py: squared norms grow by the sum of the account, and every token by what its own positions did."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import token_parts
from run_builders import PLANTED as CORPUS
from run_builders import SMALL as CONFIG
from run_builders import recorded
from strategies import factor_arrays, few, seeds

from devinterp_func import (
    batches,
    growth,
    keys,
    ledger,
    neurons,
    per_example,
    probes,
    records,
    training,
    tree,
)
from devinterp_func.per_example import Outer
from devinterp_func.training import Recipe

V = len(CORPUS.vocab)
RECIPE = Recipe(context=10, batch_size=6, n_steps=24, k=5, snapshot_every=10)
DATA = batches.chunk(CORPUS.train, RECIPE.context)
AXES = pytest.mark.parametrize("axis", ["in", "out"])


@pytest.fixture(scope="module")
def moves():
    """Steps in float64, so that rounding does not hide the laws."""
    start = tree.map(torch.Tensor.double, training.initial(CONFIG, RECIPE))
    return list(training.moves(start, DATA, CONFIG, RECIPE, stop=8))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("runs") / "run", RECIPE)


def account_of(moves, axis, data=DATA):
    account = growth.init(moves[0], axis, V)
    for move in moves:
        account = growth.add(account, move, data.tokens[move.datum], data.targets[move.datum])
    return account


def squares(weight, axis):
    return weight.double().square().sum(0 if axis == "in" else 1)


# ---- one unit


@few
@given(drawn=factor_arrays(), seed=seeds, axis=st.sampled_from(["in", "out"]))
def test_a_positions_term_is_half_of_what_lies_between_adding_and_taking_its_outer_product(drawn, seed, axis):
    factor = Outer(drawn["outer.a"], drawn["outer.b"])
    weight = keys.uniform(per_example.shape(factor), -4.0, 4.0, key=seed).double().round()  # integers: all is exact
    parts = token_parts(factor)
    found = growth.positions(weight, factor, axis)
    for j, k in torch.cartesian_prod(*map(torch.arange, parts.shape[:2])).tolist():
        apart = squares(weight + parts[j, k], axis) - squares(weight - parts[j, k], axis)
        assert torch.equal(found[j, k], apart / 2)
    moved = parts.sum((0, 1))
    whole = squares(weight + moved, axis) - squares(weight, axis)
    assert torch.equal(found.sum((0, 1)) + squares(moved, axis), whole)


# ---- steps


@AXES
def test_every_token_has_the_terms_of_its_own_positions(moves, axis):
    found = account_of(moves, axis)
    target, input, linear = (torch.zeros(V, len(found.neurons), dtype=torch.float64) for _ in range(3))
    for move in moves:
        by_token, own = per_example.token_gradients(move.factors), 2 if axis == "in" else 3
        middle = {unit: (move.before[unit] + move.after[unit]) / 2 for unit in by_token}
        credit, start = (
            torch.cat([(2 * by_token[unit] * params[unit]).sum(own) for unit in by_token], -1)
            for params in (middle, move.before)
        )
        for j, id in enumerate(move.datum.tolist()):
            for k in range(RECIPE.context):
                target[int(DATA.targets[id, k])] += credit[j, k]
                input[int(DATA.tokens[id, k])] += credit[j, k]
                linear[int(DATA.targets[id, k])] += start[j, k]
    for table, expected in ((found.target, target), (found.input, input), (found.linear, linear)):
        torch.testing.assert_close(table, expected, rtol=1e-9, atol=1e-14)
    seen = torch.cat([DATA.targets[move.datum].flatten() for move in moves])
    assert torch.equal(found.positions, torch.bincount(seen, minlength=V))


@AXES
def test_the_books_balance_by_credits_and_by_first_order_with_its_remainder(moves, axis):
    found = account_of(moves, axis)
    for sums, params in ((found.before, moves[0].before), (found.after, moves[-1].after)):
        assert torch.equal(sums, torch.cat([squares(params[unit], axis) for unit in moves[0].factors]))
    assert float((found.residual() / found.before).abs().max()) < 1e-12
    torch.testing.assert_close(found.input.sum(0), found.target.sum(0), rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(found.linear.sum(0) + found.remainder, found.growth(), rtol=1e-9, atol=1e-12)
    expected = sum(
        torch.cat([squares(move.after[unit] - move.before[unit], axis) for unit in move.factors]) for move in moves
    )
    torch.testing.assert_close(found.remainder, expected)
    assert float(found.remainder.min()) > 0


@AXES
def test_the_terms_are_a_ledgers_amounts_half_way_and_at_the_start_of_the_step(moves, axis):
    move = moves[5]
    everyone = neurons.every({unit: tuple(move.before[unit].shape) for unit in move.factors}, axis)
    middle = tree.map(lambda a, b: (a + b) / 2, move.before, move.after)
    for terms, params in zip(growth.of_move(move, axis), (middle, move.before), strict=True):
        assert terms.shape == (*move.datum.shape, RECIPE.context, len(everyone))
        for i in range(0, len(everyone), 17):
            unit, gradient = everyone[i].unit, probes.squared_norm(everyone[i]).value_and_grad(params)[1]
            amounts = ledger.amounts({unit: gradient[unit]}, {unit: move.factors[unit]})
            torch.testing.assert_close(terms[..., i], amounts, rtol=1e-9, atol=1e-14)


@few
@given(order=st.permutations(range(6)), axis=st.sampled_from(["in", "out"]))
def test_the_order_of_the_data_changes_nothing(moves, order, axis):
    turned = moves[3]._replace(
        datum=moves[3].datum[order],
        factors={unit: tree.map(lambda x: x[order], factor) for unit, factor in moves[3].factors.items()},
    )
    for one, other in zip(account_of(moves[3:4], axis)[1:], account_of([turned], axis)[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)


def test_embeddings_biases_and_norms_have_no_neurons(moves):
    every = next(training.moves(moves[0].before, DATA, CONFIG, replace(RECIPE, units=("*",)), stop=1))
    found = account_of([every], "in")
    assert {neuron.unit for neuron in found.neurons} == {*moves[0].factors, "decoder.weight"}


# ---- a run


@pytest.fixture(scope="module")
def whole(run):
    return list(growth.walk(run, ("in", "out")))[-1]


def test_a_walk_keeps_account_of_a_run(run, whole):
    start, stop = records.read_params(run, 0), records.read_params(run, 24)
    assert list(whole) == ["in", "out"]
    for axis, account in whole.items():
        assert account.neurons == neurons.every(training.shapes(run), axis)
        for sums, params in ((account.before, start), (account.after, stop)):
            assert torch.equal(sums, torch.cat([squares(params[unit], axis) for unit in training.shapes(run)]))
        missed = account.residual().abs() / account.target.abs().sum(0)
        assert float(missed.max()) < 1e-4  # the steps are float32
        torch.testing.assert_close(account.input.sum(0), account.target.sum(0), rtol=1e-9, atol=1e-12)
        assert int(account.positions.sum()) == 24 * 6 * 10
        assert repr(account).startswith(f"Account of {len(account.neurons):,} neurons by {V} tokens: Σ|growth| ")


def test_windows_add_up_wherever_they_are_cut(run, whole):
    first, rest = (list(growth.walk(run, start=start, stop=stop)) for start, stop in ((0, 13), (13, None)))
    assert len(rest) == 11
    one, other, both = first[-1]["in"], rest[-1]["in"], whole["in"]
    for a, b, c in zip(one[1:6], other[1:6], both[1:6], strict=True):
        torch.testing.assert_close(a + b, c, rtol=1e-9, atol=1e-12)
    assert torch.equal(one.after, other.before) and torch.equal(other.after, both.after)


def test_bad_input_is_named(run, moves, unchecked):
    with pytest.raises(ValueError, match="the walk is from step 5 to 25; .* has 24 recorded steps"):
        list(growth.walk(run, start=5, stop=25))
    with pytest.raises(ValueError, match="axis is 'both'; it must be 'in' or 'out'"):
        list(growth.walk(run, ("both",)))  # type: ignore[arg-type]
    biases = moves[0]._replace(factors={"decoder.bias": per_example.Bias(torch.zeros(6, 10, V))})
    with pytest.raises(ValueError, match="step 0 has factors of decoder.bias; none is a linear map"):
        growth.init(biases, "in", V)
    unit = "layers.0.linear1.weight"
    fewer = moves[0]._replace(factors={unit: moves[0].factors[unit]})
    with pytest.raises(ValueError, match="the account is of 12 neurons, but step 1 has 88"):
        growth.add(growth.init(fewer, "in", V), moves[1], *(x[moves[1].datum] for x in DATA))


# ---- tables


def test_tables_say_what_the_account_says(run, whole):
    account = whole["in"]
    units, found = growth.unit_frame(account), growth.neuron_frame(account, CORPUS.vocab, each=1, most=3, least=10)
    assert units["unit"].to_list() == list(training.shapes(run)) and units["neurons"].sum() == len(account.neurons)
    assert units["growth"].sum() == pytest.approx(float(account.growth().sum()))
    assert max(units["residual"].to_list()) < 1e-4
    names = [str(neuron) for neuron in account.neurons]
    for unit, part in growth.by_unit(account).items():
        own = [i for i, neuron in enumerate(account.neurons) if neuron.unit == unit]
        assert torch.equal(part.target, account.target[:, own]) and part.neurons == [account.neurons[i] for i in own]
    assert len(found) == 2 * len(units)
    for row in found.iter_rows(named=True):
        i = names.index(row["neuron"])
        of_unit = growth.by_unit(account)[account.neurons[i].unit].growth()
        assert float(account.growth()[i]) in (float(of_unit.max()), float(of_unit.min()))
        assert row["growth"] == pytest.approx(row["first order"] + row["remainder"], abs=1e-5)
        amounts = {"": account.target[:, i], ", by input": account.input[:, i]}
        amounts[", per position"] = torch.tensor(
            [a / n if n >= 10 else 0 for a, n in zip(amounts[""].tolist(), account.positions.tolist(), strict=True)]
        )
        for reading, amount in amounts.items():
            order = sorted(range(V), key=amount.tolist().__getitem__, reverse=True)
            for column, sign, ranked in (("built by", 1, order), ("worn down by", -1, order[::-1])):
                ids = [v for v in ranked[:3] if sign * float(amount[v]) > 0]
                said = re.findall(r"(\S+) ([+-][\d.e+-]+)(?:, |$)", row[column + reading])
                assert [word for word, _ in said] == CORPUS.vocab.decode(ids)
                assert [float(x) for _, x in said] == pytest.approx([float(amount[v]) for v in ids], rel=0.06)


def test_concentration_is_the_share_of_the_largest_tokens_and_of_their_positions(whole):
    account = whole["in"]
    share, expected = growth.concentration(account, 3)
    for i in range(0, len(account.neurons), 11):
        gross = account.target[:, i].abs()
        top = sorted(range(V), key=lambda v: -float(gross[v]))[:3]
        assert float(share[i]) == pytest.approx(float(gross[top].sum() / gross.sum()))
        assert float(expected[i]) == pytest.approx(float(account.positions[top].sum() / account.positions.sum()))
    everything, all_positions = growth.concentration(account, V + 5)
    torch.testing.assert_close(everything, torch.ones_like(everything))
    torch.testing.assert_close(all_positions, torch.ones_like(everything))
