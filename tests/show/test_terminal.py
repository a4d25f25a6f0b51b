"""Laws of the terminal: nothing is lost on 80 columns, and foreign text is printed literally."""

import io
import itertools
import math
import os
import re
import subprocess
import sys

import polars as pl
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from devinterp_func.batches import Data
from devinterp_func.per_example import Outliers
from devinterp_func.records import Curve
from devinterp_func.show import _columns, terminal
from devinterp_func.text import Vocab

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
NAME = "layers.2.self_attn.out_proj.weight"
HOSTILE = [
    "run[lr=5,seed=0]",
    ":heart:",
    "[bold red]x[/bold red]",
    "a\\[b]",
    "[/]",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;t\x07",
    "a\u202eb",
    "a\u2066b",
    "\x9b31m",
]


def printed(thing, width=80):
    """What a person sees of a renderable, without colours."""
    stream = io.StringIO()
    Console(file=stream, width=width, emoji=False, color_system=None).print(thing)
    return stream.getvalue()


def squeezed(text):
    """The letters of a table without its folds, per column: cells' lines are joined."""
    return re.sub(r"\s+", "", text)


def cells(table):
    """The cells of a rich table, row by row."""
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    return list(zip(*columns, strict=True))


# ---- text is literal


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_printed_as_they_are(text):
    wanted = CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    stream = io.StringIO()
    terminal.say(text, Console(file=stream, emoji=False))
    assert stream.getvalue() == wanted + "\n"
    assert printed(terminal.plain(text)) == wanted + "\n"
    assert wanted in printed(terminal.rich_table(pl.DataFrame({text: [text]}), text))


@given(st.text(max_size=30))
@example("\\")
@example("[a]\\")
@example(":heart:[red]")
def test_any_text_comes_out_literally_and_obeys_nothing(text):
    stream = io.StringIO()
    terminal.say(text, Console(file=stream, emoji=False, width=200))
    assert not CONTROL.search(stream.getvalue())
    assert squeezed(stream.getvalue()) == squeezed(CONTROL.sub("\N{REPLACEMENT CHARACTER}", text))
    table = printed(terminal.rich_table(pl.DataFrame({"t": [text]}), width=1000), 200)
    assert not CONTROL.search(table)


def test_a_long_line_is_not_folded():
    stream = io.StringIO()
    terminal.say("/a" * 200, Console(file=stream, width=80))
    assert stream.getvalue() == "/a" * 200 + "\n"


# ---- tables


@given(
    st.lists(
        st.tuples(st.text("abc.:_ ", max_size=50), st.integers(-(10**12), 10**12), st.floats(-1e3, 1e3)),
        min_size=1,
        max_size=4,
    ),
    st.integers(40, 120),
)
def test_no_letter_and_no_digit_is_lost_however_narrow(rows, width):
    frame = pl.DataFrame(
        {"name": [r[0] for r in rows]}
        | {f"n{i}": [r[1] for r in rows] for i in range(6)}
        | {"x": [r[2] for r in rows]},
        schema={"name": pl.String} | {f"n{i}": pl.Int64 for i in range(6)} | {"x": pl.Float64},
    )
    text = printed(terminal.rich_table(frame, width=1000), width)
    assert all(len(line) <= width for line in text.splitlines()) and "…" not in text
    for name, n, x in rows:
        assert text.count(f"{n:,}") >= 6 and f"{x:.3g}" in text
        assert all(word in squeezed(text) for word in name.split() if len(word) <= _columns.NARROWEST)


def test_what_does_not_fit_comes_below_with_the_first_column_again():
    frame = pl.DataFrame({"neuron": [f"{NAME}:96"]} | {f"column {i}": [10**9 + i] for i in range(9)})
    text = printed(terminal.rich_table(frame, "title"))
    assert text.count("neuron") > 1 and text.count("title") == 1
    assert all(f"{10**9 + i:,}" in text for i in range(9))
    wide = printed(terminal.rich_table(frame), 400)
    assert wide.count("neuron") == 1 and f"{NAME}:96" in wide


def test_parts_hold_every_column_once_and_fit():
    columns = [_columns.Column(str(i), ["1" * (3 + i)], True) for i in range(30)]
    parts = _columns.Columns("", columns).parts(80)
    assert [c for part in parts for c in part[1:]] == columns[1:] and all(part[0] is columns[0] for part in parts)
    assert all(sum(c.least + 3 for c in part) - 3 <= 80 for part in parts)
    for part, after in itertools.pairwise(parts):  # and each holds as many as it can
        assert sum(c.least + 3 for c in [*part, after[1]]) - 3 > 80


def test_a_number_is_whole_and_a_wide_first_column_stands_with_another():
    name, number = _columns.Column("name", ["x" * 99], False), _columns.Column("n", ["1" * 30], True)
    assert (name.least, number.least) == (_columns.NARROWEST, 30)
    assert (name.most, number.most) == (99, 30)
    assert _columns.Columns("", [name, number, number]).parts(40) == [[name, number], [name, number]]
    assert _columns.Columns("", [number]).parts(10) == [[number]]


def test_long_texts_are_cut_between_words_and_names_never():
    name = "layers.2.self_attn.out_proj.weight:96:out/with/more/than/forty/letters"
    frame = pl.DataFrame(
        {"n": ["a"], "name": [name], "text": ["one two three four five"], "list": [["ab", "cd", "ef"]]}
    )
    _, shown, text, listed = (column.cells[0] for column in terminal.rich_table(frame, width=12).columns)
    assert (shown, text, listed) == (name, "one two…", "ab cd ef")
    assert terminal.rich_table(frame, width=7).columns[3].cells[0] == "ab cd…"
    assert terminal.rich_table(frame, width=23).columns[2].cells[0] == "one two three four five"


def test_values_are_written_in_characters_that_every_stream_takes():
    frame = pl.DataFrame(
        {
            "i": [-12345, None],
            "x": [-0.00012345, math.nan],
            "b": [True, False],
            "l": [[1, 2], []],
            "p": [0.0, 0.04],
            "s": [0.25, 0.0001],
        }
    )
    table = terminal.rich_table(frame, formats={"p": "p", "s": ".1%"})
    assert [list(column.cells) for column in table.columns] == [
        ["-12,345", ""],
        ["-0.000123", ""],
        ["yes", ""],
        ["1 2", ""],
        ["< 1e-300", "0.04"],
        ["25.0%", "< 0.1%"],
    ]
    assert [column.is_number for column in table.columns] == [True, True, False, False, True, True]
    assert printed(table).encode("ascii", "replace").decode().count("?") <= printed(table).count("─")


def test_only_the_first_rows_are_shown_and_it_says_so():
    table = terminal.rich_table(pl.DataFrame({"n": range(30)}), "title", rows=3)
    assert table.columns[0].cells == ["0", "1", "2"] and table.title == "title (the first 3 of 30 rows)"
    assert terminal.rich_table(pl.DataFrame({"n": range(3)}), "title", rows=3).title == "title"
    assert "n" in printed(terminal.rich_table(pl.DataFrame({"n": []}, schema={"n": pl.Int64}), "none"))


# ---- what is shown of training


def curve(n, loss=2.0):
    unmeasured = torch.full((2, n), torch.nan)
    return Curve(torch.full((n,), loss, dtype=torch.float64), torch.linspace(0, 1, n), torch.ones(n), *unmeasured)


@pytest.mark.parametrize(
    ("n", "steps"), [(1, ["1"]), (2, ["1", "2"]), (10, ["1", "3", "10"]), (400, ["1", "3", "10", "32", "100", "400"])]
)
def test_losses_are_shown_at_steps_of_root_ten_and_at_the_end(n, steps):
    assert [row[0] for row in cells(terminal.loss_table(curve(n), {}))] == steps


def test_a_row_has_the_last_twentieths_mean_and_its_evaluations():
    loss, unmeasured = torch.arange(100, dtype=torch.float64), torch.full((2, 100), torch.nan)
    evaluations = {40: {"valid": 2.0}, 100: {"valid": 1.0, "test": 0.0}}
    found = cells(terminal.loss_table(Curve(loss, loss / 100, loss, *unmeasured), evaluations))
    assert ("40", "38.500", "0.39", "2.000", "7.4", "", "") in found  # steps 38 and 39
    assert found[-1] == ("100", "97.000", "0.97", "1.000", "2.7", "0.000", "1.0")
    assert ("1", "0.000", "0.00", "", "", "", "") in found and len(found) == 6


def test_the_rate_of_the_last_step_stands_beside_the_loss_and_80_characters_hold_all():
    n, losses = 14_640, {"valid": 10.6543, "test": 10.6543}
    rates = [1.234e-5 * (step + 1) for step in range(n)]
    table = terminal.loss_table(curve(n), {n: losses}, rates)
    assert cells(table)[0][2] == "1.2e-05" and cells(table)[-1][2] == "0.18"
    text = printed(table)
    assert "…" not in text and text.count("perplexity") == 2
    assert all(cell in text for row in cells(table) for cell in row)


def test_an_evaluation_before_the_first_step_has_a_row():
    assert cells(terminal.loss_table(curve(10), {0: {"valid": 3.0}}))[0][:5] == ("0", "2.000", "0.00", "3.000", "20.1")


@pytest.mark.parametrize(("loss", "written"), [(750.0, "inf"), (math.inf, "inf"), (math.nan, "nan"), (16.0, "8.9e+06")])
def test_losses_of_a_run_that_diverged_can_be_shown(loss, written):
    found = cells(terminal.loss_table(curve(2, loss), {2: {"valid": loss}}))
    assert found[-1][1:5] == (f"{loss:.3f}", "1.00", f"{loss:.3f}", written)


def test_a_sparkline_is_one_character_a_bin():
    assert terminal.sparkline(torch.tensor([0.0, 7.0, 3.0])) == "▁█▄"
    assert terminal.sparkline(torch.arange(120.0), 60) == terminal.sparkline(torch.arange(60.0) * 2 + 0.5)
    assert terminal.sparkline(torch.tensor([1.0, 1.0])) == "▁▁"
    assert terminal.sparkline(torch.tensor([math.nan, math.inf])) == "  "
    assert len(terminal.sparkline(torch.rand(1000))) == 60


# ---- shifts


VOCAB = Vocab(("<unk>", "new", "york", "\x1b[31mred\x1b[0m", "[bold]"))
DATA = Data(torch.tensor([[1, 3, 4], [1, 2, 0]]), torch.tensor([[3, 4, 2], [2, 0, 1]]))
SHAPES = {"a": (2, 2), NAME: (200, 200)}
LARGEST = Outliers(
    parameter=torch.tensor([4 + 199 * 200 + 198, 3]),
    delta=torch.tensor([-0.5, 0.25]),
    position=torch.tensor([1, 0]),
    datum=torch.tensor([1, 0]),
)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_shifts_name_their_weight_whole_and_quote_their_text(width):
    table = terminal.shift_table(LARGEST, torch.tensor([0, 1]), SHAPES, DATA, VOCAB)
    assert cells(table) == [
        (f"{NAME}[199, 198]", "-0.50000", "1", "new (york → <unk>) <unk>"),
        ("a[1, 1]", "+0.25000", "0", "(new → �[31mred�[0m) �[31mred�[0m [bold]"),
    ]
    text = printed(table, width)
    assert "…" not in text and "\x1b" not in text and "[bold]" in text
    first = "".join(re.findall(r"^[│ ┃]+(\S*(?:\s\d+\])?)", text, re.MULTILINE))
    assert f"{NAME}[199," in first and "-0.50000" in text and "york" in text


# ---- waiting


def test_without_a_terminal_a_line_is_printed_now_and_then(capsys, monkeypatch):
    clock = iter([0.0, 0.0, 10.0, 31.0, 40.0, 62.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    assert list(terminal.watched("abcde", 5, "ablating [0]")) == list("abcde")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["ablating [0]: 2 of 5, about 46 s to go", "ablating [0]: 4 of 5, about 16 s to go"]


def test_a_short_job_says_nothing_and_every_item_can_be_told(capsys):
    assert list(terminal.watched([1, 2], 2, "x")) == [1, 2]
    assert capsys.readouterr().err == ""
    assert list(terminal.watched([1, 2, 3], 3, "x", every=0)) == [1, 2, 3]
    assert [line[:9] for line in capsys.readouterr().err.splitlines()] == ["x: 1 of 3", "x: 2 of 3"]


def test_items_are_taken_one_at_a_time():
    source = iter(range(3))
    items = terminal.watched(source, 3, "x")
    assert (next(items), next(source)) == (0, 1)


# ---- streams


SCRIPT = r"""
import polars as pl
from devinterp_func.show import terminal
console = terminal.console()
terminal.say("na\u00efve \u2192 \x1b[31m \u65e5", console)
console.print(terminal.rich_table(pl.DataFrame({"neuron": ["\u00e9"], "n": [-5]}), "\u25a0"))
terminal.say("\u2581", terminal.console(error=True))
"""


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONUTF8": "1"}])
def test_a_stream_that_cannot_take_a_character_replaces_it(environment):
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, env=os.environ | environment, timeout=120)
    assert ran.returncode == 0, ran.stderr
    out = ran.stdout.decode()
    assert "na" in out and "-5" in out and "\x1b" not in out
    assert ("naïve → �" in out) == ("PYTHONUTF8" in environment)
