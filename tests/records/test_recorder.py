"""A recording survives being killed, starved of disk, and started twice."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from run_builders import contents

from devinterp_func import batches, models, records, text, training
from devinterp_func.models import Config
from devinterp_func.records import RecordError, Recording, _going_on, _sealed
from devinterp_func.records._directory import lock
from devinterp_func.training import Recipe, _moves

CORPUS = text.planted(key=0, n_tokens=3600)
CONFIG = Config(len(CORPUS.vocab), d_model=12, n_heads=2, d_hidden=8, n_layers=1)
MODEL = models.transformer(CONFIG)
RECIPE = Recipe(context=10, batch_size=6, epochs=2, n_steps=90)  # 60 steps an epoch
RECORDING = Recording(k=15, snapshot_every=20)


def record(run, recipe=RECIPE, recording=RECORDING, stop=None):
    for now in records.record(run, CORPUS, MODEL, recipe, recording):
        if now.done == stop:
            break
    return now


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    last = record(run)
    assert last.done == last.n_steps == 90 and last.evaluation.keys() == {"valid", "test"}
    return run


def test_a_run_verifies_and_holds_what_its_recipe_promises(whole):
    verified = records.verify(whole)
    assert verified.complete and verified.steps == 90
    assert records.snapshots(whole) == [0, 20, 40, 60, 80, 90]
    evaluations = records.read_evaluations(whole)
    assert {step: set(values) for step, values in evaluations.items()} == {60: {"valid"}, 90: {"valid", "test"}}
    params = records.read_params(whole, 60)
    assert evaluations[60]["valid"] == training.evaluate(
        records.open(whole).graph, params, batches.chunk(CORPUS.valid, RECIPE.context), RECIPE.batch_size
    )


def test_two_runs_of_the_same_recipe_have_the_same_bits(whole, tmp_path):
    record(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(whole)


@pytest.mark.parametrize("shard_bytes", [1, 2**24])
def test_interrupted_anywhere_it_resumes_to_the_same_tensors(whole, tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(_going_on, "SHARD_BYTES", shard_bytes)
    for stop in (1, 19, 20, 21, 59, 60, 61, 75, 90):
        record(tmp_path / "run", stop=stop)
    if shard_bytes == 1:  # a shard a step
        assert len(records.shards(tmp_path / "run")) == 90
        for mine, theirs in zip(records.scan(tmp_path / "run"), records.scan(whole), strict=True):
            assert records.same_bits(mine, theirs)
    else:
        assert contents(tmp_path / "run") == contents(whole)


KILLER = """
import os, random, shutil, signal, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1].split(os.pathsep)
import once, pytest, torch
torch.set_num_threads(int(sys.argv[3]))
from test_recorder import CORPUS, MODEL, RECIPE, RECORDING, record, records
run, kills, rng = Path(sys.argv[2]), 0, random.Random(0)
once.patch(pytest.MonkeyPatch())
records.prepare(run, CORPUS, MODEL, RECIPE, RECORDING)  # traced here, so that what is killed is a child that records

def child(run):  # no thread pool exists yet, so forking is safe and spares twenty imports of torch
    if own := os.fork():
        return own
    record(run)
    os._exit(0)

started = time.monotonic()
os.waitpid(child(run.with_name("timed")), 0)
whole = time.monotonic() - started
while kills < 20:
    own = child(run)
    time.sleep(rng.uniform(0, whole / 2))
    os.kill(own, signal.SIGKILL)
    if os.WIFSIGNALED(os.waitpid(own, 0)[1]):
        kills += 1
    else:  # it had come to its end
        shutil.rmtree(run)
record(run)
"""


def test_killed_at_twenty_random_moments_it_ends_with_the_same_tensors(whole, tmp_path):
    run, threads = tmp_path / "run", str(torch.get_num_threads())
    subprocess.run(
        [sys.executable, "-c", KILLER, os.pathsep.join(map(str, Path(__file__).parents[:2])), str(run), threads],
        check=True,
        timeout=300,
    )
    assert records.verify(run).complete
    assert contents(run) == contents(whole)


def test_a_full_disk_stops_clearly_and_the_run_goes_on_afterwards(whole, tmp_path, monkeypatch):
    run, write = tmp_path / "run", os.write
    left = [sum(path.stat().st_size for path in whole.rglob("*.safetensors")) // 2]

    def limited(descriptor, data):
        if left[0] < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= len(data)
        return write(descriptor, data)

    with monkeypatch.context() as patched:
        patched.setattr(_sealed.os, "write", limited)
        with pytest.raises(RecordError, match="No space left on device.*still verifies"):
            record(run)
    assert not records.verify(run).complete
    record(run)
    assert contents(run) == contents(whole)


def test_a_second_writer_is_refused(whole):
    with lock(whole), pytest.raises(RecordError, match="writer"):
        record(whole)


@pytest.mark.parametrize(
    "changed",
    [
        {"recipe": replace(RECIPE, seed=1)},
        {"recording": replace(RECORDING, k=16)},
        {"model": models.transformer(replace(CONFIG, d_hidden=9))},
    ],
    ids=["recipe", "recording", "model"],
)
def test_another_run_is_known_before_any_work(whole, changed, monkeypatch):
    before = contents(whole)
    given = {"data": CORPUS, "model": MODEL, "recipe": RECIPE, "recording": RECORDING} | changed
    with pytest.raises(RecordError, match=r"(?s)is another run:.*Choose another directory"):
        records.prepare(whole, **given)
    assert contents(whole) == before


def test_what_is_prepared_is_the_manifest_and_nothing_is_written(whole, tmp_path):
    manifest = records.prepare(tmp_path / "new", CORPUS, MODEL, RECIPE, RECORDING)
    there = records.manifest(whole)
    assert {name: there[name] for name in manifest} == manifest and there.keys() - manifest.keys() == {
        "digest",
        "format",
    }
    assert not list(tmp_path.iterdir())
    assert records.prepare(whole, CORPUS, MODEL, RECIPE, RECORDING) == manifest
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RecordError, match="is not a run and not empty: it holds notes.txt"):
        records.prepare(tmp_path, CORPUS, MODEL, RECIPE, RECORDING)
    with pytest.raises(RecordError, match="cannot be made a run: Not a directory"):
        records.prepare(tmp_path / "notes.txt", CORPUS, MODEL, RECIPE, RECORDING)


def test_another_recipe_is_refused_and_the_difference_named(whole):
    before = contents(whole)
    with pytest.raises(RecordError, match="recipe.*seed"):
        record(whole, replace(RECIPE, seed=1))
    assert contents(whole) == before


def test_steps_that_come_out_differently_after_a_resume_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(_going_on, "SHARD_BYTES", 1)
    record(tmp_path / "run", stop=25)
    before = contents(tmp_path / "run")
    monkeypatch.setattr(_moves, "learning_rate", lambda *_: 1.0)
    with pytest.raises(RecordError, match="step 20, replayed from the last snapshot, differs"):
        record(tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_a_run_that_diverges_keeps_what_it_recorded(tmp_path):
    recipe = replace(RECIPE, lr=1e30, max_norm=1e30)
    with pytest.raises(FloatingPointError, match="is NaN or infinite"):
        record(tmp_path / "run", recipe)
    assert not records.verify(tmp_path / "run").complete
    assert records.snapshots(tmp_path / "run") == [0]


def test_per_step_outliers_and_factors_are_recorded(tmp_path):
    record(tmp_path / "run", replace(RECIPE, n_steps=5), replace(RECORDING, per="step", factors=True))
    made = records.read(tmp_path / "run", 3)
    again = records.replay(tmp_path / "run", 3)
    assert made.outliers.delta.shape == (15,) and records.same_bits(made, again.record)
    assert made.factors["layers.0.linear2.weight"]["signals"].shape == (6, 10, 12)
