"""The report: what is there is on the page, what is not is named with the script that makes it."""

import dataclasses
import html
import json
import re
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from run_builders import MODEL, PLANTED, SMALL, recorded

from devinterp_func import keys, models, records, show, training
from devinterp_func.show import _report, _run_sections, page, results, tables
from devinterp_func.show.page import Card, Excerpt, Section, Word

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))  # where the scripts find each other

import attribute  # noqa: E402


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


def titles_of(shown):
    return [re.sub(r"^ *\d+ *", "", text(title)) for title in re.findall(r"<h2>(.*?)</h2>", shown)]


def test_every_topic_stands_in_its_order_and_what_was_not_run_is_named(run, topics, tmp_path):
    topics += [Section("Neurons", "Lead."), Section("Verdicts")]
    shown = show.report(run, tmp_path)
    titles = titles_of(shown)
    assert titles == ["The run", "Neurons", "Verdicts", "What is not here"]
    for script in _report.SCRIPTS:
        assert f"{script}.py" in text(shown)
    assert f"python experiments/SCRIPT.py {run}" in text(shown)
    assert "run : transformer, planted" in text(shown) and "6 steps of 20 data" in text(shown)


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
    assert titles_of(shown)[1] == "Out of date"
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


def test_sections_have_one_numbering_and_the_contents_agree(run, topics, tmp_path):
    figures = [page.table(pl.DataFrame({"x": [1]}), caption) for caption in ("First.", "", "Second.")]
    hidden = page.details("More", page.excerpts([Excerpt([Word("a")])], "Third."))
    card = page.cards([Card("a:0", flips=pl.DataFrame({"x": [1]}))])
    topics += [Section("Neurons", "", [*figures, card, hidden]), Section("Verdicts", "", figures[2:])]
    shown = show.report(run, tmp_path)
    contents, rest = shown.split("</nav>")
    expected = ["1 The run", "2 Neurons", "3 Verdicts", "4 What is not here"]
    assert [text(x).strip() for x in re.findall(r"<a href.*?</a>", contents.split("<nav")[1])] == expected
    assert [text(x).strip() for x in re.findall(r"<h2>.*?</h2>", rest)] == expected
    numbers = re.findall(r'class="place">([\d.]+)</span><p>(\w+\.)</p>', rest)
    assert numbers == [("2.1", "First."), ("2.2", "Second."), ("2.3", "Third."), ("3.1", "Second.")]
    assert 'class="place"></span>' not in shown


def test_a_name_leads_to_the_page_beside_it_or_to_the_card(run, topics, tmp_path):
    frame = pl.DataFrame({"neuron": ["a:0", "b:1"], "datum": [3, 4]})
    topics.append(Section("Neurons", "", [page.table(frame), page.cards([Card("a:0")])]))
    alone = show.report(run, tmp_path)
    assert '<a href="#neuron-a%3A0">a:0</a>' in alone and "<td>b:1</td>" in alone and ">3</td>" in alone
    beside = show.report(run, tmp_path, lambda kind, value: f"{kind}/{value}.html" if kind == "datum" else None)
    assert '<a href="datum/3.html">3</a>' in beside and '<a href="#neuron-a%3A0">a:0</a>' in beside


def test_sections_stand_in_the_order_in_which_they_are_read():
    names = [topic.__name__.rpartition(".")[2] for topic in _report.TOPICS]
    order = "run split credit lifetime influence retrain neuron bigram outlier norm direction phase judge"
    assert names == [f"_{name}_sections" for name in order.split()]


def test_the_same_results_give_the_same_page(run, topics, tmp_path):
    assert show.report(run, tmp_path) == show.report(run, tmp_path)


def test_the_room_lists_its_parts():
    assert show.__all__ == sorted(show.__all__) == dir(show)
    assert show.page is page and all(getattr(show, name) for name in show.__all__)
    parts = "comparison, drawing, explore, explorer, notebook, page, plots"
    with pytest.raises(AttributeError, match=f"show has no part 'plot'; it has {parts}"):
        _ = show.plot


# ---- data that are no text


class Images(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.filters, self.classes = torch.nn.Conv2d(1, 3, 3), torch.nn.Linear(12, 4)

    def forward(self, x):
        return self.classes(self.filters(x).relu().flatten(1))


def image_loss(model, x, y):
    return torch.nn.functional.cross_entropy(model(x[None])[0], y)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A run of a small convolutional net, and its results of attribute.py."""
    module = Images()
    for i, weight in enumerate(module.parameters()):
        weight.data = keys.uniform(weight.shape, -0.3, 0.3, key=i)
    data = keys.uniform((24, 1, 4, 4), -1.0, 1.0, key=0), torch.arange(24) % 4
    both = records.Dataset(data, tuple(leaf[:8] for leaf in data), name="noise")
    recipe = training.Recipe(n_steps=6, batch_size=4, lr=0.1)
    path = tmp_path_factory.mktemp("images") / "run"
    model = models.module(module, image_loss)
    opened = recorded(path, recipe, records.Recording(k=3, snapshot_every=3, units=("*",)), both, model)
    return opened, attribute.main(attribute.Settings(path, parameters=2))


def test_a_run_of_images_shows_what_has_meaning_and_says_what_is_left_out(images):
    run, folder = images
    shown = show.report(run, folder)
    assert titles_of(shown) == ["The run", "What moved the weights", "Outliers", "What is left out"]
    said = text(shown)
    assert "run : Images, noise, 6 steps of 4 data" in said and "valid loss" in said and "perplexity" not in said
    assert "the law" in said and "The data of this run are tensors, no text." in said
    counts = results.read_table(folder, "outlier_units", tables.OUTLIER_UNITS)
    assert counts["unit"].to_list() == [*run.shapes] and counts["outliers"].sum() == 6 * 4 * 3
    assert all(name in said for name in run.shapes) and "ledger.py" not in said
    (line,) = re.findall(r"the law (\S+) of a step", said)
    assert float(line) == pytest.approx(records.replay(run, 3).worst, rel=0.1)


def test_a_model_that_is_not_at_hand_leaves_only_the_law_out(images, tmp_path):
    run, folder = images
    alone = records.open(run.path)
    facts = [_run_sections.facts(r, run.curve(), records.read_evaluations(run)) for r in (run, alone)]
    assert facts[0].keys() - facts[1].keys() == {"the law"}
    assert show.report(run.path, folder).count("<svg") == show.report(run, folder).count("<svg")
    missing = text(show.report(run.path, tmp_path))
    assert "attribute.py" in missing and "heads.py" not in missing


def test_the_law_is_of_the_last_step_that_begins_at_a_snapshot(run):
    assert _run_sections.law(run) == records.replay(run, 3).worst


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
    steps = records.record(tmp_path / "run", PLANTED, MODEL, recipe, records.Recording(k=2, snapshot_every=2))
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
    own = {part: dict(rows.select("setting", "value").iter_rows()) for (part,), rows in frame.group_by("of")}
    for part, of in (("training", run.recipe), ("recording", run.recording)):
        assert own[part].keys() == {field.name for field in dataclasses.fields(of)}
    assert own["model"] == {"kind": "transformer", "name": "transformer"} | {
        name: str(value) for name, value in dataclasses.asdict(SMALL).items()
    }
    assert ("training", "batch_size", "20") in frame.rows() and ("machine", "device", "cpu") in frame.rows()
    assert ("versions", "torch", run.manifest["versions"]["torch"]) in frame.rows()
    assert json.dumps(frame.rows())
