"""Laws of coherence: shares add up, every measure is the dense definition's, the losses are there when due."""

from collections.abc import Generator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_builders import MODEL, recorded
from run_builders import PLANTED as CORPUS
from run_builders import SMALL as CONFIG
from strategies import factor_arrays, factors_of, few, graph_of

from devinterp_func import batches, credit, per_example, records, training, tree
from devinterp_func.credit import Coherence, _coherence
from devinterp_func.records import Recording
from devinterp_func.training import Recipe

RECIPE = Recipe(context=10, batch_size=6, epochs=2, n_steps=70)
DATA = batches.chunk(CORPUS.train, RECIPE.context)
WHAT = {"losses": "two norms"}
NONE = torch.full((2,), torch.nan)


def losses(params):
    """Any function of the weights."""
    return torch.stack([params["decoder.weight"].norm(), params["embedding.weight"].norm()])


@pytest.fixture(scope="module")
def moves():
    start, graph = tree.map(torch.Tensor.double, training.initial(MODEL, RECIPE)), graph_of(CONFIG, context=10)
    return list(training.moves(graph, start, DATA, RECIPE, captured=("layers.*",), stop=5))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("runs") / "run", RECIPE, Recording(k=5, snapshot_every=10))


@pytest.fixture(scope="module")
def walked(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("walks") / "walk"
    assert [step for step, _ in credit.coherence(run, folder, losses, WHAT, every=5)] == list(range(70))
    return records.read_walk(folder, Coherence)


# ---- a step


def test_measures_are_those_of_the_dense_deltas(moves):
    last, move = moves[2], moves[3]
    found = _coherence.measure_step(move, last, NONE)
    for i, name in enumerate(move.factors):
        each = per_example.form(move.factors[name]).flatten(1)
        change, before = each.sum(0), per_example.form(last.factors[name]).flatten(1).sum(0)
        torch.testing.assert_close(found.along[i], each @ change, rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(found.square[i], each.square().sum(1), rtol=1e-9, atol=1e-15)
        assert float(found.size()[i]) == pytest.approx(float(change.norm()), rel=1e-9)
        cosine = torch.nn.functional.cosine_similarity(change, before, 0)
        assert float(found.alignment()[i]) == pytest.approx(float(cosine), rel=1e-9)
        assert float(found.coherence()[i]) == pytest.approx(float(change @ change / each.square().sum()), rel=1e-9)
        torch.testing.assert_close(per_example.total(move.factors[name]).flatten(), change)


def test_the_change_is_what_the_weights_did(moves):
    found = _coherence.measure_step(moves[4], None, NONE)
    for size, name in zip(found.size().tolist(), moves[4].factors, strict=True):
        assert size == pytest.approx(float((moves[4].after[name] - moves[4].before[name]).norm()), rel=1e-9)


def test_units_pool_as_one_long_vector(moves):
    found = _coherence.measure_step(moves[3], moves[2], NONE).pooled([1, 4])
    chosen = [list(moves[3].factors)[i] for i in (1, 4)]
    now, then = (
        torch.cat([per_example.form(move.factors[name]).flatten(1) for name in chosen], 1)
        for move in (moves[3], moves[2])
    )
    torch.testing.assert_close(found.share()[0], now @ now.sum(0) / now.sum(0).square().sum())
    cosine = torch.nn.functional.cosine_similarity(now.sum(0), then.sum(0), 0)
    torch.testing.assert_close(found.alignment()[0], cosine)


@few
@given(drawn=factor_arrays())
def test_shares_add_up_to_1_and_whole_is_the_sum_for_every_kind_of_factor(moves, drawn):
    factors = factors_of(drawn)
    found = _coherence.measure_step(moves[0]._replace(factors=factors), None, NONE)
    for i, factor in enumerate(factors.values()):
        change = per_example.form(factor).sum(0)
        torch.testing.assert_close(per_example.total(factor), change)
        if bool(change.any()):
            assert float(found.share()[i].sum()) == pytest.approx(1)


@few
@given(order=st.permutations(range(6)), step=st.integers(1, 4))
def test_a_permutation_of_the_data_permutes_shares_and_leaves_the_rest(moves, order, step):
    turned = {
        name: tree.map(lambda x: x[order] if isinstance(x, torch.Tensor) else x, f)
        for name, f in moves[step].factors.items()
    }
    plain = _coherence.measure_step(moves[step], moves[step - 1], NONE)
    found = _coherence.measure_step(moves[step]._replace(factors=turned), moves[step - 1], NONE)
    torch.testing.assert_close(found.share(), plain.share()[:, order])
    torch.testing.assert_close(found.size(), plain.size())
    torch.testing.assert_close(found.alignment(), plain.alignment())
    torch.testing.assert_close(
        _coherence.effective_sample_size(found.square), _coherence.effective_sample_size(plain.square)
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_a_move_repeated_is_aligned_and_one_taken_back_is_opposed(moves, sign):
    again = moves[2]._replace(factors=per_example.scale_factors(moves[2].factors, 3.0 * sign))
    alignment = _coherence.measure_step(again, moves[2], NONE).alignment()
    torch.testing.assert_close(alignment, torch.full_like(alignment, sign))
    assert torch.isnan(_coherence.measure_step(again, None, NONE).alignment()).all()


def test_coherence_is_n_for_equal_data_and_1_at_right_angles(moves):
    signals = torch.eye(6).double()[:, None]
    equal = per_example.Bias(signals[:1].expand(6, 1, 6))
    found = _coherence.measure_step(moves[0]._replace(factors={"a": equal, "b": per_example.Bias(signals)}), None, NONE)
    assert found.coherence().tolist() == pytest.approx([6, 1])


@given(square=st.lists(st.floats(0, 1e6), min_size=1, max_size=8).filter(lambda x: max(x) > 1e-3))
def test_effective_sample_sizes_are_from_1_to_n(square):
    found = float(_coherence.effective_sample_size(torch.tensor(square)))
    assert 1 - 1e-9 <= found <= len(square) + 1e-9
    assert float(_coherence.effective_sample_size(torch.full((len(square),), 0.3))) == pytest.approx(len(square))
    single = torch.zeros(len(square))
    single[-1] = 7
    assert float(_coherence.effective_sample_size(single)) == 1


def test_the_top_data_are_those_with_the_largest_parts():
    part = torch.cat([torch.ones(98), torch.tensor([51.0, -49.0])])
    assert _coherence.top_share(part, 0.01) == pytest.approx(0.51)
    assert _coherence.top_share(part, 0.02) == pytest.approx(0.02)
    assert _coherence.top_share(part, 1.0) == pytest.approx(1)


# ---- a walk


def test_a_walk_that_was_stopped_goes_on_with_the_same_bits(run, walked, tmp_path):
    steps = credit.coherence(run, tmp_path / "walk", losses, WHAT, every=5)
    for step, _ in steps:
        if step == 66:
            break
    assert isinstance(steps, Generator)
    steps.close()
    assert len(records.read_walk(tmp_path / "walk", Coherence).step) == records.SHARD
    list(credit.coherence(run, tmp_path / "walk", losses, WHAT, every=5))
    list(
        credit.coherence(run, tmp_path / "short", losses, WHAT, every=5, stop=20)
    )  # 20 is a snapshot; the step before it is made
    list(credit.coherence(run, tmp_path / "short", losses, WHAT, every=5, stop=25))
    for folder, done in (("walk", 70), ("short", 25)):
        for one, other in zip(records.read_walk(tmp_path / folder, Coherence), walked, strict=True):
            assert torch.equal(one.isnan(), other[:done].isnan())
            assert torch.equal(one.nan_to_num(), other[:done].nan_to_num())


def test_a_walk_knows_the_step_before_but_for_its_first(run, walked):
    assert torch.isnan(walked.turn[0]).all() and not torch.isnan(walked.turn[1:]).any()
    torch.testing.assert_close(walked.last[1:].sqrt(), walked.size()[:-1])


@pytest.mark.parametrize("start", [20, 23])  # at a snapshot, and between two
def test_the_first_step_of_a_later_walk_has_none_before_it(run, walked, tmp_path, start):
    list(credit.coherence(run, tmp_path / "late", losses, WHAT, every=5, start=start, stop=27))
    late = records.read_walk(tmp_path / "late", Coherence)
    assert late.step.tolist() == list(range(start, 27))
    assert (
        torch.isnan(late.turn[0]).all() and torch.isnan(late.last[0]).all() and torch.isnan(late.alignment()[0]).all()
    )
    assert torch.equal(late.turn[1:], walked.turn[start + 1 : 27]) and torch.equal(late.along, walked.along[start:27])


def test_losses_are_there_when_due_and_are_those_before_the_step(run, walked):
    due = walked.step % 5 == 0
    assert not torch.isnan(walked.loss[due]).any() and torch.isnan(walked.loss[~due]).all()
    torch.testing.assert_close(walked.loss[20], losses(run.params(20)))


def test_other_losses_and_another_interval_are_another_walk(run, tmp_path):
    list(credit.coherence(run, tmp_path / "walk", losses, WHAT, every=5, stop=2))
    with pytest.raises(records.RecordError, match="every"):
        list(credit.coherence(run, tmp_path / "walk", losses, WHAT, every=6, stop=2))
    with pytest.raises(records.RecordError, match="losses"):
        list(credit.coherence(run, tmp_path / "walk", losses, {"losses": "others"}, every=5, stop=2))
    with pytest.raises(ValueError, match="every is 0; it must be at least 1"):
        list(credit.coherence(run, tmp_path / "other", losses, WHAT, every=0))


# ---- windows


def test_windows_pool_the_data_of_their_steps(run, walked):
    groups = [list(range(len(run.shapes))), [4, 5]]
    found = credit.measure_windows(walked, groups, 20)
    assert found.step.tolist() == [0, 20, 40]  # the last ten steps fill no window
    for g, group in enumerate(groups):
        for w, first in enumerate(found.step.tolist()):
            along, square = (x[first : first + 20, group].sum(1).double() for x in (walked.along, walked.square))
            turn, last = (x[first : first + 20, group].sum(1).double() for x in (walked.turn, walked.last))
            size = along.sum(1).sqrt()
            cosine = (turn / (size * last.sqrt()))[1 if first == 0 else 0 :]
            assert float(found.size[w, g]) == pytest.approx(float(size.mean()), rel=1e-5)
            assert float(found.alignment[w, g]) == pytest.approx(float(cosine.mean()), rel=1e-4)
            assert float(found.coherence[w, g]) == pytest.approx(float(along.sum() / square.sum()), rel=1e-5)
            effective = float(square.sum() ** 2 / (square**2).sum())
            assert float(found.effective[w, g]) == pytest.approx(effective / 120, rel=1e-5)
            way = (along / size[:, None]).flatten()
            largest = sorted(way.tolist(), key=abs)[-1]  # 1 % of 120
            assert float(found.top[w, g]) == pytest.approx(largest / float(way.sum()), rel=1e-4)
            torch.testing.assert_close(found.loss[w], walked.loss[first : first + 20 : 5].double().mean(0))


def test_a_window_may_take_all_steps_and_not_one_more(walked):
    assert credit.measure_windows(walked, [[0]], 70).step.tolist() == [0]
    assert credit.measure_windows(walked, [[0]], 35).step.tolist() == [0, 35]
    with pytest.raises(ValueError, match="the window is 71 steps; the walk has 70"):
        credit.measure_windows(walked, [[0]], 71)
