"""WikiText-2: found in a directory, in the environment or in the user's cache, or else downloaded to that cache.

A download is checked in memory before anything is written, so the cache has all three files of a good copy or is as
it was.
"""

import hashlib
import io
import os
import re
import sys
import tempfile
import zipfile
from itertools import pairwise
from pathlib import Path

from devinterp_func import __version__
from devinterp_func.text._corpus import BASIC_ENGLISH, Corpus, Texts, from_texts
from devinterp_func.text._subwords import AnyTokenizer

WIKITEXT2_FILES = ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens")
WIKITEXT2_URL = "https://wikitext.smerity.com/wikitext-2-v1.zip"
WIKITEXT2_MD5 = "542ccefacc6c27f945fb54453812b3cd"
# " = Title = " between blank lines; a section has more equals signs, and wins and losses in tables no blank lines.
TITLE = re.compile(r"(?:\A|^[ \t]*\n) = (?!= )(.+) = \n(?=[ \t]*$)", re.MULTILINE)
USER_AGENT = f"devinterp_func/{__version__} (Python)"  # the host refuses urllib's default


class DownloadError(OSError):
    """WikiText-2 could not be downloaded; the message names the address, the fault and what to do instead."""


def wikitext2(directory: str | Path | None = None, tokenizer: AnyTokenizer = BASIC_ENGLISH) -> Corpus:
    """WikiText-2 (Merity et al. 2016, *Pointer Sentinel Mixture Models*), the post's training set.

    2,049,990 train tokens of 28,782 types with the post's tokenizer. Looks for ``wiki.train.tokens``,
    ``wiki.valid.tokens`` and ``wiki.test.tokens`` in ``directory``, or else in ``$WIKITEXT2_DIR`` and in the user's
    cache, to which it downloads them (4.5 MB) when neither has them. A document is an article, named by its title.

    Args:
        directory: where the files are; then nothing else is tried.
        tokenizer: of ``from_texts``.

    Raises:
        FileNotFoundError: ``directory`` is given and lacks a file.
        DownloadError: no copy here and the download failed.
    """
    return from_texts(wikitext2_texts(directory), tokenizer)


def wikitext2_texts(directory: str | Path | None = None) -> Texts:
    """The articles of ``wikitext2``, from the same places."""
    folder = _wikitext2_folder(None if directory is None else Path(directory))
    train, valid, test = (_articles((folder / file).read_text(encoding="utf-8")) for file in WIKITEXT2_FILES)
    return Texts("wikitext2", train, valid, test)


def _articles(text: str) -> list[tuple[str, str]]:
    """(title, text) of each; what comes before the first title is a document without one."""
    titles = list(TITLE.finditer(text))
    edges = [*(title.start() for title in titles), len(text)]
    found = [(title[1], text[i:j]) for title, (i, j) in zip(titles, pairwise(edges), strict=True)]
    return [("(no title)", text[: edges[0]])] * (edges[0] > 0) + found


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
