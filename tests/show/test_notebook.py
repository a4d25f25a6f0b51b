"""What objects look like in a notebook: well-formed, what they hold is said, foreign words are text."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from run_builders import PLANTED, recorded

import devinterp_func as dif
from devinterp_func import credit, neurons, records, units
from devinterp_func.credit import patterns
from devinterp_func.records import Recording
from devinterp_func.show import notebook, page, words
from devinterp_func.text import Vocab
from devinterp_func.training import Recipe

VOID = {"br", "hr", "img", "polyline"}
HOSTILE = ["<script>alert(1)</script>", "$x$", '"quoted"', "a\x1b[31m", "\ud800", "</style>", "&lt;"]


class Parsed(HTMLParser):
    """The text of a piece of HTML whose tags must close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data + " "


def said(value, vocab=None):
    """The words of a value's HTML, which is sound: closed, with no script, nothing from elsewhere, and can be sent."""
    html = notebook.html(value, vocab)
    html.encode()
    parsed = Parsed(html)
    assert not {"script", "link", "img", "iframe"} & set(parsed.tags) and "@import" not in html and "url(" not in html
    assert html.startswith('<div class="devinterp"><style>.devinterp ')
    return re.sub(r"\s+", " ", parsed.text)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An object of every type, by its name."""
    recipe = Recipe(context=10, batch_size=4, n_steps=4, lr=1.0)
    run = recorded(tmp_path_factory.mktemp("runs") / "run", recipe, Recording(k=9, snapshot_every=2))
    moves = list(run.moves(captured=units.EVERY))
    tokens = run.data.tokens[:5]
    pattern = patterns.previous_token(tokens)
    probe = credit.probes.attention(run.graph, (tokens,), pattern, 0, 1)
    lives = credit.split_lifetimes(moves, [probe])
    tally = neurons.tally(run.shards(), run.data, run.shapes, run.graph.vocab_size)
    neuron = max(tally.groups, key=lambda neuron: int(tally.outliers[tally.row(neuron)]))
    assert isinstance(neuron, neurons.Neuron)
    window = credit.window(run, 0, 4)
    start = credit.Window(run.graph, window.params, window.state, run.data, run.recipe, 0, 4)
    step = records.read(run, 3)
    found = [
        run,
        run.graph,
        run.curve(),
        moves[1],
        step,
        step.outliers,
        tally,
        neurons.card(run.graph, run.params(), run.data, tally, neuron, key=0, n_data=8),
        neurons.Excerpt(3, 1, (1, 2), 3, 4, (5,), (True, False)),
        words.Excerpt(("a",), "b", "c", ("d",), (True, True)),
        credit.split_change(moves[1], [probe, probe]),
        lives,
        lives.books(),
        credit.window_influences(start, [probe]),
        patterns.attention(run.graph, run.params(), (tokens,), pattern),
    ]
    return {type(value): value for value in found}


def test_every_type_is_shown(made):
    assert set(made) == set(notebook.shown_types())


@pytest.mark.parametrize("kind", notebook.shown_types(), ids=lambda kind: kind.__name__)
def test_html_is_sound_with_ids_and_with_words_and_equal_for_equal_values(kind, made):
    for vocab in (None, PLANTED.vocab):
        assert len(said(made[kind], vocab)) > 5
        assert notebook.html(made[kind], vocab) == notebook.html(made[kind], vocab)


def test_steps_and_moves_say_their_numbers(made):
    step, move = made[records.StepRecord], made[dif.training.Move]
    for text, losses in ((said(step), step.loss), (said(move), move.losses)):
        assert page.shown(float(losses.mean())) in text
    largest = int(step.outliers.delta.abs().argmax())
    assert f"{page.shown(int(step.outliers.parameter.flatten()[largest]))} " in said(step)
    shares = move.split.sizes().shares()[0, 0]
    assert f"embedding.weight {float(shares):.2f}"[:20] in said(move)


def test_books_are_the_ledgers(made):
    entries = made[credit.Entries]
    text = said(entries)
    for amount in (entries.before[0], entries.after[0], entries.credit[0].sum(), entries.past[0]):
        assert f" {page.shown(float(amount))} " in text
    visits = entries.credit[1].sum(-1)
    best = int(visits.abs().argmax())
    first = text[text.index("Probe 1:") :].split("most at position")[1].split()
    position = int(entries.credit[1, best].abs().argmax())
    assert first[:2] == [str(int(entries.step)), page.shown(int(entries.datum[best]))]
    assert int(first[3]) == position


def test_a_run_and_its_graph_say_their_sizes(made):
    run = next(value for kind, value in made.items() if kind is records.Run)
    assert f"parameters of {len(run.shapes)} units" in said(run) and "SGD" in said(run)
    text = said(run.graph)
    assert all(f" {unit} " in text for unit in list(run.graph.shapes)[:20])
    assert f"(20 of {len(run.graph.shapes)})" in text


def test_tallies_and_cards_are_in_words_where_there_are_some(made):
    tally, card = made[neurons.Tally], made[neurons.Card]
    row = int(tally.outliers.argmax())
    target = int(tally.target[row].argmax())
    assert f"{tally.groups[row]} {int(tally.outliers[row])} " in said(tally)
    assert f" {PLANTED.vocab.tokens[target]} " in said(tally, PLANTED.vocab) and f" {target} " in said(tally)
    assert str(card.neuron) in said(card) and "Control: random data" in said(card)
    shown = notebook.in_words(tally, PLANTED.vocab)
    assert shown._repr_html_() == notebook.html(tally, PLANTED.vocab) and repr(shown) == repr(tally)


@given(st.lists(st.text(max_size=6) | st.sampled_from(HOSTILE), min_size=4, max_size=4))
@example(HOSTILE[:4])
@example(HOSTILE[3:])
def test_foreign_words_are_text(tokens):
    before, marked, beside, following = tokens
    text = words.Excerpt((before,), marked, beside, (following,))
    said(text)
    plain = said(words.Excerpt(("x",), "<b>&amp;", "$y$", ("z",)))
    assert plain.split() == ["x", "(", "<b>&amp;", "→", "$y$", ")", "z"]


def test_hostile_vocabularies_are_text(made):
    n = len(PLANTED.vocab)
    hostile = Vocab(("<unk>", *(f"{HOSTILE[i % len(HOSTILE)]}{i}" for i in range(1, n))))
    for kind in (neurons.Tally, neurons.Card, neurons.Excerpt):
        said(made[kind], hostile)
    assert "<script>" in said(made[neurons.Tally], Vocab(("<unk>", *(f"<script>{i}" for i in range(1, n)))))


def test_a_tally_or_a_curve_of_nothing_is_shown(made):
    tally = made[neurons.Tally]
    assert "outliers 0 " in said(tally._replace(outliers=tally.outliers * 0, target=tally.target * 0))
    nan = torch.full((3,), torch.nan)
    assert "nan to nan" not in said(records.Curve(torch.tensor([1.0, torch.nan, 0.5]), *[nan] * 4))


def test_what_is_unknown_is_refused_with_what_is_known():
    with pytest.raises(TypeError, match="a dict is not shown in notebooks; what is: Run, .*Card, "):
        notebook.html({})


def test_the_root_knows_where_the_types_are():
    assert sorted((kind.__module__, kind.__name__) for kind in notebook.shown_types()) == sorted(
        (f"devinterp_func.{module}", name) for module, names in dif.SHOWN.items() for name in names
    )


def test_other_notebooks_ask_the_objects_themselves(made):
    assert all(value._repr_html_() == notebook.html(value) for value in made.values())


IPYTHON = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.display_formatter.active_types = ["text/plain", "text/html"]
import devinterp_func as dif
assert "torch" not in sys.modules and "devinterp_func.show" not in sys.modules
from devinterp_func.show import words
excerpt = words.Excerpt(("<i>",), "b", "c", ())
assert "devinterp_func.show.notebook" not in sys.modules
data, _ = shell.display_formatter.format(excerpt)
assert data["text/html"].startswith('<div class="devinterp">') and "&lt;i&gt;" in data["text/html"], data
assert data["text/plain"].startswith("Excerpt(before=('<i>',)")
assert set(shell.display_formatter.format(3)[0]) == {"text/plain"}
"""


def test_a_real_shell_shows_html_and_imports_nothing_before():
    pytest.importorskip("IPython")
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", IPYTHON], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "")
