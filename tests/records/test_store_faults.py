"""What may go wrong with a run: bits flip, files vanish, disks fill, processes die. Nothing of it goes unnoticed."""

import contextlib
import errno
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from run_builders import MANIFEST, build_run, same_bits, step_record, step_records, weights
from safetensors.torch import save

from devinterp_func import records
from devinterp_func.records import RecordError, _directory, _manifest, _sealed, _store

FILES = [
    "manifest.json",
    "data.safetensors",
    "steps/000000.safetensors",
    "steps/000004.safetensors",
    "params/000004.safetensors",
    "params/000006.safetensors",
    "evaluations/000004.safetensors",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A complete run that no test changes."""
    return build_run(tmp_path_factory.mktemp("whole") / "run", factors=[("linear1", "inputs", 3, 2)])


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def refuses(run, file, fault=""):
    """Whether verify refuses the run, naming the file (and the fault)."""
    with pytest.raises(RecordError, match=f"(?s){re.escape(str(file))}.*{fault}"):
        records.verify(run)
    return True


# -- damage


def regions(file, data):
    """Byte ranges of a file by what they hold."""
    if file.endswith(".json"):
        return {"manifest": (0, len(data))}
    end = 8 + int.from_bytes(data[:8], "little")
    entry = data.index(b"}", data.index(b"__metadata__")) + 1
    return {
        "header length": (0, 8),
        "metadata": (8, entry),
        "names and shapes": (entry, end),
        "payload": (end, len(data)),
    }


@pytest.mark.parametrize("file", FILES)
def test_every_flipped_bit_is_noticed(run, file):
    data = (run / file).read_bytes()
    rng, flips = np.random.default_rng(0), 0
    for start, stop in regions(file, data).values():
        bits = range(8 * start, 8 * stop)
        for bit in bits if len(bits) <= 64 else rng.choice(bits, 40, replace=False):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << (bit % 8)
            (run / file).write_bytes(damaged)
            flips += refuses(run, run / file)
    (run / file).write_bytes(data)
    assert flips >= (40 if file == "manifest.json" else 150)  # over the files more than 900
    assert records.verify(run).complete


@pytest.mark.parametrize("file", FILES)
def test_every_truncation_and_every_addition_is_noticed(run, file):
    data = (run / file).read_bytes()
    lengths = {0, 1, 7, 8, 9, *np.linspace(10, len(data) - 1, 20, dtype=int).tolist()}
    for changed in (*(data[:length] for length in lengths), data + b"\0", data + b"\n", b"\0" * len(data)):
        (run / file).write_bytes(changed)
        refuses(run, run / file)


def test_readers_notice_a_flipped_payload_bit(run):
    for file in FILES[1:]:
        data = bytearray((run / file).read_bytes())
        data[-1] ^= 1
        (run / file).write_bytes(data)
    for read in (
        lambda: records.read(run, 1),
        lambda: list(records.scan(run)),
        lambda: list(records.scan_shards(run)),
        lambda: records.read_params(run, 4),
        lambda: records.read_evaluations(run),
        lambda: _store.read_data(run),
    ):
        with pytest.raises(RecordError, match="damaged: its content is not what its digest says"):
            read()
    assert records.read(run, 2).step == 2  # its shard is whole


# -- files lost, exchanged, brought in


@pytest.mark.parametrize(
    ("lost", "noticed", "fault"),
    [
        ("steps/000000", "steps/000002", "steps 0 to 1, which come before it, are missing"),
        ("steps/000002", "steps/000004", "steps 2 to 3, which come before it, are missing"),
        ("steps/000004", "params/000006", "steps 4 to 5, which led to it, are not recorded"),
    ],
)
def test_a_missing_shard_is_noticed(run, lost, noticed, fault):
    (run / f"{lost}.safetensors").unlink()
    refuses(run, run / f"{noticed}.safetensors", fault)


def test_a_missing_manifest_is_noticed(run):
    (run / "manifest.json").unlink()
    refuses(run, run, "is not a run")


@pytest.mark.parametrize("folder", ["steps", "params", "evaluations"])
def test_exchanged_files_are_noticed(run, folder):
    first, *_, last = sorted((run / folder).iterdir())
    first.rename(run / "aside")
    last.rename(first)
    (run / "aside").rename(last)
    refuses(run, first, "renamed or exchanged")


@pytest.mark.parametrize("folder", ["steps", "params", "evaluations"])
def test_a_file_of_another_kind_is_noticed(run, folder):
    other = "params" if folder == "steps" else "steps"
    shutil.copy(run / other / "000004.safetensors", run / folder / "000004.safetensors")
    refuses(run, run / folder / "000004.safetensors", f"holds '{other}'")


@pytest.mark.parametrize("file", FILES[1:])
def test_a_foreign_file_is_noticed(run, tmp_path, file):
    other = build_run(tmp_path / "other", {**MANIFEST, "seed": 1})
    shutil.copy(other / file, run / file)
    refuses(run, run / file, "belongs to another run")


@pytest.mark.parametrize(
    ("replaced", "noticed", "fault"),
    [
        ([0], "steps/000002", "does not continue the shard before it"),
        ([2], "steps/000002", "does not continue the shard before it"),
        ([2, 4], "steps/000002", "does not continue the shard before it"),
        ([0, 2, 4], "params/000004", "does not follow from the steps"),
    ],
)
def test_another_past_is_noticed(run, tmp_path, replaced, noticed, fault):
    """Shards sealed as they should be, for a run of the same manifest, but with other content."""
    other = build_run(tmp_path / "other", seed=1)
    for first in replaced:
        shutil.copy(other / "steps" / f"{first:06d}.safetensors", run / "steps")
    refuses(run, run / f"{noticed}.safetensors", fault)


@pytest.mark.parametrize(
    ("format", "reader"),
    [
        (1, "devinterp_func 0.1"),
        (2, "an unreleased devinterp_func 0.2.0, from before its optimizers with memory,"),
        (3, "an unreleased devinterp_func 0.2.0, from before its optimizers with memory,"),
        (4, "an unreleased devinterp_func 0.2.0, from before its steps could be shared and rounded,"),
        (6, "another version of devinterp_func"),
    ],
)
@pytest.mark.parametrize("file", FILES)
def test_another_format_is_refused_by_name(run, tmp_path, file, format, reader):
    with mock.patch.object(_sealed, "FORMAT", format), mock.patch.object(_manifest, "FORMAT", format):
        other = build_run(tmp_path / "other")
    shutil.copy(other / file, run / file)
    refuses(run, run / file, f"of format {format}, which {reader} reads; this one reads format 5")


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "0.safetensors", "0000000.safetensors", "000000.safetensors.bak", ".x.tmp", "000008.SAFETENSORS"],
)
@pytest.mark.parametrize("folder", ["steps", "params", "evaluations"])
def test_strangers_among_the_files_are_noticed(run, folder, name):
    (run / folder / name).write_bytes(b"hello")
    refuses(run, run / folder / name, "not a file of a run, .*; move it elsewhere")


@pytest.mark.parametrize(
    "name",
    [
        *(".DS_Store", "._000000.safetensors", "Thumbs.db", "desktop.ini", ".nfs000000000012", ".fuse_hidden0001"),
        *("000000.safetensors~", ".000000.safetensors.swp", ".000000.safetensors.swo", ".#000000.safetensors"),
        "#000000.safetensors#",
    ],
)
def test_what_systems_and_editors_leave_is_passed_over(run, name):
    before = records.verify(run), list(map(repr, records.scan(run)))
    for folder in (run, *(run / folder for folder in ("steps", "params", "evaluations"))):
        (folder / name).write_bytes(b"hello")
    assert (records.verify(run), list(map(repr, records.scan(run)))) == before
    with _directory.lock(run):
        records.write_shard(run, step_records(6, 7, factors=[("linear1", "inputs", 3, 2)]))
    assert (run / "steps" / name).read_bytes() == b"hello"


def test_a_folder_that_holds_clutter_only_becomes_a_run(tmp_path):
    (tmp_path / ".DS_Store").touch()
    records.create(tmp_path, MANIFEST)
    assert records.verify(tmp_path).steps == 0


def test_a_folder_in_a_shards_place_is_noticed(run):
    (run / "steps" / "000006.safetensors").mkdir()
    refuses(run, run / "steps" / "000006.safetensors")


def test_a_safetensors_file_of_another_program_is_noticed(run):
    for metadata in (None, {}, {"format": "pt"}, {"devinterp_func": "{}", "more": ""}, {"devinterp_func": "[]"}):
        (run / "steps" / "000006.safetensors").write_bytes(save({"x": torch.ones(1)}, metadata))
        refuses(run, run / "steps" / "000006.safetensors")


def test_a_header_says_nothing_that_its_digest_does_not_cover(run):
    file = run / "steps" / "000000.safetensors"
    header, tensors = _sealed.read_sealed(file)
    fields = {"format": 5, **header._asdict(), "author": "somebody"}
    file.write_bytes(save(tensors, {"devinterp_func": records.canonical(fields)}))
    refuses(run, file, "damaged: its header")


# -- crashes between the write steps


class Death(BaseException):
    """The process is gone: whatever it still calls does nothing either."""


class Disk:
    """The ``os`` module, whose call number ``at`` of those that reach the disk fails: the disk is full, or we die."""

    def __init__(self, at=None, dies=False):
        self.at, self.dies, self.calls, self.struck = at, dies, [], False

    def __getattr__(self, name):
        if name not in ("makedirs", "open", "write", "fsync", "replace", "unlink"):
            return getattr(os, name)
        return lambda *args, **options: self.call(name, *args, **options)

    def call(self, name, *args, **options):
        if self.struck and self.dies:
            raise Death
        if name == "write":  # a real one may stop short, too
            args = (args[0], bytes(args[1])[:400])
        if len(self.calls) == self.at:
            self.struck, self.at = True, None
            if name == "write":
                os.write(args[0], args[1][:100])
            raise Death if self.dies else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.calls.append(name)
        return getattr(os, name)(*args, **options)


def attempt(write, at, dies):
    """Writes on a disk that fails at a call; the error it met, and the disk."""
    disk = Disk(at, dies)
    with mock.patch.object(_sealed, "os", disk):
        try:
            write()
        except (RecordError, Death) as error:
            return error, disk
    return None, disk


def test_a_name_appears_after_the_content_is_on_the_disk(run):
    _, disk = attempt(lambda: records.write_shard(run, step_records(6, 7)), None, False)
    assert [call for i, call in enumerate(disk.calls) if disk.calls[i - 1 : i] != [call]] == [
        *("open", "write", "fsync"),
        "replace",
        *("open", "fsync"),
    ]


@pytest.mark.parametrize("dies", [False, True])
def test_create_survives_a_fault_at_every_call(tmp_path, dies):
    for at in range(100):
        run = tmp_path / str(at)
        error, disk = attempt(lambda run=run: records.create(run, MANIFEST), at, dies)
        records.create(run, MANIFEST)
        assert records.verify(run).steps == 0
        with _directory.lock(run):
            assert records.verify(run).unfinished == ()
        if error is None:
            break
    assert at > 5 and not disk.struck


@pytest.mark.parametrize("dies", [False, True])
def test_writing_survives_a_fault_at_every_call(tmp_path, dies):
    expected = step_records(0, 2)
    for at in range(100):
        run = tmp_path / str(at)
        records.create(run, MANIFEST)
        error, disk = attempt(lambda run=run: records.write_shard(run, expected), at, dies)
        assert records.verify(run).steps == (2 if "replace" in disk.calls else 0)
        if isinstance(error, RecordError):
            assert "could not be written: No space left on device" in str(error)
            assert records.verify(run).unfinished == ()
        with _directory.lock(run):
            assert records.verify(run).unfinished == ()
            if not records.n_steps(run):
                records.write_shard(run, expected)
        assert same_bits(list(records.scan(run)), expected)
        if error is None:
            break
    assert at > 5 and not disk.struck


faults = st.fixed_dictionaries({"at": st.none() | st.integers(0, 16), "dies": st.booleans()})


class Store(RuleBasedStateMachine):
    """The directory against a model of it, under crashes and full disks."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.run = Path(self.folder.name) / "run"
        self.steps, self.shards, self.corpus = [], [], {}
        self.params, self.evaluations = {}, {}
        records.create(self.run, MANIFEST)
        self.process = contextlib.ExitStack()
        self.process.enter_context(_directory.lock(self.run))

    def teardown(self):
        self.process.close()
        self.folder.cleanup()

    def write(self, write, accept, fault):
        """The model has the new file if and only if it got its name; after a death the next process takes over."""
        error, disk = attempt(write, **fault)
        assert (error is None) == (not disk.struck)
        if "replace" in disk.calls:
            accept()
        if isinstance(error, Death):
            self.process.close()
            assert len(records.verify(self.run).unfinished) <= 1
            self.is_the_model()
            self.process.enter_context(_directory.lock(self.run))

    @rule(count=st.integers(1, 3), fault=faults)
    def write_shard(self, count, fault):
        shard = step_records(len(self.steps), len(self.steps) + count)

        def accept():
            self.shards.append((len(self.steps), count))
            self.steps.extend(shard)

        self.write(lambda: records.write_shard(self.run, shard), accept, fault)

    @rule(back=st.integers(0, 3), fault=faults)
    def write_params(self, back, fault):
        step = max(len(self.steps) - back, 0)
        if step in self.params:
            with pytest.raises(RecordError, match="exists already"):
                _store.write_params(self.run, step, weights(step + 1))
        else:
            accept = functools.partial(self.params.__setitem__, step, weights(step))
            self.write(lambda: _store.write_params(self.run, step, weights(step)), accept, fault)

    @rule(value=st.floats(), fault=faults)
    def write_evaluation(self, value, fault):
        step, values = len(self.steps), {"loss": value}
        if step in self.evaluations:
            with pytest.raises(RecordError, match="exists already"):
                _store.write_evaluation(self.run, step, {})
        else:
            accept = functools.partial(self.evaluations.__setitem__, step, values)
            self.write(lambda: _store.write_evaluation(self.run, step, values), accept, fault)

    @rule(fault=faults)
    def write_data(self, fault):
        corpus = {"train": torch.arange(5)}
        if self.corpus:
            with pytest.raises(RecordError, match="exists already"):
                _store.write_data(self.run, {})
        else:
            self.write(lambda: _store.write_data(self.run, corpus), lambda: self.corpus.update(corpus), fault)

    @rule(gap=st.integers(-2, 2).filter(bool))
    def write_elsewhere(self, gap):
        with pytest.raises(RecordError, match="goes on at step"):
            records.write_shard(self.run, [step_record(0)._replace(step=len(self.steps) + gap)])

    @rule()
    def write_beside_another(self):
        with pytest.raises(RecordError, match="has a writer already"), _directory.lock(self.run):
            pass

    @rule()
    def create_again(self):
        records.create(self.run, MANIFEST)

    @invariant()
    def nothing_is_left_over(self):
        assert records.verify(self.run).unfinished == ()

    @invariant()
    def is_the_model(self):
        found = records.verify(self.run)
        files = 1 + len(self.shards) + len(self.params) + len(self.evaluations) + bool(self.corpus)
        assert (found.steps, found.shards, found.files) == (len(self.steps), len(self.shards), files)
        assert found.complete == (len(self.steps) == MANIFEST["n_steps"] and len(self.steps) in self.params)
        assert records.shards(self.run) == self.shards
        assert records.snapshots(self.run) == sorted(self.params)
        assert same_bits(list(records.scan(self.run)), self.steps)
        for step, params in self.params.items():
            assert same_bits(records.read_params(self.run, step), dict(sorted(params.items())))
        assert same_bits(records.read_evaluations(self.run), dict(sorted(self.evaluations.items())))
        if self.corpus:
            assert same_bits(_store.read_data(self.run), self.corpus)


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=30, stateful_step_count=15, deadline=None)


# -- real processes and real disks


def python(script, *arguments):
    """A process of its own with this script."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(records.__file__).parents[1])])
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


WRITER = """
import sys
from devinterp_func import records
from devinterp_func.records import _directory
try:
    with _directory.lock(sys.argv[1]):
        print("taken")
except records.RecordError as error:
    print(error, flush=True)
sys.stdin.readline()
with _directory.lock(sys.argv[1]):
    print("taken", flush=True)
    sys.stdin.read()
"""


def test_one_writer_among_processes_and_none_after_sigkill(run):
    with _directory.lock(run):
        other = python(WRITER, run)
        assert other.stdout.readline() == f"{run} has a writer already: process {os.getpid()}\n"
    other.stdin.write("go\n")
    other.stdin.flush()
    assert other.stdout.readline() == "taken\n"
    with pytest.raises(RecordError, match=f"has a writer already: process {other.pid}"), _directory.lock(run):
        pass
    os.kill(other.pid, signal.SIGKILL)
    other.communicate()
    with _directory.lock(run):
        pass


BOUNDED = """
import resource, sys
from pathlib import Path
from run_builders import MANIFEST, step_records
from devinterp_func import records
from devinterp_func.records import _directory
run = Path(sys.argv[1])
records.create(run, MANIFEST)
with _directory.lock(run):
    records.write_shard(run, step_records(0, 2))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    for write in (lambda: records.write_shard(run, step_records(2, 4, k=2000)),):
        try:
            write()
        except records.RecordError as error:
            print(error)
    print(records.verify(run)[:3], records.verify(run).unfinished)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    records.write_shard(run, step_records(2, 4, k=2000))
    print(records.verify(run)[:3])
"""


def test_a_file_size_limit_leaves_a_run_that_goes_on(tmp_path):
    process = python(BOUNDED, tmp_path / "run")
    told, *states = process.communicate()[0].splitlines()
    assert process.returncode == 0
    assert told.startswith(f"{tmp_path}/run/steps/000002.safetensors could not be written: File too large.")
    assert "the same command goes on" in told
    assert states == ["(2, 1, 0) ()", "(4, 2, 0)"]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 128 kB, where we may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_a_run_that_goes_on(small_disk):
    run = small_disk / "run"
    records.create(run, MANIFEST)
    filler, step = small_disk / "filler", 0
    filler.write_bytes(b"x" * 40_000)
    with (
        _directory.lock(run),
        pytest.raises(RecordError, match="could not be written: No space left on device") as error,
    ):
        while True:
            records.write_shard(run, step_records(step, step + 1, k=500))
            step += 1
    assert f"{step:06d}.safetensors" in str(error.value) and "the same command goes on" in str(error.value)
    assert records.verify(run)[:2] == (step, step) and records.verify(run).unfinished == ()
    filler.unlink()
    with _directory.lock(run):
        records.write_shard(run, step_records(step, step + 1, k=500))
    assert same_bits(list(records.scan(run)), step_records(0, step + 1, k=500))


def test_a_growing_run_verifies_at_any_moment(tmp_path):
    run = tmp_path / "run"
    records.create(run, MANIFEST)

    def grow():
        with _directory.lock(run):
            for step in range(40):
                records.write_shard(run, step_records(step, step + 1))
                _store.write_params(run, step + 1, weights(step + 1))

    writer = threading.Thread(target=grow)
    writer.start()
    seen = [0]
    while writer.is_alive():
        found = records.verify(run)
        seen.append(found.steps)
        assert found.snapshots <= found.steps
    writer.join()
    assert seen == sorted(seen) and records.verify(run).snapshots == 40
