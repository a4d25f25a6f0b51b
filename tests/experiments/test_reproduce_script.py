"""What the demo says it found, with the numbers of its tables; and the notebooks, whose outputs are committed."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from devinterp_func.credit import Choice, patterns
from devinterp_func.credit.patterns import HeadAttention
from devinterp_func.show import results, tables
from devinterp_func.show.tables import Rise

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments"))  # where the scripts find each other

import reproduce  # noqa: E402

NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))
RISE = Rise("bracket", "0.1", 20, 60, 0.3)


@pytest.fixture
def folder(tmp_path):
    """Results in which head 0.1 rises by 0.4 and its control by 0.1, and removals take 0.3 or 0.02 to 0.06 of that."""
    rows = []
    for step, value, control in ((0, 0.1, 0.1), (20, 0.12, 0.25), (60, 0.53, 0.35)):
        found = HeadAttention(torch.tensor([[0.9, value]]), torch.tensor([[0.8, control]]), 7)
        rows += tables.head_rows("bracket", step, found)
    results.write_table(tmp_path, "heads", tables.head_frame(rows))
    name, effects = "head:0.1 bracket", [(Choice("credit, head:0.1 bracket", 0.05), -0.3)]
    effects += [(Choice("random", 0.05, draw), effect) for draw, effect in enumerate((-0.02, -0.04, -0.06))]
    effects += [
        (Choice("random", 0.1), 9.0),
        (Choice("random", 0.1, 1), 8.0),
        (Choice("credit, head:0.1 bracket", 0.1), 9.0),
    ]
    frames = [tables.outcome_frame(choice, 2, {name: effect, "loss": 2 * effect}) for choice, effect in effects]
    outcomes = frames[0].vstack(frames[1])
    for frame in frames[2:]:
        outcomes = outcomes.vstack(frame)
    for start, stop in ((0, 40), (20, 60)):
        change = {name: 0.4 if start else 1.0, "loss": 1.0}
        removed = tables.removal_frame(outcomes, change, start, stop)
        results.add_rows(tmp_path, "retrain", tables.REMOVALS, removed)
    return tmp_path


def test_the_finding_has_its_numbers_and_their_controls(folder):
    run: Any = SimpleNamespace(n_steps=100, steps_per_epoch=15)
    lines = reproduce.finding(run, folder, RISE).splitlines()
    assert lines[0] == (
        'Head 0.1 came to look at the "(" that a ")" closes, in steps 20 to 60 of 100 (pass 2 over its texts).'
    )
    assert "rose from 0.12 to 0.53; " in lines[1] and lines[1].endswith("from 0.25 to 0.35 (control).")
    assert lines[2].endswith("the 5% of these steps' texts that were credited most, 75% of the rise is gone;")
    assert lines[3].startswith("without as many random texts, 10% [-2%, 22%] (control, 5 draws).")


def test_every_pattern_has_its_place_in_words():
    assert set(reproduce.PLACES) == set(patterns.NAMES) and reproduce.probe_of(RISE) == "head:0.1 bracket"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_as_it_was_executed(path):
    written = path.read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(written)["cells"] if cell["cell_type"] == "code"]
    assert len(written) < 150_000 and [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    assert all("execution" not in cell["metadata"] for cell in cells)
    assert any('class=\\"devinterp\\"' in json.dumps(cell["outputs"]) for cell in cells)


@pytest.fixture(scope="module")
def checker():
    """The script that executes them."""
    pytest.importorskip("nbclient")
    spec = importlib.util.spec_from_file_location("ci_notebooks", ROOT / ".ci" / "notebooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@given(number=st.floats(1.0, 1e6), off=st.sampled_from([0.0, 0.001, 0.9]))
def test_outputs_may_differ_in_rounding_alone(checker, number, off):
    wanted, found = f"loss {number:.6g}, ok", f"loss {number * (1 + off):.6g}, ok"
    assert checker.is_close(found, wanted) == (off < 0.01)
    assert not checker.is_close(found, wanted.replace("ok", "no"))


def test_an_outputs_words_and_last_digits_are_compared(checker):
    assert checker.is_close("missed 0.002", "missed 0.001") and not checker.is_close("missed 0.004", "missed 0.001")
    assert not checker.is_close("1 head", "2 heads") and not checker.is_close("[1, 2]", "[1, 3]")
    assert checker.is_close("", "") and not checker.is_close("1", "")
