"""The examples end in a page that says what the library says of the same run."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from devinterp_func import neurons, per_example, records
from devinterp_func.graph import require_head
from devinterp_func.neurons import Neuron

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))  # where the scripts find each other

STEPS = 12
ASKED = Neuron("conv2.weight", 3, "out")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The script's module, its settings, and the page."""
    pytest.importorskip("sklearn")
    import digits

    settings = digits.Settings(tmp_path_factory.mktemp("runs") / "digits", steps=STEPS, filter=str(ASKED), stop=5)
    return digits, settings, digits.main(settings).read_text()


@pytest.fixture(scope="module")
def run(digits):
    script, settings, _ = digits
    return script.trained(script.cnn(settings.seed), settings)  # nothing is left to train


@pytest.fixture(scope="module")
def tally(run):
    return neurons.tally(run.shards(), run.data, neurons.groups(run.shapes, "out"), 10, run.data[1])


def test_the_same_command_gives_the_same_page(digits):
    script, settings, before = digits
    assert script.main(settings).read_text() == before
    assert str(ASKED) in before and "<svg" in before and "<script src" not in before


def test_the_digits_of_a_filter_are_those_of_its_outliers(digits, run, tally):
    import digits_views as views

    table = views.table_of_digits(run, tally, ASKED)
    found, at = torch.zeros(10), run.data[1]
    for step in run.steps():
        for j, datum in enumerate(step.datum.tolist()):
            mine = neurons.groups(run.shapes, "out").of[step.outliers.parameter[j]]
            found[at[datum]] += int((mine == neurons.every(run.shapes, "out").index(ASKED)).sum())
    expected = (found / found.sum()) / (at.bincount(minlength=10) / len(at))
    torch.testing.assert_close(torch.tensor(table["times expected"].to_list()), expected)


def test_what_a_filter_breaks_is_what_breaks_without_its_weights(run, tally):
    import digits_views as views

    table, params, (x, y) = views.table_of_digits(run, tally, ASKED), run.params(), run.split("valid")
    without = dict(params) | {"conv2.weight": params["conv2.weight"].index_fill(0, torch.tensor([3]), 0.0)}
    before, after = (
        torch.stack([run.model.loss(w, *example) for example in zip(x, y, strict=True)]) for w in (params, without)
    )
    risen = torch.stack([(after - before)[y == digit].mean() for digit in range(10)])
    torch.testing.assert_close(torch.tensor(table["loss without it"].to_list()), risen, rtol=1e-3, atol=2e-6)
    first = torch.nn.functional.conv2d(x[:, None], params["conv1.weight"], params["conv1.bias"], padding=1)
    normed = torch.nn.functional.group_norm(first, 4, params["norm1.weight"], params["norm1.bias"])
    read = torch.nn.functional.max_pool2d(normed.relu(), 2)
    given = torch.nn.functional.conv2d(read, params["conv2.weight"][3:4], params["conv2.bias"][3:4], padding=1)
    activation = torch.stack([given[y == digit].mean() for digit in range(10)])
    torch.testing.assert_close(torch.tensor(table["activation"].to_list()), activation, rtol=1e-4, atol=1e-5)
    flipped = neurons.predictions(run.graph, without, (x,)) != neurons.predictions(run.graph, params, (x,))
    assert table["flips"].to_list() == y[flipped.flatten()].bincount(minlength=10).tolist()


def test_credits_add_up_to_the_change_of_the_digits_loss(run):
    import digits_views as views

    (x, y), credits = run.split("valid"), views.credits_of(run, 4, 5)
    before, after = (
        float(per_example.data_losses(run.graph, run.params(step), x[y == 4], y[y == 4]).mean()) for step in (0, 5)
    )
    assert (credits.before, credits.after) == pytest.approx((before, after), abs=1e-5)
    assert float(credits.credit.sum()) == pytest.approx(after - before, rel=0.02)
    seen = torch.cat([step.datum for step in run.steps(0, 5)])
    assert set(credits.credit.nonzero().flatten().tolist()) == set(seen.tolist())


def test_a_filter_that_is_not_there_ends_in_one_line_before_any_training(tmp_path):
    pytest.importorskip("sklearn")
    command = [sys.executable, str(EXPERIMENTS / "digits.py"), "--run", str(tmp_path / "run")]
    ran = subprocess.run([*command, "--filter", "conv2.weight:99:out"], capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1 and "conv2.weight has no row 99" in ran.stderr
    assert not (tmp_path / "run").exists()


def test_a_small_gpt2_ends_in_a_report(tmp_path):
    for package in ("transformers", "tokenizers"):
        pytest.importorskip(package)
    import gpt2

    lines = [f"f(x{i % 7}) = [{i % 11}] + ({i % 5}); the cat sat on mat {i % 3}." for i in range(400)]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    settings = gpt2.Settings(str(tmp_path / "a.txt"), 270, tmp_path / "run", steps=12, stop=3, data=20)
    page = gpt2.main(settings)
    assert page == tmp_path / "run-results" / "report.html"
    run = records.open(settings.run)
    assert run.graph.embedding == require_head(run.graph).weight and not run.graph.dense
    assert len(run.corpus.vocab) == 270 and records.replay(run, 7).worst < 1e-5
    verdicts = pl.read_parquet(page.parent / "verdicts.parquet")
    assert verdicts.height and all(name.endswith(":out") for name in verdicts["neuron"])
    assert all(word in page.read_text() for word in ("Credits: loss", "What heads attend to", verdicts["neuron"][0]))
    import skill

    skill.main(skill.Settings(run.path, data=9, seen=9, predicted=9, pointed=2, draws=20))
    judged = pl.read_parquet(page.parent / "skill.parquet")
    assert set(judged["unit"]) == {
        f"transformer.h.{i}.mlp.{name}.weight" for i in (0, 1) for name in ("c_fc", "c_proj")
    }
