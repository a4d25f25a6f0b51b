"""WikiText-2 is found in the right order, and downloaded whole or not at all from a server that fails in every way."""

import hashlib
import io
import os
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import platformdirs
import pytest
import torch

from devinterp_func import text
from devinterp_func.text import _wikitext

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
    monkeypatch.setattr(_wikitext, "download_wikitext2", lambda cache: put_files(cache, "downloaded"))
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


# ---- wikitext2: articles


PREFACE, TABLE = " of no article \n", " = Wins , L \n = Losses = \n \n = Draws = \n none \n"
FIRST = " \n = A = \n \n the \n \n = = History = = \n \n was \n" + TABLE
SECOND = " \n = 2 ( two ) = \n \n = = = Deep = = = \n \n two \n"


@pytest.mark.parametrize("tokenizer", ["basic_english", text.train_bpe([], 256)], ids=["words", "subwords"])
@pytest.mark.parametrize(
    ("parts", "names"),
    [
        ([FIRST, SECOND], ["A", "2 ( two )"]),
        ([FIRST.removeprefix(" \n"), SECOND], ["A", "2 ( two )"]),
        ([FIRST.replace(" \n", "\n").replace("=\n", "= \n"), SECOND], ["A", "2 ( two )"]),
        ([PREFACE, SECOND, FIRST], ["(no title)", "2 ( two )", "A"]),
        ([PREFACE], ["(no title)"]),
    ],
)
def test_documents_are_articles_by_their_titles(tmp_path, parts, names, tokenizer):
    put_files(tmp_path)
    (tmp_path / "wiki.train.tokens").write_text("".join(parts), encoding="utf-8")
    corpus = text.wikitext2(tmp_path, tokenizer)
    assert corpus.documents is not None and list(corpus.documents.names) == names
    assert _wikitext.wikitext2_texts(tmp_path).train == list(zip(names, parts, strict=True))
    found = corpus.train.tensor_split(corpus.documents.starts[1:])
    assert [part.tolist() for part in found] == [corpus.vocab.encode(part).tolist() for part in parts]


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


def test_wikitext2_articles(wikitext2):
    assert len(wikitext2.documents.names) == 600  # as Merity et al. count them
    firsts = wikitext2.vocab.decode(wikitext2.train[wikitext2.documents.starts])
    assert set(firsts) == {"="}
    assert [len(split) for split in text.texts("wikitext2")[1:4]] == [600, 60, 60]


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
