"""Every corpus by its name, from files and from Python's own documentation."""

import ast
import json
import re
from pathlib import Path

import pytest
import torch

from devinterp_func import text
from devinterp_func.text import _corpora

# ---- from_file and load


def test_from_file_splits_by_lines(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_bytes("\ufeff".encode() + b"\r\n\r\n".join(f"w{i} x".encode() for i in range(100)))
    corpus = text.from_file(str(path))
    assert [len(stream) for stream in corpus[2:]] == [180, 10, 10]
    assert corpus.vocab.decode(corpus.train)[:4] == ["w0", "x", "w1", "x"]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"one line\n", b"two\n\nlines\n"])
def test_from_file_refuses_a_file_too_short_to_split(tmp_path, content):
    (tmp_path / "short.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"short.txt has [012] lines with text; it needs at least 3"):
        text.from_file(tmp_path / "short.txt")


def test_from_file_refuses_a_split_without_tokens(tmp_path):
    (tmp_path / "quotes.txt").write_text('a\n"\nb\n', encoding="utf-8")
    with pytest.raises(ValueError, match="corpus 'quotes.txt': the valid split has no tokens"):
        text.from_file(tmp_path / "quotes.txt")


def test_from_file_refuses_other_encodings(tmp_path):
    (tmp_path / "latin.txt").write_bytes("abc\ncafé au lait\n".encode("latin-1"))
    with pytest.raises(ValueError, match="latin.txt is not UTF-8 text: .* at byte offset 7"):
        text.from_file(tmp_path / "latin.txt")


def test_from_file_refuses_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.txt"):
        text.from_file(tmp_path / "absent.txt")
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        text.from_file(tmp_path)


@pytest.mark.parametrize("name", ["wikitext-2", "", "no/such/file.txt"])
def test_load_lists_what_is_valid(name):
    with pytest.raises(ValueError, match="give wikitext2, python_docs, planted or the path of a UTF-8 text file"):
        text.load(name)


def test_load_finds_corpora_and_files(tmp_path):
    (tmp_path / "a.txt").write_text("a\nb\nc\n", encoding="utf-8")
    assert text.load(str(tmp_path / "a.txt")).name == "a.txt"
    assert text.fingerprint(text.load("planted")) == text.fingerprint(text.planted(key=0))


# ---- python_docs


def test_python_docs_are_english_of_moderate_size():
    corpus = text.python_docs()
    assert len(corpus.train) > 200_000 and 3_000 < len(corpus.vocab) < 15_000
    assert all(len(stream) > 5_000 for stream in corpus[2:])
    assert all((stream == 0).float().mean() < 0.12 for stream in corpus[2:])
    assert {"the", "function", "returns", "object"} <= set(corpus.vocab.tokens[:200])
    counted = torch.bincount(corpus.train, minlength=len(corpus.vocab))[1:]
    assert counted.min() == 3 and (counted.diff() <= 0).all()
    "\n".join(corpus.vocab.tokens).encode()  # printable everywhere


def test_docstrings_equal_a_walk_over_the_whole_tree():
    source = Path(ast.__file__).read_text(encoding="utf-8") + Path(json.__file__).read_text(encoding="utf-8")
    source += "\ntry:\n  pass\nexcept E:\n  def f():\n    'in a handler'\nelse:\n  class A:\n    'in an else'\n"
    source += "match 1:\n  case 1:\n    async def g():\n      'in a case'\n"
    tree = ast.parse(source)
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    everywhere = [doc for node in ast.walk(tree) if isinstance(node, kinds) and (doc := ast.get_docstring(node))]
    assert sorted(filter(None, _corpora._docstrings(tree))) == sorted(everywhere)
    assert {"in a handler", "in an else", "in a case"} <= set(everywhere)
