"""The report: what is there is on the page, what is not is named with the script that makes it."""

import dataclasses
import html
import json
import re

import polars as pl
import pytest
import torch
from run_builders import PLANTED, SMALL, recorded

from devinterp_func import records, show, training
from devinterp_func.show import _report, _run_sections, page, results
from devinterp_func.show.page import Section


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = training.Recipe(n_steps=6, batch_size=20, context=8)
    recording = records.Recording(k=3, snapshot_every=3)
    return recorded(tmp_path_factory.mktemp("report") / "run", recipe, recording)


@pytest.fixture
def topics(monkeypatch):
    """Two topics: the run, and one that can be told what to give."""
    given: list = []

    class Topic:
        @staticmethod
        def sections(run, folder):
            if given and isinstance(given[0], Exception):
                raise given[0]
            return given

    monkeypatch.setattr(_report, "TOPICS", (_run_sections, Topic))
    return given


def text(markup):
    """What a reader sees, in one line."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", markup)))


def test_every_topic_stands_in_its_order_and_what_was_not_run_is_named(run, topics, tmp_path):
    topics += [Section("Neurons", "Lead."), Section("Verdicts")]
    shown = show.report(run, tmp_path)
    titles = re.findall(r"<h2>(.*?)</h2>", shown)
    assert titles == ["The run", "Neurons", "Verdicts", "What is not here"]
    for script in _report.SCRIPTS:
        assert f"{script}.py" in text(shown)
    assert f"python experiments/SCRIPT.py {run}" in text(shown)
    assert "run : 2 layers, planted" in text(shown) and "6 steps of 20 data" in text(shown)


def test_what_was_run_is_no_longer_named_as_missing(run, topics, tmp_path):
    origin = {"run": run.manifest["digest"], "steps": 6, "after": {}, "settings": {}}
    for script in _report.SCRIPTS:
        results.finish(tmp_path, f"{script}-000003" if script == "ledger" else script, origin)
    assert "What is not here" not in show.report(run, tmp_path)
    (tmp_path / "heads.json").unlink()
    last = show.report(run, tmp_path).split("What is not here")[-1]
    assert "heads.py" in last and "norms.py" not in last and "ledger.py" not in last


def test_a_part_that_is_missing_leaves_the_rest(run, topics, tmp_path):
    topics.append(results.Missing("flips.parquet is not there; experiments/ablate.py makes it"))
    shown = text(show.report(run, tmp_path))
    assert "flips.parquet is not there; experiments/ablate.py makes it" in shown and "The run" in shown


def test_results_that_no_longer_hold_are_named(run, topics, tmp_path):
    origin = {"run": run.manifest["digest"], "steps": 6, "after": {}, "settings": {}}
    results.finish(tmp_path, "attribute", origin)
    results.finish(tmp_path, "ablate", origin | {"after": {"attribute": "a digest of before"}})
    shown = show.report(run, tmp_path)
    assert re.findall(r"<h2>(.*?)</h2>", shown)[1] == "Out of date"
    assert f"ablate was made before attribute changed; to make it again: python experiments/ablate.py {run}" in re.sub(
        r"\s+", " ", text(shown).replace(" ;", ";")
    )
    results.finish(tmp_path, "attribute", origin)
    assert "attribute is of" not in text(shown)


def test_results_are_beside_the_run_by_default(run, topics):
    folder = results.beside(run)
    results.finish(folder, "heads", {"run": run.manifest["digest"], "steps": 6, "after": {}, "settings": {}})
    shown = show.report(run.path)
    assert "heads.py" not in shown and "ledger.py" in shown


def test_the_same_results_give_the_same_page(run, topics, tmp_path):
    assert show.report(run, tmp_path) == show.report(run, tmp_path)


def test_the_room_lists_its_parts():
    assert show.__all__ == sorted(show.__all__) == dir(show)
    assert show.page is page and all(getattr(show, name) for name in show.__all__)
    with pytest.raises(AttributeError, match="show has no part 'plot'; it has drawing, page, plots"):
        _ = show.plot


# ---- the run's own section


def test_facts_are_those_of_the_record(run):
    facts = _run_sections.facts(run, run.curve(), records.read_evaluations(run))
    n_captured = sum(torch.Size(shape).numel() for shape in run.shapes.values())
    losses = [float(record.loss.mean()) for record in run.steps()]
    clips = [record.clip for record in run.steps()]
    assert facts["per-datum updates recorded"] == 120
    assert facts["captured weights"] == (n_captured, f"in {len(run.shapes)} units")
    per_tenth = max(1, run.steps_per_epoch // 10)
    assert per_tenth < 6
    value, remark = facts["training loss at the end"]
    assert value == pytest.approx(sum(losses[-per_tenth:]) / len(losses[-per_tenth:]), rel=1e-6)
    assert remark == f"nats, mean of {page.counted(min(6, per_tenth), 'step')}"
    assert facts["clip coefficient"][0] == f"{page.shown(min(clips))} – {page.shown(max(clips))}"
    assert facts["full logging would take"][0] == page.n_bytes(n_captured * 120 * 4)
    size = sum(path.stat().st_size for path in run.path.rglob("*") if path.suffix in (".safetensors", ".json"))
    assert facts["on disk"] == (page.n_bytes(size), "verified")
    valid = records.read_evaluations(run)[6]["valid"]
    assert float(facts["valid perplexity"]) == pytest.approx(torch.tensor(valid).exp().item(), rel=0.01)


def test_a_run_that_goes_on_is_said_to_be_incomplete(tmp_path):
    recipe = training.Recipe(n_steps=6, batch_size=2, context=8)
    steps = records.record(tmp_path / "run", PLANTED, SMALL, recipe, records.Recording(k=2, snapshot_every=2))
    for _ in zip(range(5), steps, strict=False):
        pass
    del steps  # as an interrupted script does
    run = records.open(tmp_path / "run")
    assert (
        _run_sections.facts(run, run.curve(), records.read_evaluations(run))["on disk"][1] == "verified; not complete"
    )
    assert [section.title for section in _run_sections.sections(run, tmp_path)] == ["The run"]


def test_all_settings_are_shown(run):
    frame = _run_sections.settings_frame(run)
    for part, of in (("model", run.config), ("training", run.recipe), ("recording", run.recording)):
        own = dict(frame.filter(pl.col("of") == part).select("setting", "value").iter_rows())
        assert own.keys() == {field.name for field in dataclasses.fields(of)}
    assert ("training", "batch_size", "20") in frame.rows() and ("machine", "device", "cpu") in frame.rows()
    assert ("versions", "torch", run.manifest["versions"]["torch"]) in frame.rows()
    assert json.dumps(frame.rows())
