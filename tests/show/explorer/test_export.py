"""An export: whole pages, no link that leads nowhere, the same bytes each time, nothing of others overwritten."""

import json
import posixpath
import re
import shutil
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import explorer_results
import explorer_sites
import pytest

from devinterp_func.show import explorer

PAGES = 30


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return explorer_results.site(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def exported(site, tmp_path_factory):
    to = tmp_path_factory.mktemp("export") / "pages"
    return to, explorer.export(site, to, PAGES)


def addresses(html):
    return [unescape(href) for href in re.findall(r'\s(?:href|src)="([^"]*)"', html)]


def test_every_link_leads_to_a_file(exported):
    to, files = exported
    assert {path for path in to.rglob("*") if path.is_file()} == set(files)
    pages, followed = [path for path in files if path.suffix == ".html"], 0
    for page in pages:
        here = page.relative_to(to).as_posix()
        for address in addresses(page.read_text()):
            if address.startswith(("#", "data:", "https://")):
                continue
            assert "?" not in address
            target = posixpath.normpath(posixpath.join(posixpath.dirname(here), unquote(address)))
            assert (to / target).is_file(), (here, address)
            followed += 1
    assert followed > 10 * PAGES and len(pages) == PAGES + 1


def test_every_kind_of_page_is_there(exported):
    to, _ = exported
    kinds = {path.parent.name for path in to.rglob("*.html")}
    assert {"neuron", "datum", "step", "token", "head", "phase"} <= kinds and "job" not in kinds
    assert {path.name for path in to.glob("*.html")} >= {"index.html", "run.html", "heads.html", "phases.html"}
    assert not (to / "jobs.html").exists() and not (to / "search.html").exists()


def test_names_are_those_of_the_pages(exported):
    to, files = exported
    names = json.loads((to / "static/names.js").read_text().removeprefix("globalThis.PAGES=").removesuffix(";\n"))
    pages = {path.relative_to(to).as_posix() for path in files if path.suffix == ".html"} - {"index.html"}
    assert {unquote(address) for _, address in names} == pages and all(name for name, _ in names)


def test_the_front_is_the_report_and_leads_to_the_pages(exported):
    to, _ = exported
    front = (to / "index.html").read_text()
    assert "How this model came to be" in front and 'href="run.html"' in front
    assert any(re.match(r"(step|head|datum|neuron)/", address) for address in addresses(front))


def test_hostile_words_and_forms(exported):
    to, _ = exported
    for page in to.rglob("*.html"):
        written = page.read_text()
        for raw in ("<script>alert", "<img src=x", "\x00", "\x1b"):
            assert raw not in written
        assert written.count("<form") == (page.name != "index.html") and "action=" not in written


def test_the_same_bytes_again_over_an_older_export(site, exported, tmp_path):
    to, files = exported
    content = {path.relative_to(to): path.read_bytes() for path in files}
    shutil.copytree(to, tmp_path / "again")
    few = explorer.export(site, tmp_path / "again", 3)
    assert {path for path in (tmp_path / "again").rglob("*") if path.is_file()} == set(few)
    again = explorer.export(site, tmp_path / "again", PAGES, lambda pages: pages)
    assert {path.relative_to(tmp_path / "again"): path.read_bytes() for path in again} == content


def test_other_things_are_left_alone(site, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"has something else in it, such as notes\.txt"):
        explorer.export(site, tmp_path)
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.html").write_text("mine")
    with pytest.raises(ValueError, match=r"such as index\.html; name a new folder"):
        explorer.export(site, tmp_path / "pages")
    with pytest.raises(ValueError, match="is a file"):
        explorer.export(site, tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="is in the run"):
        explorer.export(site, site.run.path / "pages")
    assert [path.name for path in Path(tmp_path).rglob("*") if path.is_file()] == ["notes.txt", "index.html"]


def test_a_run_of_numbers_is_exported(tmp_path_factory, tmp_path):
    numbers = explorer_sites.site_of_numbers(tmp_path_factory.getbasetemp())
    files = explorer.export(numbers, tmp_path / "pages", 12)
    assert len([path for path in files if path.suffix == ".html"]) == 13
    assert "head" not in {path.parent.name for path in files} and "token" not in {path.parent.name for path in files}
