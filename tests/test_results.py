"""Laws of results.py: what is written comes back, and a stage is done for one origin only."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
import torch
from run_builders import build_run

from devinterp_func import records, results
from devinterp_func.records import RecordError


@dataclass(frozen=True)
class Settings:
    run: Path
    out: Path | None = None
    seed: int = 0


def test_tables_come_back_with_words_as_words(tmp_path):
    table = pl.DataFrame(
        {"sublayer": ["3.2", "1.1"], "token": ["7", "a,b"], "notable": [True, False], "p": [0.5e-9, None]}
    )
    results.write_table(tmp_path, "t", table)
    assert results.read_table(tmp_path, "t").equals(table)


def test_arrays_come_back(tmp_path):
    arrays = {"a/b": torch.arange(6).view(2, 3).T, "c": torch.zeros(0)}
    results.write_arrays(tmp_path / "new", "x", arrays)
    found = results.read_arrays(tmp_path / "new", "x")
    assert found.keys() == arrays.keys() and all(torch.equal(found[name], arrays[name]) for name in arrays)


def test_pages_tables_and_the_manifest_are_exported_and_arrays_are_not(tmp_path):
    run, folder = build_run(tmp_path / "run"), tmp_path / "run-results"
    with pytest.raises(FileNotFoundError, match="has no pages, tables or figures"):
        results.export(run, folder, tmp_path / "to")
    results.write_table(folder, "t", pl.DataFrame({"a": [1]}))
    results.write(folder / "report.html", b"page")
    results.write_arrays(folder, "x", {"a": torch.zeros(2)})
    results.export(run, folder, tmp_path / "to")
    assert {path.name for path in (tmp_path / "to").iterdir()} == {"t.csv", "report.html", "manifest.json"}
    assert (tmp_path / "to" / "manifest.json").read_bytes() == (run / "manifest.json").read_bytes()


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="flips.csv is not there; the scripts before"):
        results.read_table(tmp_path, "flips")
    with pytest.raises(FileNotFoundError, match="tally.safetensors is not there"):
        results.read_arrays(tmp_path, "tally")


def test_a_stage_is_done_for_this_run_and_these_settings_only(tmp_path):
    run, folder = build_run(tmp_path / "run"), tmp_path / "results"
    origin = results.origin(run, Settings(run))
    assert not results.is_done(folder, "stage", origin)
    results.finish(folder, "stage", origin)
    assert results.is_done(folder, "stage", results.origin(run, Settings(run, out=folder)))
    assert not results.is_done(folder, "stage", results.origin(run, Settings(run, seed=1)))
    other = build_run(tmp_path / "other", manifest={"n_steps": 6, "seed": 9})
    assert not results.is_done(folder, "stage", results.origin(other, Settings(other)))
    assert sorted(path.name for path in folder.iterdir()) == ["stage.json"]  # no temporary file is left


def test_a_run_without_steps_is_refused(tmp_path):
    records.create(tmp_path / "run", {"n_steps": 6})
    with pytest.raises(RecordError, match="has no recorded steps yet"):
        results.origin(tmp_path / "run", Settings(tmp_path / "run"))
