"""Capture, replay and verify as commands: mistakes end before any work, and paths are printed as they are."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from devinterp_func import records, training
from devinterp_func.records import RecordError, Recording
from devinterp_func.training import Recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))  # where the scripts find each other

import capture  # noqa: E402
import presets  # noqa: E402
import replay  # noqa: E402
import stage  # noqa: E402
import tokenizer  # noqa: E402
import verify  # noqa: E402

SMALL: dict[str, Any] = {"corpus": "planted", "steps": 6, "k": 5, "snapshot_every": 2}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A demo that takes a second."""
    sizes = {"d_model": 8, "n_heads": 2, "d_hidden": 6, "n_layers": 1}
    preset = sizes, Recipe(context=10, batch_size=4, epochs=1, lr=4.0), Recording()
    monkeypatch.setitem(presets.PRESETS, "demo", preset)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"d_model": 8, "n_heads": 2, "d_hidden": 6, "n_layers": 1}
        patch.setitem(presets.PRESETS, "demo", (sizes, Recipe(context=10, batch_size=4, epochs=1, lr=4.0), Recording()))
        path = tmp_path_factory.mktemp("runs") / "run[lr=5]:heart:"
        capture.main(capture.Settings(**SMALL, out=path))
    return path


def test_options_go_into_recipe_and_recording(tmp_path):
    given: dict[str, Any] = {"seed": 3, "context": 9, "batch_size": 5, "epochs": 2, "lr": 0.5, "max_norm": 2.0}
    recorded: dict[str, Any] = {"k": 4, "per": "step", "units": ("layers.*bias",), "factors": True, "snapshot_every": 3}
    capture.main(capture.Settings("planted", out=tmp_path / "run", steps=2, **given, **recorded))
    run = records.open(tmp_path / "run")
    assert run.recipe == Recipe(**given, n_steps=2) and run.recording == Recording(**recorded)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """A tokenizer.json of 270 tokens."""
    pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp("tokenizers") / "bpe.json"
    return tokenizer.main(tokenizer.Settings("planted", 270, path))


@pytest.mark.parametrize("kind", ["post", "gpt2", "neox", "llama"])
def test_any_model_is_recorded_with_any_tokenizer_and_opens_by_itself(kind, bpe, tmp_path, capsys):
    if kind != "post":
        pytest.importorskip("transformers")
    path = tmp_path / "run"
    given: dict[str, Any] = {**SMALL, "steps": 3, "model": kind, "tokenizer": str(bpe)}
    capture.main(capture.Settings(**given, out=path))
    run = records.open(path)
    assert run.graph.vocab_size == len(run.corpus.vocab) == 270 and run.graph.width == 8
    assert len(run.graph.attention) == 1 and run.recipe.lr == (4.0 if kind == "post" else 1.0)
    assert records.same_bits(records.replay(run, 2).record, records.read(run, 2))
    capture.main(capture.Settings(**given, out=path))
    said = capsys.readouterr().out
    assert f"{path}: Verified(3 steps" in said and run.model.name in said
    replay.main(replay.Settings(path, step=1))
    assert "every recorded bit came out again" in capsys.readouterr().out


def test_a_rate_that_is_given_stands_for_any_model(tmp_path):
    pytest.importorskip("transformers")
    capture.main(capture.Settings(**SMALL, model="gpt2", lr=0.25, out=tmp_path / "run"))
    assert records.open(tmp_path / "run").recipe.lr == 0.25


def test_hugging_faces_models_need_their_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"--model llama needs transformers; pip install \"devinterp_func\[hf\]\""):
        capture.main(capture.Settings(**SMALL, model="llama", out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_options_left_out_take_the_presets_values(run):
    opened = records.open(run)
    assert opened.recipe == Recipe(context=10, batch_size=4, epochs=1, lr=4.0, n_steps=6)
    assert opened.recording == Recording(k=5, snapshot_every=2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"corpus": "nope"}, "no corpus 'nope': give wikitext2"),
        ({"tokenizer": "nope.json"}, "nope.json"),
        ({"context": 5000}, "the valid part of 'planted' has .* a longer text or a smaller context would do"),
        ({"units": ("layers.7.*",)}, "no parameter is called 'layers.7.*'; nearest are\n  layers.0"),
        ({"device": "cuda:63"}, "torch finds . CUDA devices here: use 'cpu'"),
        ({"k": 10**9}, "k is 1000000000; it must be between 1 and the"),
        ({"k": 0}, "k is 0; it must be at least 1"),
        ({"steps": 0}, "n_steps is 0; it must be at least 1"),
        ({"threads": 0}, "threads is 0; it must be at least 1"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"batch_size": 10**6}, "batch_size is 1000000; with 6000 data it must be in 1 to 6000"),
    ],
)
def test_mistakes_end_before_any_work(tmp_path, monkeypatch, given, said):
    monkeypatch.setattr(training, "moves", lambda *_, **__: pytest.fail("a step was made"))
    with pytest.raises((ValueError, RuntimeError, FileNotFoundError), match=said):
        capture.main(capture.Settings(**(SMALL | {"out": tmp_path / "run"} | given)))
    assert not (tmp_path / "run").exists()


def test_the_directory_of_another_run_is_refused_before_any_work(run, monkeypatch):
    monkeypatch.setattr(training, "moves", lambda *_, **__: pytest.fail("a step was made"))
    with pytest.raises(RecordError, match=r"(?s)is another run:\n  recording.k: there 5, now 6\nChoose another"):
        capture.main(capture.Settings(**(SMALL | {"k": 6}), out=run))


def test_a_complete_run_is_said_again_and_a_begun_one_goes_on(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    for kind, step in (("params", 6), ("evaluations", 6), ("steps", 4), ("params", 4)):
        (copy / kind / f"{step:06d}.safetensors").unlink()
    capture.main(capture.Settings(**SMALL, out=copy))
    assert "4 steps of 4 data: about" in capsys.readouterr().out.replace("\n", " ")
    assert records.verify(copy) == records.verify(run)
    capture.main(capture.Settings(**SMALL, out=copy))
    assert f"{copy}: Verified(6 steps in 3 shards" in capsys.readouterr().out


def test_the_law_is_checked_if_asked_for(tmp_path, capsys):
    capture.main(capture.Settings(**SMALL, out=tmp_path / "run", check_law=True))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("the law")]
    worst = float(line.split("at most ")[1].split()[0])
    expected = max(max(records.replay(tmp_path / "run", step).missed.values()) for step in range(6))
    assert worst == pytest.approx(expected, rel=0.1)


def test_paths_are_printed_as_they_are(run, capsys):
    verify.main(verify.Settings(run))
    assert capsys.readouterr().out.startswith(f"whole {run}: Verified(6 steps")
    with pytest.raises(RecordError, match="not whole: .* is not a run"):
        verify.main(verify.Settings(run.parent))


def test_replay_says_whether_every_bit_came_out(run, tmp_path, monkeypatch, capsys):
    replay.main(replay.Settings(run, step=3, show=2))
    said = capsys.readouterr().out
    assert "every recorded bit came out again" in said and "layers.0.self_attn.out_proj.weight" in said
    with pytest.raises(RecordError, match="no step 6: it holds 6 steps"):
        replay.main(replay.Settings(run, step=6))
    with pytest.raises(ValueError, match="show is 0; it must be at least 1"):
        replay.main(replay.Settings(run, step=3, show=0))
    monkeypatch.setattr(records, "read", lambda path, step: records.replay(path, step - 1).record)
    with pytest.raises(RecordError, match="step 3, replayed, differs from its record"):
        replay.main(replay.Settings(run, step=3))


def test_a_mistake_is_one_line_and_status_2(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["replay.py", str(run), "--step", "99"])
    with pytest.raises(SystemExit) as left:
        stage.run(replay.main, replay.Settings, replay.__doc__)
    assert left.value.code == 2
    error = capsys.readouterr().err.replace("\n", "")
    assert error == f"error: {run} has no step 99: it holds 6 steps, the first being 0"


def test_threads_are_those_asked_for(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(before + 2)
    capture.main(capture.Settings(**SMALL, out=tmp_path / "run", threads=before))
    assert torch.get_num_threads() == records.manifest(tmp_path / "run")["threads"] == before
