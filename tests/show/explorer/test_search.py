"""Whatever there is, its name finds it; whatever is found, there is; nothing a reader types breaks the search."""

import explorer_sites
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_builders import same_bits
from starlette.testclient import TestClient

from devinterp_func import units
from devinterp_func.show import explorer
from devinterp_func.show._written import literal
from devinterp_func.show.explorer import _pages, _search

WORDS = explorer_sites.CORPUS.vocab.tokens

ODD = ["c", "12", "linear", ":", "\ud800", "٣", "1__", "head 9.9", "9" * 30]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return explorer_sites.site(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    return explorer_sites.site_of_numbers(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def client(site):
    return TestClient(explorer.app(site), base_url="http://127.0.0.1:8000")


def addresses(hits):
    return [hit.address for hit in hits]


@given(st.data())
@settings(max_examples=30)
def test_a_neuron_is_found_by_its_name_and_by_its_label_first(site, numbers, data):
    where = data.draw(st.sampled_from([site, numbers]))
    neuron = data.draw(st.sampled_from(where.groups[data.draw(st.sampled_from(["in", "out"]))].members))
    tail = f":{neuron.index}" + (":out" if neuron.axis == "out" else "")
    for asked in (str(neuron), units.label(neuron.unit) + tail, f"  {neuron} "):
        assert explorer.search(where, asked)[0].address == explorer.path("neuron", neuron)
    short = f"{units.kind(neuron.unit)} {neuron.index}"
    found = addresses(explorer.search(where, short, most=1000))
    assert explorer.path("neuron", neuron) in found


@given(st.sampled_from(WORDS))
@settings(max_examples=30)
def test_a_token_is_found_by_its_word_first_and_by_its_parts(site, word):
    id = WORDS.index(word)
    if word == word.strip():
        assert explorer.search(site, word)[0].address == explorer.path("token", id)
    part = word.lower()[: max(1, len(word) // 2)].strip()
    found = [hit for hit in explorer.search(site, part, most=1000) if hit.group == "Tokens"]
    assert {hit.address for hit in found} == {
        explorer.path("token", i) for i, other in enumerate(WORDS) if part and part in other.lower()
    }
    ranks = [hit.rank for hit in found]
    assert ranks == sorted(ranks)


@given(st.data())
@settings(max_examples=30)
def test_words_of_a_text_find_every_datum_with_them(site, data):
    tokens, targets = (part.tolist() for part in site.run.data)
    texts = [row + last[-1:] for row, last in zip(tokens, targets, strict=True)]
    row = data.draw(st.sampled_from(texts))
    start = data.draw(st.integers(0, len(row) - 2))
    ids = row[start : data.draw(st.integers(start + 2, len(row)))]
    wanted = [
        [i, at]
        for i, text in enumerate(texts)
        for at in range(len(text) - len(ids) + 1)
        if text[at:][: len(ids)] == ids
    ]
    assert _search.with_run(site.run.data, ids).tolist() == wanted
    words = [WORDS[id] for id in ids]
    if all(word.split() == [word] for word in words) and len(" ".join(words)) <= _search.LONGEST:
        found = [hit.address for hit in explorer.search(site, " ".join(words), most=1000) if hit.group == "Texts"]
        assert found == list(dict.fromkeys(explorer.path("datum", i) for i, _ in wanted))[:100]


@given(st.integers(0, 300))
@settings(max_examples=30)
def test_a_number_is_all_that_it_could_be(site, number):
    stops = {"step": site.n_steps, "datum": site.run.n_data, "token": len(WORDS)}
    found = addresses(explorer.search(site, str(number), most=1000))
    for kind, stop in stops.items():
        there = number < stop
        assert (explorer.path(kind, number) in found) == there or (kind == "token" and str(number) in WORDS[number])
        named = explorer.search(site, f"{kind} {number:,}")
        assert not there or addresses(named) == [explorer.path(kind, number)]


def test_heads_pages_and_hostile_words(site, numbers):
    assert addresses(explorer.search(site, "head 1.1")) == ["head/1.1.html"]
    assert explorer.search(site, "0.1")[0].address == "head/0.1.html"
    assert "head/0.9.html" not in addresses(explorer.search(site, "0.9"))
    assert _search.heads(numbers) == [] and len(_search.heads(site)) == 4
    assert "neurons.html" in addresses(explorer.search(site, "neurons"))
    assert explorer.search(site, "  ") == []


@given(
    st.one_of(
        st.text(max_size=300),
        st.sampled_from(WORDS),
        st.sampled_from(["c", "12", "linear", ":", "\ud800", "٣", "1__", "head 9.9"]),
    )
)
@settings(max_examples=60)
def test_whatever_is_asked_what_is_found_is_there(site, asked):
    hits = explorer.search(site, asked)
    assert hits == explorer.search(site, asked)
    for hit in hits:
        assert hit.text == literal(hit.text)
        hit.text.encode()
        kind, id = _pages.split(hit.address.partition("?")[0])
        if kind in ("datum", "step", "token"):
            assert int(id) < {"datum": site.run.n_data, "step": site.n_steps, "token": len(WORDS)}[kind]
    view = explorer.make(site, "search.html", {"q": asked})
    html = explorer.html(site, view, "search.html")
    html.encode()
    assert "<script>alert" not in html and "<img" not in html
    assert all(f'href="{hit.address}"' in html for hit in hits)
    assert bool(asked.strip()) == (len(view.panels) > 1) or not hits


def test_what_is_called_like_nothing_is_met_with_what_is_nearest(site):
    found = explorer.search(site, "t3w0x")
    assert {hit.group for hit in found} == {"Nearest"} and found[0].text.startswith("token t3w")


@pytest.mark.parametrize("asked", ["c0", "12", "linear1:3", "zzz\n'"])
def test_every_panel_is_what_its_lines_give(site, asked):
    _, *panels = explorer.make(site, "search.html", {"q": asked}).panels
    assert panels
    for panel in panels:
        assert same_bits(explorer.given(panel.python), panel.value)


@pytest.mark.parametrize("asked", ["c0", "12", "linear1:3", "<script>alert(1)</script>", "\x00"])
def test_the_server_suggests_the_same(site, client, asked):
    answer = client.get("/search.json", params={"q": asked})
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    hits = explorer.search(site, asked, 4)
    assert answer.json() == [[hit.text, hit.address, hit.group] for hit in hits]
    for hit in hits[:3]:
        page = client.get("/" + hit.address)
        assert page.status_code == 200 or "being written" in page.text
