"""Planning as commands: what is said, that nothing is written, and mistakes in a sentence."""

import sys
from pathlib import Path
from typing import Any

import pytest

from devinterp_func import records
from devinterp_func.records import Recording
from devinterp_func.show import schema, tables
from devinterp_func.training import Recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))  # where the scripts find each other

import capture  # noqa: E402
import plan  # noqa: E402
import presets  # noqa: E402

SMALL: dict[str, Any] = {"corpus": "planted", "steps": 6, "k": 5, "snapshot_every": 2}
SETTINGS = ["as planned", "k 10", "k 100", "k a step", "attention only", "MLP only", "everything"]
SETTINGS += ["with factors", "with factors, in bfloat16", "snapshots 10 times farther apart"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    sizes = {"d_model": 8, "n_heads": 2, "d_hidden": 6, "n_layers": 1}
    preset = sizes, Recipe(context=10, batch_size=4, epochs=1, lr=4.0), Recording()
    monkeypatch.setitem(presets.PRESETS, "demo", preset)


def test_a_plan_says_what_the_run_then_takes_and_writes_nothing(tmp_path, capsys):
    path = tmp_path / "deep" / "run"
    capture.main(capture.Settings(**SMALL, out=path, plan=True))
    said = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert all(setting in said for setting in (*SETTINGS, "at most at once"))
    assert "last layer only" not in said and "k 1000" not in said  # there is one layer, and fewer numbers
    assert "6 steps of 4 data: about " in said and "GB are free there" in said
    capture.main(capture.Settings(**SMALL, out=path))
    taken = sum(file.stat().st_size for file in path.rglob("*.safetensors"))
    assert f"in all {taken / 1e3:.0f} KB" in " ".join(said.split())


def test_a_plan_leaves_another_run_that_is_there_alone(tmp_path, capsys):
    capture.main(capture.Settings(**SMALL, out=tmp_path / "run"))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    capture.main(capture.Settings(**SMALL | {"k": 7}, out=tmp_path / "run", plan=True))
    assert "What other settings would leave" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_plan_of_what_cannot_be_recorded_is_refused(tmp_path):
    with pytest.raises(ValueError, match="k is 100000; it must be between 1 and the .* captured parameters"):
        capture.main(capture.Settings(**SMALL | {"k": 100_000}, out=tmp_path / "run", plan=True))


@pytest.fixture
def config(tmp_path):
    """The path of a small model's config.json."""
    transformers = pytest.importorskip("transformers")
    transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, n_positions=12, vocab_size=40).save_pretrained(tmp_path)
    return str(tmp_path / "config.json")


def test_a_model_is_counted_from_its_config_alone(config, tmp_path, capsys):
    plan.main(plan.Settings((config,), steps=50, batch_size=3, context=12, k=9, out=tmp_path / "plan.md"))
    said = capsys.readouterr().out
    assert "last layer only" in said and "captured" in said
    first, *lines = (tmp_path / "plan.md").read_text().splitlines()
    assert first == "What recording would leave on the disk, by model. k = 9, adamw."
    names, _, cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:4])
    row = dict(zip(names, cells, strict=True))
    assert (row["captured"], row["batch"], row["steps"]) == ("1,536", "3", "50")
    assert row["full log"] == "922 KB"  # 1,536 numbers, 150 updates of 4 bytes
    assert row["snapshot"] == f"{12 * 2_176 / 1e3:.1f} KB"  # weights and two moments


def test_a_row_says_what_records_counts(config):
    settings = plan.Settings((config,), batch_size=3, context=12, optimizer="momentum")
    graph, recipe, steps = plan.counted(config, settings)
    row = tables.plan_cost_row("x", graph, recipe, Recording(9), steps)
    assert row["step, k a datum"] == records.step_bytes(graph, recipe, Recording(9))
    assert row["run, k a step"] == 1_000_000 * records.step_bytes(graph, recipe, Recording(9, "step"))
    assert schema.frame(tables.PLAN_COSTS, [row]).height == 1
    changes = {row["setting"]: row for row in tables.plan_change_frame(graph, recipe, Recording(9), 100).to_dicts()}
    whole = records.run_bytes(graph, recipe, Recording(9), n_steps=100).total
    assert changes["as planned"]["the run"] == whole and changes["as planned"]["of the plan"] == 1
    k = records.run_bytes(graph, recipe, Recording(100), n_steps=100).total
    assert changes["k 100"]["the run"] == k and changes["k 100"]["of the plan"] == k / whole
    with_factors = changes["with factors"]["a step"] - changes["as planned"]["a step"]
    halved = changes["with factors, in bfloat16"]["a step"] - changes["as planned"]["a step"]
    assert halved == with_factors / 2


def test_an_unknown_shape_is_refused_with_those_there_are(capsys):
    with pytest.raises(ValueError, match="there is no model 'gpt5': give gpt2, gpt2-medium, .*"):
        plan.main(plan.Settings(("gpt5",)))
