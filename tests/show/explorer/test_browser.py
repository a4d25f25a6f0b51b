"""The explorer in a real browser: on a server and as files, by hand and by axe, light, dark and on a phone.

Needs Chromium: /usr/bin/chromium, or the program that $CHROMIUM names. Where $BROWSER_TESTS is set it must be there.
"""

import asyncio
import os
import shutil
import socket
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import explorer_results
import pytest

from devinterp_func.show import explorer
from devinterp_func.show.explorer import _pages

sys.path.insert(0, str(Path(__file__).parents[3] / "experiments"))  # where the scripts find each other

import explore  # noqa: E402

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
uvicorn = pytest.importorskip("uvicorn")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
PAGES = (
    *("run.html", "neurons.html", "heads.html", "probes.html", "phases.html", "compare.html", "search.html?q=t0"),
    *("jobs.html", "step/12.html", "datum/3.html", "token/14.html", "head/1.1.html", "phase/0.html"),
    *("neuron/layers.1.linear2.weight:3.html", "probe/head-1.1-bracket.html", "step/9999.html"),
)
LOOKS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "narrow": {"color_scheme": "light", "viewport": {"width": 390, "height": 800}},
}

RULES = {  # all else is as in the light, and on a desk
    "dark": {"runOnly": ["color-contrast", "link-in-text-block"]},
    "narrow": {"runOnly": ["color-contrast", "scrollable-region-focusable", "meta-viewport"]},
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return explorer_results.site(tmp_path_factory.getbasetemp())


@contextmanager
def served(site, commands=None):
    """The site on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = explorer.app(site, commands)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def address(site):
    """The site, each page of it made once: it is the same in every look."""
    made: dict[str, explorer.View] = {}

    def once(*asked, make=_pages.make):
        key = str(asked[1:])
        if asked[1].startswith(("job", "probe")):  # these change while jobs run
            return make(*asked)
        return made[key] if key in made else made.setdefault(key, make(*asked))

    with pytest.MonkeyPatch.context() as patch, served(site) as there:
        patch.setattr(_pages, "make", once)
        yield there


@pytest.fixture(scope="module")
def chromium():
    if not CHROMIUM.exists():
        missing = f"needs Chromium: there is no {CHROMIUM}; apt-get install chromium, or set CHROMIUM to another"
        assert "BROWSER_TESTS" not in os.environ, missing
        pytest.skip(missing)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(chromium, **given):
    """A page in a context of its own; whatever it says on the console is an error."""
    context, said = chromium.new_context(**given), []
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.on("console", lambda message: said.append((page.url, message.text)))
    page.on("pageerror", lambda error: said.append((page.url, str(error))))
    yield page
    context.close()
    there = [(url, text) for url, text in said if "404" not in text]  # of the page that is not there
    assert not there, there


def violations(page, options):
    """What axe finds: rule -> the beginnings of elements that break it."""
    broken = axe.Axe().run(page, options=options).response["violations"]
    return {one["id"]: [node["html"][:120] for node in one["nodes"][:2]] for one in broken}


@pytest.mark.parametrize("look", LOOKS)
def test_pages_are_accessible_and_fit(chromium, address, look):
    found: dict[tuple[str, str], object] = {}
    with opened(chromium, **LOOKS[look]) as page:
        for path in PAGES:
            page.goto(f"{address}/{path}")
            found |= {(path, rule): where for rule, where in violations(page, RULES.get(look, {})).items()}
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if wide > 0:
                found[path, "wider than the window"] = wide
    assert not found, "\n".join(map(str, found.items()))


def test_from_a_word_to_what_made_it_and_back(chromium, address):
    with opened(chromium, **LOOKS["light"]) as page:
        page.goto(f"{address}/run.html")
        page.keyboard.press("/")
        page.keyboard.type("t0w")
        page.locator(".found a").first.wait_for()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.wait_for_url("**/token/*.html")
        for kind in ("datum", "step", "neuron"):
            page.locator(f'main a[href*="{kind}/"]:visible').first.click()
            page.wait_for_url(f"**/{kind}/*.html*")
            assert page.locator("h1").inner_text()
        for kind in ("step", "datum", "token"):
            page.go_back()
            page.wait_for_url(f"**/{kind}/*.html*")


def attend(page):
    """Another query and another snapshot by hand; what is drawn then."""
    words = page.locator(".attention [data-place]")

    def drawn():
        return page.evaluate(
            "[...document.querySelectorAll('[data-place]')].map((x) => x.style.getPropertyValue('--v'))"
        )

    first = drawn()
    page.locator('.attention input[type="range"]').focus()
    page.keyboard.press("Home")
    assert page.locator(".attention output").inner_text() == "0"
    assert drawn() != first
    words.nth(2).locator("a").or_(words.nth(2)).first.click()
    assert page.locator(".attention .query").get_attribute("data-place") == "2"
    depths = [float(depth) for depth in drawn()]
    assert not any(depths[3:]) and any(depths[:3])  # what comes later is not seen
    return depths


def test_attention_by_hand(chromium, address, site):
    with opened(chromium, **LOOKS["light"]) as page:
        page.goto(f"{address}/head/1.1.html?valid=1")
        expected = explorer.attention(site, "1.1", "valid", 1)[0, 2].sqrt()
        assert attend(page) == pytest.approx(expected.tolist(), abs=0.01)
        assert page.url.endswith("head/1.1.html?valid=1")


def test_without_a_script_pages_are_whole(chromium, address):
    with opened(chromium, java_script_enabled=False) as page:
        page.goto(f"{address}/head/1.1.html?valid=1")
        page.locator(".snapshots a").first.click()
        assert "snapshot=0" in page.url and page.locator(".grid img").is_visible()
        page.locator('[data-place="4"] a').click()
        assert "query=4" in page.url and page.locator(".query").get_attribute("data-place") == "4"
        page.goto(f"{address}/run.html")
        page.locator(".search input").fill("t0w")
        page.keyboard.press("Enter")
        page.wait_for_url("**/search.html?q=t0w")
        assert page.locator("main a").count()


def test_a_course_tells_its_values_and_leads_to_steps(chromium, address):
    with opened(chromium, **LOOKS["light"]) as page:
        page.goto(f"{address}/run.html")
        chart = page.locator(".hover").first
        chart.scroll_into_view_if_needed()
        box = chart.locator("svg").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert chart.locator(".told").inner_text().startswith("step ")
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_url("**/step/*.html")


def test_an_export_works_from_files_without_a_network(chromium, site, tmp_path):
    explorer.export(site, tmp_path / "pages", 40)
    with opened(chromium, offline=True, **LOOKS["light"]) as page:
        page.goto((tmp_path / "pages" / "index.html").as_uri())
        page.locator('a[href="run.html"]').click()
        page.wait_for_url("**/run.html")
        page.keyboard.press("/")
        page.keyboard.type("head 1.1")
        page.locator(".found a").first.wait_for()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.wait_for_url("**/head/1.1.html")
        attend(page)
        assert not violations(page, {"preload": False})  # no file may be read by a script


def test_a_probe_is_started_watched_and_found(chromium, site, tmp_path):
    shutil.copytree(site.folder, tmp_path / "results")
    own, probe = explorer.open(site.run.path, tmp_path / "results"), "norm:layers.1.linear2.weight:3"
    commands = explore.commands(explore.Settings(own.run.path, out=own.folder))
    with served(own, commands) as address, opened(chromium, **LOOKS["light"]) as page:
        page.goto(f"{address}/jobs.html?job=ledger")
        form = page.locator("form.job").first
        form.locator('[name="probe"]').fill(probe)
        form.locator('[name="start"]').fill("12")
        form.locator('[name="stop"]').fill("15")
        form.locator("button").click()
        page.get_by_role("button", name="Start", exact=True).click()
        page.wait_for_url("**/job/*.html")
        page.wait_for_selector("[data-events]", state="detached", timeout=45_000)
        page.goto(f"{address}/probe/norm-layers.1.linear2.weight-3.html")
        assert "norm:layers.1.linear2.weight:3" in page.locator("main").inner_text()
        assert page.locator('main a[href*="datum/"]').count()
