"""Laws of directions: what a pair of directions gained is the sum of its amounts, in any basis."""

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from run_builders import PLANTED as CORPUS
from run_builders import recorded
from strategies import few, floats, seeds

from devinterp_func import batches, credit, keys, per_example
from devinterp_func.credit import DirectionName, TokenAmounts, _directions
from devinterp_func.per_example import Bias, Outer, Sum
from devinterp_func.records import Recording
from devinterp_func.show import tables
from devinterp_func.training import Recipe

RECIPE = Recipe(context=10, batch_size=6, n_steps=16)
DATA = batches.chunk(CORPUS.train, RECIPE.context)
V = len(CORPUS.vocab)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("directions") / "run", RECIPE, Recording(k=5, snapshot_every=8))


@pytest.fixture(scope="module")
def walked(run):
    """Three pairs of each kind in each unit over steps 8 to 16: the change, the pairs, their names and amounts."""
    before, after = run.params(8), run.params(16)
    change = {unit: after[unit] - before[unit] for unit in run.shapes}
    pairs, names = credit.choose_directions(change, 3, key=5)
    steps = list(credit.directions(run, pairs, 8, 16))
    assert [step for step, _ in steps] == list(range(8, 16))
    return change, pairs, names, steps[-1][1]


def normal(shape, seed):
    return torch.from_numpy(keys.generator(seed).normal(size=shape)).float()


def quadratic(pair, matrix):
    return torch.stack([u @ matrix.to(u) @ v for u, v in zip(*pair, strict=True)])


# ---- which directions


def test_pairs_are_named_in_the_order_of_their_amounts(run, walked):
    change, pairs, names, _ = walked
    assert list(pairs) == list(run.shapes)
    for i, name in enumerate(names):
        unit, place = divmod(i, 9)
        assert name == (list(run.shapes)[unit], ("singular", "largest weights", "rotated")[place // 3], place % 3)
        pair = tuple(side[place] for side in pairs[name.unit])
        gained = float(pair[0] @ change[name.unit] @ pair[1])
        if name.kind == "singular":
            assert gained == pytest.approx(float(np.linalg.svd(change[name.unit].numpy())[1][name.rank]), rel=1e-4)
        if name.kind == "largest weights":
            largest = sorted(change[name.unit].abs().flatten().tolist(), reverse=True)
            assert gained == pytest.approx(largest[name.rank])
        assert gained > -1e-6  # every kind takes the sign of its change


def test_each_unit_has_rotations_of_its_own(walked):
    _, pairs, _, _ = walked
    one, other = (pairs[f"layers.{i}.linear1.weight"].output[6:] for i in (0, 1))
    assert not torch.allclose(one, other) and not torch.allclose(one, -other)


@few
@given(floats((4, 3), 9))
def test_singular_pairs_give_the_singular_values_and_lead(change):
    pairs = _directions.singular_directions(change, 3)
    gained = quadratic(pairs, change)
    torch.testing.assert_close(gained, torch.from_numpy(np.linalg.svd(change.numpy())[1]), atol=1e-9, rtol=1e-9)
    assert float(gained[0]) >= float(change.abs().max()) - 1e-9  # no axis pair gained more
    for side in pairs:
        torch.testing.assert_close(side @ side.T, torch.eye(3, dtype=side.dtype), atol=1e-9, rtol=1e-9)
    assert bool((pairs.output.gather(1, pairs.output.abs().argmax(1, keepdim=True)) > 0).all())  # the sign is settled


@few
@given(floats((4, 3), 9), seeds)
def test_rotations_are_orthonormal_and_largest_are_the_largest(change, seed):
    turned = _directions.rotated_directions(change, 3, key=seed)
    for side in turned:
        torch.testing.assert_close(side @ side.T, torch.eye(3, dtype=side.dtype), atol=1e-9, rtol=1e-9)
    assert bool((quadratic(turned, change) > -1e-9).all())
    gained = quadratic(_directions.largest_weights(change, 3), change)
    assert gained.tolist() == sorted(change.abs().flatten().tolist(), reverse=True)[:3]


# ---- what moved them


def test_amounts_are_complete(walked):
    change, pairs, _, amounts = walked
    gained = torch.cat([quadratic(pair, change[unit]) for unit, pair in pairs.items()])
    for table in amounts.values():
        torch.testing.assert_close(table.net.sum(0), gained.double(), atol=1e-6, rtol=1e-4)
        assert bool((table.gross >= table.net.abs() - 1e-9).all())
        assert int(table.positions.sum()) == 8 * RECIPE.batch_size * RECIPE.context


def test_every_token_has_the_amounts_of_its_own_positions(run, walked):
    _, pairs, names, amounts = walked
    net = {side: torch.zeros(V, len(names), dtype=torch.float64) for side in ("target", "input")}
    gross = {side: torch.zeros(V, len(names), dtype=torch.float64) for side in ("target", "input")}
    for move in run.moves(8, 16):
        by_position = per_example.token_gradients(move.factors)
        each = [torch.einsum("ro,ncoi,ri->ncr", p.output, by_position[unit], p.input) for unit, p in pairs.items()]
        for j, id in enumerate(move.datum.tolist()):
            for k in range(RECIPE.context):
                own = torch.cat([part[j, k] for part in each]).double()
                for side, tokens in (("target", DATA.targets), ("input", DATA.tokens)):
                    net[side][int(tokens[id, k])] += own
                    gross[side][int(tokens[id, k])] += own.abs()
    for side, table in amounts.items():
        torch.testing.assert_close(table.net, net[side], atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(table.gross, gross[side], atol=1e-6, rtol=1e-4)


@few
@given(floats((2, 3, 4), 9), floats((2, 3, 5), 9), seeds)
def test_amounts_sum_over_positions_to_the_datums_own_shift(inputs, signals, seed):
    factor = Outer(inputs, signals)
    pair = _directions.rotated_directions(torch.ones(5, 4, dtype=torch.float64), 2, key=seed)
    found = _directions.direction_amounts({"w": pair}, {"w": factor})
    expected = torch.einsum("ro,noi,ri->nr", pair.output, per_example.form(factor), pair.input)
    torch.testing.assert_close(found.sum(1), expected, atol=1e-9, rtol=1e-9)


def test_a_map_that_is_used_twice_has_the_amounts_of_both_uses():
    pair = _directions.rotated_directions(torch.ones(3, 4), 2, key=0)
    one, other = (Outer(normal((2, 5, 4), seed), normal((2, 5, 3), seed + 2)) for seed in (0, 1))
    apart = [_directions.direction_amounts({"w": pair}, {"w": factor}) for factor in (one, other)]
    both = _directions.direction_amounts({"w": pair}, {"w": Sum((one, other))})
    torch.testing.assert_close(both, apart[0] + apart[1])


def test_units_that_the_run_did_not_capture_are_looked_at_too(run):
    change = {"decoder.weight": run.params(3)["decoder.weight"] - run.params(2)["decoder.weight"]}
    pairs, _ = credit.choose_directions(change, 2, key=0)
    [(_, amounts)] = list(credit.directions(run, pairs, 2, 3))
    [move] = run.moves(2, 3, ("decoder.weight",))
    delta = per_example.gradients(move.factors)["decoder.weight"].sum(0)
    torch.testing.assert_close(
        amounts["target"].net.sum(0), quadratic(pairs["decoder.weight"], delta).double(), atol=1e-6, rtol=1e-4
    )


# ---- can it be read?


def test_divergence_is_zero_for_all_alike_and_the_surprise_of_a_single_token():
    count = torch.tensor([6, 3, 1])
    even, single = count.double(), torch.tensor([0.0, 0.0, 7.0])
    amounts = TokenAmounts(torch.zeros(3, 2), torch.stack([even, single], 1).float(), count)
    found = credit.divergence(amounts)
    assert float(found[0]) == pytest.approx(0, abs=1e-6) and float(found[1]) == pytest.approx(-np.log(0.1))


def test_consistency_is_one_for_one_sign_and_zero_where_all_cancels():
    net, gross = torch.tensor([[2.0, 1.0], [1.0, -1.0]]), torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    assert credit.consistency(TokenAmounts(net, gross, torch.ones(2).long())).tolist() == [1, 0]
    down = TokenAmounts(-gross, gross, torch.ones(2).long())
    assert credit.consistency(down).tolist() == [1, 1]


# ---- tables


def test_frames_name_every_pair_and_say_what_it_gained(walked):
    _, _, names, amounts = walked
    frame = tables.direction_frame(amounts, names, 8, 16)
    assert [DirectionName(*row) for row in frame.select("unit", "kind", "rank").iter_rows()] == names
    assert frame.select("from", "to").unique().rows() == [(8, 16)]
    for r, row in enumerate(frame.iter_rows(named=True)):
        net, gross = (x[:, r] for x in (amounts["target"].net, amounts["target"].gross))
        assert row["change"] == pytest.approx(float(net.sum()))
        assert row["consistency"] == pytest.approx(abs(float(net.sum())) / float(gross.sum()))
        for side in ("target", "input"):
            p = amounts[side].gross[:, r] / amounts[side].gross[:, r].sum()
            q = amounts[side].positions / amounts[side].positions.sum()
            kl = sum(float(a) * np.log(float(a / b)) for a, b in zip(p, q, strict=True) if a > 0)
            assert row[f"{side}: divergence"] == pytest.approx(kl)


def test_units_have_medians_and_singular_pairs_are_held_against_rotated_ones():
    rows = []
    for kind, values in (("singular", [5.0, 3.0, 4.0]), ("largest weights", [9, 8, 7]), ("rotated", [1.0, 2.0, 0.0])):
        for rank, x in enumerate(values):
            row = {"from": 0, "to": 2, "unit": "a", "kind": kind, "rank": rank, "change": 1.0, "consistency": 1.0}
            rows.append(row | {"target: divergence": float(x), "input: divergence": -float(x)})
    [row] = tables.direction_unit_frame(pl.DataFrame(rows)).iter_rows(named=True)
    assert (row["unit"], row["from"], row["to"]) == ("a", 0, 2)
    assert [row[f"target: {kind}"] for kind in ("singular", "largest weights", "rotated")] == [4, 8, 1]
    assert row["target: p"] == pytest.approx(1 / 20) and row["input: p"] == pytest.approx(1)  # of 6! / (3! 3!) orders


def test_the_tokens_of_a_pair_are_those_with_the_largest_amounts(walked):
    _, _, names, amounts = walked
    frame = tables.direction_token_frame(amounts, names, 8, 16, most=3)
    assert len(frame) == len(names) * 4
    for i, row in enumerate(frame.iter_rows(named=True)):
        r = i // 4
        assert (row["unit"], row["kind"], row["rank"]) == names[r]
        net, positions = amounts[row["side"]].net[:, r].tolist(), amounts[row["side"]].positions.tolist()
        mean = [x / n if n >= 20 else 0.0 for x, n in zip(net, positions, strict=True)]
        score = net if row["reading"] == "total" else mean
        for column, sign in (("up", 1), ("down", -1)):
            ranked = sorted(range(V), key=[-sign * x for x in score].__getitem__)[:3]
            assert row[column] == [v for v in ranked if sign * score[v] > 0]


def test_a_mean_per_position_takes_twenty_positions():
    net = torch.tensor([[38.0], [40.0], [-63.0]]).double()
    amounts = TokenAmounts(net, net.abs(), torch.tensor([19, 20, 21]))
    both: dict[credit.Side, TokenAmounts] = {"target": amounts, "input": amounts}
    frame = tables.direction_token_frame(both, [DirectionName("a", "singular", 0)], 0, 1)
    total, mean = frame.filter(pl.col("side") == "target").iter_rows(named=True)
    assert (total["up"], total["down"]) == ([1, 0], [2]) and (mean["up"], mean["down"]) == ([1], [2])


# ---- bad input


def test_errors_say_what_there_is(run):
    with pytest.raises(ValueError, match="r is 4; the unit of shape .3, 5. has 1 to 3"):
        _directions.singular_directions(torch.zeros(3, 5), 4)
    with pytest.raises(ValueError, match="r is 0; it must be at least 1"):
        credit.require_pairs({"w": (3, 5)}, 0)
    credit.require_pairs({"w": (5, 3)}, 3)
    pair = _directions.rotated_directions(torch.ones(8, 8), 1, key=0)
    with pytest.raises(ValueError, match="w has no factors of a linear map; the step has those of v"):
        _directions.direction_amounts({"w": pair}, {"v": Outer(torch.zeros(1, 1, 8), torch.zeros(1, 1, 8))})
    map, longer, bias = Outer(*torch.zeros(2, 1, 1, 8)), Outer(*torch.zeros(2, 1, 2, 8)), Bias(torch.zeros(1, 1, 8))
    for factor in (bias, map._replace(shape=(8, 2, 2, 2)), Sum((map, longer)), Sum((map, bias))):
        with pytest.raises(ValueError, match="w has no factors of a linear map"):
            _directions.direction_amounts({"w": pair}, {"w": factor})
    with pytest.raises(ValueError, match="16 recorded steps"):
        next(credit.directions(run, {"layers.0.linear1.weight": pair}, 3, 30))


def test_only_matrices_of_linear_maps_are_looked_at(run):
    found = credit.linear_maps(run.graph, run.graph.shapes)
    assert found == [*run.shapes, "decoder.weight"]
    [move] = run.moves(0, 1, ("*",))
    assert set(found) == {unit for unit, factor in move.factors.items() if isinstance(factor, Outer)}
