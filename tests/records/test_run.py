"""An opened run: what it knows, and its steps replayed bit for bit or not at all."""

import math
import os
import shutil
from dataclasses import replace

import pytest
import torch
from oracles import assert_equal
from run_builders import MANIFEST, MODEL, PLANTED, SMALL, build_run, recorded

from devinterp_func import batches, graph, models, optim, per_example, records, text, training, tree, units
from devinterp_func.records import RecordError, Recording, _machine
from devinterp_func.records._sealed import read_sealed, write_sealed
from devinterp_func.training import Recipe

RECIPE = Recipe(context=10, batch_size=6, n_steps=25)
RECORDING = Recording(k=15, snapshot_every=10)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("runs") / "run", RECIPE, RECORDING)


@pytest.fixture(scope="module")
def made():
    """The run's training, made here once more without any record."""
    data = batches.chunk(PLANTED.train, RECIPE.context)
    traced = graph.of(MODEL.loss, MODEL.init(0), *batches.example(data, 0))
    return list(training.moves(traced, training.initial(MODEL, RECIPE), data, RECIPE))


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run.path, tmp_path / "copy")


@pytest.fixture
def threads():
    """The number of threads, as before when the test is over."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


# ---- what it knows


def test_an_opened_run_knows_what_made_it(run):
    assert (run.model.source, run.recipe, run.recording) == (MODEL.source, RECIPE, RECORDING)
    assert graph.fingerprint(run.graph) == run.manifest["model"]["graph"] and run.is_text
    assert text.fingerprint(run.corpus) == text.fingerprint(PLANTED)
    assert_equal(run.data, batches.chunk(PLANTED.train, 10))
    assert run.shapes == {name: MODEL.shapes[name] for name in graph.choose(run.graph)}
    assert run.n_data == len(run.data.tokens)
    assert (run.n_steps, run.snapshots, run.device) == (25, [0, 10, 20, 25], "cpu")
    assert run.steps_per_epoch == (len(PLANTED.train) - 1) // 10 // 6
    assert run.manifest == records.manifest(run.path)
    for part in ("train", "valid", "test"):
        assert_equal(run.split(part), batches.chunk(getattr(PLANTED, part), 10))
    assert str(run) == os.fspath(run) == str(run.path) and repr(run).startswith(
        f"Run({run.path}: 25 steps of 6 of Dataset('planted': train "
    )


@pytest.mark.parametrize(
    "read",
    [
        records.manifest,
        records.n_steps,
        records.shards,
        records.snapshots,
        records.verify,
        records.read_evaluations,
        lambda run: records.read(run, 7).loss.tolist(),
        lambda run: [record.step for record in records.scan(run)],
        lambda run: [shard.first for shard in records.scan_shards(run)],
        lambda run: list(records.read_params(run, 10)),
        lambda run: records.replay(run, 3).missed,
    ],
)
def test_a_run_is_taken_wherever_a_path_is(run, read):
    assert read(run) == read(run.path) == read(str(run.path))


def test_an_opened_run_is_opened_as_it_is(run):
    assert records.open(run) is run and not run.anywhere
    assert records.open(run, anywhere=True).anywhere and records.open(run.path, anywhere=True).anywhere


def test_curve_is_that_of_the_records(run):
    curve, steps = run.curve(), list(run.steps())
    assert curve.loss.tolist() == pytest.approx([float(sum(r.loss.tolist()) / 6) for r in steps])
    assert curve.clip.tolist() == [r.clip for r in steps]
    assert curve.grad_norm.tolist() == [r.grad_norm for r in steps]
    assert repr(curve) == f"Curve of 25 steps: loss {curve.loss[0]:.4f} to {curve.loss[-1]:.4f}"
    assert [r.step for r in run.steps(3, 5)] == [3, 4]
    assert sum(shard.count for shard in run.shards()) == 25


@pytest.mark.parametrize(("asked", "span"), [((), (0, 25)), ((3,), (3, 25)), ((3, 7), (3, 7)), ((24, 25), (24, 25))])
def test_span_ends_where_the_record_does(run, asked, span):
    assert run.span(*asked) == span


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 5), (6, 5), (0, 26), (25, None), (30, 31)])
def test_steps_that_are_not_there_are_refused(run, start, stop):
    for refused in (run.span, lambda *steps: next(run.moves(*steps))):
        with pytest.raises(
            ValueError, match=rf"steps {start} to {25 if stop is None else stop} were asked for; .* 25 rec"
        ):
            refused(start, stop)


# ---- what cannot be opened


def test_a_run_without_steps_is_not_opened(tmp_path):
    manifest = records.prepare(tmp_path / "run", PLANTED, MODEL, RECIPE)
    records.create(tmp_path / "run", manifest)
    with pytest.raises(RecordError, match="has no recorded steps yet; experiments/capture.py goes on with it"):
        records.open(tmp_path / "run")


def test_what_no_training_made_is_not_opened(tmp_path):
    with pytest.raises(RecordError, match="is not a run: it has no manifest.json"):
        records.open(tmp_path / "nowhere")
    with pytest.raises(RecordError, match="is no training's run, as its manifest lacks data, device, model, recipe"):
        records.open(build_run(tmp_path / "run", MANIFEST))


# ---- its steps replayed


@pytest.mark.parametrize(("start", "stop"), [(0, 25), (0, 1), (7, 9), (10, 12), (19, 22), (24, 25)])
def test_only_the_steps_asked_for_come_and_they_are_those_that_were_made(run, made, start, stop):
    replayed = list(run.moves(start, stop))
    assert [move.step for move in replayed] == list(range(start, stop))
    for move, expected in zip(replayed, made[start:stop], strict=True):
        assert_equal(move, expected)


def test_any_captured_units_may_be_asked_for(run, made):
    (move,) = run.moves(7, 8, captured=("layers.1.*bias", "decoder.weight"))
    assert list(move.factors) == units.choose(move.before, ("layers.1.*bias", "decoder.weight"))
    assert_equal((move.before, move.after, move.losses), (made[7].before, made[7].after, made[7].losses))
    with pytest.raises(ValueError, match="no parameter is called 'layers.2"):
        next(run.moves(7, 8, captured=("layers.2.*",)))


@pytest.mark.parametrize("step", range(26))
def test_weights_at_any_step_are_those_of_the_training(run, made, step):
    assert_equal(run.params(step), made[step].before if step < 25 else made[24].after)


def test_the_last_weights_are_given_by_default(run, made):
    assert_equal(run.params(), made[24].after)


@pytest.mark.parametrize("step", [-1, 26, 1000])
def test_weights_of_no_step_are_refused(run, step):
    with pytest.raises(RecordError, match=f"has no weights before step {step}; it has 25 recorded steps"):
        run.params(step)


# ---- replay of one step


@pytest.mark.parametrize("step", [0, 7, 10, 24])
def test_replay_gives_the_recorded_step_bit_for_bit(run, made, step):
    replayed, recorded_ = records.replay(run, step), records.read(run, step)
    assert records.same_bits(replayed.record, recorded_)
    flat = torch.cat([delta.flatten(1) for delta in replayed.deltas.values()], dim=1)
    assert torch.equal(flat.gather(1, recorded_.outliers.parameter.long()), recorded_.outliers.delta)
    assert_equal((replayed.before, replayed.after), (made[step].before, made[step].after))
    assert replayed.missed == optim.missed(made[step]) and replayed.worst == max(replayed.missed.values()) < 1e-4
    assert repr(replayed).endswith(f"deltas of 8 units miss the law by {replayed.worst:.1e} at most")


def test_replay_gives_the_deltas_of_any_unit(run):
    replayed = records.replay(run, 13, captured=units.EVERY)
    assert replayed.deltas.keys() == replayed.before.keys()
    for name, delta in replayed.deltas.items():
        torch.testing.assert_close(delta.sum(0), replayed.after[name] - replayed.before[name], rtol=1e-3, atol=1e-6)


def test_replay_of_an_unrecorded_step_says_what_is_there(run):
    with pytest.raises(RecordError, match="no step 25: it holds 25 steps"):
        records.replay(run, 25)


def test_a_model_without_dropout_replays(tmp_path):
    model = models.transformer(replace(SMALL, dropout=0.0))
    opened = recorded(tmp_path / "run", replace(RECIPE, n_steps=3), RECORDING, model=model)
    assert training.masks_of(opened.graph, RECIPE, 0, torch.arange(3)) is None
    assert records.same_bits(records.replay(opened, 2).record, records.read(opened, 2))


def test_records_that_differ_are_told_apart(run):
    one, other = records.read(run, 3), records.read(run, 4)
    assert records.same_bits(one, one) and not records.same_bits(one, other)
    assert not records.same_bits(one, one._replace(loss=one.loss.double()))
    assert not records.same_bits(one, one._replace(clip=one.clip + 1e-15))
    zeros = [one._replace(loss=torch.full((6,), zero)) for zero in (0.0, -0.0, math.nan)]
    assert not records.same_bits(zeros[0], zeros[1]) and records.same_bits(zeros[2], zeros[2])
    assert not records.same_bits(one, one._replace(factors={"u": {"inputs": torch.zeros(1)}}))


# ---- weights that are not the recorded ones are refused


def tamper(path, step, unit="layers.1.linear2.weight"):
    """A snapshot sealed as it should be, with one bit of one weight changed."""
    file = path / "params" / f"{step:06d}.safetensors"
    header, tensors = read_sealed(file)
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    changed[unit].view(torch.int32)[1, 2] ^= 1
    file.unlink()
    write_sealed(file, header, changed)


@pytest.mark.parametrize(("tampered", "start", "stop"), [(10, 5, 12), (10, 9, 10), (20, 12, 25), (25, 24, 25)])
def test_replayed_weights_that_miss_a_snapshot_stop_the_replay(copy, tampered, start, stop):
    tamper(copy, tampered)
    opened = records.open(copy)
    with pytest.raises(
        RecordError, match=rf"layers.1.linear2.weight before step {tampered}, replayed, differs from the"
    ):
        list(opened.moves(start, stop))


def test_what_comes_before_the_difference_is_given(copy):
    tamper(copy, 20)
    seen = []
    with pytest.raises(RecordError, match="What follows would not be its steps"):
        for move in records.open(copy).moves(8, 25):
            seen.append(move.step)
    assert seen == list(range(8, 19))


def test_a_snapshot_on_the_way_is_compared_too(copy):
    (copy / "params" / "000010.safetensors").unlink()
    tamper(copy, 0)  # the replay of step 21 begins at 20, that of step 15 at 0
    opened = records.open(copy)
    assert [move.step for move in opened.moves(21, 23)] == [21, 22]
    with pytest.raises(RecordError, match="before step 20, replayed, differs"):
        list(opened.moves(15, 20))
    with pytest.raises(RecordError, match="before step 20, replayed, differs"):
        list(opened.moves(19, 20))


def test_nothing_is_replayed_without_a_snapshot_before_it(copy):
    (copy / "params" / "000000.safetensors").unlink()
    with pytest.raises(RecordError, match=r"no snapshot at or before step 9; its first is before \[10\]"):
        next(records.open(copy).moves(9, 11))


# ---- the process that replays


def test_opening_sets_the_runs_threads(run, copy, threads):
    torch.set_num_threads(threads + 1)
    records.open(copy)
    assert torch.get_num_threads() == threads
    torch.set_num_threads(threads + 1)
    assert records.open(run) is run and torch.get_num_threads() == threads


def test_other_threads_are_refused_with_what_to_do(run, threads):
    torch.set_num_threads(threads + 1)
    for refused in (lambda: next(run.moves(0, 1)), lambda: run.params(7), run.require_same_machine):
        with pytest.raises(
            RecordError, match=rf"{threads + 1} threads here, {threads} there: call torch.set_num_threads"
        ):
            refused()
    assert_equal(
        run.params(10), graph.in_order(run.graph, records.read_params(run, 10))
    )  # a snapshot is read whatever the threads


def here(run, monkeypatch, **changed):
    """Another machine than the run's."""
    machine = _machine.machine() | changed
    monkeypatch.setattr(_machine, "machine", lambda: machine)
    return machine


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"versions": {"torch": "1.2.3", "numpy": None}}, r"torch 1.2.3 here, (\S+) there: pip install torch==\1"),
        ({"versions": {"torch": None, "numpy": "1.2.3"}}, r"numpy 1.2.3 here, (\S+) there: pip install numpy==\1"),
        ({"processor": "abacus"}, "processor abacus here, .* there: replay it where it was made"),
    ],
    ids=["torch", "numpy", "processor"],
)
def test_another_machine_is_refused_unless_asked_for(run, monkeypatch, made, changed, said):
    if "versions" in changed:
        there = run.manifest["versions"]
        changed = {"versions": {name: version or there[name] for name, version in changed["versions"].items()}}
    here(run, monkeypatch, **changed)
    with pytest.raises(
        RecordError, match=rf"(?s)cannot be replayed bit for bit in this process:\n  {said}.*anywhere=True"
    ):
        next(run.moves(0, 1))
    (move,) = records.open(run, anywhere=True).moves(3, 4)
    assert_equal(move, made[3])


def test_versions_that_decide_no_bits_do_not_matter(run, monkeypatch):
    there = run.manifest["versions"]
    here(run, monkeypatch, versions=there | {"python": "2.7", "safetensors": "9", "devinterp_func": "9"})
    assert next(run.moves(0, 1)).step == 0


def test_all_that_is_wrong_is_said_at_once(run, monkeypatch, threads):
    here(run, monkeypatch, threads=threads + 5, processor="abacus")
    with pytest.raises(
        RecordError, match=rf"\n  {threads + 5} threads here(.*)\n  processor abacus here(.*)\n  records.open"
    ):
        next(run.moves(0, 1))


def test_a_run_of_an_absent_device_is_replayed_on_the_cpu_if_asked_for(run, made):
    absent = replace(run, device="cuda:63")
    for refused in (lambda: absent.params(10), lambda: absent.params(7), lambda: next(absent.moves(0, 1))):
        with pytest.raises(
            RecordError, match=r"was made on 'cuda:63', and there is no such device here; .* on the CPU"
        ):
            refused()
    opened = records.open(absent, anywhere=True)
    assert opened.device == "cpu"
    assert_equal(tree.map(torch.clone, opened.params(7)), made[7].before)
    assert per_example.form_units(next(opened.moves(0, 1)).factors).keys() == run.shapes.keys()
