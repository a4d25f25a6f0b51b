"""Influences as a command, its tables and its section: what is asked for, in numbers that are the library's own."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import polars as pl
import pytest
import torch
from run_builders import PLANTED, contents, recorded

from devinterp_func import credit, keys, optim, records
from devinterp_func.credit import DatumAmounts, Influences
from devinterp_func.models import Config, transformer
from devinterp_func.records import Recording
from devinterp_func.show import _influence_sections, page, results, tables
from devinterp_func.training import Recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))  # where the scripts find each other

import influence  # noqa: E402

PROBES = ("loss", "bigram:c00 c01")
SIGNS: tuple[Literal[1, -1], ...] = (-1, 1)  # to help is to lower a loss
SPAN, CREDITS = "influence-loss-bigram-c00-c01-to-15", "credits-loss-bigram-c00-c01-from-2"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three epochs of six steps, so that data are visited more than once."""
    optimizer = optim.adamw(betas=(0.8, 0.9), weight_decay=0.1)
    recipe = Recipe(context=8, batch_size=57, epochs=3, lr=0.01, optimizer=optimizer)
    model = transformer(Config(len(PLANTED.vocab), d_model=8, n_heads=2, d_hidden=6, n_layers=2))
    return recorded(tmp_path_factory.mktemp("runs") / "run", recipe, Recording(k=5, snapshot_every=4), model=model)


@pytest.fixture(scope="module")
def asked(run, tmp_path_factory):
    """Settings whose work is done, once."""
    assert run.steps_per_epoch == 6 and run.n_steps == 18
    out = tmp_path_factory.mktemp("out")
    found = influence.Settings(run.path, out, PROBES, start=2, stop=15, nodes=1, texts=3, tried=10, draws=4)
    influence.main(found)
    return found


@pytest.fixture(scope="module")
def found(asked):
    return records.read_walk_back(asked.out / SPAN, Influences)


@pytest.fixture(scope="module")
def credits(asked):
    return records.read_walk(asked.out / CREDITS, DatumAmounts)


def read(asked, name):
    return results.read_table(asked.out, name, tables.INFLUENCE_TABLES[name])


@pytest.mark.parametrize(
    "given, message",
    [
        ({"probe": ("nonsense",)}, "names no probe; forms are"),
        ({"start": 18}, "steps 18 to 18 were asked for; .* has 18 recorded steps"),
        ({"stop": 19}, "steps 0 to 19"),
        ({"nodes": 0}, "nodes is 0; it must be at least 1"),
        ({"texts": 0}, "texts is 0"),
        ({"tried": -1}, "tried is -1; it must be at least 0"),
        ({"draws": 3}, "draws is 3; it must be at least 4"),
        ({"block": 0}, "block is 0; it must be at least 1"),
    ],
)
def test_arguments_are_checked_before_any_work(run, tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        influence.main(influence.Settings(run.path, tmp_path / "out", **given))
    assert not (tmp_path / "out").exists()


def test_its_sums_are_the_librarys(run, asked, found, credits):
    books = read(asked, "influences")
    assert books.select(*tables.INFLUENCE_KEY).rows() == [(name, 2, 15, "hessian", 1, 3, 0) for name in PROBES]
    assert torch.equal(found.datum, credits.datum) and found.step.tolist() == list(range(2, 15))
    for i, row in enumerate(books.iter_rows(named=True)):
        probe = credit.parse_probe(row["probe"], run, key=keys.Key(0, ("ledger",)), n=3)
        for end, step in (("at the start", 2), ("at the end", 15)):
            assert row[end] == pytest.approx(float(probe.value(run.params(step))), rel=1e-5)
        assert row["influences"] == pytest.approx(float(found.influence[:, i].sum()))
        assert row["credits"] == pytest.approx(float(credits.credit[:, i].sum()), rel=1e-4)
        growth = (found.norm[:, i] / found.end_norm[-1, i]).tolist()
        assert row["growth"] == growth[0] and row["largest growth"] == max(growth)
        assert row["largest at"] == 2 + growth.index(max(growth))
        key = keys.Key(0, ("influence",))
        expected = credit.influence_and_credit(found, credits.credit[:, i], i, key=key)
        assert [row[name] for name in ("rank correlation", "low", "high", "data")] == list(expected)


def test_its_horizons_are_trials_of_the_last_steps(run, asked, found):
    rows, books = read(asked, "influence_horizons"), read(asked, "influences")
    probes = [credit.parse_probe(name, run, key=keys.Key(0, ("ledger",)), n=3) for name in PROBES]
    window = credit.last_steps(run, 15, 10)
    trial = credit.try_forecast(window, probes, found, draws=4, key=keys.Key(0, ("influence",)))
    for i, name in enumerate(PROBES):
        near, far = rows.filter(pl.col("probe") == name).iter_rows(named=True)
        assert (near["horizon"], near["step"], far["horizon"], far["step"]) == (10, 5, 13, 2)
        assert [near[x] for x in ("correlation", "low", "high", "draws")] == list(trial.correlation(i))
        assert (near["slope"], near["metasmoothness"]) == (trial.slope(i), trial.metasmoothness)
        assert far["correlation"] is far["draws"] is far["slope"] is far["metasmoothness"] is None
        assert far["verdict"] in ("untested", "beyond")
        [book] = books.filter(pl.col("probe") == name).iter_rows(named=True)
        assert book["forecast"] == (10 if near["verdict"] == "forecast" else 0)
    courses = read(asked, "influence_courses")
    assert courses["growth"].to_list() == found.growth().T.flatten().tolist()
    assert courses["influence"].to_list() == pytest.approx(found.scores().sum(-1).flatten().tolist())


def test_its_texts_are_the_librarys_with_every_visit(asked, found, credits):
    texts = read(asked, "influence_texts")
    assert texts["steps"].list.len().max() > 1
    for i, (name, sign) in enumerate(zip(PROBES, SIGNS, strict=True)):
        rows, of = texts.filter(pl.col("probe") == name), credits.credit[:, i]
        for row, text in zip(rows.iter_rows(named=True), credit.most_influential(found, of, i, sign), strict=True):
            assert (row["effect"], row["rank"], row["datum"]) == (text.effect, text.rank, text.datum)
            assert (row["influence place"], row["credit place"]) == (text.influence_place, text.credit_place)
            assert row["steps"] == text.step.tolist() and row["epochs"] == [step // 6 for step in row["steps"]]
            assert row["by visit"] == text.influence.sum(1).tolist() and row["credits"] == text.credit.tolist()
            assert row["by position"] == text.influence.sum(0).tolist()
            assert row["influence"] == pytest.approx(sum(row["by visit"])) == pytest.approx(sum(row["by position"]))
            assert (row["effect"] == "helped") == (sign * row["influence"] > 0)


def test_it_is_done_once_and_an_earlier_start_goes_on_from_there(run, asked, monkeypatch, capsys):
    before = contents(asked.out)
    written = {name: results.read_table(asked.out, name) for name in tables.INFLUENCE_TABLES}
    monkeypatch.setattr("devinterp_func.credit._influence.pull_step", None)  # no step is gone back over again,
    monkeypatch.setattr("devinterp_func.credit._retrain.datum_amounts", None)  # and none is credited again
    influence.main(replace(asked, block=2, tried=0))
    assert contents(asked.out) == before
    said = capsys.readouterr().out
    assert "loss, steps 2 to 15: " in said and "influence (what would have been) and credit (what was applied)" in said
    assert "This ranking goes beyond what can be forecast" in said
    monkeypatch.undo()
    influence.main(replace(asked, start=0, scratch=asked.out, tried=0))
    assert len(records.read_walk_back(asked.out / SPAN, Influences).step) == 15
    assert read(asked, "influences")["start"].to_list() == [2, 2, 0, 0]
    for name, table in written.items():
        results.write_table(asked.out, name, table)


def test_fisher_is_another_walk(run, asked):
    influence.main(replace(asked, curvature="fisher", start=13, probe=("loss",), tried=0))
    assert (asked.out / "influence-loss-to-15").is_dir()
    books = read(asked, "influences").filter(pl.col("curvature") == "fisher")
    assert books["start"].to_list() == [13]
    whole = [read(asked, name) for name in tables.INFLUENCE_TABLES]
    for name, table in zip(tables.INFLUENCE_TABLES, whole, strict=True):
        results.write_table(asked.out, name, table.filter(pl.col("curvature") == "hessian"))


def test_a_report_has_a_section_of_all_and_one_of_each_probe(run, asked, tmp_path):
    assert _influence_sections.sections(run, tmp_path) == []
    sections = _influence_sections.sections(run, asked.out)
    assert [section.title for section in sections] == ["Influences", "Influences: loss", "Influences: bigram:c00 c01"]
    html = page.page("page", "of a run", sections)
    for row in read(asked, "influence_texts").filter(pl.col("rank") <= 6).iter_rows(named=True):
        both = f"influence {page.shown(row['influence'])}, credit {page.shown(row['credit'])}"
        place = f"place {row['influence place']}, by credit {row['credit place']}, of {row['data']}"
        assert f"datum {row['datum']}: {both}; {place}; " in html
        for step, epoch, amount in zip(row["steps"], row["epochs"], row["by visit"], strict=True):
            assert f"step {step} (epoch {epoch}): {page.shown(amount)}" in html
    assert html.count("This ranking goes beyond what can be forecast") == 2 and "by that at the end" in html
