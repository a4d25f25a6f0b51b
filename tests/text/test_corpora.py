"""Every corpus by its name, from files and from Python's own documentation."""

import ast
import json
import json.decoder
import re
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch

from devinterp_func import text
from devinterp_func.text import _corpora

# ---- from_file and load


def test_from_file_splits_by_lines(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_bytes("\ufeff".encode() + b"\r\n\r\n".join(f"w{i} x".encode() for i in range(100)))
    corpus = text.from_file(str(path))
    assert [len(stream) for stream in corpus[2:5]] == [180, 10, 10]
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
    with pytest.raises(ValueError, match="give wikitext2, python_docs, python_help, planted or the path of a UTF-8"):
        text.load(name)


def test_load_finds_corpora_and_files(tmp_path):
    (tmp_path / "a.txt").write_text("a\nb\nc\n", encoding="utf-8")
    assert text.load(str(tmp_path / "a.txt")).name == "a.txt"
    assert text.fingerprint(text.load("planted")) == text.fingerprint(text.planted(key=0))


@pytest.mark.parametrize("tokenizer", ["file", "directory", "made"])
def test_every_corpus_takes_a_tokenizer(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("a cat\n\n  b\nc\n", encoding="utf-8")
    bpe = text.train_bpe(["a cat"], 258)
    (tmp_path / "tokenizer.json").write_text(bpe.spec, encoding="utf-8")
    given = {"file": tmp_path / "tokenizer.json", "directory": str(tmp_path), "made": bpe}[tokenizer]
    for corpus in (text.load(str(tmp_path / "a.txt"), given), text.from_file(tmp_path / "a.txt", given)):
        assert corpus.vocab == bpe
        assert [bpe.text_of(stream) for stream in corpus[2:5]] == ["a cat\n\n", "  b\n", "c\n"]


def test_load_reads_the_tokenizer_before_the_text():
    with pytest.raises(FileNotFoundError, match="no tokenizer 'absent.json'"):
        text.load("no corpus either", "absent.json")


def test_a_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("a\nb\n\nc\n", encoding="utf-8")
    found = text.from_file(tmp_path / "a.txt").documents
    assert found is not None and (found.starts.tolist(), found.names) == ([0], ("a.txt",))


# ---- python_docs


@pytest.fixture(scope="module")
def docs():
    return text.texts("python_docs")


@pytest.fixture(scope="module")
def corpus(docs):
    with pytest.MonkeyPatch.context() as patch:  # a walk over the standard library takes seconds
        patch.setattr(_corpora, "_python_docs_texts", lambda: docs)
        return text.python_docs()


def test_python_docs_are_english_of_moderate_size(corpus):
    assert len(corpus.train) > 200_000 and 3_000 < len(corpus.vocab) < 15_000
    assert all(len(stream) > 5_000 for stream in corpus[2:5])
    assert all((stream == 0).float().mean() < 0.12 for stream in corpus[2:5])
    assert {"the", "function", "returns", "object"} <= set(corpus.vocab.tokens[:200])
    counted = torch.bincount(corpus.train, minlength=len(corpus.vocab))[1:]
    assert counted.min() == 3 and (counted.diff() <= 0).all()
    "\n".join(corpus.vocab.tokens).encode()  # printable everywhere


def test_python_docs_documents_are_topics_and_files(corpus):
    assert corpus.documents is not None and len(set(corpus.documents.names)) == len(corpus.documents.names)
    parts = dict(zip(corpus.documents.names, corpus.train.tensor_split(corpus.documents.starts[1:]), strict=True))
    for name, written in (("help('assert')", topics["assert"]), ("json/decoder.py", _docs(json.decoder))):
        assert torch.equal(parts[name], corpus.vocab.encode(written))


# ---- python_help


def test_python_help_is_small_and_holds_no_text_twice():
    corpus, texts = text.python_help(), text.texts("python_help")
    assert 40_000 < len(corpus.train) < 90_000 and all(len(stream) > 1000 for stream in corpus[3:5])
    named = {name: {x.strip() for x in written.splitlines()} for split in texts[1:4] for name, written in split}
    assert len(named) == sum(map(len, texts[1:4])) and "help('compound')" in named and "help('while')" not in named
    long = {name: {line for line in lines if len(line) > 40} for name, lines in named.items()}
    for name, own in long.items():
        for other, lines in long.items():
            assert name == other or not own or len(own & lines) < len(own) or len(own) > len(lines)


def test_a_topic_is_left_out_that_is_half_of_a_longer_one():
    lines = [f"line {i} of more than forty characters, so that it counts" for i in range(6)]
    topics = {
        "all": lines,
        "part": [*lines[:1], "short"],
        "half": [*lines[4:], "x" * 50],
        "own": ["y" * 50, lines[0], "z" * 60],
    }
    written = {name: "\n  ".join(own) for name, own in topics.items()}
    assert _corpora._whole_topics(written) == ["all", "own"]
    assert _corpora._whole_topics({"a": lines[0], "b": lines[0]}) == ["b"]


def _docs(module):
    return "\n".join(_corpora._docstrings(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))))


def test_documents_end_in_a_line_of_their_own(docs):
    for texts in (docs, text.texts("planted")):
        assert all(written.endswith("\n") for split in texts[1:4] for _, written in split if written)


def test_docstrings_equal_a_walk_over_the_whole_tree():
    source = Path(ast.__file__).read_text(encoding="utf-8") + Path(json.__file__).read_text(encoding="utf-8")
    source += "\ntry:\n  pass\nexcept E:\n  def f():\n    'in a handler'\nelse:\n  class A:\n    'in an else'\n"
    source += "match 1:\n  case 1:\n    async def g():\n      'in a case'\n"
    tree = ast.parse(source)
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    everywhere = [doc for node in ast.walk(tree) if isinstance(node, kinds) and (doc := ast.get_docstring(node))]
    assert sorted(filter(None, _corpora._docstrings(tree))) == sorted(everywhere)
    assert {"in a handler", "in an else", "in a case"} <= set(everywhere)
