"""Laws of the report: all that is given is in it, escaped; it is whole HTML, needs nothing else, is reproducible."""

import math
import re
from html.parser import HTMLParser

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from devinterp_func.show import drawing, page, plots, schema
from devinterp_func.show.page import Card, Chip, Excerpt, Section, Word
from devinterp_func.text import Vocab

some = settings(max_examples=60, deadline=None)

HOSTILE = "<script>alert(1)</script> & \"double\" 'single' {{ 7 * 7 }} </td></table>"
VOID = {"meta", "input", "br", "link", "img"}
ATTRIBUTES = {
    *(
        "alt",
        "aria-label",
        "charset",
        "class",
        "content",
        "for",
        "hidden",
        "href",
        "http-equiv",
        "id",
        "lang",
        "name",
        "role",
    ),
    *("scope", "style", "tabindex", "title", "type"),
    *("viewbox", "d", "x", "y", "width", "height", "transform", "clip-path", "clippathunits"),
}
SCALARS = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=12) | st.floats()


class Parsed(HTMLParser):
    """A document's tags, attributes and text; refuses tags that do not close in order."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(str(html))
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open}"
        self.open.pop()

    def handle_data(self, data):
        self.text += data
        if "td" in self.open:
            self.cells[-1] += data


def curve():
    return plots.lines({HOSTILE: (torch.arange(4), torch.arange(4.0))}, HOSTILE)


def example(word: str = HOSTILE) -> str:
    """A page with every block, the word in every place that takes one."""
    frame = pl.DataFrame({word: [word, "b"], "x": [0.5, None], "list": [[word], []], "y": [1.0, 0.0]})
    text = Excerpt([Word(word, 0.5), Word(word, -1.0), Word(word), Word(word, after=word)], word)
    card = Card(word, {word: word}, [Chip(word, True, word), Chip(word)], [text], frame, frame)
    blocks = [
        page.table(frame, word, {"x": ".1%"}, {"x": word}, controls=["y"], bars=["y"], fold=1),
        page.figure(curve(), word, word, curve()),
        page.facts({word: word, "n": (3, word)}),
        page.excerpts([text], word),
        page.cards([card], (word, word)),
        page.note(word),
        page.details(word, page.note(word)),
    ]
    return page.page(word, word, [Section(word, word, blocks), Section(word, "", [])])


# ---- the whole


def test_hostile_words_are_only_words():
    parsed = Parsed(example())
    assert not {tag for tag, _ in parsed.tags} & {"script", "iframe", "object", "link", "img", "base"}
    assert {name for _, attributes in parsed.tags for name in attributes} <= ATTRIBUTES
    shown = re.sub(r"\s+", " ", parsed.text)
    assert shown.count(HOSTILE) >= 20
    assert "{{ 49 }}" not in shown


@some
@given(st.text(max_size=20))
def test_any_text_gives_whole_html(word):
    frame = pl.DataFrame({"w": [word]})
    text = Excerpt([Word(word, 0.1, after=word)], word)
    blocks = [page.table(frame, word), page.excerpts([text]), page.note(word), page.facts({"f": word})]
    html = page.page(word, word, [Section(word, word, blocks)])
    Parsed(html)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", html)


def test_nothing_is_loaded_from_elsewhere():
    html = example("[link](https://example.org) `code`")
    for tag, attributes in Parsed(html).tags:
        assert not {"src", "srcset", "data", "action", "poster"} & attributes.keys()
        target = attributes.get("href") or "#"
        assert target.startswith(("#", "https://example.org") if tag == "a" else ("#", "data:image/png"))
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*[\"']?([^)]*)", html))
    assert "@import" not in html and "default-src 'none'" in html


def test_equal_input_gives_an_equal_file():
    assert example() == example()


def test_ids_are_unique_and_every_reference_resolves():
    html = example("same title")
    ids = [attributes["id"] for _, attributes in Parsed(html).tags if "id" in attributes]
    wide, narrow = ids.count("same-title"), ids.count("same-title-2")
    assert (wide, narrow) == (1, 1)
    references = set(re.findall(r'(?:href="|url\()#([^")]+)', html))
    assert references <= set(ids)


def test_different_figures_share_no_ids():
    lines = [plots.lines({"a": (torch.arange(3), torch.arange(3.0) * i)}, "y") for i in (1, 2)]
    html = page.page("t", "s", [Section("f", "", [page.figure(line, "", "alt") for line in lines])])
    ids = [attributes["id"] for _, attributes in Parsed(html).tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 3


def test_both_themes_are_there():
    html = page.page("t", "s", [])
    light, dark = html.split("prefers-color-scheme: dark", 1)
    for name in drawing.LIGHT:
        assert f"--{name}: {drawing.LIGHT[name]}" in light and f"--{name}: {drawing.DARK[name]}" in dark


def test_only_markup_stands_unescaped_among_the_blocks():
    html = page.page("t", "s", [Section("a", "", ["<b>text</b>", Markup("<i>html</i>")])])  # type: ignore[list-item]
    assert "&lt;b&gt;text&lt;/b&gt;" in html and "<i>html</i>" in html


# ---- tables


@some
@given(st.lists(st.tuples(SCALARS.filter(lambda v: not isinstance(v, str)), st.text(max_size=12)), max_size=6))
def test_every_value_is_in_its_cell(pairs):
    frame = pl.DataFrame({"any": [page.shown(v) for v, _ in pairs], "word": [w for _, w in pairs]})
    html = page.table(frame, fold=None)
    expected = [text for row in frame.rows() for text in row]
    assert [cell.replace("\r", "\n") for cell in Parsed(html).cells] == [text.replace("\r", "\n") for text in expected]
    assert all(str(Markup.escape(word)) in html for _, word in pairs)
    if not pairs:
        assert "No rows." in html and "<table" not in html


@some
@given(st.lists(st.floats(-1e12, 1e12, allow_subnormal=False), min_size=1, max_size=6))
def test_a_column_of_numbers_keeps_three_digits_of_its_largest(values):
    cells = Parsed(page.table(pl.DataFrame({"x": values}, schema={"x": pl.Float64}))).cells
    largest = max(map(abs, values))
    for cell, value in zip(cells, values, strict=True):
        assert number(cell) == pytest.approx(value, rel=0.06, abs=0.0051 * largest)


def test_a_column_of_like_numbers_has_like_decimals():
    assert Parsed(page.table(pl.DataFrame({"x": [0.5, 12.25, 3.0]}))).cells == ["0.5", "12.2", "3.0"]
    assert Parsed(page.table(pl.DataFrame({"p": [1e-12, 0.25, 0.0]}))).cells == ["1.0×10⁻¹²", "0.250", "0"]


def test_missing_values_are_dashes_and_lists_are_chips():
    frame = pl.DataFrame({"x": [None, math.nan], "l": [["a", "b"], []], "b": [True, False], "i": [-1234, None]})
    html = page.table(frame)
    assert [cell.split() for cell in Parsed(html).cells] == [["–"], ["a", "b"], ["✓"], ["−1,234"], ["–"], [], [], ["–"]]
    assert html.count('class="chip"') == 2


def test_formats_tips_controls_and_bars():
    frame = pl.DataFrame({"p": [0.25], "q": [-0.25], "n": [3]})
    formats: dict[str, page.Format] = {"p": ".0%", "q": ".1%", "n": lambda n: "*" * n}
    html = page.table(frame, "Caption", formats, {"p": "share of <all>"}, controls=["q"], bars=["p"])
    parsed = Parsed(html)
    assert parsed.cells == ["25%", "−25.0%", "***"]
    classes = [attributes.get("class") for tag, attributes in parsed.tags if tag == "td"]
    assert classes == ["number", "number control", "number"]
    assert 'title="share of &lt;all&gt;"' in html and "--share:0.250" in html
    assert "What the columns mean" in html


def test_long_tables_are_folded_so_that_a_search_finds_what_is_hidden():
    frame = pl.DataFrame({"x": range(50)})
    folded, whole = page.table(frame, fold=10), page.table(frame, fold=None)
    assert folded.count('<tr class="rest">') == folded.count('<td class="number"><div hidden="until-found">') == 40
    assert "all 50 rows" in folded and "display: none" not in folded
    assert 'class="rest"' not in whole and "checkbox" not in whole and "hidden" not in whole
    assert Parsed(folded).cells == Parsed(whole).cells == [str(i) for i in range(50)]


@pytest.mark.parametrize("argument", ["formats", "tips", "controls", "bars"])
def test_a_column_that_is_not_there_is_named(argument):
    with pytest.raises(ValueError, match=f"{argument} names the column 'z'; the frame has x, y"):
        page.table(pl.DataFrame({"x": [1], "y": [2]}), **{argument: {"z": "z"}})  # type: ignore[arg-type]


def test_no_rule_hides_rows_from_a_search():
    html = page.page("t", "s", [])
    rules = re.findall(r"([^{}]*)\{([^{}]*)\}", html.split("<style>")[1].split("</style>")[0])
    assert not [selector for selector, rule in rules if "rest" in selector and "display: none" in rule]
    assert "content-visibility: visible" in html


def test_long_lists_show_their_first_chips_and_hide_the_others_where_a_search_finds_them():
    html = page.table(pl.DataFrame({"l": [list(range(24)), list(range(11))]}))
    short, rest = html.index("<details"), html.index("</details>")
    assert "14 more" in html and html.count("<details") == 1  # eleven are not worth hiding one
    assert html[:short].count('class="chip"') == 10 and html[short:rest].count('class="chip"') == 14
    assert Parsed(html).cells[0].split() == [*map(str, range(10)), "14", "more", *map(str, range(10, 24))]


def test_columns_of_long_texts_are_wide():
    texts = {"s": "x" * 24, "a": "x" * 60, "b": "x" * 61}
    html = page.table(pl.DataFrame({name: [text, None] for name, text in texts.items()} | {"n": [1, 2]}))
    looks = [attributes.get("class") for tag, attributes in Parsed(html).tags if tag == "th"]
    assert looks == ["", "middle", "long", "number"]


def test_a_text_of_more_than_three_lines_is_clamped_and_opens():
    html = page.table(pl.DataFrame({"a": ["x " * 55, "y " * 56]}))
    assert html.count('<details class="cell">') == 1
    assert [cell.strip() for cell in Parsed(html).cells] == [("x " * 55).strip(), ("y " * 56).strip()]
    assert html.index("x x") < html.index("<details") < html.index("y y") < html.index("</summary></details>")
    assert "-webkit-line-clamp: 3" in page.page("t", "s", [])


@some
@given(st.lists(st.lists(st.integers(1, 70), max_size=20), min_size=1, max_size=3))
def test_chips_take_three_lines_and_the_others_open(lists):
    html = page.table(pl.DataFrame({"l": [["x" * n for n in sizes] for sizes in lists]}, {"l": pl.List(pl.String)}))
    wide = any(len(sizes) >= 5 or any(n + 2.5 > 23 for n in sizes) for sizes in lists)
    line = 41 if wide else 23
    assert ("many" in html) == wide
    for cell, sizes in zip(html.split("<td")[1:], lists, strict=True):
        first, _, rest = cell.partition("<details")
        n = first.count('class="chip"')
        assert n + rest.count('class="chip"') == len(sizes) and (n or not sizes)
        assert lines_of(sizes[:n], line) <= (2 if rest else 3) or n == 1  # one that is longer stands by itself


def lines_of(sizes, line):
    """Lines that chips take, each on the line before as long as it fits there."""
    lines, left = 0, 0.0
    for size in (n + 2.5 for n in sizes):
        if lines and size <= left:
            left -= size
        else:
            own = math.ceil(size / line)
            lines, left = lines + own, own * line - size
    return lines


@pytest.mark.parametrize(
    ("value", "format_", "written"),
    [
        (0.0, "p", "< 10⁻³⁰⁰"),
        (1e-310, "p", "< 10⁻³⁰⁰"),
        (3e-12, "p", "3.0×10⁻¹²"),
        (0.05, "p", "0.0500"),
        (1.0, "p", "1.00"),
        (0.0003, ".1%", "< 0.1%"),
        (-0.0003, ".1%", "> −0.1%"),
        (0.0, ".1%", "0.0%"),
        (0.0006, ".1%", "0.1%"),
        (0.004, ".2f", "< 0.01"),
        (-0.00001, "+.3f", "> −0.001"),
        (0.00001, "+.3f", "< +0.001"),
        (1e-9, ".1e", "1.0e−09"),
    ],
)
def test_what_is_not_0_is_never_written_as_0(value, format_, written):
    assert Parsed(page.table(pl.DataFrame({"x": [value]}), formats={"x": format_})).cells == [written]


def test_a_typed_table_is_in_words_with_its_meanings_formats_and_controls():
    columns = {
        "neuron": schema.Column(schema.NAME),
        "token": schema.token("the token"),
        "notable": schema.tokens(),
        "p": schema.Column(schema.FLOAT, "by chance", format="p", control=True),
    }
    kind = schema.Table("A caption.", "ablate.py", columns)
    rows = [{"neuron": "a", "token": 2, "notable": [1, 2], "p": 0.0}, dict.fromkeys(columns)]
    frame, vocab = schema.frame(kind, rows), Vocab(("<unk>", "new", "york"))
    html = page.typed_table(frame, kind, vocab)
    assert [cell.split() for cell in Parsed(html).cells[:4]] == [["a"], ["york"], ["new", "york"], ["<", "10⁻³⁰⁰"]]
    assert Parsed(html).cells[4:] == ["–"] * 4 and "A caption." in html
    looks = [(attributes.get("class"), attributes.get("title")) for tag, attributes in Parsed(html).tags if tag == "th"]
    assert [look for look, _ in looks] == ["", "", "", "number control"]
    assert 'title="the token"' in html and 'title="by chance"' in html
    part = page.typed_table(frame.with_columns(more=pl.lit("x")), kind, vocab, "Other.", ["token", "more"], fold=1)
    assert Parsed(part).cells == ["york", "x", "–", "x"] and "Other." in part and "A caption" not in part
    assert 'class="rest"' in part and 'title="by chance"' not in part


# ---- colours


def linear(channel):
    return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4


def rgb(code):
    return [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def contrast(a, b):
    """WCAG's contrast of two sRGB colours."""
    weights = (0.2126, 0.7152, 0.0722)
    dark, light = sorted(sum(w * linear(c) for w, c in zip(weights, colour, strict=True)) for colour in (a, b))
    return (light + 0.05) / (dark + 0.05)


def over(colour, below, alpha):
    """A translucent colour on another."""
    return [alpha * c + (1 - alpha) * b for c, b in zip(colour, below, strict=True)]


def themes():
    """The colours of the page itself, light and dark, and how deep a token's background may be."""
    light, dark = page.page("t", "s", []).split("prefers-color-scheme: dark", 1)
    for css in (light.split(":root {")[1].split("}")[0], dark.split(":root {")[1].split("}")[0]):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", css))
        yield {name: rgb(code) for name, code in colours.items()}, float(re.findall(r"--depth: ([\d.]+);", css)[0])


def test_contrast_is_that_of_wcag():
    assert contrast(rgb("#000000"), rgb("#ffffff")) == pytest.approx(21)
    assert contrast(rgb("#777777"), rgb("#ffffff")) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_all_text_can_be_read(theme):
    colours, depth = list(themes())[theme]
    paper, ink, muted = colours["paper"], colours["ink"], colours["muted"]
    assert 0.4 < depth < 1
    for mark in ("blue", "vermillion"):  # the deepest background of a token
        assert contrast(ink, over(colours[mark], paper, depth)) >= 4.5
    assert contrast(ink, paper) >= 7 and contrast(muted, paper) >= 4.5
    assert contrast(muted, over(ink, paper, 0.04)) >= 4.5  # a control's cell
    assert contrast(ink, over(colours["blue"], paper, 0.22)) >= 4.5  # a flipped token


def test_the_depth_is_what_the_rules_go_by():
    css = page.page("t", "s", [])
    assert css.count("calc(100% * var(--depth) * var(--v))") == 2


# ---- other blocks


@some
@given(st.floats(-1e300, 1e300, allow_subnormal=False))
def test_a_number_is_written_to_half_a_unit_of_its_digits(value):
    assert number(page.shown(value)) == pytest.approx(value, rel=0.051)
    if 1e-4 <= abs(value) < 1e7:
        assert number(page.shown(value)) == pytest.approx(value, rel=0.0051)


@some
@given(st.text("ab `[]()<&>\n:/.https", max_size=40))
def test_prose_keeps_every_word(text):
    parsed = Parsed(page.prose(text))
    assert {tag for tag, _ in parsed.tags} <= {"p", "code", "a"}
    if not re.search(r"[`\[]", text):
        assert "".join(parsed.text.split()) == "".join(text.split())


def test_prose_has_code_links_and_paragraphs():
    html = page.prose("Zero `w < 1`.\n\nSee [the post](https://example.org/a?b) and [this](javascript:alert).")
    assert html == (
        "<p>Zero <code>w &lt; 1</code>.</p>"
        '<p>See <a href="https://example.org/a?b">the post</a> and [this](javascript:alert).</p>'
    )


def test_excerpts_show_values_and_changes():
    html = page.excerpts([Excerpt([Word("up", 0.5), Word("down", -0.25), Word("a", after="b")], "datum 3")])
    assert 'class="plus" style="--v:0.50"' in html and 'class="minus" style="--v:0.25"' in html
    assert re.sub(r"\s+", " ", Parsed(html).text).strip() == "up down ( a | b ) datum 3"


@pytest.mark.parametrize("value", [1.5, -2.0, math.nan])
def test_a_value_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match=r"the value of 'w' is .*; it must be in \[-1, 1\]"):
        page.excerpts([Excerpt([Word("w", value)])])


def test_cards_show_the_control_beside_the_flips():
    flips, control = pl.DataFrame({"token": ["york"]}), pl.DataFrame({"token": ["none"]})
    html = page.cards([Card("w:96", {"n": 12345}, [Chip("york", True), Chip("new")], (), flips, control)])
    parsed = Parsed(html)
    assert parsed.cells == ["york", "none"]
    assert html.index("Flips on attributed data") < html.index("Control: random data")
    assert html.count('class="chip flipped"') == 1 and "12,345" in html


@pytest.mark.parametrize(
    "block, message",
    [
        (page.cards([]), "No neurons."),
        (page.excerpts([]), "No excerpts."),
        (page.facts({}), "No facts."),
        (page.cards([Card("w:0", flips=pl.DataFrame({"token": []}))]), "No rows."),
        (Markup(page.page("t", "s", [])), "This report has no sections."),
    ],
)
def test_nothing_is_said_to_be_nothing(block, message):
    assert message in Parsed(block).text


def number(text: str) -> float:
    """What a person reads in a number."""
    text = text.replace("−", "-").replace(",", "")
    if "×10" in text:
        digits, power = text.split("×10")
        return float(digits) * 10.0 ** int(power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")))
    return float(text)
