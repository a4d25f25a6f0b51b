"""Laws of phases.py and its tables: shares add up, every measure is the dense definition's, classes are disjoint."""

from collections.abc import Generator
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_builders import PLANTED as CORPUS
from run_builders import SMALL as CONFIG
from run_builders import recorded
from strategies import factor_arrays, factors_of, few

from devinterp_func import (
    batches,
    bigram_corpus,
    per_example,
    phase_snapshots,
    phase_tables,
    phases,
    records,
    training,
    transformer,
    tree,
    walks,
)
from devinterp_func.training import Recipe

RECIPE = Recipe(context=10, batch_size=6, epochs=2, n_steps=70, k=5, snapshot_every=10)
DATA = batches.chunk(CORPUS.train, RECIPE.context)
TEXTS = phases.texts(CORPUS, RECIPE.context, 30, 10, key=0)
FOUND = bigram_corpus.counts(CORPUS.train, len(CORPUS.vocab))
NONE = torch.full((3,), torch.nan)


@pytest.fixture(scope="module")
def moves():
    start = tree.map(torch.Tensor.double, training.initial(CONFIG, RECIPE))
    return list(training.moves(start, DATA, CONFIG, replace(RECIPE, units=("layers.*",)), stop=5))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("runs") / "run", RECIPE)


@pytest.fixture(scope="module")
def walked(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("walks") / "walk"
    assert [step for step, _ in phases.walk(run, folder, TEXTS, every=5)] == list(range(70))
    return phases.read(folder)


# ---- a step


def test_measures_are_those_of_the_dense_deltas(moves):
    last, move = moves[2], moves[3]
    found = phases.of_move(move, last, NONE)
    for i, name in enumerate(move.factors):
        each = per_example.form(move.factors[name]).flatten(1)
        change, before = each.sum(0), per_example.form(last.factors[name]).flatten(1).sum(0)
        torch.testing.assert_close(found.along[i], each @ change, rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(found.square[i], each.square().sum(1), rtol=1e-9, atol=1e-15)
        assert float(found.size()[i]) == pytest.approx(float(change.norm()), rel=1e-9)
        cosine = torch.nn.functional.cosine_similarity(change, before, 0)
        assert float(found.alignment()[i]) == pytest.approx(float(cosine), rel=1e-9)
        assert float(found.coherence()[i]) == pytest.approx(float(change @ change / each.square().sum()), rel=1e-9)
        torch.testing.assert_close(phases.whole(move.factors[name]).flatten(), change)


def test_the_change_is_what_the_weights_did(moves):
    found = phases.of_move(moves[4], None, NONE)
    for size, name in zip(found.size().tolist(), moves[4].factors, strict=True):
        assert size == pytest.approx(float((moves[4].after[name] - moves[4].before[name]).norm()), rel=1e-9)


def test_units_pool_as_one_long_vector(moves):
    found = phases.of_move(moves[3], moves[2], NONE).pooled([1, 4])
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
    found = phases.of_move(moves[0]._replace(factors=factors), None, NONE)
    for i, factor in enumerate(factors.values()):
        change = per_example.form(factor).sum(0)
        torch.testing.assert_close(phases.whole(factor), change)
        if bool(change.any()):
            assert float(found.share()[i].sum()) == pytest.approx(1)


@few
@given(order=st.permutations(range(6)), step=st.integers(1, 4))
def test_a_permutation_of_the_data_permutes_shares_and_leaves_the_rest(moves, order, step):
    turned = {
        name: tree.map(lambda x: x[order] if isinstance(x, torch.Tensor) else x, f)
        for name, f in moves[step].factors.items()
    }
    plain = phases.of_move(moves[step], moves[step - 1], NONE)
    found = phases.of_move(moves[step]._replace(factors=turned), moves[step - 1], NONE)
    torch.testing.assert_close(found.share(), plain.share()[:, order])
    torch.testing.assert_close(found.size(), plain.size())
    torch.testing.assert_close(found.alignment(), plain.alignment())
    torch.testing.assert_close(phases.effective(found.square), phases.effective(plain.square))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_move_repeated_is_aligned_and_one_taken_back_is_opposed(moves, sign):
    again = moves[2]._replace(factors=per_example.scale(moves[2].factors, 3.0 * sign))
    alignment = phases.of_move(again, moves[2], NONE).alignment()
    torch.testing.assert_close(alignment, torch.full_like(alignment, sign))
    assert torch.isnan(phases.of_move(again, None, NONE).alignment()).all()


def test_coherence_is_n_for_equal_data_and_1_at_right_angles(moves):
    signals = torch.eye(6).double()[:, None]
    equal = per_example.Bias(signals[:1].expand(6, 1, 6))
    found = phases.of_move(moves[0]._replace(factors={"a": equal, "b": per_example.Bias(signals)}), None, NONE)
    assert found.coherence().tolist() == pytest.approx([6, 1])


@given(square=st.lists(st.floats(0, 1e6), min_size=1, max_size=8).filter(lambda x: max(x) > 1e-3))
def test_effective_data_are_from_1_to_n(square):
    found = float(phases.effective(torch.tensor(square)))
    assert 1 - 1e-9 <= found <= len(square) + 1e-9
    assert float(phases.effective(torch.full((len(square),), 0.3))) == pytest.approx(len(square))
    single = torch.zeros(len(square))
    single[-1] = 7
    assert float(phases.effective(single)) == 1


def test_the_top_data_are_those_with_the_largest_parts():
    part = torch.cat([torch.ones(98), torch.tensor([51.0, -49.0])])
    assert phases.top_share(part, 0.01) == pytest.approx(0.51)
    assert phases.top_share(part, 0.02) == pytest.approx(0.02)
    assert phases.top_share(part, 1.0) == pytest.approx(1)


# ---- classes


def test_classes_are_what_they_say_counted_pair_by_pair():
    stream, common = CORPUS.train.tolist(), 10
    commonest = set(FOUND.second.argsort(descending=True, stable=True)[:common].tolist())
    pairs = list(zip(stream[:-1], stream[1:], strict=True))
    kinds = phases.classes(TEXTS.tokens, TEXTS.targets, FOUND, common)
    assert set(kinds.unique().tolist()) == {0, 1, 2} and torch.equal(kinds, TEXTS.kind)
    for input, output, kind in zip(*(x[:5].flatten().tolist() for x in (*TEXTS[1:3], kinds)), strict=True):
        n, first = pairs.count((input, output)), sum(a == input for a, _ in pairs)
        told = n >= 5 and n / first >= 10 * sum(b == output for _, b in pairs) / len(pairs)
        assert kind == (0 if output in commonest else 1 if told else 2)


def test_class_losses_are_means_over_all_positions(moves):
    params = training.initial(CONFIG, RECIPE)
    found = phases.class_losses(params, TEXTS, CONFIG)
    logits = torch.stack([transformer.apply(params, one, CONFIG) for one in TEXTS.tokens])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), TEXTS.targets.flatten(), reduction="none")
    for i in range(3):
        assert float(found[i]) == pytest.approx(float(loss[TEXTS.kind.flatten() == i].mean()), rel=1e-5)
    assert float(TEXTS.share() @ found) == pytest.approx(float(loss.mean()), rel=1e-5)  # disjoint, and all there are


# ---- a walk


def test_a_walk_that_was_stopped_goes_on_with_the_same_bits(run, walked, tmp_path):
    steps = phases.walk(run, tmp_path / "walk", TEXTS, every=5)
    for step, _ in steps:
        if step == 66:
            break
    assert isinstance(steps, Generator)
    steps.close()
    assert len(phases.read(tmp_path / "walk").step) == walks.SHARD
    list(phases.walk(run, tmp_path / "walk", TEXTS, every=5))
    list(phases.walk(run, tmp_path / "short", TEXTS, every=5, stop=20))  # 20 is a snapshot; the step before it is made
    list(phases.walk(run, tmp_path / "short", TEXTS, every=5, stop=25))
    for folder, done in (("walk", 70), ("short", 25)):
        for one, other in zip(phases.read(tmp_path / folder), walked, strict=True):
            assert torch.equal(one.isnan(), other[:done].isnan())
            assert torch.equal(one.nan_to_num(), other[:done].nan_to_num())


def test_a_walk_knows_the_step_before_but_for_its_first(run, walked, tmp_path):
    assert torch.isnan(walked.turn[0]).all() and not torch.isnan(walked.turn[1:]).any()
    torch.testing.assert_close(walked.last[1:].sqrt(), walked.size()[:-1])
    list(phases.walk(run, tmp_path / "late", TEXTS, every=5, start=20, stop=25))
    late = phases.read(tmp_path / "late")
    assert torch.isnan(late.turn[0]).all() and torch.equal(late.turn[1:], walked.turn[21:25])
    assert torch.equal(late.along, walked.along[20:25])


def test_losses_are_there_when_due(run, walked):
    due = walked.step % 5 == 0
    assert not torch.isnan(walked.loss[due]).any() and torch.isnan(walked.loss[~due]).all()
    torch.testing.assert_close(walked.loss[20], phases.class_losses(records.read_params(run, 20), TEXTS, CONFIG))


# ---- tables


def test_windows_put_the_data_of_their_steps_together(run, walked):
    units = list(training.shapes(run))
    frame = phase_tables.window_frame(walked, units, 20)
    assert frame["step"].unique().sort().to_list() == [0, 20, 40]  # the last ten steps fill no window
    row = frame.row(by_predicate=(pl.col("units") == "layer 1") & (pl.col("step") == 20), named=True)
    own = [i for i, unit in enumerate(units) if unit.startswith("layers.1.")]
    along, square = (x[20:40, own].sum(1).double() for x in (walked.along, walked.square))
    assert row["coherence"] == pytest.approx(float(along.sum() / square.sum()), rel=1e-5)
    assert row["effective data"] == pytest.approx(float(square.sum() ** 2 / (square**2).sum() / 120), rel=1e-5)
    way = along / along.sum(1, keepdim=True).sqrt()
    assert row["size"] == pytest.approx(float(way.sum() / 20), rel=1e-5)
    largest = sorted(way.flatten().tolist(), key=abs)[-1]  # 1 % of 120
    assert row["top 1 % of data"] == pytest.approx(largest / float(way.sum()), rel=1e-4)
    whole = frame.filter(pl.col("units") == "all")
    assert whole["loss, bigram"][1] == pytest.approx(float(walked.loss[20:40:5, 1].mean()))


def test_phases_have_the_means_of_their_windows(run, walked):
    windows = phase_tables.window_frame(walked, list(training.shapes(run)), 5)
    found, course, points = phase_tables.frames(windows, key=0)
    own, segments = windows.filter(pl.col("units") == "all"), found["segments"]
    assert segments["from"].to_list() == [0, *points.astype(int)] and segments["to"].to_list()[-1] == 70
    weight = segments["to"] - segments["from"]
    mean = np.average(segments["coherence"].to_numpy(), weights=weight.to_numpy())
    assert mean == pytest.approx(own["coherence"].to_numpy().mean())
    assert course.names == [*phase_tables.LOSSES, *phase_tables.STEPWISE] and len(course.step) == 14


def test_makers_are_the_data_and_units_that_move_a_phase_most(run, walked):
    units, datum = list(training.shapes(run)), torch.stack([made.datum for made in records.scan(run)])
    segments = pl.DataFrame({"phase": [1, 2], "from": [20, 45], "to": [45, 70]})
    late = phases.Steps(*(x[20:] for x in walked))
    found = phase_tables.maker_frame(late, datum[20:], segments, units, DATA.tokens, CORPUS.vocab, most=4)
    for row, (first, stop) in zip(found.iter_rows(named=True), ((20, 45), (45, 70)), strict=True):
        square, ids = walked.square[first:stop].double(), datum[first:stop].flatten().tolist()
        by_unit = {unit: float(square[:, i].sum() / square.sum()) for i, unit in enumerate(units)}
        ranked = sorted(by_unit, key=by_unit.__getitem__, reverse=True)[:2]
        assert row["units"] == ", ".join(f"{unit} {by_unit[unit]:.2f}" for unit in ranked)
        own = square.sum(1).flatten().tolist()
        a, b = sorted(range(len(own)), key=own.__getitem__, reverse=True)[:2]  # 1 % of 150 data
        assert row["share of the top 1 %"] == pytest.approx((own[a] + own[b]) / sum(own))
        assert row["largest"].split() == CORPUS.vocab.decode(DATA.tokens[ids[a]])
        top = DATA.tokens[[ids[a], ids[b]]].flatten().tolist()
        everything = DATA.tokens[ids].flatten().tolist()
        said = CORPUS.vocab.encode(row["over-represented"].split()).tolist()
        assert said and len(said) <= 4
        assert all(top.count(v) / len(top) > everything.count(v) / len(everything) for v in said)


def test_snapshots_alone_tell_losses_norms_and_ways(run, walked):
    chosen = phase_snapshots.choose(records.snapshots(run), 8, "even")
    assert chosen == list(range(0, 71, 10))
    windows = phase_tables.window_frame(walked, list(training.shapes(run)), 5)
    full = np.array([12.0, 40.0])
    found = phase_snapshots.frames(run, {"even": chosen, "log": chosen[:5]}, TEXTS, windows, full)
    row = found["snapshots"].row(2, named=True)
    a, b, c = (records.read_params(run, step) for step in (0, 10, 20))
    one, two = (torch.cat([(y[n] - x[n]).flatten() for n in training.shapes(run)]) for x, y in ((a, b), (b, c)))
    assert row["moved a step"] == pytest.approx(float(two.norm()) / 10, rel=1e-5)
    assert row["turn"] == pytest.approx(float(torch.nn.functional.cosine_similarity(one, two, 0)), abs=1e-5)
    assert row["loss, unigram"] == pytest.approx(float(walked.loss[20, 0]))
    assert set(found["answers"]["full record"]) == {12, 40} and len(found["answers"]) == 4
    assert (found["courses"].filter(pl.col("spacing") == "even")["correlation"] > 0.3).any()


def test_answers_are_distances_in_steps():
    few, snapshots = np.array([30.0, 50.0]), [0, 10, 30, 50, 100]
    found = phase_snapshots.answer_frame(np.array([33.0, 90.0]), few, snapshots)
    assert found["off by"].to_list() == [3, 40] and found["at best"].to_list() == [3, 40]
    assert found["by chance"].to_list() == pytest.approx([(3 + 17 + 3) / 3, (60 + 40 + 40) / 3])
    assert phase_snapshots.answer_frame(np.array([33.0]), np.array([]), snapshots)["off by"].to_list() == [None]


def test_bad_input_is_named(run, walked, tmp_path):
    with pytest.raises(ValueError, match="common is 0; it must be from 1 to V"):
        phases.classes(TEXTS.tokens, TEXTS.targets, FOUND, 0)
    with pytest.raises(ValueError, match="every is 0"):
        list(phases.walk(run, tmp_path / "walk", TEXTS, every=0))
    with pytest.raises(ValueError, match="the window is 71 steps; the walk has 70"):
        phase_tables.window_frame(walked, list(training.shapes(run)), 71)
    with pytest.raises(ValueError, match="8 of 3 snapshots"):
        phase_snapshots.choose([0, 1, 2], 8, "log")
    list(phases.walk(run, tmp_path / "walk", TEXTS, every=5, stop=2))
    with pytest.raises(records.RecordError):
        list(phases.walk(run, tmp_path / "walk", TEXTS, every=6, stop=2))
