"""From text to token streams: the tokenizer, a frozen vocabulary and the corpora.

Every corpus is made the same way: three lists of texts (train, valid, test) are tokenised one by one and concatenated,
the vocabulary is counted on train alone, and what valid and test have beyond it becomes ``<unk>``.
"""

import ast
import difflib
import hashlib
import io
import json
import os
import re
import sys
import sysconfig
import tempfile
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from devinterp_func import __version__, keys

UNK = "<unk>"
WIKITEXT2_FILES = ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens")
WIKITEXT2_URL = "https://wikitext.smerity.com/wikitext-2-v1.zip"
WIKITEXT2_MD5 = "542ccefacc6c27f945fb54453812b3cd"
USER_AGENT = f"devinterp_func/{__version__} (Python)"  # the host refuses urllib's default
# Standard-library packages without docstrings worth reading, that other Python versions lack, or read otherwise.
SKIPPED_PACKAGES = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "distutils", "encodings", "pydoc_data"}
PLANTED_PAIRS = 4  # in every planted topic, word 2i is always followed by word 2i + 1, for i below this
PLANTED_SENTENCES = 6  # sentences in a planted document


class UnknownToken(KeyError):
    """A token that the vocabulary does not have, in a look-up that must not fall back to ``<unk>``."""

    def __str__(self) -> str:  # KeyError shows the repr of its message
        return str(self.args[0])


class DownloadError(OSError):
    """WikiText-2 could not be downloaded; the message names the address, the fault and what to do instead."""


@dataclass(frozen=True, repr=False)
class Vocab:
    """Token strings by id, ``<unk>`` first. ``build_vocab`` makes one from text.

    >>> vocab = Vocab(("<unk>", "the", "cat"))
    >>> vocab.encode("The dog, the cat")
    tensor([1, 0, 0, 1, 2])
    >>> vocab.decode([1, 2]), "cat" in vocab, len(vocab)
    (['the', 'cat'], True, 3)
    """

    tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.tokens or self.tokens[0] != UNK:
            raise ValueError(f"Vocab.tokens starts with {list(self.tokens[:1])}; it must start with {UNK!r}")
        if len(self._ids) < len(self.tokens):
            twice = next(token for token, count in Counter(self.tokens).items() if count > 1)
            raise ValueError(f"Vocab.tokens has {twice!r} more than once")

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def __repr__(self) -> str:
        return f"Vocab({len(self):,} tokens: {' '.join(self.tokens[:8])}{' ...' if len(self) > 8 else ''})"

    def encode(self, words: str | Iterable[str]) -> Int64[Tensor, "n"]:
        """Ids of words, or of a text, which is tokenised first; unknown words get the id of ``<unk>``, 0."""
        words = tokenize(words) if isinstance(words, str) else words
        return torch.tensor([self._ids.get(word, 0) for word in words], dtype=torch.int64)

    def decode(self, ids: Int64[Tensor, "n"] | Iterable[int]) -> list[str]:
        """Token strings of ids.

        Raises:
            IndexError: an id is not in [0, len).
        """
        numbers: list[int] = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        for number in numbers:
            if not 0 <= number < len(self):
                raise IndexError(f"token id {number} is out of range; this vocabulary has ids 0 to {len(self) - 1}")
        return [self.tokens[number] for number in numbers]

    def index(self, token: str) -> int:
        """Id of a token that must be there.

        Raises:
            UnknownToken: it is not; the message names the nearest tokens that are.
        """
        if token in self:
            return self._ids[token]
        near = difflib.get_close_matches(token.lower(), self.tokens, n=5)
        hint = f"the nearest are {', '.join(map(repr, near))}" if near else "none resembles it"
        raise UnknownToken(f"{token!r} is not among the {len(self):,} tokens of this vocabulary; {hint}")


class Corpus(NamedTuple):
    """Three token streams over one vocabulary.

    Args:
        name: for people; not part of the fingerprint.
        vocab: counted on train.
        train, valid, test: token ids, each split's texts one after the other.
    """

    name: str
    vocab: Vocab
    train: Int64[Tensor, "n_train"]
    valid: Int64[Tensor, "n_valid"]
    test: Int64[Tensor, "n_test"]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {len(getattr(self, split)):,}" for split in ("train", "valid", "test"))
        return f"Corpus({self.name!r}: {len(self.vocab):,} types; tokens: {sizes})"


def load(name: str) -> Corpus:
    """A corpus by name: ``wikitext2``, ``python_docs``, ``planted`` (key 0), or the path of a UTF-8 text file.

    >>> load("planted").name
    'planted'
    """
    named: dict[str, Callable[[], Corpus]] = {
        "wikitext2": wikitext2,
        "python_docs": python_docs,
        "planted": lambda: planted(key=0),
    }
    if name in named:
        return named[name]()
    if not name or not Path(name).exists():
        raise ValueError(f"no corpus {name!r}: give {', '.join(named)} or the path of a UTF-8 text file that exists")
    return from_file(name)


def wikitext2(directory: str | Path | None = None) -> Corpus:
    """WikiText-2 (Merity et al. 2016, *Pointer Sentinel Mixture Models*), the post's training set.

    2,049,990 train tokens of 28,782 types with the post's tokenizer. Looks for ``wiki.train.tokens``,
    ``wiki.valid.tokens`` and ``wiki.test.tokens`` in ``directory``, or else in ``$WIKITEXT2_DIR`` and in the user's
    cache, to which it downloads them (4.5 MB) when neither has them.

    Args:
        directory: where the files are; then nothing else is tried.

    Raises:
        FileNotFoundError: ``directory`` is given and lacks a file.
        DownloadError: no copy here and the download failed.
    """
    folder = _wikitext2_folder(None if directory is None else Path(directory))
    lines = {file: (folder / file).read_text(encoding="utf-8").splitlines() for file in WIKITEXT2_FILES}
    return _corpus("wikitext2", lines.values())


def python_docs() -> Corpus:
    """English that comes with every Python: the topics of ``help()`` and the docstrings of the standard library.

    On Python 3.11 about 351,000 train tokens of 6,000 types (those rarer than 3 are ``<unk>``), 15,000 tokens each for
    validation and testing. A document is a topic or a module; of every twenty the tenth is for validation, the last for
    testing. Sources are parsed in the order of their names, never imported; parsing is most of the 2-3 seconds.
    """
    from pydoc_data.topics import topics

    documents = [topics[name] for name in sorted(topics)] + list(_module_docs())
    held_out = documents[9::20], documents[19::20]
    del documents[9::10]
    return _corpus("python_docs", (documents, *held_out), min_count=3)


def planted(
    *, key: keys.Key | int, n_topics: int = 5, n_words: int = 20, n_common: int = 46, n_tokens: int = 60_000
) -> Corpus:
    """Synthetic text whose structure is known, for tests with a ground truth.

    A document is six sentences on one topic; a sentence is 8 to 14 items and a full stop; an item is, evenly, a common
    word (``c00``, ``c01``, ...: Zipf-distributed) or a word of the topic (``t3w07``: word 7 of topic 3; evenly drawn).
    Bigrams: after ``t3w00``, ``t3w02``, ``t3w04`` and ``t3w06`` always comes the word with the next number, which also
    occurs without them. Brackets: half of the sentences have one span of 2 to 5 items in ``( ... )``.
    ``planted_topics`` and ``planted_bigrams`` read the truth back from the names.

    Args:
        key: source of all randomness.
        n_topics: topics, evenly likely.
        n_words: words of each topic, at least 8.
        n_common: common words.
        n_tokens: length of train, up to a document more; valid and test have an eighteenth of it each.

    >>> planted(key=0)
    Corpus('planted': 150 types; tokens: train 60,..., valid 3,..., test 3,...)
    """
    least = {"n_topics": 1, "n_words": 2 * PLANTED_PAIRS, "n_common": 1, "n_tokens": 1}
    for (name, minimum), value in zip(least.items(), (n_topics, n_words, n_common, n_tokens), strict=True):
        if value < minimum:
            raise ValueError(f"planted: {name} is {value}; it must be at least {minimum}")
    sizes = {"train": n_tokens, "valid": n_tokens // 18, "test": n_tokens // 18}
    shape = n_topics, n_words, n_common
    texts = [_planted_documents(keys.fold_in(key, "planted", split), size, *shape) for split, size in sizes.items()]
    return _corpus("planted", texts)


def planted_topics(vocab: Vocab) -> dict[int, list[int]]:
    """Topic -> ids of its own words, by word number; read from the names that ``planted`` gives."""
    words = sorted((int(m[1]), int(m[2]), i) for i, token in enumerate(vocab.tokens) if (m := _planted_name(token)))
    return {topic: [i for owner, _, i in words if owner == topic] for topic in sorted({topic for topic, *_ in words})}


def planted_bigrams(vocab: Vocab) -> dict[int, int]:
    """Id of each word with a planted follower -> id of that follower; read from the names that ``planted`` gives."""
    ids = {(int(m[1]), int(m[2])): i for i, token in enumerate(vocab.tokens) if (m := _planted_name(token))}
    leaders = sorted((t, w) for t, w in ids if w % 2 == 0 and w < 2 * PLANTED_PAIRS and (t, w + 1) in ids)
    return {ids[t, w]: ids[t, w + 1] for t, w in leaders}


def from_file(path: str | Path) -> Corpus:
    """A UTF-8 text file, split by lines: the last twentieth for testing, the one before it for validation.

    Args:
        path: the file; blank lines do not count.

    Raises:
        FileNotFoundError, IsADirectoryError: ``path`` is not a file.
        ValueError: it is not UTF-8 (the message has the byte offset), or has fewer than three lines with text.
    """
    path = Path(path)
    lines = [line for line in _read_utf8(path).splitlines() if line.strip()]
    if len(lines) < 3:
        raise ValueError(f"{path} has {len(lines)} lines with text; it needs at least 3, for train, valid and test")
    n = max(1, len(lines) // 20)
    return _corpus(path.name, (lines[: -2 * n], lines[-2 * n : -n], lines[-n:]))


def tokenize(line: str) -> list[str]:
    """torchtext 0.6.0's ``basic_english``, the post's tokenizer: lower case, punctuation apart, quotes dropped.

    Newlines are white space like any other, so a text gives the tokens of its lines, one after the other.

    >>> tokenize('He said: "It\\'s done."')
    ['he', 'said', 'it', "'", 's', 'done', '.']
    """
    return _basic_english()(line)


def build_vocab(tokens: Iterable[str] | Mapping[str, int], min_count: int = 1) -> Vocab:
    """The vocabulary of tokens: ``<unk>``, then by descending count, ties in alphabetical (code point) order.

    Args:
        tokens: tokens, or their counts.
        min_count: rarer ones are left out.

    >>> build_vocab(["b", "a", "c", "c"]).tokens
    ('<unk>', 'c', 'a', 'b')
    """
    if min_count < 1:
        raise ValueError(f"min_count is {min_count}; it must be at least 1")
    counts = Counter(tokens)
    known = (token for token, count in counts.items() if count >= min_count and token != UNK)
    return Vocab((UNK, *sorted(known, key=lambda token: (-counts[token], token))))


def fingerprint(corpus: Corpus) -> str:
    """SHA-256 (hex) of the vocabulary and the three streams: equal for equal data, whatever its name or source."""
    # surrogatepass: a token may be any str, also one that has no UTF-8
    digest = hashlib.sha256(json.dumps(corpus.vocab.tokens, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    for stream in (corpus.train, corpus.valid, corpus.test):
        digest.update(f"\n{len(stream)}\n".encode())
        digest.update(stream.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _corpus(name: str, splits: Iterable[Iterable[str]], min_count: int = 1) -> Corpus:
    """The corpus of three lists of texts (lines or documents): train, valid, test."""
    table: defaultdict[str, int] = defaultdict()
    table.default_factory = table.__len__  # numbers words as they first occur, at the speed of a dict look-up
    streams = [_number(texts, table) for texts in splits]
    for split, stream in zip(("train", "valid", "test"), streams, strict=True):
        if not len(stream):
            raise ValueError(f"corpus {name!r}: the {split} split has no tokens")
    counts = np.bincount(streams[0], minlength=len(table))  # 0 for words that only valid and test have
    vocab = build_vocab(dict(zip(table, counts.tolist(), strict=True)), min_count)
    ids = vocab.encode(list(table)).numpy()
    return Corpus(name, vocab, *(torch.from_numpy(ids[stream]) for stream in streams))


def _number(texts: Iterable[str], table: Mapping[str, int]) -> np.ndarray:
    words = chain.from_iterable(map(_basic_english(), texts))
    return np.fromiter(map(table.__getitem__, words), dtype=np.int64)


@cache
def _basic_english() -> Callable[[str], list[str]]:
    with warnings.catch_warnings():  # an archived package: escapes and SWIG types that newer Pythons complain about
        warnings.simplefilter("ignore")
        from torchtext.data.utils import get_tokenizer  # slow to import, hence not at the top
    return get_tokenizer("basic_english")


def _read_utf8(path: Path) -> str:
    try:
        return (
            path.read_bytes().decode("utf-8").removeprefix("\ufeff")
        )  # the mark that Windows editors begin files with
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte offset {error.start}") from error


# ---- WikiText-2


def _wikitext2_folder(directory: Path | None) -> Path:
    import platformdirs

    if directory is not None:
        if missing := _missing(directory):
            raise FileNotFoundError(f"WikiText-2: looked for {', '.join(WIKITEXT2_FILES)} in {directory}; {missing}")
        return directory
    cached = platformdirs.user_cache_path("devinterp_func") / "wikitext-2"
    given = os.environ.get("WIKITEXT2_DIR")
    places = [Path(given), cached] if given else [cached]
    return next((place for place in places if not _missing(place)), None) or download_wikitext2(cached)


def _missing(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such directory"
    missing = [file for file in WIKITEXT2_FILES if not (folder / file).is_file()]
    return f"{', '.join(missing)} missing" if missing else ""


def download_wikitext2(cache: Path, *, url: str = WIKITEXT2_URL, md5: str = WIKITEXT2_MD5) -> Path:
    """Downloads the zip, checks it and puts its three files into ``cache``, all of it or nothing.

    Args:
        cache: where the files go; made if need be.
        url, md5: the zip and its checksum (hex).

    Returns:
        ``cache``.

    Raises:
        DownloadError: offline, refused, broken off, or not the expected file.
    """
    import requests

    try:
        archive = _fetch(url)
        found = hashlib.md5(archive, usedforsecurity=False).hexdigest()
        if found != md5:
            raise zipfile.BadZipFile(f"bad checksum, MD5 {found} of {len(archive):,} bytes instead of {md5}")
        _unpack(archive, cache)
    except (requests.RequestException, zipfile.BadZipFile, KeyError) as error:
        raise DownloadError(
            f"could not get WikiText-2 from {url}: {_reason(error)}. Instead, put {', '.join(WIKITEXT2_FILES)} into a "
            "directory and give it as wikitext2(directory) or in the environment variable WIKITEXT2_DIR; or use "
            "python_docs(), which needs no download"
        ) from error
    return cache


def _fetch(url: str) -> bytes:
    import requests
    from rich.console import Console
    from rich.progress import Progress

    content = bytearray()  # in memory until it is known to be good: a failed download leaves nothing on the disk
    with (
        requests.get(url, headers={"User-Agent": USER_AGENT}, stream=True, timeout=30) as response,
        Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress,
    ):
        response.raise_for_status()
        task = progress.add_task("WikiText-2", total=float(response.headers.get("Content-Length", 0)) or None)
        for chunk in response.iter_content(2**16):
            content += chunk
            progress.update(task, advance=len(chunk))
    return bytes(content)


def _unpack(archive: bytes, cache: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        contents = {file: files.read(f"wikitext-2/{file}") for file in WIKITEXT2_FILES}
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:  # beside its destination, so that the move is atomic
        for file, content in contents.items():
            Path(temporary, file).write_bytes(content)
        for file in contents:
            os.replace(Path(temporary, file), cache / file)


def _reason(error: Exception) -> str:
    import requests

    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answered {response.status_code} {response.reason}"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return f"truncated: the transfer broke off ({error})"
    if isinstance(error, requests.ConnectionError | requests.Timeout):
        return f"no connection ({error})"
    return str(error)


# ---- Python's own documentation


def _module_docs() -> Iterator[str]:
    """All docstrings of one module after the other, in the order of their names."""
    root = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names - SKIPPED_PACKAGES):
        for file in (root / f"{name}.py", *sorted((root / name).rglob("*.py"))):
            if file.is_file() and not SKIPPED_PACKAGES & set(file.relative_to(root).parts):
                text = "\n".join(_docstrings(ast.parse(file.read_bytes())))
                yield text.encode("utf-8", "replace").decode()  # a docstring may quote half a surrogate pair


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Docstrings of ``node`` and of everything defined in it; expressions, most of a syntax tree, are not entered."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node) or ""
    for field in ("body", "handlers", "orelse", "finalbody", "cases"):
        for statement in getattr(node, field, ()):
            yield from _docstrings(statement)


# ---- planted structure


def _planted_name(token: str) -> re.Match[str] | None:
    return re.fullmatch(r"t(\d+)w(\d+)", token)


def _planted_documents(key: keys.Key, n_tokens: int, n_topics: int, n_words: int, n_common: int) -> Iterator[str]:
    """As many documents as n_tokens take, at least one."""
    rng = keys.generator(key)
    length = 0
    while length < max(1, n_tokens):
        topic = int(rng.integers(n_topics))
        sentences = [_planted_sentence(rng, topic, n_words, n_common) for _ in range(PLANTED_SENTENCES)]
        length += sum(map(len, sentences))
        yield " ".join(chain.from_iterable(sentences))


def _planted_sentence(rng: np.random.Generator, topic: int, n_words: int, n_common: int) -> list[str]:
    length = int(rng.integers(8, 15))
    zipf = 1 / np.arange(1, n_common + 1)
    common = [[f"c{word:02d}"] for word in rng.choice(n_common, length, p=zipf / zipf.sum())]
    own = [_planted_item(topic, word) for word in rng.integers(n_words, size=length).tolist()]
    items = [mine if pick else shared for pick, mine, shared in zip(rng.random(length) < 0.5, own, common, strict=True)]
    if rng.random() < 0.5:
        start, span = int(rng.integers(length - 5)), int(rng.integers(2, 6))
        items[start : start + span] = [["("], *items[start : start + span], [")"]]
    return [*chain.from_iterable(items), "."]


def _planted_item(topic: int, word: int) -> list[str]:
    """A word of the topic, with its planted follower if it has one, so that nothing comes between the two."""
    led = word % 2 == 0 and word < 2 * PLANTED_PAIRS
    return [f"t{topic}w{number:02d}" for number in ((word, word + 1) if led else (word,))]
