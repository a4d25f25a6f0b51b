"""Laws of norms: squared norms grow by the sum over tokens, and every token by what its own positions did."""

from dataclasses import replace

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import token_parts
from run_builders import MODEL, recorded
from run_builders import PLANTED as CORPUS
from run_builders import SMALL as CONFIG
from strategies import factor_arrays, few, graph_of, seeds

from devinterp_func import batches, credit, keys, neurons, per_example, training, tree, units
from devinterp_func.credit import _norms, probes
from devinterp_func.per_example import Outer, Sum
from devinterp_func.records import Recording
from devinterp_func.show import tables
from devinterp_func.training import Recipe
from devinterp_func.units import is_layer_matrix

V = len(CORPUS.vocab)
RECIPE = Recipe(context=10, batch_size=6, n_steps=24)
DATA = batches.chunk(CORPUS.train, RECIPE.context)
GRAPH = graph_of(CONFIG, context=10)
AXES = pytest.mark.parametrize("axis", ["in", "out"])


@pytest.fixture(scope="module")
def moves():
    """Steps in float64, so that rounding does not hide the laws."""
    start = tree.map(torch.Tensor.double, training.initial(MODEL, RECIPE))
    return list(training.moves(GRAPH, start, DATA, RECIPE, stop=8))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("runs") / "run", RECIPE, Recording(k=5, snapshot_every=10))


def growth_of(moves, axis, data=DATA):
    growth = _norms.init_norms(moves[0], axis, V, RECIPE.context)
    for move in moves:
        growth = _norms.add_norms(growth, move, data.tokens[move.datum], data.targets[move.datum])
    return growth


def squares(weight, axis):
    return weight.double().square().sum(0 if axis == "in" else 1)


# ---- one unit


@few
@given(drawn=factor_arrays(), seed=seeds, axis=st.sampled_from(["in", "out"]))
def test_a_positions_term_is_half_of_what_lies_between_adding_and_taking_its_outer_product(drawn, seed, axis):
    factor = Outer(drawn["outer.a"], drawn["outer.b"])
    weight = keys.uniform(per_example.shape_of(factor), -4.0, 4.0, key=seed).double().round()  # integers: all is exact
    parts = token_parts(factor)
    found = _norms.norm_positions(weight, [factor], axis)
    for j, k in torch.cartesian_prod(*map(torch.arange, parts.shape[:2])).tolist():
        apart = squares(weight + parts[j, k], axis) - squares(weight - parts[j, k], axis)
        assert torch.equal(found[j, k], apart / 2)
    moved = parts.sum((0, 1))
    whole = squares(weight + moved, axis) - squares(weight, axis)
    assert torch.equal(found.sum((0, 1)) + squares(moved, axis), whole)


# ---- steps


@AXES
def test_every_token_has_the_terms_of_its_own_positions(moves, axis):
    found = growth_of(moves, axis)
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
def test_credits_are_complete_and_so_is_the_first_order_with_its_remainder(moves, axis):
    found = growth_of(moves, axis)
    for sums, params in ((found.before, moves[0].before), (found.after, moves[-1].after)):
        assert torch.equal(sums, torch.cat([squares(params[unit], axis) for unit in moves[0].factors]))
    assert float((found.missed() / found.before).abs().max()) < 1e-12
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
    for terms, params in zip(_norms.norm_terms(move, axis, RECIPE.context), (middle, move.before), strict=True):
        assert terms.shape == (*move.datum.shape, RECIPE.context, len(everyone))
        for i in range(0, len(everyone), 17):
            unit, gradient = everyone[i].unit, probes.squared_norm(everyone[i]).value_and_grad(params)[1]
            amounts = per_example.amounts({unit: gradient[unit]}, {unit: move.factors[unit]})
            torch.testing.assert_close(terms[..., i], amounts, rtol=1e-9, atol=1e-14)


@few
@given(order=st.permutations(range(6)), axis=st.sampled_from(["in", "out"]))
def test_the_order_of_the_data_changes_nothing(moves, order, axis):
    turned = moves[3]._replace(
        datum=moves[3].datum[order],
        factors={
            unit: tree.map(lambda x: x[order] if isinstance(x, torch.Tensor) else x, factor)
            for unit, factor in moves[3].factors.items()
        },
    )
    for one, other in zip(growth_of(moves[3:4], axis)[1:], growth_of([turned], axis)[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)


@AXES
def test_a_map_that_is_used_twice_has_the_terms_of_both_uses(moves, axis):
    unit, factor = next(iter(moves[2].factors.items()))
    other = Outer(factor.inputs.flip(0), factor.signals.flip(1))
    twice = moves[2]._replace(factors={unit: Sum((factor, other))})
    both = [moves[2]._replace(factors={unit: part}) for part in (factor, other)]
    expected = [_norms.norm_terms(move, axis, 10) for move in both]
    for found, one, two in zip(_norms.norm_terms(twice, axis, 10), *expected, strict=True):
        torch.testing.assert_close(found, one + two, rtol=1e-12, atol=1e-15)


def test_embeddings_biases_and_norms_have_no_neurons(moves):
    every = next(training.moves(GRAPH, moves[0].before, DATA, RECIPE, captured=units.EVERY, stop=1))
    found = growth_of([every], "in")
    assert {neuron.unit for neuron in found.neurons} == {*moves[0].factors, "decoder.weight"}


# ---- a run


@pytest.fixture(scope="module")
def whole(run):
    return list(credit.norms(run, ("in", "out")))[-1]


def test_a_replay_splits_the_growth_of_a_whole_run(run, whole):
    start, stop = run.params(0), run.params(24)
    assert list(whole) == ["in", "out"]
    for axis, growth in whole.items():
        assert growth.neurons == neurons.every(run.shapes, axis)
        for sums, params in ((growth.before, start), (growth.after, stop)):
            assert torch.equal(sums, torch.cat([squares(params[unit], axis) for unit in run.shapes]))
        missed = growth.missed().abs() / growth.target.abs().sum(0)
        assert float(missed.max()) < 1e-4  # the steps are float32
        torch.testing.assert_close(growth.input.sum(0), growth.target.sum(0), rtol=1e-9, atol=1e-12)
        assert int(growth.positions.sum()) == 24 * 6 * 10
        assert repr(growth).startswith(f"NormGrowth of {len(growth.neurons):,} neurons by {V} tokens: Σ|growth| ")


def test_windows_add_up_wherever_they_are_cut(run, whole):
    first, rest = (list(credit.norms(run, start=start, stop=stop)) for start, stop in ((0, 13), (13, None)))
    assert len(rest) == 11
    one, other, both = first[-1]["in"], rest[-1]["in"], whole["in"]
    for a, b, c in zip(one[1:8], other[1:8], both[1:8], strict=True):
        torch.testing.assert_close(a + b, c, rtol=1e-9, atol=1e-12)
    assert torch.equal(one.after, other.before) and torch.equal(other.after, both.after)


def test_bad_input_is_named(run, moves, unchecked):
    with pytest.raises(ValueError, match="steps 5 to 25 were asked for; .* has 24 recorded steps"):
        list(credit.norms(run, start=5, stop=25))
    with pytest.raises(ValueError, match=r"axes are \['both'\]; they must be 'in', 'out', or both"):
        list(credit.norms(run, ("both",)))  # type: ignore[arg-type]
    biases = moves[0]._replace(factors={"decoder.bias": per_example.Bias(torch.zeros(6, 10, V))})
    with pytest.raises(ValueError, match="step 0 has factors of decoder.bias; none is a linear map"):
        _norms.init_norms(biases, "in", V, 10)
    with pytest.raises(ValueError, match="none is a linear map with a position for each of 9 tokens"):
        _norms.init_norms(moves[0], "in", V, 9)
    unit = "layers.0.linear1.weight"
    fewer = moves[0]._replace(factors={unit: moves[0].factors[unit]})
    with pytest.raises(ValueError, match="the growth is of 12 neurons, but step 1 has 88"):
        _norms.add_norms(_norms.init_norms(fewer, "in", V, 10), moves[1], *(x[moves[1].datum] for x in DATA))


def test_concentration_is_the_share_of_the_largest_tokens_and_of_their_positions(whole):
    growth = whole["in"]
    share, expected = growth.concentration(3)
    for i in range(0, len(growth.neurons), 11):
        gross = growth.target[:, i].abs()
        top = sorted(range(V), key=lambda v: -float(gross[v]))[:3]
        assert float(share[i]) == pytest.approx(float(gross[top].sum() / gross.sum()))
        assert float(expected[i]) == pytest.approx(float(growth.positions[top].sum() / growth.positions.sum()))
    everything, all_positions = growth.concentration(V + 5)
    torch.testing.assert_close(everything, torch.ones_like(everything))
    torch.testing.assert_close(all_positions, torch.ones_like(everything))


def test_a_unit_has_its_own_neurons(whole):
    growth = whole["out"]
    parts = growth.by_unit()
    assert list(parts) == list(dict.fromkeys(neuron.unit for neuron in growth.neurons))
    for unit, part in parts.items():
        rows = [i for i, neuron in enumerate(growth.neurons) if neuron.unit == unit]
        assert part.neurons == [growth.neurons[i] for i in rows] and torch.equal(part.positions, growth.positions)
        for name in ("target", "input", "linear"):
            assert torch.equal(getattr(part, name), getattr(growth, name)[:, rows])
        for name in ("remainder", "past", "decay", "before", "after"):
            assert torch.equal(getattr(part, name), getattr(growth, name)[rows])


def test_a_run_that_captures_other_units_has_its_layers_neurons(tmp_path):
    run = recorded(tmp_path / "run", replace(RECIPE, n_steps=2), Recording(k=5, units=("layers.0.norm1.*",)))
    *_, found = credit.norms(run)
    assert {neuron.unit for neuron in found["in"].neurons} == {name for name in run.params(0) if is_layer_matrix(name)}


# ---- tables


@AXES
def test_units_have_the_sums_over_their_neurons(run, whole, axis):
    growth = whole[axis]
    frame = tables.norm_unit_frame(growth, 0, 24)
    assert frame["unit"].to_list() == list(run.shapes) and frame["axis"].unique().to_list() == [axis]
    for row in frame.iter_rows(named=True):
        own = [i for i, neuron in enumerate(growth.neurons) if neuron.unit == row["unit"]]
        assert (row["from"], row["to"], row["neurons"]) == (0, 24, len(own))
        assert row["before"] == pytest.approx(sum(float(growth.before[i]) for i in own))
        assert row["growth"] == pytest.approx(sum(float(growth.after[i] - growth.before[i]) for i in own))
        assert row["first order"] == pytest.approx(float(growth.linear[:, own].sum()))
        assert row["remainder"] == pytest.approx(float(growth.remainder[own].sum()))
        missed = [
            abs(float(growth.after[i] - growth.before[i]) - float(growth.target[:, i].sum()))
            / float(growth.target[:, i].abs().sum())
            for i in own
        ]
        assert row["missed"] == pytest.approx(max(missed)) and row["missed"] > 0
        shares = sorted(
            float(growth.target[:, i].abs().topk(10).values.sum() / growth.target[:, i].abs().sum()) for i in own
        )
        assert row["share of 10 tokens"] == pytest.approx(shares[(len(own) - 1) // 2])  # torch's median: the lower


def test_neurons_of_either_end_are_listed_with_their_tokens(whole):
    growth = whole["in"]
    names = [str(neuron) for neuron in growth.neurons]
    found = tables.norm_neuron_frame(growth, 0, 24, each=1)
    tokens = tables.norm_token_frame(growth, 0, 24, each=1, most=3, least=10)
    assert found["neuron"].to_list() == tokens["neuron"].unique(maintain_order=True).to_list()
    expected = []
    for part in growth.by_unit().values():
        grown = (part.after - part.before).tolist()
        expected += [str(part.neurons[grown.index(max(grown))]), str(part.neurons[grown.index(min(grown))])]
    assert found["neuron"].to_list() == expected
    for row in found.iter_rows(named=True):
        i = names.index(row["neuron"])
        assert row["growth"] == pytest.approx(float(growth.after[i] - growth.before[i]))
        assert row["growth"] == pytest.approx(row["first order"] + row["remainder"], abs=1e-5)
        amounts = {"target": growth.target[:, i].tolist(), "input": growth.input[:, i].tolist()}
        amounts["per position"] = [
            a / n if n >= 10 else 0 for a, n in zip(amounts["target"], growth.positions.tolist(), strict=True)
        ]
        own = tokens.filter(pl.col("neuron") == row["neuron"])
        for reading, amount in amounts.items():
            for effect, sign in (("built", 1), ("worn down", -1)):
                ranked = sorted(range(V), key=[-sign * x for x in amount].__getitem__)[:3]
                ids = [v for v in ranked if sign * amount[v] > 0]
                told = own.filter((pl.col("reading") == reading) & (pl.col("effect") == effect))
                assert told["token"].to_list() == ids and told["rank"].to_list() == list(range(len(ids)))
                assert told["amount"].to_list() == pytest.approx([amount[v] for v in ids])


def test_a_dead_neuron_has_no_tokens_and_no_share(whole):
    growth = whole["in"].part(0, 1)
    dead = growth._replace(
        target=torch.zeros_like(growth.target), input=torch.zeros_like(growth.input), after=growth.before
    )
    assert tables.norm_token_frame(dead, 0, 1).schema == tables.norm_token_frame(growth, 0, 1).schema
    assert len(tables.norm_token_frame(dead, 0, 1)) == 0
    assert tables.norm_unit_frame(dead, 0, 1)["share of 10 tokens"].to_list() == [0]
