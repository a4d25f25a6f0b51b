"""Imports run downward only, and importing the library costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import devinterp_func as dif

ROOMS = [  # each may import those before it
    *("tree", "frozen", "keys"),
    *("vocabulary", "planted", "wikitext", "text", "batches"),
    *("transformer", "per_example", "sgd", "outliers"),
    *("sealed", "rundir", "steprecord", "records"),
    *("training", "recording"),
]
BASE = {"tree", "keys", "vocabulary", "text", "batches", "transformer"}
ANALYSIS: dict[str, set[str]] = {  # takes arrays and Params: beyond the base each knows only what is named
    "bigram": set(),
    "bigram_corpus": {"bigram"},
    "walks": set(ROOMS),  # over a run
    "bigram_walk": {*ROOMS, "bigram", "walks"},
    "bigram_tables": {*ROOMS, "bigram", "bigram_corpus", "bigram_walk"},
    "keyness": set(),
    "neurons": set(),
    "probes": {"neurons", "per_example"},
    "ledger": {*ROOMS, "probes", "walks"},
    "growth": {*ROOMS, "neurons", "walks"},
    "heads": {"probes"},
    "bases": {*ROOMS, "walks"},
    "accounts": {*ROOMS, "neurons", "probes", "ledger"},
    "phases": {*ROOMS, "bigram_corpus", "ledger", "walks"},
    "changes": set(),
    "phase_tables": {*ROOMS, "keyness", "phases", "changes"},
    "phase_snapshots": {*ROOMS, "phases", "changes", "phase_tables"},
    "retrain": {*ROOMS, "probes", "ledger", "walks"},
    "causes": {*ROOMS, "probes", "retrain"},
    "attribution": {"outliers", "steprecord"},  # the types of what it counts
    "ablation": {"neurons"},
    "margins": {"ablation"},
    "sweeps": {"neurons", "ablation", "margins"},
    "activations": {"neurons"},
    "skill": set(),
    "scores": {"activations", "keyness", "skill"},
    "verdicts": {"neurons", "keyness", "skill", "sweeps"},
    "cards": {"neurons", "keyness", "attribution", "activations", "verdicts"},
}
FACES = [
    "tables",
    "frames",
    "drawing",
    "plots",
    "report",
    "results",
    "bigram_report",
    "ledger_report",
]  # each may import those before it, and all above
MAY_KNOW = {room: set(ROOMS[:i]) for i, room in enumerate(ROOMS)}
MAY_KNOW |= {room: BASE | known for room, known in ANALYSIS.items()}
MAY_KNOW |= {room: {*ROOMS, *ANALYSIS, *FACES[:i]} for i, room in enumerate(FACES)}
HOUSE = Path(dif.__file__).parent
FILES = sorted(file.stem for file in HOUSE.glob("*.py") if file.stem != "__init__")


def imported_rooms(source):
    """The library's rooms that a module's source imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("devinterp_func.")}
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("devinterp_func")):
            room = (node.module or "").removeprefix("devinterp_func").removeprefix(".")
            found |= {room.partition(".")[0]} if room else {alias.name for alias in node.names}
    return found - {"__version__"}


@pytest.mark.parametrize("room", FILES)
def test_imports_run_downward_only(room):
    assert room in MAY_KNOW, f"{room}.py has no place in the house: put it into ROOMS after all that it imports"
    above = imported_rooms((HOUSE / f"{room}.py").read_text(encoding="utf-8")) - MAY_KNOW[room]
    assert not above, f"{room}.py imports {', '.join(sorted(above))}, which it may not know"


def test_every_room_stands():
    assert set(MAY_KNOW) == set(FILES)


@pytest.mark.parametrize(
    "source",
    [
        "import devinterp_func.sgd",
        "from devinterp_func import tree, sgd",
        "from devinterp_func.sgd import update",
        "from . import sgd",
        "from .sgd import update",
        "def late():\n    from devinterp_func.sgd import update as u",
    ],
)
def test_no_form_of_import_escapes(source):
    assert "sgd" in imported_rooms(source)


def test_importing_the_library_is_silent_and_leaves_torch_alone():
    code = "import sys, devinterp_func as dif; dir(dif); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_rooms_are_attributes():
    assert dif.sgd.__name__ == "devinterp_func.sgd"
    assert set(dif.__all__) < set(dir(dif))
    assert set(dif.__all__) <= set(FILES)


def test_an_unknown_room_is_refused_and_the_rooms_are_listed():
    with pytest.raises(AttributeError, match="devinterp_func has no room 'sdg'; it has ablation, .*sgd"):
        _ = dif.sdg
