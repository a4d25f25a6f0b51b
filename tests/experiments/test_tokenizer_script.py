"""A tokenizer as a command: the training split's, the same each time, and mistakes in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from devinterp_func import text

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))  # where the scripts find each other

import tokenizer  # noqa: E402

LINES = "\n".join(["the cat sat", "the cat\t字"] * 20)


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "a.txt").write_text(LINES, encoding="utf-8")
    return str(tmp_path / "a.txt")


def test_the_command_writes_the_training_splits_tokenizer(corpus, tmp_path, capsys):
    out = tmp_path / "deep" / "bpe.json"
    assert tokenizer.main(tokenizer.Settings(corpus, 262, out)) == out
    [(_, train)] = text.texts(corpus).train
    assert len(train) < len(LINES) and text.read_tokenizer(out) == text.train_bpe([train], 262)
    said = capsys.readouterr().out
    assert "262 tokens from 1 documents" in said and "22 characters in" in said and "␣" in said
    before = out.read_bytes()
    tokenizer.main(tokenizer.Settings(corpus, 262, out))
    assert out.read_bytes() == before
    assert text.load(corpus, out).vocab == text.read_tokenizer(out)


def test_a_mistake_ends_in_one_line(corpus, tmp_path):
    command = [sys.executable, str(EXPERIMENTS / "tokenizer.py"), "--corpus", corpus, "--size", "9000"]
    ran = subprocess.run([*command, "--out", str(tmp_path / "x.json")], capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1
    assert ran.stderr.startswith("error: size is 9000; these texts give at most 2")
    assert not (tmp_path / "x.json").exists()
