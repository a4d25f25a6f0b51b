"""Laws of links: a name leads where it is said to, whatever it is made of; without a place it is the plain text."""

import re
from html.parser import HTMLParser

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devinterp_func.show import page, schema
from devinterp_func.show.page import Card, Chip, Excerpt, Section, Word
from devinterp_func.text import Vocab

some = settings(max_examples=60, deadline=None)
names = st.text(st.characters(exclude_categories=("Cc", "Cf", "Cn", "Cs")), max_size=12)  # what a page leaves as it is
HOSTILE = "<script>alert(1)</script> \"a\" 'b' </a> &"


class Anchors(HTMLParser):
    """Every link's address and text, and every id."""

    def __init__(self, html):
        super().__init__()
        self.links, self.ids, self.placeholders, self.inside = [], [], 0, False
        self.feed(str(html))
        self.close()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        if tag == "a":
            self.placeholders += "href" not in found
            self.links.append([found.get("href"), ""])
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "a"

    def handle_data(self, data):
        if self.inside:
            self.links[-1][1] += data


def told(kind, value):
    """An address that holds all it was asked for."""
    return f"{kind}.html?{value!r}"  # an address need not be quoted to be escaped


def body(html):
    return re.sub(r"<nav.*?</nav>", "", html, flags=re.DOTALL)


def links_of(blocks, links=None):
    return Anchors(body(page.page("t", "s", [Section("A", "", blocks)], links)))


@some
@given(st.lists(st.tuples(names, st.integers(0, 10**9)), min_size=1, max_size=4))
def test_names_in_tables_lead_where_it_is_said(rows):
    frame = pl.DataFrame(rows, {"neuron": pl.String, "datum": pl.Int64}, orient="row")
    kinds = ("neuron", "datum")
    addresses = [told(kind, value) for row in rows for kind, value in zip(kinds, row, strict=True)]
    texts = [text for name, n in rows for text in (name, f"{n:,}")]
    expected = [list(pair) for pair in zip(addresses, texts, strict=True)]
    assert Anchors(page.table(frame, links=told)).links == expected
    later = links_of([page.table(frame)], told)
    assert later.links == expected and not later.placeholders
    assert not links_of([page.table(frame)]).links


@some
@given(st.lists(names.filter(bool), min_size=1, max_size=4, unique=True), st.lists(names, max_size=4))
def test_a_neuron_leads_to_its_card_and_one_without_a_card_nowhere(shown, others):
    frame = pl.DataFrame({"neuron": [*shown, *others]}, {"neuron": pl.String})
    found = links_of([page.table(frame), page.cards([Card(name) for name in shown])])
    ids = [id for id in found.ids if id.startswith("neuron-")]
    assert len(ids) == len(set(ids)) == len(shown)
    address = dict(zip(shown, ids, strict=True))
    expected = [[f"#{address[name]}", name] for name in [*shown, *others] if name in address]
    assert found.links == expected + [[f"#{address[name]}", name] for name in shown]  # a card's title is a link to it
    beside = links_of([page.table(frame), page.cards([Card(name) for name in shown])], told)
    assert [link for link, _ in beside.links] == [told("neuron", name) for name in [*shown, *others, *shown]]


def test_tokens_are_asked_for_by_their_ids_and_shown_as_words():
    kind = schema.Table("", "", {"token": schema.token(), "all": schema.tokens(), "head": schema.Column(schema.NAME)})
    rows: list[dict[str, object]] = [
        {"token": 1, "all": [2, 1], "head": "0.1"},
        {"token": None, "all": [], "head": None},
    ]
    html = page.typed_table(schema.frame(kind, rows), kind, Vocab(("<unk>", "new", "york")), links=told)
    assert Anchors(html).links == [
        ["token.html?1", "new"],
        ["token.html?2", "york"],
        ["token.html?1", "new"],
        ["head.html?'0.1'", "0.1"],
    ]


def test_a_column_says_what_its_values_name_or_its_name_does():
    columns = {"steps": schema.Column(pl.List(pl.Int64), subject="step"), "at": schema.Column(schema.INT)}
    kind = schema.Table("", "", columns | {"neuron": schema.Column(schema.NAME)})
    frame = schema.frame(kind, [{"steps": list(range(12)), "at": 3, "neuron": "a:0"}])
    found = Anchors(page.typed_table(frame, kind, None, links=told)).links
    assert [link for link, _ in found] == [f"step.html?{t}" for t in range(12)] + ["neuron.html?'a:0'"]
    for name in ("neuron", "datum", "step", "head", "probe"):
        assert schema.subject(name) == name
    assert schema.subject("delta") is None and schema.subject("steps") is None


def test_a_column_of_another_type_names_nothing():
    frame = pl.DataFrame({"step": ["first", None], "neuron": [1, 2], "datum": [0.5, 1.0], "head": [None, None]})
    assert Anchors(page.table(frame, links=told)).links == []
    assert page.table(frame, links=told) == page.table(frame)


def test_hostile_names_are_text_and_never_an_address_of_their_own():
    frame = pl.DataFrame({"neuron": [HOSTILE], "probe": ['" onclick="x']})
    html = body(
        page.page("t", "s", [Section("A", "", [page.table(frame), page.cards([Card(HOSTILE + "\ud800")])])], told)
    )
    assert "<script" not in html and not re.search(r'onclick="', html)
    assert [tag for tag in re.findall(r"<a ([^>]*)>", html) if not re.fullmatch(r'href="[^"<>]*"', tag)] == []


def test_excerpts_and_chips_name_data_and_tokens():
    excerpt = Excerpt([Word("a")], page.source(7, ", attributed <twice>"))
    card = Card("a:0", tokens=[Chip(page.mention("token", 3, "<york>"))], excerpts=[excerpt])
    links = links_of([page.cards([card])], told).links
    assert links == [["neuron.html?'a:0'", "a:0"], ["token.html?3", "<york>"], ["datum.html?7", "datum 7"]]


def test_a_section_is_named_by_its_title():
    sections = [Section("A", "", [page.mention("section", "The B"), page.mention("section", "C")]), Section("The B")]
    found = Anchors(body(page.page("t", "s", sections)))
    assert found.links == [["#the-b", "The B"]] and "the-b" in found.ids


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("unit", "a", "the kind is 'unit'; it must be one of neuron, datum"),
        ("datum", "a", "the datum is 'a'; it must be a whole number"),
        ("step", True, "the step is True; it must be a whole number"),
        ("neuron", 3, "the neuron is 3; it must be a name"),
    ],
)
def test_what_cannot_be_named_is_refused(kind, value, message):
    with pytest.raises(ValueError, match=message):
        page.mention(kind, value)
