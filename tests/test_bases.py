"""Laws of bases.py: what a pair of directions gained is the sum of its amounts, in any basis."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from run_builders import PLANTED as CORPUS
from run_builders import recorded
from strategies import few, floats, seeds

from devinterp_func import bases, batches, per_example, records, training
from devinterp_func.per_example import Outer
from devinterp_func.training import Recipe

RECIPE = Recipe(context=10, batch_size=6, n_steps=16, k=5, snapshot_every=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return recorded(tmp_path_factory.mktemp("bases") / "run", RECIPE)


@pytest.fixture(scope="module")
def walked(run):
    """All pairs of the walk from step 8 to 16, and what was made of them."""
    before, after = records.read_params(run, 8), records.read_params(run, 16)
    chosen, names = {}, []
    for unit in training.shapes(run):
        change = after[unit] - before[unit]
        kinds = bases.singular(change, 3), bases.largest(change, 3), bases.rotated(change, 3, key=5)
        chosen[unit] = bases.Directions(*map(torch.cat, zip(*kinds, strict=True)))
        names += [(unit, kind, rank) for kind in bases.KINDS for rank in range(3)]
    steps = list(bases.over(run, chosen, 8, 16))
    assert [step for step, _ in steps] == list(range(8, 16))
    return before, after, chosen, names, steps[-1][1]


def test_the_books_balance(walked):
    before, after, chosen, _, tallies = walked
    gained = torch.cat(
        [torch.einsum("ro,oi,ri->r", d.output, after[n] - before[n], d.input) for n, d in chosen.items()]
    )
    for tally in tallies.values():
        torch.testing.assert_close(tally.net.sum(0), gained.double(), atol=1e-6, rtol=1e-4)
        assert bool((tally.gross >= tally.net.abs() - 1e-9).all())
        assert int(tally.positions.sum()) == 8 * RECIPE.batch_size * RECIPE.context
    assert bool((gained > -1e-6).all())  # every kind takes the sign of its change


def test_tallies_are_those_of_every_step_made_again(run, walked):
    _, _, chosen, _, tallies = walked
    data = batches.chunk(CORPUS.train, RECIPE.context)
    net = torch.zeros(len(CORPUS.vocab), sum(len(d.output) for d in chosen.values()), dtype=torch.float64)
    for step in range(8, 16):
        found = training.replay(run, step)
        for j, id in enumerate(found.record.datum.tolist()):
            own = torch.cat(
                [torch.einsum("ro,oi,ri->r", d.output, found.deltas[n][j], d.input) for n, d in chosen.items()]
            )
            at = tallies["target"].positions[data.targets[id]]
            assert bool((at > 0).all())
            net[0] += own.double()  # the tokens are another law's; in all each datum's delta is there once
    torch.testing.assert_close(net[0], tallies["target"].net.sum(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tallies["target"].net.sum(0), tallies["input"].net.sum(0), atol=1e-9, rtol=1e-9)


@few
@given(floats((2, 3, 4), 9), floats((2, 3, 5), 9), seeds)
def test_amounts_sum_over_positions_to_the_datums_own_shift(inputs, signals, seed):
    factor = Outer(inputs, signals)
    pair = bases.rotated(torch.ones(5, 4, dtype=torch.float64), 2, key=seed)
    found = bases.amounts({"w": pair}, {"w": factor})
    expected = torch.einsum("ro,noi,ri->nr", pair.output, per_example.form(factor), pair.input)
    torch.testing.assert_close(found.sum(1), expected, atol=1e-9, rtol=1e-9)


@few
@given(floats((4, 3), 9))
def test_singular_pairs_give_the_singular_values_and_lead(change):
    pairs = bases.singular(change, 3)
    gained = torch.einsum("ro,oi,ri->r", pairs.output, change, pairs.input)
    torch.testing.assert_close(gained, torch.from_numpy(np.linalg.svd(change.numpy())[1]), atol=1e-9, rtol=1e-9)
    assert float(gained[0]) >= float(change.abs().max()) - 1e-9  # no axis pair gained more


@few
@given(floats((4, 3), 9), seeds)
def test_rotations_are_orthonormal_and_largest_are_the_largest(change, seed):
    turned = bases.rotated(change, 3, key=seed)
    for side in turned:
        torch.testing.assert_close(side @ side.T, torch.eye(3, dtype=side.dtype), atol=1e-9, rtol=1e-9)
    axes = bases.largest(change, 3)
    gained = torch.einsum("ro,oi,ri->r", axes.output, change, axes.input)
    assert gained.tolist() == sorted(change.abs().flatten().tolist(), reverse=True)[:3]


def test_divergence_is_zero_for_all_alike_and_the_surprise_of_a_single_token():
    count = torch.tensor([6, 3, 1])
    even, single = count.double(), torch.tensor([0.0, 0.0, 7.0])
    tally = bases.Tally(torch.zeros(3, 2), torch.stack([even, single], 1).float(), count)
    found = bases.divergence(tally)
    assert float(found[0]) == pytest.approx(0, abs=1e-6) and float(found[1]) == pytest.approx(-np.log(0.1))


def test_consistency_is_one_for_one_sign_and_zero_where_all_cancels():
    net, gross = torch.tensor([[2.0, 1.0], [1.0, -1.0]]), torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    assert bases.consistency(bases.Tally(net, gross, torch.ones(2).long())).tolist() == [1, 0]


def test_frames_name_every_pair_and_say_what_moved_it(walked):
    _, _, _, names, tallies = walked
    table = bases.frame(tallies, names)
    assert table.height == len(names) and set(table["kind"]) == set(bases.KINDS)
    units = bases.summary(table)
    assert units["unit"].to_list() == list(dict.fromkeys(unit for unit, _, _ in names))
    assert bool(((units["target: p"] >= 0) & (units["target: p"] <= 1)).all())
    words = bases.words_frame(tallies, names, CORPUS.vocab, most=1)
    best = tallies["target"].net[:, 0].argmax()
    assert words["target: up"][0] == CORPUS.vocab.tokens[int(best)]


def test_errors_say_what_there_is(run):
    with pytest.raises(ValueError, match="r is 4; a unit of shape .3, 5. has 1 to 3"):
        bases.singular(torch.zeros(3, 5), 4)
    pair = bases.rotated(torch.ones(8, 8), 1, key=0)
    with pytest.raises(ValueError, match="w has no factors of a linear map; the step has those of v"):
        bases.amounts({"w": pair}, {"v": Outer(torch.zeros(1, 1, 8), torch.zeros(1, 1, 8))})
    with pytest.raises(ValueError, match="16 recorded steps"):
        next(bases.over(run, {}, 3, 30))
