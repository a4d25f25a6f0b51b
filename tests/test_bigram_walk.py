"""Laws of the bigram walk and its tables: every step against the dense definition, sums, resuming, refusals."""

import math
from collections.abc import Generator
from typing import Any

import polars as pl
import pytest
import torch
from run_builders import PLANTED as CORPUS
from run_builders import SMALL as CONFIG
from run_builders import recorded

from devinterp_func import (
    batches,
    bigram,
    bigram_corpus,
    bigram_tables,
    bigram_walk,
    per_example,
    records,
    training,
    walks,
)
from devinterp_func.bigram_walk import W_E, W_U
from devinterp_func.training import Recipe

RECIPE = Recipe(context=10, batch_size=6, epochs=2, n_steps=75, k=5, snapshot_every=20)
OUTPUT, INPUT = torch.tensor([5, 9, 0]), torch.tensor([3, 9, 17])
CHOSEN: dict[str, Any] = {"k": 7, "output": OUTPUT, "input": INPUT}
FOUND = bigram_corpus.counts(CORPUS.train, len(CORPUS.vocab))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("runs") / "run", RECIPE)


@pytest.fixture(scope="module")
def walked(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("walks") / "walk"
    steps = [step for step, _ in bigram_walk.walk(run, folder, **CHOSEN)]
    assert steps == list(range(75))
    return folder


@pytest.mark.parametrize("step", [0, 13, 50, 74])
def test_a_step_is_the_definitions(run, walked, step):
    shifts, V = bigram_walk.read(walked), len(CORPUS.vocab)
    again = training.replay(run, step, units=lambda name: name in (W_U, W_E))
    four = [again.before[name].double() for name in (W_U, W_E)]
    four += [(again.after[name] - again.before[name]).double() for name in (W_U, W_E)]
    dense = bigram.shift(*four)
    order = dense.flatten().abs().argsort(descending=True, stable=True)[:7]
    value = shifts.value()[step]
    torch.testing.assert_close(value, dense.flatten()[order])
    assert (shifts.output[step].long() * V + shifts.input[step]).tolist() == order.tolist()
    chosen = bigram.decoder(*four[:2])[OUTPUT, INPUT]
    torch.testing.assert_close(shifts.entry[step], chosen)
    after = bigram.decoder(again.after[W_U].double(), again.after[W_E].double())[OUTPUT, INPUT]
    torch.testing.assert_close(shifts.change[step], after - chosen)


@pytest.mark.parametrize("step", [0, 13, 74])
def test_the_split_over_data_is_that_of_their_own_updates(run, walked, step):
    shifts = bigram_walk.read(walked)
    again = training.replay(run, step, units=lambda name: name in (W_U, W_E))
    output, input = shifts.output[step].long(), shifts.input[step].long()
    W, E = again.before[W_U].double(), again.before[W_E].double()
    dU, dE = (again.deltas[name].double() for name in (W_U, W_E))
    part = torch.einsum("pd,npd->np", W[output], dE[:, input]) + torch.einsum("npd,pd->np", dU[:, output], E[input])
    own = part * shifts.value()[step].sign()
    amount = shifts.amount[step].double()
    torch.testing.assert_close(amount.abs(), own.amax(0).abs(), rtol=1e-3, atol=1e-7)
    named = [again.record.datum.tolist().index(j) for j in shifts.datum[step].tolist()]
    torch.testing.assert_close(part[named, range(7)], amount, rtol=1e-3, atol=1e-7)
    assert float(shifts.missed[step]) < 1e-5 * max(1.0, float(part.abs().max()))


def test_shifts_add_up_to_the_change_between_any_snapshots(run, walked):
    shifts = bigram_walk.read(walked)
    for step in records.snapshots(run):
        params = records.read_params(run, step)
        entry = bigram.entries(OUTPUT, INPUT, params[W_U], params[W_E])
        assert bigram_walk.telescope(shifts, step, entry) < 1e-12
        if step:
            assert float(shifts.deviation[step - 1]) == 0  # the very weights came out again
    assert math.isnan(float(shifts.deviation[5]))


def test_a_walk_that_was_stopped_goes_on_with_the_same_bits(run, walked, tmp_path):
    steps = bigram_walk.walk(run, tmp_path / "walk", **CHOSEN)
    for step, _ in steps:
        if step == 70:  # six steps after the first shard
            break
    assert isinstance(steps, Generator)
    steps.close()
    assert len(bigram_walk.read(tmp_path / "walk").step) == walks.SHARD
    rest = [step for step, found in bigram_walk.walk(run, tmp_path / "walk", **CHOSEN) if found is not None]
    assert rest == list(range(walks.SHARD, 75))
    for one, other in zip(bigram_walk.read(tmp_path / "walk"), bigram_walk.read(walked), strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())
    assert list(bigram_walk.walk(run, tmp_path / "walk", **CHOSEN)) == []  # nothing is left to do


def test_a_walk_may_start_later_and_be_taken_farther(run, walked, tmp_path):
    whole = bigram_walk.read(walked)
    list(bigram_walk.walk(run, tmp_path / "w", start=30, stop=34, **CHOSEN))
    list(bigram_walk.walk(run, tmp_path / "w", start=30, stop=41, **CHOSEN))
    part = bigram_walk.read(tmp_path / "w")
    assert part.step.tolist() == list(range(30, 41))
    assert torch.equal(part.value(), whole.value()[30:41]) and torch.equal(part.entry, whole.entry[30:41])


def test_the_weights_before_any_step_are_a_snapshot_or_made_again(run):
    for step in (0, 20, 33):
        again = training.replay(run, step)
        for name, tensor in walks.weights(run, step).items():
            assert torch.equal(tensor, again.before[name])


def test_another_walk_in_the_folder_is_refused(run, walked):
    with pytest.raises(records.RecordError):
        list(bigram_walk.walk(run, walked, **(CHOSEN | {"k": 8})))
    with pytest.raises(records.RecordError):
        list(bigram_walk.walk(run, run, **CHOSEN))
    assert len(bigram_walk.read(walked).step) == 75


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"start": 80}, "from step 80 to 75"),
        ({"stop": 76}, "has 75 recorded steps"),
        ({"k": 0}, "k is 0"),
        ({"output": torch.tensor([5, 9, 999])}, "output has tokens from 5 to 999"),
    ],
)
def test_bad_input_is_named(run, tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        list(bigram_walk.walk(run, tmp_path / "walk", **(CHOSEN | wrong)))
    assert not (tmp_path / "walk").exists()


def test_a_step_without_the_factors_says_how_to_make_it():
    data = batches.chunk(CORPUS.train, RECIPE.context)
    move = next(training.moves(training.initial(CONFIG, RECIPE), data, CONFIG, RECIPE))
    with pytest.raises(ValueError, match=r"make it with Recipe\(units="):
        bigram_walk.datum_split(move, data.targets[move.datum], OUTPUT, INPUT)
    units = bigram_walk.units(CONFIG.n_layers)
    assert per_example.choose({name: () for name in move.before}, lambda name: name in units) == list(units)


# ---- tables


def test_phases_are_the_walk_in_pieces():
    for start, stop in ((0, 75), (5, 2000), (2928, 8000)):
        spans = bigram_tables.phases(start, stop, 2928)
        assert spans[0][0] == start and spans[-1][1] == stop
        assert all(a[1] == b[0] for a, b in zip(spans[:-1], spans[1:], strict=True))


def test_largest_shifts_are_in_the_walk_with_their_text(walked):
    shifts, data = bigram_walk.read(walked), batches.chunk(CORPUS.train, RECIPE.context)
    spans = bigram_tables.phases(0, 75, 50)
    frame = bigram_tables.largest_frame(shifts, spans, data, FOUND, CORPUS.vocab, most=4)
    value = shifts.value()
    for span in spans:
        rows = frame.filter(pl.col("steps") == bigram_tables.named(span))
        assert 1 <= len(rows) <= 4
        assert abs(rows["shift"][0]) == float(value[slice(*span)].abs().max())
        for row in rows.iter_rows(named=True):
            assert row["shift"] in value[row["at step"]].tolist() and span[0] <= row["first step"] <= row["at step"]
            input, output = (CORPUS.vocab.index(word) for word in row["bigram"].split(" → "))
            one = bigram_corpus.Pairs(torch.tensor([output]), torch.tensor([input]))
            assert row["in the corpus"] == int(bigram_corpus.look_up(FOUND, one))
            quoted = row["text"].replace("(", "").replace(")", "").replace(" → ", " ").split()
            words = CORPUS.vocab.decode([*data.tokens[row["datum"]].tolist(), int(data.targets[row["datum"]][-1])])
            plain = [word for word in words if word not in "()"]
            assert " ".join(quoted) in " ".join(plain)


def test_phases_are_summed_up_over_all_their_shifts(walked):
    shifts = bigram_walk.read(walked)
    frame = bigram_tables.phase_frame(shifts, [(0, 20), (20, 75)], FOUND, CORPUS.vocab, key=0)
    assert frame["missed"].max() == float(shifts.missed.max())
    assert ((frame["embedding's share"] >= 0) & (frame["embedding's share"] <= 1)).all()
    pairs = bigram_corpus.Pairs(shifts.output[:20].flatten().long(), shifts.input[:20].flatten().long())
    expected = float((bigram_corpus.look_up(FOUND, pairs) > 0).double().mean())
    assert frame["in the corpus"][0] == pytest.approx(expected)


def test_courses_and_sizes_are_means_of_the_walk(walked):
    shifts, pairs = bigram_walk.read(walked), bigram_corpus.Pairs(OUTPUT, INPUT)
    frame = bigram_tables.course_frame(shifts, {"two": slice(0, 2), "": slice(2, 3)}, pairs, CORPUS.vocab, 10)
    assert frame["step"].to_list() == list(range(0, 75, 10))
    assert frame["two"].to_list() == pytest.approx(shifts.entry[::10, :2].mean(1).tolist())
    assert frame[frame.columns[-1]].to_list() == shifts.entry[::10, 2].tolist()
    sizes = bigram_tables.size_frame(shifts, 25)
    assert sizes["the largest"].to_list() == pytest.approx(shifts.value()[:, 0].abs().view(3, 25).mean(1).tolist())


def test_net_changes_are_those_of_the_dense_decoder(run):
    before, after = (records.read_params(run, step) for step in (20, 60))
    frame = bigram_tables.net_frame(before, after, (20, 60), FOUND, CORPUS.vocab, least=2, most=5)
    dense = [bigram.decoder(params[W_U].double(), params[W_E].double()) for params in (before, after)]
    change = dense[1] - dense[0]
    rows = frame.filter(pl.col("ranked") == "all pairs")
    assert abs(rows["change"][0]) == pytest.approx(float(change.abs().max()), rel=1e-5)
    for row in rows.iter_rows(named=True):
        input, output = (CORPUS.vocab.index(word) for word in row["bigram"].split(" → "))
        assert row["change"] == pytest.approx(float(change[output, input]), rel=1e-4)
    own = frame.filter(pl.col("ranked").str.starts_with("the corpus"))
    assert (own["in the corpus"] >= 2).all()


def test_checks_show_sums_and_weights_at_each_snapshot(run, walked):
    shifts, pairs = bigram_walk.read(walked), bigram_corpus.Pairs(OUTPUT, INPUT)
    passed = ((step, records.read_params(run, step)) for step in (20, 40, 75))
    frame = bigram_tables.check_frame(shifts, passed, pairs)
    assert max(frame["shifts miss it by"].to_list()) < 1e-12 and frame["weights differ by"].to_list() == [0, 0, 0]


def test_correlations_have_a_row_for_each_measure(run):
    tokens = batches.chunk(CORPUS.valid, RECIPE.context).tokens
    sets = {"some": bigram_corpus.seen(FOUND, 3)}
    params = records.read_params(run, 75)
    rows: list[dict[str, Any]] = list(bigram_tables.correlation_rows(75, params, FOUND, sets, tokens, CONFIG, key=0))
    assert [row["of"] for row in rows] == ["unigrams"] * 3 + ["bigrams"] * 3
    assert all(-1 <= row["spearman"] <= 1 for row in rows)
    assert rows[0]["spearman"] > 0.3  # the bias learns frequencies first
