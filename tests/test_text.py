"""Laws of text.py and what it is made of: the vocabulary, each corpus, and the download against a local server that
fails in every way."""

import ast
import hashlib
import io
import json
import math
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from devinterp_func import keys, text, wikitext

words = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=4)
counts = st.dictionaries(words | st.just("<unk>"), st.integers(0, 9), max_size=12)


# ---- tokenizer


@given(st.lists(st.text(), max_size=5))
def test_tokens_of_a_text_are_the_tokens_of_its_lines(lines):
    assert text.tokenize("\n".join(lines)) == [token for line in lines for token in text.tokenize(line)]


@given(st.text())
def test_tokenize_is_torchtexts_basic_english(line):
    from torchtext.data.utils import get_tokenizer

    assert text.tokenize(line) == get_tokenizer("basic_english")(line)


def test_tokenize_by_hand():
    line = ' = Valkyria Chronicles III = \n He said: "Don\'t (really) go; now!"<br />OK? U.S. 12,000 <unk> @-@ '
    assert " ".join(text.tokenize(line)) == (
        "= valkyria chronicles iii = he said don ' t ( really ) go now ! ok ? u . s . 12 , 000 <unk> @-@"
    )


def test_import_is_light_and_tokenizing_silent(tmp_path):
    code = (
        "import sys; from devinterp_func import text;"
        "assert not {'torchtext', 'requests', 'rich', 'platformdirs'} & set(sys.modules), sys.modules;"
        f"sys.pycache_prefix = {str(tmp_path)!r};"  # compiled afresh, as on its first import ever
        "assert text.tokenize('A.') == ['a', '.']"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---- Vocab


@given(counts, st.data())
def test_decode_inverts_encode(counted, data):
    vocab = text.build_vocab(counted)
    ids = data.draw(st.lists(st.integers(0, len(vocab) - 1), max_size=8))
    encoded = vocab.encode(vocab.decode(ids))
    assert encoded.tolist() == ids and encoded.dtype == torch.int64 and encoded.ndim == 1
    assert vocab.decode(encoded) == vocab.decode(ids)


@given(counts, st.lists(words))
def test_encode_falls_back_to_unk(counted, some):
    vocab = text.build_vocab(counted)
    expected = [vocab.tokens.index(word) if word in vocab.tokens else 0 for word in some]
    assert vocab.encode(some).tolist() == expected
    assert [word in vocab for word in some] == [word in vocab.tokens for word in some]


def test_encode_tokenizes_a_text():
    vocab = text.Vocab(("<unk>", "the", "cat", "."))
    assert vocab.encode("The cat. A cat").tolist() == [1, 2, 3, 0, 2]
    assert vocab.encode("").shape == (0,)


@given(counts, st.integers())
def test_decode_refuses_ids_out_of_range(counted, number):
    vocab = text.build_vocab(counted)
    if 0 <= number < len(vocab):
        assert vocab.decode([number]) == [vocab.tokens[number]]
    else:
        with pytest.raises(IndexError, match=f"token id {number} is out of range.* ids 0 to {len(vocab) - 1}"):
            vocab.decode([0, number])


@given(counts, words)
def test_index_never_falls_back(counted, word):
    vocab = text.build_vocab(counted)
    if word in vocab:
        assert vocab.tokens[vocab.index(word)] == word
    else:
        with pytest.raises(text.UnknownToken):
            vocab.index(word)


def test_index_names_the_nearest_tokens():
    vocab = text.build_vocab(["season", "seasons", "reason", "football"])
    with pytest.raises(KeyError) as info:
        vocab.index("Seasn")
    assert str(info.value) == (
        "'Seasn' is not among the 5 tokens of this vocabulary; the nearest are 'season', 'seasons', 'reason'"
    )
    with pytest.raises(KeyError, match="none resembles it"):
        vocab.index("zzzz")


@given(counts, st.integers(1, 4))
def test_vocabulary_order(counted, min_count):
    tokens = text.build_vocab(counted, min_count).tokens
    assert tokens[0] == "<unk>"
    ranks = [(-counted[token], token) for token in tokens[1:]]
    assert ranks == sorted(ranks)
    assert set(tokens[1:]) == {token for token in counted if counted[token] >= min_count} - {"<unk>"}


@given(counts)
def test_vocabulary_order_is_torchtexts(counted):
    from torchtext.vocab import Vocab

    theirs = Vocab(Counter(counted), specials=["<unk>"], specials_first=True, min_freq=1)
    assert list(text.build_vocab(counted).tokens) == theirs.itos


@given(st.lists(words, max_size=20))
def test_tokens_and_their_counts_give_the_same_vocabulary(some):
    assert text.build_vocab(some) == text.build_vocab(Counter(some)) == text.build_vocab(iter(some))


def test_vocab_is_frozen_and_checked():
    vocab = text.build_vocab(["a"])
    with pytest.raises(AttributeError):
        vocab.tokens = ("<unk>",)  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"starts with \['a'\]; it must start with '<unk>'"):
        text.Vocab(("a", "<unk>"))
    with pytest.raises(ValueError, match="has 'b' more than once"):
        text.Vocab(("<unk>", "a", "b", "b"))
    with pytest.raises(ValueError, match="min_count is 0; it must be at least 1"):
        text.build_vocab(["a"], min_count=0)


def test_vocab_and_corpus_print_short():
    corpus = text.planted(key=0)
    assert re.fullmatch(r"Vocab\(150 tokens: <unk> ( ?\S+){7} \.\.\.\)", repr(corpus.vocab))
    assert re.fullmatch(r"Corpus\('planted': 150 types; tokens: train 60,\d+, valid 3,\d+, test 3,\d+\)", repr(corpus))
    assert repr(text.Vocab(("<unk>", "a"))) == "Vocab(2 tokens: <unk> a)"


# ---- Corpus


def test_the_vocabulary_is_counted_on_train_alone(tmp_path):
    (tmp_path / "a.txt").write_text("b a c\nc\n\nnew c\nodd\n", encoding="utf-8")
    corpus = text.from_file(tmp_path / "a.txt")
    assert corpus.name == "a.txt"
    assert corpus.vocab.tokens == ("<unk>", "c", "a", "b")
    assert [stream.tolist() for stream in corpus[2:]] == [[3, 2, 1, 1], [0, 1], [0]]


def test_fingerprint_by_hand():
    vocab = text.Vocab(("<unk>", "é", 'q"'))
    streams = [np.array(ids, dtype="<i8") for ids in ([1, 2, 2], [0], [2, 1])]
    parts = [json.dumps(vocab.tokens, ensure_ascii=False).encode()]
    for stream in streams:
        parts += [f"\n{len(stream)}\n".encode(), stream.tobytes()]
    corpus = text.Corpus("x", vocab, *map(torch.from_numpy, streams))
    assert text.fingerprint(corpus) == hashlib.sha256(b"".join(parts)).hexdigest()


@given(st.integers(0, 3), st.integers(0, 3))
def test_fingerprint_tells_corpora_apart_but_not_names(i, j):
    vocab, other = text.Vocab(("<unk>", "a", "b")), text.Vocab(("<unk>", "b", "a"))
    one, two, empty = torch.tensor([1]), torch.tensor([1, 1]), torch.tensor([], dtype=torch.int64)
    corpora = [(vocab, one, two, one), (vocab, two, one, one), (other, one, two, one), (vocab, two, two, empty)]
    same = text.fingerprint(text.Corpus("x", *corpora[i])) == text.fingerprint(text.Corpus("y", *corpora[j]))
    assert same == (i == j)


def test_fingerprint_takes_any_string_and_any_stride():
    vocab = text.Vocab(("<unk>", "\ud800"))
    stream = torch.tensor([0, 9, 1, 9])[::2]
    strided, plain = (text.Corpus("x", vocab, s, s, s) for s in (stream, stream.contiguous()))
    assert text.fingerprint(strided) == text.fingerprint(plain)


@given(counts, st.data())
def test_unpack_inverts_pack(counted, data):
    vocab = text.build_vocab(counted)
    ids = st.lists(st.integers(0, len(vocab) - 1), max_size=8)
    corpus = text.Corpus("x", vocab, *(torch.tensor(data.draw(ids), dtype=torch.int64) for _ in range(3)))
    packed = text.pack(corpus)
    again = text.unpack("x", packed)
    assert {name: tensor.dtype for name, tensor in packed.items()} == (
        {"vocab": torch.uint8} | dict.fromkeys(("train", "valid", "test"), torch.int32)
    )
    assert again.name == "x" and again.vocab == vocab
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(corpus[2:], again[2:], strict=True))
    assert text.fingerprint(again) == text.fingerprint(corpus)


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


# ---- planted


@pytest.fixture(scope="module", params=[{}, {"n_topics": 6, "n_words": 8, "n_common": 3, "n_tokens": 5000}])
def planted(request):
    return text.planted(key=7, **request.param)


def sentences(corpus):
    for stream in corpus[2:]:
        tokens = corpus.vocab.decode(stream)
        ends = [i + 1 for i, token in enumerate(tokens) if token == "."]
        assert ends[-1] == len(tokens)  # a split ends with a whole document
        yield from (tokens[start:end] for start, end in zip([0, *ends], ends, strict=False))


def test_planted_sizes():
    corpus = text.planted(key=3)
    assert len(corpus.vocab) == 150
    assert 60_000 <= len(corpus.train) < 60_200
    assert 3_333 <= len(corpus.valid) < 3_533 and 3_333 <= len(corpus.test) < 3_533
    assert not any((stream == 0).any() for stream in corpus[2:])


def test_planted_text_survives_the_tokenizer(planted):
    assert text.tokenize(" ".join(planted.vocab.tokens)) == list(planted.vocab.tokens)


def test_a_leader_is_always_followed_by_its_follower(planted):
    followers = text.planted_bigrams(planted.vocab)
    assert len(followers) == 4 * len(text.planted_topics(planted.vocab))
    for stream in planted[2:]:
        for before, after in zip(stream.tolist(), stream.tolist()[1:] + [-1], strict=True):
            assert followers.get(before, after) == after


def test_followers_also_occur_alone(planted):
    leaders = {after: before for before, after in text.planted_bigrams(planted.vocab).items()}
    train = planted.train.tolist()
    alone = Counter(b for a, b in zip(train, train[1:], strict=False) if leaders.get(b, a) != a)
    assert set(alone) == set(leaders)


def test_a_sentence_has_one_topic_and_a_document_six_sentences_of_it(planted):
    topic_of = {planted.vocab.tokens[i]: t for t, ids in text.planted_topics(planted.vocab).items() for i in ids}
    topics = [{topic_of[token] for token in sentence if token in topic_of} for sentence in sentences(planted)]
    assert len(topics) % 6 == 0
    for start in range(0, len(topics), 6):
        assert len(set().union(*topics[start : start + 6])) == 1


def test_brackets_pair_up_inside_a_sentence(planted):
    bracketed = 0
    for sentence in sentences(planted):
        assert "".join(token for token in sentence if token in "()") in ("", "()")
        if "(" in sentence:
            bracketed += 1
            assert 2 <= sentence.index(")") - sentence.index("(") - 1 <= 10  # 2 to 5 items, a pair being one
    total = sum(1 for _ in sentences(planted))
    assert abs(bracketed / total - 0.5) < 4 * 0.5 / math.sqrt(total)


def test_topics_partition_the_topic_words(planted):
    topics = text.planted_topics(planted.vocab)
    assert list(topics) == list(range(len(topics)))
    for topic, ids in topics.items():
        assert planted.vocab.decode(ids) == [f"t{topic}w{word:02d}" for word in range(len(ids))]


def test_common_words_follow_zipfs_law():
    corpus = text.planted(key=1)
    numbers = Counter(token for token in corpus.vocab.decode(corpus.train) if token.startswith("c"))
    observed = np.array([numbers[f"c{i:02d}"] for i in range(46)])
    expected = observed.sum() / np.arange(1, 47) / sum(1 / i for i in range(1, 47))
    assert ((observed - expected) ** 2 / expected).sum() < 100  # chi-squared, 45 degrees of freedom: p < 1e-5


def test_planted_is_a_pure_function_of_key():
    first = text.planted(key=5, n_tokens=500)
    torch.manual_seed(1)
    assert text.fingerprint(first) == text.fingerprint(text.planted(key=keys.Key(5), n_tokens=500))
    assert text.fingerprint(first) != text.fingerprint(text.planted(key=6, n_tokens=500))
    assert not torch.equal(first.valid, first.test)


def test_more_planted_text_begins_with_the_same_text():
    less, more = (text.planted(key=5, n_tokens=n) for n in (500, 2000))
    assert less.vocab.decode(less.train) == more.vocab.decode(more.train)[: len(less.train)]


@pytest.mark.parametrize(("name", "value"), [("n_topics", 0), ("n_words", 7), ("n_common", 0), ("n_tokens", 0)])
def test_planted_refuses_impossible_sizes(name, value):
    with pytest.raises(ValueError, match=f"planted: {name} is {value}; it must be at least [18]"):
        text.planted(key=0, **{name: value})


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
    assert sorted(filter(None, text._docstrings(tree))) == sorted(everywhere)
    assert {"in a handler", "in an else", "in a case"} <= set(everywhere)


# ---- wikitext2: where it is looked for


def put_files(folder, words="a b c"):
    folder.mkdir(parents=True, exist_ok=True)
    for file in text.WIKITEXT2_FILES:
        (folder / file).write_text(f" {words} \n", encoding="utf-8")
    return folder


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An empty user cache, no WIKITEXT2_DIR, and a download that only tells of itself."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_: tmp_path / "cache")
    monkeypatch.setattr(wikitext, "download_wikitext2", lambda cache: put_files(cache, "downloaded"))
    monkeypatch.delenv("WIKITEXT2_DIR", raising=False)


def test_wikitext2_looks_in_the_right_order(no_network, monkeypatch, tmp_path):
    assert "downloaded" in text.wikitext2().vocab
    put_files(tmp_path / "cache" / "wikitext-2", "cached")
    assert "cached" in text.wikitext2().vocab
    monkeypatch.setenv("WIKITEXT2_DIR", str(tmp_path / "absent"))
    assert "cached" in text.wikitext2().vocab
    monkeypatch.setenv("WIKITEXT2_DIR", str(put_files(tmp_path / "variable", "variable")))
    assert "variable" in text.wikitext2().vocab
    assert "given" in text.wikitext2(put_files(tmp_path / "given", "given")).vocab


def test_wikitext2_names_the_files_that_a_given_directory_lacks(no_network, tmp_path):
    folder = put_files(tmp_path / "given")
    (folder / "wiki.valid.tokens").unlink()
    with pytest.raises(FileNotFoundError) as info:
        text.wikitext2(folder)
    assert all(part in str(info.value) for part in (*text.WIKITEXT2_FILES, str(folder), "; wiki.valid.tokens missing"))
    with pytest.raises(FileNotFoundError, match="no such directory"):
        text.wikitext2(str(tmp_path / "absent"))
    assert not (tmp_path / "cache").exists()


# ---- wikitext2: the download


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


GOOD = zipped({f"wikitext-2/{file}": f" the {file} \n" * 2000 for file in text.WIKITEXT2_FILES})
PARTIAL = zipped({"wikitext-2/wiki.train.tokens": "the"})


class Handler(BaseHTTPRequestHandler):
    """Like the real host it refuses urllib's User-Agent, and requests' for good measure."""

    def do_GET(self):
        agent = self.headers["User-Agent"]
        if "urllib" in agent.lower() or "python-requests" in agent or self.path == "/forbidden":
            return self.send_error(403, "Forbidden")
        if self.path == "/absent":
            return self.send_error(404, "Not Found")
        body = {"/partial": PARTIAL, "/nozip": b"<html>come back later</html>"}.get(self.path, GOOD)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/truncated" else body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def md5(content):
    return hashlib.md5(content).hexdigest()


def test_download_puts_the_three_files_into_the_cache(server, tmp_path, capfd):
    cache = tmp_path / "deep" / "cache"
    assert text.download_wikitext2(cache, url=f"{server}/good", md5=md5(GOOD)) == cache
    assert {path.name: path.read_text() for path in cache.iterdir()} == {
        file: f" the {file} \n" * 2000 for file in text.WIKITEXT2_FILES
    }
    assert capfd.readouterr() == ("", "")  # no progress line where there is no terminal
    text.download_wikitext2(cache, url=f"{server}/good", md5=md5(GOOD))  # over a copy that another process put there
    assert len(list(cache.iterdir())) == 3


def test_download_shows_progress_on_a_terminal(server, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    text.download_wikitext2(tmp_path, url=f"{server}/good", md5=md5(GOOD))
    assert "WikiText-2" in terminal.getvalue() and "100%" in terminal.getvalue()


FAULTS = {
    "absent": (GOOD, "the server answered 404 Not Found"),
    "forbidden": (GOOD, "the server answered 403 Forbidden"),
    "truncated": (GOOD, "truncated: the transfer broke off"),
    "good": (b"other", f"bad checksum, MD5 {md5(GOOD)} of {len(GOOD):,} bytes instead of {md5(b'other')}"),
    "nozip": (b"<html>come back later</html>", "not a zip file"),
    "partial": (PARTIAL, "no item named 'wikitext-2/wiki.valid.tokens'"),
}


@pytest.mark.parametrize("path", FAULTS)
def test_a_failed_download_says_why_and_leaves_nothing(server, tmp_path, path):
    expected, reason = FAULTS[path]
    with pytest.raises(text.DownloadError) as info:
        text.download_wikitext2(tmp_path / "cache", url=f"{server}/{path}", md5=md5(expected))
    for part in (f"from {server}/{path}: ", reason, "wikitext2(directory)", "WIKITEXT2_DIR", "python_docs()"):
        assert part in str(info.value)
    assert list(tmp_path.iterdir()) == []


def test_offline_says_what_to_do_instead(tmp_path):
    with pytest.raises(text.DownloadError, match=r"127.0.0.1:9/x.zip: no connection .*python_docs\(\)"):
        text.download_wikitext2(tmp_path / "cache", url="http://127.0.0.1:9/x.zip")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_cache_as_it_was(server, tmp_path, monkeypatch):
    def refuse(self, content):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OSError, match="No space left on device"):
        text.download_wikitext2(tmp_path, url=f"{server}/good", md5=md5(GOOD))
    assert list(tmp_path.iterdir()) == []


def test_the_server_refuses_the_default_user_agent(server):
    import requests

    assert requests.get(f"{server}/good").status_code == 403


# ---- wikitext2: the post's numbers


def test_wikitext2_counts(wikitext2):
    assert len(wikitext2.train) == 2_049_990
    assert len(wikitext2.vocab) == 28_782
    assert wikitext2.name == "wikitext2"


def test_wikitext2_vocabulary_order(wikitext2):
    counted = torch.bincount(wikitext2.train, minlength=len(wikitext2.vocab)).tolist()
    ranks = [(-count, token) for count, token in zip(counted, wikitext2.vocab.tokens, strict=True)][1:]
    assert ranks == sorted(ranks)
    assert wikitext2.vocab.tokens[:6] == ("<unk>", "the", ",", ".", "of", "and")
    assert counted[0] > 0 and min(counted) >= 1  # "<unk>" stands in the text itself


def test_wikitext2_equals_the_slow_way(wikitext2):
    file = Path(os.environ["WIKITEXT2_DIR"]) / "wiki.valid.tokens"
    tokens = [token for line in file.read_text(encoding="utf-8").split("\n") for token in text.tokenize(line)]
    known = {token: i for i, token in enumerate(wikitext2.vocab.tokens)}
    assert wikitext2.valid.tolist() == [known.get(token, 0) for token in tokens]
