"""Several processes share each batch: one record, the same as one process's, whichever of them dies and whenever."""

import time
from dataclasses import replace
from functools import partial

import processes
import pytest
import torch
from oracles import relative_error
from run_builders import contents
from shared_trainings import EXACT, TEXTS, devices, drifted, killed, killed_while_it_adds, overflowing, record, stopped

from devinterp_func import records, training
from devinterp_func.records import Recording

# ---- one record


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("per", ["datum", "step"])
def test_several_processes_leave_what_one_does(tmp_path, size, per):
    """The same bits as one process that makes the shares in turn; in float64, the deltas of a batch in one piece."""
    recording = Recording(k=9, per=per, snapshot_every=4, factors=per == "step")
    recipe = replace(EXACT, processes=size, micro_batch=2 if per == "step" else None)
    make = partial(record, held_factors=0.0)  # of micro-batches, so that these are formed again
    assert processes.run(make, size, tmp_path / "said", tmp_path / "run", recipe, recording) == [""] * size
    assert 0 < float((tmp_path / "run.missed").read_text()) < 1e-11
    record(tmp_path / "alone", recipe, recording)
    assert contents(tmp_path / "run") == contents(tmp_path / "alone")
    record(tmp_path / "piece", EXACT, recording)
    for ours, theirs in zip(records.scan(tmp_path / "run"), records.scan(tmp_path / "piece"), strict=True):
        assert torch.equal(ours.datum, theirs.datum) and torch.equal(ours.outliers.parameter, theirs.outliers.parameter)
        assert torch.equal(ours.outliers.datum, theirs.outliers.datum)
        assert relative_error(ours.outliers.delta, theirs.outliers.delta) < 1e-12
        assert relative_error(ours.loss, theirs.loss) < 1e-12


def test_of_a_transformer_with_dropout_too_and_replayed_by_one(tmp_path):
    """In float32; then every step is made again by one process, held against record and snapshots, bit for bit."""
    recipe, recording = replace(TEXTS, processes=2, micro_batch=3), Recording(k=15, snapshot_every=5)
    assert processes.run(record, 2, tmp_path / "said", tmp_path / "run", recipe, recording) == ["", ""]
    assert records.verify(tmp_path / "run").complete
    run = records.open(tmp_path / "run")
    for move in run.moves():
        made = records.to_record(move, recording)
        assert records.same_bits(made, records.read(run, move.step))
    record(tmp_path / "piece", TEXTS, recording)
    first, other = records.read(tmp_path / "run", 0), records.read(tmp_path / "piece", 0)
    assert relative_error(first.outliers.delta, other.outliers.delta) < 1e-6
    assert relative_error(first.loss, other.loss) < 1e-6


# ---- whoever dies


@pytest.mark.parametrize(("how", "rank", "at"), [(killed, 0, 6), (killed, 2, 0), (killed_while_it_adds, 1, 9)])
def test_when_one_is_killed_the_others_name_it_and_the_same_command_goes_on(tmp_path, how, rank, at):
    recipe, recording = replace(EXACT, processes=3, n_steps=12), Recording(k=9, snapshot_every=4)
    found = processes.run(how, 3, tmp_path / "said", tmp_path / "run", recipe, recording, rank, at)
    assert found[rank] == ""  # it had no time to speak
    for other, text_ in enumerate(found):
        if other != rank:
            assert text_.startswith(f"LostRank: rank {rank} of 3 died or hangs"), text_
    assert processes.run(record, 3, tmp_path / "said2", tmp_path / "run", recipe, recording) == [""] * 3
    record(tmp_path / "alone", recipe, recording)
    assert tensors(tmp_path / "run") == tensors(tmp_path / "alone")


def tensors(run):
    """Every step's record and every snapshot's digest, however they lie in files."""
    steps = [[x.tolist() for x in (r.datum, r.outliers.delta, r.outliers.parameter)] for r in records.scan(run)]
    snapshots = {at: {n: w.tolist() for n, w in records.read_params(run, at).items()} for at in records.snapshots(run)}
    return steps, snapshots


def test_a_rank_that_hangs_ends_the_others_in_time(tmp_path):
    recipe, recording = replace(EXACT, processes=3), Recording(k=9, snapshot_every=4)
    began = processes.start(stopped, 3, tmp_path / "said", tmp_path / "run", recipe, recording, 1, 3)
    deadline = time.monotonic() + 60
    while not all(processes.said(tmp_path / "said", rank) for rank in (0, 2)) and time.monotonic() < deadline:
        time.sleep(0.05)
    began[1].kill()
    found = processes.ended(began, tmp_path / "said")
    assert all(found[rank].startswith("LostRank: rank 1 of 3 died or hangs") for rank in (0, 2)), found
    assert "8 s" in found[0]


def test_what_stops_one_is_said_by_all(tmp_path):
    """Rank 0 cannot write: its own error, and the others' says so."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("not a run")
    recipe = replace(EXACT, processes=2)
    found = processes.run(record, 2, tmp_path / "said", tmp_path / "run", recipe, Recording(k=9))
    assert all("is not a run and not empty" in text_ for text_ in found), found


def test_weights_that_drift_apart_are_not_recorded(tmp_path):
    recipe = replace(EXACT, processes=3)
    found = processes.run(drifted, 3, tmp_path / "said", tmp_path / "run", recipe, Recording(k=9, snapshot_every=4), 2)
    assert "after step 3 rank 2 has other weights than rank 0" in found[0]
    assert all("rank 0 of 3 stopped: RecordError: after step 3 rank 2" in text_ for text_ in found[1:]), found
    assert records.snapshots(tmp_path / "run") == [0]


def test_a_datum_that_overflows_is_named_by_the_rank_that_has_it(tmp_path):
    (first,) = training.order(EXACT, 50, 0, 1)
    datum = int(first[3][5])  # of rank 1's share of 7
    recipe = replace(EXACT, processes=2)
    found = processes.run(overflowing, 2, tmp_path / "said", tmp_path / "run", recipe, Recording(k=9), datum)
    assert found[1].startswith("FloatingPointError: step 0:") and f"through datum {datum}." in found[1]
    assert "through data of another process" in found[0], found


# ---- mistakes


def test_a_world_of_another_size_is_refused(tmp_path):
    found = processes.run(record, 2, tmp_path / "said", tmp_path / "run", replace(EXACT, processes=3), Recording(k=9))
    assert all("2 processes share the work; the recipe's batches are of 3" in text_ for text_ in found), found


def test_several_processes_have_a_device_each(tmp_path):
    found = processes.run(devices, 2, tmp_path / "said")
    assert all("with several processes it must be 'cpu', or 'cuda' for one each" in text_ for text_ in found), found
