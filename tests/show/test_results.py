"""Laws of results: what is written comes back, rows are added, and a stage is done for one origin only."""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
import torch
from run_builders import recorded

from devinterp_func import training
from devinterp_func.show import plots, results, schema
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table

KIND = Table("Flips.", "ablate.py", {"neuron": Column(NAME), "n": Column(INT), "p": Column(FLOAT)}, ("neuron", "n"))


@dataclass(frozen=True)
class Settings:
    run: Path
    out: Path | None = None
    export: Path | None = None
    seed: int = 0
    neuron: tuple[str, ...] = ()
    other: Path | None = None
    limit: float = 1.0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("results") / "run", training.Recipe(n_steps=3, batch_size=2, context=8))


def rows(*values):
    return schema.frame(KIND, [dict(zip(KIND.columns, row, strict=True)) for row in values])


# ---- files


def test_arrays_come_back(tmp_path):
    arrays = {"a/b": torch.arange(6).view(2, 3).T, "c": torch.zeros(0)}
    results.write_arrays(tmp_path / "new", "x", arrays)
    found = results.read_arrays(tmp_path / "new", "x")
    assert found.keys() == arrays.keys() and all(torch.equal(found[name], arrays[name]) for name in arrays)


def test_tables_come_back_with_words_lists_and_nulls(tmp_path):
    table = pl.DataFrame(
        {
            "unit": ["3.2", "1.1"],
            "token": ["7", "a,b\n"],
            "ids": [[1], None],
            "notable": [True, None],
            "p": [5e-10, None],
        }
    )
    results.write_table(tmp_path, "t", table)
    assert results.read_table(tmp_path, "t").equals(table)
    assert results.has_table(tmp_path, "t") and not results.has_table(tmp_path, "u")


def test_what_is_missing_is_named_with_its_script(tmp_path):
    with pytest.raises(results.Missing, match="flips.parquet is not there; experiments/ablate.py makes it"):
        results.read_table(tmp_path, "flips", KIND)
    with pytest.raises(results.Missing, match="tally.safetensors is not there; experiments/attribute.py makes it"):
        results.read_arrays(tmp_path, "tally", "attribute.py")


def test_a_table_of_another_version_or_damaged_is_refused_in_one_line(tmp_path):
    results.write_table(tmp_path, "t", rows().rename({"p": "share"}))
    with pytest.raises(
        ValueError, match=r"t.parquet: the columns \['p', 'share'\] .*; run experiments/ablate.py again"
    ):
        results.read_table(tmp_path, "t", KIND)
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="; run experiments/ablate.py again") as error:
        results.read_table(tmp_path, "t", KIND)
    assert "\n" not in str(error.value)


# ---- rows are added


def test_new_rows_stand_beside_the_old_ones_and_replace_those_of_their_key(tmp_path):
    results.add_rows(tmp_path, "t", KIND, rows(("a", 0, 0.1), ("b", 0, 0.2), ("b", 1, 0.3)))
    whole = results.add_rows(tmp_path, "t", KIND, rows(("b", 0, 9.0), ("c", 0, 0.4)))
    assert whole.rows() == [("a", 0, 0.1), ("b", 1, 0.3), ("b", 0, 9.0), ("c", 0, 0.4)]
    assert results.read_table(tmp_path, "t", KIND).equals(whole)


def test_a_key_may_hold_nulls_and_many_rows(tmp_path):
    results.add_rows(tmp_path, "t", KIND, rows((None, 0, 0.1), ("a", None, 0.2)))
    whole = results.add_rows(tmp_path, "t", KIND, rows((None, 0, 1.0), (None, 0, 2.0), ("a", None, 3.0)))
    assert whole.rows() == [(None, 0, 1.0), (None, 0, 2.0), ("a", None, 3.0)]


def test_rows_without_successors_go_where_told(tmp_path):
    results.add_rows(tmp_path, "t", KIND, rows(("a", 0, 0.1), ("b", 0, 0.2), (None, 0, 0.3)))
    assert results.add_rows(tmp_path, "t", KIND, rows(), instead_of=["b"]).rows() == [("a", 0, 0.1), (None, 0, 0.3)]


def test_no_rows_add_nothing_and_keep_types(tmp_path):
    results.add_rows(tmp_path, "t", KIND, rows())
    results.add_rows(tmp_path, "t", KIND, rows())
    assert results.read_table(tmp_path, "t", KIND).equals(rows())


def test_rows_that_cannot_be_added_are_refused(tmp_path):
    with pytest.raises(ValueError, match="rows of 'Flips.' cannot be added: no column tells them apart"):
        results.add_rows(tmp_path, "t", KIND._replace(key=()), rows())
    with pytest.raises(ValueError, match=r"t: the columns \['p'\] are not as"):
        results.add_rows(tmp_path, "t", KIND, rows().drop("p"))


# ---- where results are


@pytest.mark.parametrize(
    ("path", "there"),
    [("..", "R-results"), (".", "steps-results"), ("../steps", "steps-results"), ("sub/..", "steps-results")],
)
def test_results_are_beside_the_run_however_its_path_is_written(tmp_path, monkeypatch, path, there):
    inside = tmp_path / "R" / "steps"
    (inside / "sub").mkdir(parents=True)
    monkeypatch.chdir(inside)
    found = results.beside(path)
    assert found.is_absolute() and found.name == there
    assert not found.is_relative_to(Path(os.path.abspath(path)))
    assert results.beside(path, Path("../../elsewhere")) == Path("../../elsewhere")


@pytest.mark.parametrize("out", [".", "x/y", "steps", "../R"])
def test_a_run_is_never_written_to(tmp_path, monkeypatch, out):
    (tmp_path / "R" / "steps").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "R")
    with pytest.raises(ValueError, match="is in the run .*, which is never written to"):
        results.beside(".", Path(out))


# ---- when a stage is done


def test_a_stage_is_done_for_this_run_and_these_settings_only(tmp_path, run):
    folder = tmp_path / "results"
    origin = results.origin(folder, run, Settings(run.path))
    assert not results.is_done(folder, "stage", origin)
    results.finish(folder, "stage", origin)
    elsewhere = Settings(run.path, out=folder, export=folder)
    assert results.is_done(folder, "stage", results.origin(folder, run, elsewhere))
    for other in (Settings(run.path, seed=1), Settings(run.path, neuron=("a",)), Settings(run.path, other=tmp_path)):
        assert not results.is_done(folder, "stage", results.origin(folder, run, other))
    assert not results.is_done(folder, "stage", origin | {"run": "another"})
    assert not results.is_done(folder, "stage", origin | {"steps": 2})
    assert sorted(path.name for path in folder.iterdir()) == ["stage.json"]  # no temporary file is left


@pytest.mark.parametrize("limit", [float("inf"), float("-inf"), float("nan")])
def test_a_setting_may_have_no_end(tmp_path, run, limit):
    results.finish(tmp_path, "stage", results.origin(tmp_path, run, Settings(run.path, limit=limit)))
    assert results.is_done(tmp_path, "stage", results.origin(tmp_path, run, Settings(run.path, limit=limit)))
    assert not results.is_done(tmp_path, "stage", results.origin(tmp_path, run, Settings(run.path)))


def test_a_stage_is_not_done_once_the_one_before_changed(tmp_path, run):
    results.finish(tmp_path, "attribute", results.origin(tmp_path, run, Settings(run.path)))
    origin = results.origin(tmp_path, run, Settings(run.path), ["attribute"])
    results.finish(tmp_path, "ablate", origin)
    assert results.is_done(tmp_path, "ablate", results.origin(tmp_path, run, Settings(run.path), ["attribute"]))
    assert results.outdated(tmp_path, run) == {}
    results.finish(tmp_path, "attribute", results.origin(tmp_path, run, Settings(run.path, seed=1)))
    later = results.origin(tmp_path, run, Settings(run.path), ["attribute"])
    assert not results.is_done(tmp_path, "ablate", later) and not results.is_current(tmp_path, "ablate", later)
    assert results.outdated(tmp_path, run) == {"ablate": "was made before attribute changed"}


def test_results_of_another_run_or_of_fewer_steps_are_out_of_date(tmp_path, run):
    origin = results.origin(tmp_path, run, Settings(run.path))
    results.finish(tmp_path, "a", origin | {"run": "another"})
    results.finish(tmp_path, "b", origin | {"steps": 1200})
    results.finish(tmp_path, "c", origin)
    results.finish(tmp_path, "d", {"runs": ["of", "several"]})
    outdated = results.outdated(tmp_path, run)
    assert outdated == {"a": "is of another run", "b": "is of 1,200 steps; 3 are recorded now"}


def test_results_are_current_whatever_the_settings(tmp_path, run):
    origin = results.origin(tmp_path, run, Settings(run.path))
    assert not results.is_current(tmp_path, "a", origin)
    results.finish(tmp_path, "a", origin)
    assert results.is_current(tmp_path, "a", results.origin(tmp_path, run, Settings(run.path, seed=5)))
    for other in ({"steps": 2}, {"run": "another"}):
        assert not results.is_current(tmp_path, "a", origin | other)
    results.finish(tmp_path, "a", origin | {"after": {"b": "1"}})
    for after, current in (({}, True), ({"b": "1", "c": "1"}, True), ({"b": "2"}, False)):
        assert results.is_current(tmp_path, "a", origin | {"after": after}) == current


def test_a_missing_stage_names_the_script_to_run(tmp_path, run):
    with pytest.raises(
        results.Missing, match=r"has no results of attribute; first run: python experiments/attribute.py /"
    ):
        results.origin(tmp_path, run, Settings(run.path), ["attribute"])
    with pytest.raises(results.Missing, match=r"first run: python experiments/ledger.py /"):
        results.origin(tmp_path, run, Settings(run.path), ["ledger-loss"])


# ---- export


def test_pages_tables_figures_and_the_manifest_are_exported_and_arrays_are_not(tmp_path, run):
    folder, to = tmp_path / "run-results", tmp_path / "to"
    with pytest.raises(results.Missing, match="has no pages, tables or figures"):
        results.export(run, folder, to)
    results.write_table(folder, "t", rows(("a", 0, 0.1)))
    results.write(folder / "report.html", b"page")
    results.write(folder / "f.svg", b"figure")
    results.write_arrays(folder, "x", {"a": torch.zeros(2)})
    results.finish(folder, "stage", {})
    copies = results.export(run, folder, to)
    assert {path.name for path in to.iterdir()} == {"t.parquet", "report.html", "f.svg", "manifest.json"}
    assert sorted(copies) == sorted(to.iterdir())
    assert all(path.read_bytes() == (folder / path.name).read_bytes() for path in copies if path.stem != "manifest")
    assert json.loads((to / "manifest.json").read_text()) == json.loads((run.path / "manifest.json").read_text())
    with pytest.raises(ValueError, match="which is never written to"):
        results.export(run, folder, run.path / "steps")
    shutil.rmtree(to)


@pytest.mark.parametrize("name", ["", "..", "###", "A b:C", "x" * 9])
def test_a_slug_is_a_file_name(name):
    found = results.slug(name)
    assert found and "/" not in found and found not in (".", "..") and found == found.lower()


def test_a_figure_has_the_same_bytes_however_often_it_is_drawn_and_is_readable_on_a_dark_page(tmp_path):
    def drawn(name):
        line = torch.arange(3), torch.tensor([0.1, 0.2, 0.4])
        return results.write_figure(tmp_path, name, plots.lines({"loss": line}, "nats")).read_text()

    first = drawn("one")
    assert drawn("two") == first and "url(#" in first
    background = re.search(r'<g id="patch_1">\s*<path d="[^"]*" style="fill: (#\w+)', first)
    assert background and background[1] == "#ffffff"
