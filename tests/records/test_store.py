import json
import math
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_builders import (
    MANIFEST,
    build_run,
    record_settings,
    same_bits,
    step_record,
    step_records,
    tensors_of,
    weights,
)
from safetensors import safe_open

from devinterp_func import records
from devinterp_func.records import RecordError, _directory, _store
from devinterp_func.records._readonly import FrozenTensor


@pytest.fixture
def run(tmp_path):
    return build_run(tmp_path / "run")


@pytest.fixture
def empty(tmp_path):
    records.create(tmp_path / "empty", MANIFEST)
    return tmp_path / "empty"


def contents(run):
    return {file.relative_to(run): file.read_bytes() for file in sorted(Path(run).rglob("*")) if file.is_file()}


@given(record_settings(), st.lists(st.integers(1, 3), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_records_come_back_bit_for_bit(layout, counts):
    written = step_records(0, sum(counts), **layout)
    with tempfile.TemporaryDirectory() as run:
        records.create(run, MANIFEST)
        for count in counts:
            first = records.n_steps(run)
            records.write_shard(run, written[first : first + count])
        assert same_bits(list(records.scan(run)), written)
        assert same_bits([records.read(run, step) for step in range(len(written))], written)
        assert same_bits([record for shard in records.scan_shards(run) for record in rows(shard)], written)
        assert records.verify(run)[:2] == (len(written), len(counts))
        assert [count for _, count in records.shards(run)] == counts


def rows(shard):
    """The shard's records, taken apart field by field."""
    for i in range(shard.count):
        outliers = type(shard.outliers)(*(tensor[i] for tensor in shard.outliers))
        factors = {unit: {name: t[i] for name, t in parts.items()} for unit, parts in shard.factors.items()}
        numbers = {name: getattr(shard, name)[i].item() for name in records.StepRecord._fields[:6]}
        split = type(shard.split)(*(tensor[i] for tensor in shard.split))
        plain = {name: getattr(shard, name)[i] for name in ("datum", "loss", "missed", "missed_bound")}
        arrays = plain | {"outliers": outliers, "factors": factors}
        yield records.StepRecord(**numbers, split=split, **arrays)


@given(st.integers(-3, 10), st.none() | st.integers(-3, 10))
@settings(max_examples=30, deadline=None)
def test_scan_yields_the_steps_between(start, stop):
    with tempfile.TemporaryDirectory() as folder:
        run = build_run(Path(folder) / "run", n=1, k=1)
        expected = [step for step in range(6) if start <= step < (math.inf if stop is None else stop)]
        assert [record.step for record in records.scan(run, start, stop)] == expected


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=9).filter(lambda s: s != "__metadata__"), st.floats()
    )
)
@settings(max_examples=30, deadline=None)
def test_evaluations_come_back(values):
    with tempfile.TemporaryDirectory() as run:
        records.create(run, MANIFEST)
        _store.write_evaluation(run, 0, values)
        assert same_bits(records.read_evaluations(run), {0: dict(sorted(values.items()))}) or not values
        assert records.read_evaluations(run)[0].keys() == values.keys()


def test_weights_and_corpus_come_back_in_memory_of_their_own(run):
    before = contents(run)
    for tree, given_ in [
        *((records.read_params(run, step), weights(step)) for step in (0, 4, 6)),
        (_store.read_data(run), {"train": torch.arange(9), "vocabulary": torch.tensor(list(b"the\n<unk>"))}),
    ]:
        assert same_bits(dict(sorted(tree.items())), dict(sorted(given_.items())))
        assert all(type(tensor) is torch.Tensor and tensor.data_ptr() % 64 == 0 for tensor in tree.values())
        [tensor.zero_() for tensor in tree.values()]
    assert contents(run) == before


def test_tied_and_expanded_weights_are_stored_apart(empty):
    tied = torch.arange(6.0).reshape(2, 3)
    params = {"a": tied, "b": tied, "c": tied.T, "d": tied[0].expand(4, 3), "e": tied.requires_grad_()}
    params["empty"] = torch.from_numpy(np.empty((0, 3)))
    _store.write_params(empty, 0, params)
    assert same_bits(records.read_params(empty, 0), {name: tensor.detach() for name, tensor in params.items()})


def test_equal_content_is_equal_bytes(tmp_path):
    assert contents(build_run(tmp_path / "a")) == contents(build_run(tmp_path / "b"))


def test_one_metadata_entry_of_canonical_json(run):
    for file in run.rglob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            [(name, text)] = opened.metadata().items()
        assert name == "devinterp_func"
        fields = json.loads(text)
        assert text == json.dumps(fields, sort_keys=True, separators=(",", ":"))
        assert fields.keys() == {"format", "kind", "step", "count", "run", "previous", "digest"}


def test_the_datum_of_a_row_is_not_stored(run, tmp_path):
    stepwise = build_run(tmp_path / "stepwise", per="step")
    for folder, stored in ((run, False), (stepwise, True)):
        with safe_open(folder / "steps" / "000000.safetensors", framework="pt") as opened:
            assert ("outliers/datum" in opened.keys()) is stored


def test_what_the_reader_gives_is_read_only(run):
    before = contents(run)
    for tree in (records.read(run, 3), *records.scan(run), *records.scan_shards(run)):
        for tensor in tensors_of(tree):
            assert type(tensor) is FrozenTensor
            with pytest.raises(ValueError, match="read-only"):
                tensor.zero_()
    assert contents(run) == before


def test_no_more_than_one_shard_is_mapped(run):
    def mapped():
        return {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if str(run) in line}

    for shard in records.scan_shards(run):
        assert len(mapped()) == 1, shard
    del shard
    for record in records.scan(run):
        assert len(mapped()) == 1, record
    del record
    assert not mapped()
    params = records.read_params(run, 0)
    assert not mapped(), params


def test_scan_is_lazy(run):
    (run / "steps" / "000004.safetensors").write_bytes(b"")
    reader = records.scan(run)
    assert [next(reader).step for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(RecordError, match="000004"):
        next(reader)


def test_records_may_be_copied_from_run_to_run(run, empty):
    records.write_shard(empty, list(records.scan(run)))
    assert same_bits(list(records.scan(empty)), list(records.scan(run)))


def test_verify_counts(run):
    found = records.verify(run)
    size = sum(file.stat().st_size for file in run.rglob("*") if file.is_file() and file.name != ".lock")
    assert found == records.Verified(6, 3, 3, 10, size, True, ())
    assert repr(found) == f"Verified(6 steps in 3 shards, 3 snapshots, 10 files, {size / 1e6:.1f} MB, complete)"
    assert records.n_steps(run) == 6
    assert records.shards(run) == [(0, 2), (2, 2), (4, 2)]
    assert records.snapshots(run) == [0, 4, 6]
    assert list(records.read_evaluations(run)) == [4, 6]


def test_a_run_cut_short_is_whole_but_not_complete(run):
    for name in ("params/000006", "evaluations/000006", "steps/000004", "params/000004", "evaluations/000004"):
        (run / f"{name}.safetensors").unlink()
        found = records.verify(run)
        assert not found.complete
        assert "cut short" in repr(found)


def test_an_empty_run_is_whole(empty):
    assert records.verify(empty)[:4] == (0, 0, 0, 1)
    assert records.n_steps(empty) == 0
    assert records.shards(empty) == records.snapshots(empty) == list(records.scan(empty)) == []
    assert records.read_evaluations(empty) == {}


def test_results_print_short(run):
    record = next(records.scan(run))
    assert repr(record) == (
        "StepRecord(step=0, epoch=0, batch=0, lr=5, clip=0.75, grad_norm=0.5, datum=[2], loss=[2], split=[2, 3], "
        "missed=[2], missed_bound=[2], outliers=[2, 3], factors={})"
    )
    assert "first=0, count=2, step=[2]" in repr(next(records.scan_shards(run)))
    assert "split=[2, 2, 3], missed=[2, 2], missed_bound=[2, 2], outliers=[2, 2, 3]" in repr(
        next(records.scan_shards(run))
    )
    stored = step_record(0, factors=[("linear", "inputs", 4, 5)])
    assert repr(stored).endswith("factors={linear: {inputs: [2, 4, 5]}})")


@pytest.mark.parametrize("step", [-1, 6, 100])
def test_reading_an_unrecorded_step_says_what_is_there(run, step):
    with pytest.raises(RecordError, match=re.escape(f"{run} has no step {step}: it holds 6 steps")):
        records.read(run, step)


def test_reading_absent_weights_says_which_are_there(run):
    with pytest.raises(RecordError, match=re.escape("no weights before step 3; it has those before [0, 4, 6]")):
        records.read_params(run, 3)


@pytest.mark.parametrize(
    "read",
    [
        records.manifest,
        records.n_steps,
        records.shards,
        records.snapshots,
        records.verify,
        _store.read_data,
        records.read_evaluations,
        lambda run: records.read(run, 0),
        lambda run: list(records.scan(run)),
        lambda run: list(records.scan_shards(run)),
        lambda run: records.read_params(run, 0),
        lambda run: records.write_shard(run, [step_record(0)]),
        lambda run: _store.write_params(run, 0, {}),
        lambda run: _directory.lock(run).__enter__(),
    ],
)
def test_what_is_no_run_is_refused(read, tmp_path):
    (tmp_path / "steps").mkdir()
    (tmp_path / ".000000.safetensors.tmp").touch()
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(RecordError, match=re.escape(f"{folder} is not a run")):
            read(folder)
    assert (tmp_path / ".000000.safetensors.tmp").exists() and not (tmp_path / ".lock").exists()


# -- writing


@pytest.mark.parametrize("steps", [[], [7], [5], [6, 8], [7, 6], [0], [-1]])
def test_a_shard_must_follow_exactly(run, steps):
    before = contents(run)
    with pytest.raises(RecordError, match=re.escape(f"{run} goes on at step 6")):
        records.write_shard(run, [step_record(0)._replace(step=step) for step in steps])
    assert contents(run) == before


@pytest.mark.parametrize(
    "other", [{"n": 3}, {"k": 1}, {"delta": torch.float64}, {"per": "step"}, {"factors": "f"}, {"units": 3}]
)
def test_records_of_a_shard_are_alike(empty, other):
    other = {"factors": [("u", "inputs", 1, 1)]} if "factors" in other else other
    with pytest.raises(RecordError, match="step 1: .* differ in shape or dtype from step 0's"):
        records.write_shard(empty, [step_record(0), step_record(1, **other)])
    assert records.n_steps(empty) == 0


def test_an_outlier_lies_in_its_datums_row(empty):
    record = step_record(0)
    wrong = record._replace(outliers=record.outliers._replace(datum=torch.ones(2, 3, dtype=torch.int16)))
    with pytest.raises(RecordError, match="row j"):
        records.write_shard(empty, [wrong])


@pytest.mark.parametrize("write", [_store.write_params, _store.write_evaluation])
def test_what_the_steps_led_to_comes_after_them(run, write):
    with pytest.raises(RecordError, match="steps 6 to 7, which led to it, are not recorded"):
        write(run, 8, {})


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda run: _store.write_params(run, 4, weights(4)), "params/000004.safetensors"),
        (lambda run: _store.write_evaluation(run, 4, {}), "evaluations/000004.safetensors"),
        (lambda run: _store.write_data(run, {}), "data.safetensors"),
    ],
)
def test_nothing_is_overwritten(run, write, name):
    before = contents(run)
    with pytest.raises(RecordError, match=re.escape(f"{run / name} exists already")):
        write(run)
    assert contents(run) == before


def test_weights_may_be_stored_within_a_shard(run):
    _store.write_params(run, 3, weights(3))
    assert records.verify(run).snapshots == 4


# -- the manifest


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
bodies = st.dictionaries(st.text(max_size=5).filter(lambda s: s not in ("digest", "format")), json_values, max_size=4)


@given(bodies, bodies)
@settings(max_examples=60, deadline=None)
def test_manifest_comes_back_and_only_its_own_run_is_taken_up(body, other):
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "deep" / "run"
        records.create(run, body)
        read = records.manifest(run)
        assert {name: value for name, value in read.items() if name not in ("digest", "format")} == body
        before = contents(run)
        records.create(run, body)
        if json.dumps(other, sort_keys=True) != json.dumps(body, sort_keys=True):
            with pytest.raises(RecordError, match="is another run"):
                records.create(run, other)
        assert contents(run) == before


def test_create_lists_what_differs(run):
    other = {"n_steps": 7, "seed": 0, "config": {"d_model": 8, "dropout": 0.25}, "device": "cpu"}
    with pytest.raises(RecordError) as error:
        records.create(run, other)
    assert str(error.value).splitlines() == [
        f"{run} is another run:",
        "  config.dropout: there 0.2, now 0.25",
        '  device: there nothing, now "cpu"',
        "  n_steps: there 6, now 7",
        "Choose another directory, or the values of the run that is there.",
    ]


def test_tuples_are_lists_in_a_manifest(tmp_path):
    records.create(tmp_path, {"units": ("a", "b")})
    records.create(tmp_path, {"units": ["a", "b"]})
    assert records.manifest(tmp_path)["units"] == ["a", "b"]


@pytest.mark.parametrize("body", [{"lr": math.nan}, {"lr": math.inf}, {"t": torch.ones(1)}, {"digest": ""}])
def test_create_refuses_what_a_manifest_cannot_say(tmp_path, body):
    with pytest.raises(RecordError, match="JSON|create's own"):
        records.create(tmp_path / "run", body)
    assert not (tmp_path / "run").exists()


def test_create_touches_nothing_that_is_not_its_own(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RecordError, match="not a run and not empty: it holds thesis.tex"):
        records.create(tmp_path, MANIFEST)
    with pytest.raises(RecordError, match="cannot be made a run"):
        records.create(tmp_path / "thesis.tex", MANIFEST)
    assert contents(tmp_path) == {Path("thesis.tex"): b"years of work"}


def test_shards_without_their_manifest_are_not_taken_over(run):
    (run / "manifest.json").unlink()
    with pytest.raises(RecordError, match="not a run and not empty"):
        records.create(run, MANIFEST)


# -- one writer


def test_second_writer_is_refused_and_a_later_one_is_not(run):
    with _directory.lock(run):
        with pytest.raises(RecordError, match=re.escape(f"{run} has a writer already: process {os.getpid()}")):
            with _directory.lock(run):
                pass
        assert records.verify(run).complete  # readers are welcome
    with _directory.lock(run):
        pass


def test_lock_is_released_by_an_error(run):
    with pytest.raises(KeyError), _directory.lock(run):
        raise KeyError
    with _directory.lock(run):
        pass


def test_lock_removes_leftovers_and_nothing_else(run):
    left = [run / ".data.safetensors.tmp", run / ".manifest.json.tmp", run / "steps" / ".000006.safetensors.tmp"]
    kept = [run / "notes.tmp", run / ".hidden.tmp", run / "other" / ".000006.safetensors.tmp"]
    (run / "other").mkdir()
    for file in left + kept:
        file.write_bytes(b"half")
    before = contents(run)
    assert records.verify(run).unfinished == tuple(str(file.relative_to(run)) for file in left)
    assert "3 unfinished temporary files" in repr(records.verify(run))
    with _directory.lock(run):
        pass
    after = contents(run)
    assert after.keys() - {Path(".lock")} == before.keys() - {file.relative_to(run) for file in left} - {Path(".lock")}
    assert records.verify(run).unfinished == ()


def test_more_than_a_million_steps_sort_by_number(tmp_path):
    (tmp_path / "steps").mkdir()
    for step in (1_000_000, 999_999, 0):
        _directory.file_path(tmp_path, "steps", step).touch()
    assert _directory.numbers(tmp_path, "steps") == [0, 999_999, 1_000_000]
