"""Scripts as a person runs them: expected mistakes end in one line, work is done once, names are printed literally."""

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from run_builders import recorded

from devinterp_func import models, records, text, training

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
TOY = '''"""A toy.

    python toy.py runs/demo
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import stage
import tyro

from devinterp_func.show import schema
from devinterp_func.show.schema import FLOAT, NAME, Column, Table
from devinterp_func.text import UnknownToken

COLUMNS = {"neuron": Column(NAME), "p": Column(FLOAT, format="p"), "token": schema.token()}
KIND = Table("Toys.", "toy.py", COLUMNS, ("neuron",))


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run."""
    out: Path | None = None
    """Where the results go."""
    neuron: str = "a"
    """Which."""
    wrong: str = ""
    """What goes wrong."""


def main(settings: Settings) -> None:
    errors = {
        "value": ValueError("no neuron is called 'x'; there are a and b"),
        "token": UnknownToken("xyz is none of the 5 tokens"),
        "key": KeyError("layers.1"),
        "type": TypeError("two\\nlines"),
        "system": OSError("the disk is full"),
        "own": AssertionError("a fault of the code"),
        "interrupt": KeyboardInterrupt(),
    }
    if settings.wrong in errors:
        raise errors[settings.wrong]
    if settings.wrong == "wait":
        print("waiting", flush=True)
        time.sleep(60)
    work = stage.start("toy", settings, after=("before",) if settings.wrong == "after" else ())
    if work.done:
        return
    row = {"neuron": settings.neuron, "p": 0.0, "token": 1}
    whole = work.add("toys", KIND, schema.frame(KIND, [row]))
    if settings.wrong == "twice":
        whole = work.add("toys", KIND, schema.frame(KIND, [row | {"neuron": "z"}]))
    work.show(whole, "toys", kind=KIND)
    work.say(f"{settings.run} has {len(whole)}")
    if settings.wrong == "much":
        for _ in range(100_000):
            work.say("line")
    work.finish()


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
'''


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.map = torch.nn.Linear(1, 1)

    def forward(self, x):
        return self.map(x)


class Words(torch.nn.Module):
    def __init__(self, n_types):
        super().__init__()
        self.table, self.head = torch.nn.Embedding(n_types, 4), torch.nn.Linear(4, n_types)

    def forward(self, tokens):
        return self.head(self.table(tokens))


def word_loss(model, tokens, targets):
    return torch.nn.functional.cross_entropy(model(tokens), targets)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run of a name that markup would spoil, and the toy script."""
    folder = tmp_path_factory.mktemp("stage")
    recipe = training.Recipe(n_steps=4, batch_size=2, context=8)
    recorded(folder / "run[lr=5,seed=0]" / ":heart:", recipe, records.Recording(k=3))
    (folder / "toy.py").write_text(TOY)
    return folder


RUN = "run[lr=5,seed=0]/:heart:"


class Ran(NamedTuple):
    """What a person sees of a script that has ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def script(place, monkeypatch, capsys):
    """Runs a script in this process."""

    def run(*arguments, name=None):
        path = place / "toy.py" if name is None else EXPERIMENTS / name
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        try:
            runpy.run_path(str(path), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        return Ran(status, *capsys.readouterr())

    monkeypatch.syspath_prepend(EXPERIMENTS)
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("DEVINTERP_TRACEBACK", raising=False)
    return run


def started(place, *arguments, **environment):
    """A script in a process of its own."""
    paths = os.pathsep.join([str(EXPERIMENTS), str(EXPERIMENTS.parent)])
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=place)
    command = [sys.executable, str(place / "toy.py"), *arguments]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths, **environment}, **pipes)


# ---- mistakes


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("value", "error: no neuron is called 'x'; there are a and b"),
        ("token", "error: xyz is none of the 5 tokens"),
        ("system", "error: the disk is full"),
        ("key", "error: KeyError: layers.1 (DEVINTERP_TRACEBACK=1 shows where)"),
        ("type", "error: TypeError: two lines (DEVINTERP_TRACEBACK=1 shows where)"),
        ("after", "has no results of before; first run: python experiments/before.py "),
    ],
)
def test_an_expected_mistake_is_one_line_and_status_2(script, wrong, said):
    ran = script(RUN, "--wrong", wrong)
    assert (ran.returncode, ran.stdout) == (2, "")
    [line] = ran.stderr.splitlines()
    assert said in line and line.startswith("error: ")


def test_the_traceback_can_be_had(script, monkeypatch):
    monkeypatch.setenv("DEVINTERP_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no neuron is called 'x'"):
        script(RUN, "--wrong", "value")


def test_a_fault_of_the_code_is_not_dressed_up(script):
    with pytest.raises(AssertionError, match="a fault of the code"):
        script(RUN, "--wrong", "own")


def test_no_run_is_one_line(script):
    ran = script("nope")
    assert ran.returncode == 2 and len(ran.stderr.splitlines()) == 1 and "nope" in ran.stderr


def test_an_unknown_option_is_refused(script):
    ran = script(RUN, "--nueron", "a")
    assert ran.returncode == 2 and "nueron" in ran.stderr


def test_an_interrupted_script_says_so(script):
    ran = script(RUN, "--wrong", "interrupt")
    assert ran.returncode == 130 and ran.stderr.startswith("error: interrupted; ") and len(ran.stderr.splitlines()) == 1


def test_a_signal_interrupts(place):
    with started(place, RUN, "--wrong", "wait") as running:
        assert running.stdout.readline() == b"waiting\n"
        time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        _, error = running.communicate(timeout=60)
    assert running.returncode == 130 and error.startswith(b"error: interrupted")


def test_who_stops_reading_gets_no_error(place):
    with started(place, RUN, "--wrong", "much", "--out", "pipe") as running:
        running.stdout.readline()
        running.stdout.close()
        error = running.stderr.read()
    assert running.returncode in (1, 141) and error == b""


def test_a_run_without_words_is_refused_in_one_line(script, place):
    data = torch.linspace(0, 1, 12).view(12, 1), torch.linspace(1, 2, 12).view(12, 1)
    model = models.module(Line(), lambda line, x, y: (line(x) - y).square().sum())
    recorded(place / "line", training.Recipe(n_steps=2, batch_size=2), records.Recording(k=1), data, model)
    ran = script("line")
    assert ran.returncode == 2 and ran.stdout == "" and len(ran.stderr.splitlines()) == 1
    assert "its data are no text, and this script is about words; attribute.py and report.py take any" in ran.stderr


def test_a_model_that_the_run_does_not_hold_is_named_in_one_line(script, place):
    corpus = text.planted(key=0, n_tokens=1500)
    model = models.module(Words(len(corpus.vocab)), word_loss)
    recipe = training.Recipe(n_steps=2, batch_size=2, context=8)
    recorded(place / "words", recipe, records.Recording(k=1), corpus, model)
    ran = script("words")
    assert ran.returncode == 2 and len(ran.stderr.splitlines()) == 1
    assert "the model is a module of " in ran.stderr and "Words" in ran.stderr and "word_loss" in ran.stderr


# ---- work


def test_work_is_done_once_and_a_part_adds_rows(script):
    first = script(RUN)
    assert first.returncode == 0, first.stderr
    assert f"{RUN} has 1\n" in first.stdout and "< 1e-300" in first.stdout and "c00" in first.stdout
    again = script(RUN)
    assert again.stdout.startswith("toy: done before, in ") and len(again.stdout.splitlines()) == 1
    assert f"{RUN}-results\n" in again.stdout  # the path is printed as it is
    other = script(RUN, "--neuron", "b")
    assert f"{RUN} has 2\n" in other.stdout


def test_rows_of_an_earlier_state_do_not_stay(script, place):
    folder = place / "stale"
    for neuron, count in (("a", 1), ("b", 2)):
        assert f"has {count}\n" in script(RUN, "--neuron", neuron, "--out", "stale").stdout
    marker = folder / "toy.json"
    marker.write_text(marker.read_text().replace('"steps": 4', '"steps": 3'))
    assert "has 2\n" in script(RUN, "--neuron", "c", "--out", "stale", "--wrong", "twice").stdout  # c and z


def test_a_stream_of_few_characters_stops_no_script(place):
    environment = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with started(place, RUN, "--out", "ascii", **environment) as running:
        _, error = running.communicate(timeout=120)
    assert running.returncode == 0, error
    assert (place / "ascii" / "toy.json").exists()


# ---- the report


def test_the_report_of_no_run_is_one_line(script):
    ran = script("nope", name="report.py")
    assert ran.returncode == 2 and len(ran.stderr.splitlines()) == 1 and "nope" in ran.stderr


def test_a_report_without_any_results_says_what_would_make_them(script, place):
    ran = script(RUN, "--out", "bare", "--export", "copies", name="report.py")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0] == "the report is bare/report.html"
    assert ran.stdout.splitlines()[1].startswith("2 files, ") and ran.stdout.endswith(" MB, are copied to copies\n")
    assert {path.name for path in (place / "copies").iterdir()} == {"report.html", "manifest.json"}
    page = (place / "bare" / "report.html").read_text()
    assert "attribute.py" in page and "run[lr=5,seed=0]/:heart:" in page


def test_a_report_is_not_put_into_a_run(script, place):
    ran = script(RUN, "--out", f"{RUN}/steps", name="report.py")
    assert ran.returncode == 2 and "never written to" in ran.stderr
    assert records.verify(place / RUN)
