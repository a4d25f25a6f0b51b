"""Runs side by side: each number is that of its own run's tables and record, and what is not there is said to be so."""

import dataclasses
import math
import shutil
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from run_builders import recorded

from devinterp_func import optim, records, stats, training, units
from devinterp_func.show import _compared_parts, _compared_training, comparison, results, schema, tables
from devinterp_func.show._compared import Side

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))  # where the scripts find each other

import attribute  # noqa: E402
import compare  # noqa: E402

POST = Path(__file__).parents[2] / "experiments" / "results" / "post-avx2"
RECORDING = records.Recording(k=3, snapshot_every=3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that differ in their optimizer, both attributed."""
    folder, made = tmp_path_factory.mktemp("runs"), []
    recipe = training.Recipe(n_steps=6, batch_size=20, context=8, lr=0.5)
    modern = dataclasses.replace(recipe, optimizer=optim.adamw(weight_decay=0.1), lr=0.01)
    for name, each in (("post", recipe), ("modern", modern)):
        made.append(recorded(folder / name, each, RECORDING))
        attribute.main(attribute.Settings(folder / name, parameters=2, neurons=1))
    return made


@pytest.fixture(scope="module")
def compared(runs, tmp_path_factory):
    folder = compare.main(compare.Settings(tuple(run.path for run in runs), tmp_path_factory.mktemp("out")))
    return results.read_table(folder, "comparison", comparison.COMPARISON), (folder / "comparison.md").read_text()


def cell(table, run, measure):
    [row] = table.filter((pl.col("run") == run) & (pl.col("measure") == measure)).iter_rows(named=True)
    return row


def test_losses_outliers_and_shares_are_the_runs_own(runs, compared):
    table, _ = compared
    for run, name in zip(runs, ("post", "modern"), strict=True):
        losses = records.read_evaluations(run)[6]
        epochs = 6 / run.steps_per_epoch
        assert cell(table, name, f"valid perplexity after {epochs:.3g} epochs")["value"] == math.exp(losses["valid"])
        assert cell(table, name, "test perplexity at the end")["value"] == math.exp(losses["test"])
        outliers = torch.cat([record.outliers.parameter.flatten().long() for record in run.steps()])
        unit, _ = units.places(run.shapes, outliers)
        for i, own in enumerate(run.shapes):
            share = float((unit == i).double().mean())
            assert cell(table, name, units.label(own))["value"] == pytest.approx(share)
    along = sum(record.split.along.double().sum(0) for record in runs[1].steps())
    found = cell(table, "modern", "all units, all steps")
    assert found["value"] == pytest.approx(float(along[0] / along.sum()), rel=1e-5)
    first = next(iter(runs[1].steps())).split.along.double().sum(0)
    one = cell(table, "modern", "all units, first fifth")["value"]
    assert one == pytest.approx(float(first[0] / first.sum()), rel=0.5) and one > found["value"]
    assert cell(table, "post", "all units, last fifth")["value"] == pytest.approx(1)
    assert cell(table, "modern", "optimizer")["said"].startswith("AdamW (betas 0.9 and 0.999")


def test_what_is_not_there_is_said_to_be_so(runs, compared, tmp_path):
    _, text = compared
    assert text.splitlines()[0] == "|  | post | modern |" and "not measured" not in text
    folder = compare.main(compare.Settings((POST, runs[1].path), tmp_path))
    table = results.read_table(folder, "comparison", comparison.COMPARISON)
    labels = table["run"].unique(maintain_order=True).to_list()
    assert labels == [POST.name, "modern"]
    assert cell(table, POST.name, "2.linear2: notable share")["value"] == pytest.approx(0.2147, abs=1e-4)
    assert cell(table, "modern", "2.linear2: notable share")["said"] == "not measured"
    assert cell(table, POST.name, "all units, all steps")["said"] == "100.0 %, 0.0 %, 0.0 %"
    assert all(len(rows) == 2 for _, rows in table.group_by("topic", "measure"))


def test_every_table_of_the_committed_run_is_in_the_comparison(tmp_path):
    """Against itself under another name: both columns say the same, and nothing is missing."""
    copy = shutil.copytree(POST, tmp_path / "copy")
    table = comparison.compare(comparison.sides([POST, copy]))
    wide = comparison.side_by_side(table)
    assert wide[POST.name].to_list() == wide["copy"].to_list() and "not measured" not in wide[POST.name].to_list()
    topics = wide["topic"].unique(maintain_order=True).to_list()
    assert topics == list(comparison.TOPICS)[:-1]  # lifetimes are all that run does not have
    heads = results.read_table(POST, "heads", tables.HEADS).filter(pl.col("pattern") == "bracket").sort("head", "step")
    falls = [
        -(b - a) for _, own in heads.group_by("head") for a, b in zip(own["above"], own["above"][1:], strict=False)
    ]
    assert cell(table, POST.name, "bracket: largest fall of a head between two snapshots")["value"] == max(falls)
    whole = results.read_table(POST, "bigram_correlations", tables.BIGRAM_CORRELATIONS)
    last = whole.filter(pl.col("measure") == "direct path, centred", pl.col("among") == "pairs of the corpus")
    measure = "bigrams: rank correlation of the direct path, step 14,640"
    assert cell(table, POST.name, measure)["value"] == last.sort("step")["spearman"][-1]


def test_mistakes_are_said(runs, tmp_path):
    with pytest.raises(ValueError, match="1 runs are given; name at least two"):
        compare.main(compare.Settings((POST,)))
    with pytest.raises(ValueError, match="is given 2 times"):
        compare.main(compare.Settings((POST, POST)))
    with pytest.raises(results.Missing, match="neither a run nor a folder with a run's results"):
        compare.main(compare.Settings((POST, tmp_path)))
    broken = tmp_path / "broken"
    broken.mkdir()
    results.write(broken / "manifest.json", (POST / "manifest.json").read_bytes())
    results.write_table(broken, "skill", pl.DataFrame({"unit": ["a"]}))
    with pytest.raises(ValueError, match="lacks .*; run experiments/skill.py again"):
        compare.main(compare.Settings((POST, broken), tmp_path))


def test_what_leaving_out_was_is_told_apart_and_a_heads_net_has_past_and_decay(tmp_path):
    estimates = (stats.Estimate(x, x - 0.1, x + 0.1, 4) for x in (0.5, 0.75))
    truths = {name: {"marginal": one} for name, one in zip(("delta taken away", "step rerun"), estimates, strict=True)}
    results.write_table(tmp_path, "agreement", tables.agreement_frame({"loss, validation": truths}))
    side = Side("modern", tmp_path, {}, None)
    start = "rank correlation with leaving a datum out, "
    found = {name: one.value for name, one in _compared_parts.trust(side, ()).items()}
    assert found == {f"{start}delta taken away: marginal": 0.5, f"{start}step rerun: marginal": 0.75}
    row = {"probe": "head:0.1 bracket", "start": 0, "stop": 9, "nodes": 3, "texts": 5, "seed": 0, "step": 0, "steps": 9}
    sums = {"raised": 4.0, "lowered": -1.0, "past": 0.5, "decay": -2.0, "net missed": 0.25, "missed": 0.25}
    courses = schema.frame(tables.COURSES, [{**row, **sums, "value": 1.0, "change": 2.0}])
    results.write_table(tmp_path, "ledger_courses", courses)
    [one] = _compared_training.heads(side, ()).values()
    assert one.value == pytest.approx(5 / 1.75) and one.said.startswith("+4, −1, net +1.75: head:0.1 bracket")
