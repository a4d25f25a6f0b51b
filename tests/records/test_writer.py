"""Files are written beside the steps that follow: in order, none lost, no failure unnoticed, killed at any moment."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from run_builders import contents

from devinterp_func import models, records, text
from devinterp_func.models import Config
from devinterp_func.records import RecordError, Recording, _sealed, _writer
from devinterp_func.records._directory import lock
from devinterp_func.records._writer import writing
from devinterp_func.training import Recipe

CORPUS = text.planted(key=0, n_tokens=3600)
MODEL = models.transformer(Config(len(CORPUS.vocab), d_model=12, n_heads=2, d_hidden=8, n_layers=1))
RECIPE = Recipe(context=10, batch_size=6, epochs=2, n_steps=90)  # 60 steps an epoch
RECORDING = Recording(k=15, snapshot_every=20)


def steps(run):
    return records.record(run, CORPUS, MODEL, RECIPE, RECORDING)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    for _ in steps(run):
        pass
    return run


def refused(*_):
    raise RecordError("the disk is full")


# ---- the writer


def test_everything_is_written_in_order_by_one_other_thread():
    seen = []

    def write(i):
        time.sleep(0.01 * (i % 3 == 0))
        seen.append((i, threading.get_ident()))

    with writing() as writer:
        for i in range(20):
            writer.put(write, i)
    assert [i for i, _ in seen] == list(range(20))
    assert len({thread for _, thread in seen} | {threading.get_ident()}) == 2


def test_putting_does_not_wait_for_the_disk_unless_too_much_is_pending(monkeypatch):
    monkeypatch.setattr(_writer, "PENDING_BYTES", 100)
    gate = threading.Event()
    seen: list[int] = []

    def write(tensors):
        assert gate.wait(10)
        seen.append(sum(size for _, size in writer._pending))

    with writing() as writer:
        writer.put(write, {"a": torch.zeros(60, dtype=torch.uint8)})
        writer.put(write, [torch.zeros(40, dtype=torch.uint8)])
        assert not seen and writer.waited < 1
        opened = threading.Timer(0.2, gate.set)
        opened.start()
        for size in (1, 500, 100, 50, 50, 101):
            writer.put(write, torch.zeros(size, dtype=torch.uint8))
            assert sum(held for _, held in writer._pending) <= max(100, size)
        assert writer.waited > 0.1  # for the first, at least
    assert len(seen) == 8 and max(seen) <= 500


def test_what_cannot_be_written_is_said_and_nothing_is_written_after_it():
    seen: list[int] = []
    with pytest.raises(RecordError, match="the disk is full"), writing() as writer:
        writer.put(seen.append, 1)
        writer.put(refused)
        writer.put(seen.append, 2)
    assert seen == [1]
    with pytest.raises(RecordError, match="the disk is full"), writing() as writer:
        writer.put(refused)
        while True:  # said without waiting, as soon as it is known
            time.sleep(0.01)
            writer.check()


def test_an_error_of_the_training_has_that_of_the_disk_as_a_note():
    with pytest.raises(FloatingPointError, match="the gradient is NaN") as caught, writing() as writer:
        writer.put(refused)
        raise FloatingPointError("the gradient is NaN")
    assert caught.value.__notes__ == ["and of what was recorded before: the disk is full"]


def test_what_was_put_before_an_error_of_the_training_is_written():
    seen: list[int] = []

    def write():
        time.sleep(0.05)
        seen.append(1)

    with pytest.raises(FloatingPointError), writing() as writer:
        writer.put(write)
        raise FloatingPointError
    assert seen == [1]


# ---- a recording


def slow(monkeypatch, seconds=0.05):
    install = _sealed.install

    def slowly(*args, **kwargs):
        time.sleep(seconds)
        return install(*args, **kwargs)

    monkeypatch.setattr(_sealed, "install", slowly)


def test_a_slow_disk_changes_nothing_that_is_written(whole, tmp_path, monkeypatch):
    slow(monkeypatch)
    seen = list(steps(tmp_path / "run"))
    assert records.verify(tmp_path / "run").complete and contents(tmp_path / "run") == contents(whole)
    assert 0 < seen[-1].writing


@pytest.mark.parametrize("stop", [20, 40, 61])
def test_closed_early_it_leaves_what_was_due_and_its_lock(whole, tmp_path, monkeypatch, stop):
    slow(monkeypatch)
    run = tmp_path / "run"
    making = steps(run)
    for now in making:
        if now.done == stop:
            break
    with pytest.raises(RecordError, match="has a writer already"), lock(run):
        pass
    making.close()
    assert records.snapshots(run) == [step for step in records.snapshots(whole) if step <= stop]
    assert set(records.read_evaluations(run)) == {60} & set(range(stop + 1))
    with lock(run):
        assert not list(run.rglob(".*.tmp"))
    for _ in steps(run):
        pass
    assert contents(run) == contents(whole)


@pytest.mark.parametrize("close", [False, True])
def test_a_disk_that_fills_is_said_at_the_next_step_or_when_it_is_closed(tmp_path, monkeypatch, close):
    run = tmp_path / "run"
    full: list[bool] = []

    def limited(descriptor, data, write=os.write):
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(_sealed.os, "write", limited)
    making, reached = steps(run), 0
    with pytest.raises(RecordError, match="No space left on device.*still verifies"):
        for now in making:
            reached = now.done
            if now.done == 39:
                full.append(True)
            if now.done == 40 and close:
                making.close()
            if now.done == 40:  # the shard and the snapshot are due
                time.sleep(0.5)
    assert reached == 40
    assert records.verify(run).steps == 20 and records.snapshots(run) == [0, 20]


KILLER = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1].split(os.pathsep)
import torch
torch.set_num_threads(int(sys.argv[3]))
from test_writer import steps
from devinterp_func.records import _sealed
replace, run, left = os.replace, Path(sys.argv[2]), [0]

def die_at_last(*args):
    left[0] -= 1
    if left[0] == 0:
        time.sleep(0.1)  # steps go on, and more is due
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*args)

_sealed.os.replace = die_at_last
for n in (3, 4, 1, 2, 4, 3):  # files until it is killed, of 14 at least
    child = os.fork()  # no thread pool exists yet, so forking is safe and spares imports of torch
    if child == 0:
        left[0] = n
        for _ in steps(run):
            pass
        os._exit(0)
    print(n, os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
for _ in steps(run):
    pass
"""


def test_killed_while_files_are_pending_it_ends_with_the_same_tensors(whole, tmp_path):
    run, threads = tmp_path / "run", str(torch.get_num_threads())
    paths = os.pathsep.join(map(str, Path(__file__).parents[:2]))
    command = [sys.executable, "-c", KILLER, paths, str(run), threads]
    done = subprocess.run(command, check=True, timeout=300, capture_output=True, text=True)
    kills = [line.split() for line in done.stdout.splitlines()]
    assert len(kills) == 6 and {signal for _, signal in kills[:4]} == {"9"}
    assert records.verify(run).complete and contents(run) == contents(whole)
