"""The pages of a site as files: a folder that can be opened, sent and searched without a server or a network."""

import json
import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from heapq import heappop, heappush
from html import unescape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from devinterp_func import records
from devinterp_func.show._report import report as written_report
from devinterp_func.show.explorer import _pages
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._types import FOLDERS, SINGLE, Links, NotThere, path
from devinterp_func.show.explorer._words import said

LIVE = ("job", "jobs", "search")  # kinds of pages that need a server
FEW = (*SINGLE, "head", "phase", "probe")  # kinds of pages that come before the others
STATIC = ("static/explorer.css", "static/explorer.js", "static/names.js")
LINK = re.compile(r'<a\b[^>]*?\shref="([^"]*)"[^>]*>(.*?)</a>', re.DOTALL)
FORM = re.compile(r'<form\b(?![^>]*role="search").*?</form>', re.DOTALL)  # what it asks, no file can answer
OURS = re.compile(rf"(?:{'|'.join(FOLDERS)})/[^/]+\.html|(?:{'|'.join(SINGLE)}|index)\.html|{'|'.join(STATIC)}")
FRONT = '<p class="subtitle"><a href="run.html">Explore the run: its steps, data, neurons, tokens, heads</a></p>'


class Exported(NamedTuple):
    """A page as it is written."""

    address: str
    name: str  # by which it is found
    html: str


def export(
    site: Site, to: Path, most: int = 2000, report: Callable[[Iterable[Exported]], Iterable[Exported]] | None = None
) -> list[Path]:
    """Writes the pages of a site as files, found by their own links from the run's page on.

    Links to what is no file become plain text. ``index.html`` is the run's report; the same site gives the same bytes.

    Args:
        site: of ``open``.
        to: a folder that is not there, is empty, or has an older export, which is replaced.
        most: pages, at most.
        report: is given the pages as they are made, and gives them on, as ``terminal.watched`` does.

    Returns:
        The files.

    Raises:
        ValueError: no page is asked for, or the folder is in the run, or has something else in it.
    """
    if most < 1:
        raise ValueError(f"most is {most}; it must be at least 1 page")
    old = _require(site, to)
    pages = list((report or iter)(_crawl(site, most)))
    there = {page.address for page in pages}
    files = {unquote(page.address): _closed(page.html, page.address, there) for page in pages}
    files["index.html"] = _front(site, there)
    names = sorted([page.name, page.address] for page in pages)
    contents = _pages.style(), _pages.script(), f"globalThis.PAGES={json.dumps(names)};\n"
    files |= dict(zip(STATIC, contents, strict=True))
    found = []
    for name, content in files.items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        found.append(records.install(to / name, content.encode(), replace=True))
    for stale in old - set(found):
        stale.unlink()
    return found


def _require(site: Site, to: Path) -> set[Path]:
    """The files of an older export in the folder.

    Raises:
        ValueError: as ``export``.
    """
    if to.resolve().is_relative_to(site.run.path.resolve()):
        raise ValueError(f"{to} is in the run {site.run}, which is never written to; name a folder beside it")
    if to.exists() and not to.is_dir():
        raise ValueError(f"{to} is a file; name a folder for the pages")
    old = {path for path in to.rglob("*") if not path.is_dir()} if to.exists() else set()
    strange = sorted(path for path in old if not OURS.fullmatch(path.relative_to(to).as_posix()))
    if strange or (old and not (to / STATIC[0]).exists()):
        raise ValueError(
            f"{to} has something else in it, such as {(strange or sorted(old))[0].name}; name a new folder"
        )
    return old


def _crawl(site: Site, most: int) -> Iterator[Exported]:
    """Pages from the run's on, by their links: those of which there are few, then as many of each kind, as found."""
    queue, seen, made = [(0, 0, path("run"))], {path("run")}, 0
    found = dict.fromkeys((*FOLDERS, *SINGLE), 0)  # of each kind
    while queue and made < most:
        *_, address = heappop(queue)
        try:
            view = _pages.make(site, address)
        except NotThere:
            continue
        html = _pages.html(site, view, address, live=False)
        made += 1
        yield Exported(address, _name(site, address, view.title), html)
        for link in LINK.finditer(html):
            target = _target(link[1], address)
            if target is not None and target not in seen:
                seen.add(target)
                kind = _pages.split(target)[0]
                found[kind] += 1
                heappush(queue, (int(kind not in FEW), found[kind], target))


def _name(site: Site, address: str, title: str) -> str:
    """What a page is found by: its title, and of a datum the beginning of its text."""
    kind, id = _pages.split(address)
    return f"{title}: {said(site, int(id), 8)}" if kind == "datum" else title


def _target(href: str, address: str) -> str | None:
    """The address of the page that a link leads to; None if it is no file of an export."""
    href = unescape(href)
    if "?" in href or ":" in href.partition("/")[0] or href.startswith(("#", "/")):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(address), href.partition("#")[0]))
    kind = target.removesuffix(".html").partition("/")[0]
    return target if target.endswith(".html") and kind in (*FOLDERS, *SINGLE) and kind not in LIVE else None


def _closed(html: str, address: str, there: Collection[str]) -> str:
    """The page without links that lead nowhere, and without forms that nothing answers."""

    def settled(link: re.Match[str]) -> str:
        href = unescape(link[1])
        outside = href.startswith(("#", "https://", "http://")) or href.endswith("index.html")
        return link[0] if outside or _target(href, address) in there else link[2]

    return LINK.sub(settled, FORM.sub("", html))


def _front(site: Site, there: Collection[str]) -> str:
    """The run's report, whose names lead to the pages that are there."""
    every = _pages.addresses(site, Links())

    def address(kind: str, value: Any) -> str | None:
        found = every(kind, value)
        return found if found in there else None

    html = written_report(site.run, site.folder, address)
    return html.replace("</header>", f"{FRONT}\n</header>", 1)
