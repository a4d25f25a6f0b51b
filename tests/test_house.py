"""The house: who may import whom, exactly; what names each room gives; and that README and the code agree on them."""

import ast
import importlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import devinterp_func as dif

HOUSE = Path(dif.__file__).parent
ROOT = HOUSE.parent
ARROWS: dict[str, set[str]] = {  # room -> the rooms it imports; no more and no less
    "tree": set(),
    "keys": set(),
    "checks": set(),
    "units": set(),
    "batches": {"checks", "keys", "tree"},
    "models": {"checks", "keys", "tree"},
    "text": {"keys"},
    "stats": {"checks", "keys"},
    "graph": {"checks", "keys", "tree", "units"},
    "per_example": {"checks", "graph", "tree", "units"},
    "optim": {"checks", "per_example", "tree", "units"},
    "training": {"batches", "checks", "graph", "keys", "optim", "per_example", "tree", "units"},
    "records": {"batches", "checks", "graph", "models", "optim", "per_example", "text", "training", "tree", "units"},
    "neurons": {"batches", "checks", "graph", "keys", "records", "stats", "tree", "units"},
    "bigram": {"batches", "checks", "graph", "keys", "optim", "per_example", "records", "stats", "training", "tree"},
    "credit": {
        "batches",
        "checks",
        "graph",
        "keys",
        "neurons",
        "optim",
        "per_example",
        "records",
        "stats",
        "training",
        "tree",
        "units",
    },
    "show": {
        "batches",
        "bigram",
        "credit",
        "graph",
        "keys",
        "neurons",
        "optim",
        "per_example",
        "records",
        "stats",
        "text",
        "training",
        "tree",
        "units",
    },
}
ORDER = list(ARROWS)  # each imports only rooms before it
FOREIGN = {  # packages that only some rooms may know
    "polars": {"show"},
    "rich": {"show", "text"},  # the download's progress bar
    "matplotlib": {"show"},
    "jinja2": {"show"},
    "starlette": {"show"},
    "uvicorn": {"show"},
    "safetensors": {"records", "show"},
    "requests": {"text"},
    "tokenizers": {"text"},
    "torchtext": {"text"},
    "transformers": {"models"},
    "ruptures": {"stats"},
}
NAMED = re.compile(  # parts of parameter names: of the post's model, GPT-2, GPT-NeoX and Llama
    r"^(layers|decoder|embedding|transformer|gpt_neox|lm_head|embed_out|model\.layers)\.|\.norm\d|in_proj|out_proj"
    r"|linear\d|wte|wpe|c_attn|c_proj|c_fc|ln_[12f]|query_key_value|dense_h_to|[qkvo]_proj|(up|down|gate)_proj"
)
FILES = sorted(HOUSE.rglob("*.py"))


def room_of(file):
    parts = file.relative_to(HOUSE).with_suffix("").parts
    return parts[0] if parts != ("__init__",) else ""


@cache
def imports(source):
    """(module, names) of every import statement, anywhere in a source."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, ()) for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            found.append(("." * node.level + (node.module or ""), tuple(alias.name for alias in node.names)))
    return found


def imported_rooms(source):
    found = set()
    for module, names in imports(source):
        if module in ("devinterp_func", "."):
            found |= set(names)
        elif module.startswith(("devinterp_func.", ".")):
            found.add(module.lstrip(".").removeprefix("devinterp_func.").partition(".")[0])
    return found - {"__version__"}


def sources(room):
    return [file for file in FILES if room_of(file) == room]


def test_every_room_has_its_place():
    assert {room_of(file) for file in FILES} - {""} == set(ARROWS) == set(dif.__all__)


@pytest.mark.parametrize("room", ARROWS)
def test_a_room_imports_just_what_the_table_says(room):
    seen = set().union(*(imported_rooms(file.read_text(encoding="utf-8")) for file in sources(room))) - {room}
    assert seen == ARROWS[room]


@pytest.mark.parametrize("room", ARROWS)
def test_arrows_point_down(room):
    assert ARROWS[room] <= set(ORDER[: ORDER.index(room)])


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HOUSE)))
def test_a_rooms_files_are_private_to_it(file):
    for module, names in imports(file.read_text(encoding="utf-8")):
        parts = module.split(".")
        if parts[0] == "devinterp_func" and len(parts) > 1 and parts[1] != room_of(file):
            private = [part for part in (*parts[2:], *names) if part.startswith("_")]
            assert not private, (
                f"{file.name} imports {private} from {module}; ask the room {parts[1]} for a public name"
            )


@pytest.mark.parametrize("package", FOREIGN)
def test_files_words_and_pictures_are_known_to_few(package):
    users = {
        room_of(file)
        for file in FILES
        for module, _ in imports(file.read_text(encoding="utf-8"))
        if module.partition(".")[0] == package
    }
    assert users == FOREIGN[package]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HOUSE)))
def test_parameter_names_are_known_to_models_and_units_alone(file):
    if room_of(file) in ("models", "units"):
        return
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    said = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in documents]
    assert [text for text in said if isinstance(text, str) and " " not in text and NAMED.search(text)] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HOUSE)))
def test_the_transformers_config_is_known_to_models_alone(file):
    if room_of(file) == "models":
        return
    source = file.read_text(encoding="utf-8")
    imported = {name for module, names in imports(source) if module.startswith("devinterp_func") for name in names}
    read = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    assert "Config" not in imported | read


@pytest.mark.parametrize("room", ARROWS)
def test_a_rooms_public_list_is_all_there_and_no_longer_than_it_says(room):
    module = importlib.import_module(f"devinterp_func.{room}")
    if hasattr(module, "__path__"):
        assert module.__all__ == sorted(set(module.__all__))
        assert all(hasattr(module, name) for name in module.__all__)
        assert not [name for name in module.__all__ if name.startswith("_")]


def resolves(dotted):
    """Whether ``room.name`` and ``room.part.name`` lead to something; words that begin with no room are let pass."""
    first, *rest = dotted.split(".")
    if first not in dif.__all__ or not rest:
        return True
    thing: object = importlib.import_module(f"devinterp_func.{first}")
    for name in rest:
        if not hasattr(thing, name) and name not in getattr(thing, "__annotations__", {}):
            return False
        thing = getattr(thing, name, None)
    return True


def documents():
    yield "README.md", (ROOT / "README.md").read_text(encoding="utf-8")
    for file in FILES:
        yield str(file.relative_to(HOUSE)), file.read_text(encoding="utf-8")


@pytest.mark.parametrize(("where", "text"), list(documents()), ids=lambda x: x if len(x) < 60 else "")
def test_every_name_in_a_document_leads_somewhere(where, text):
    quoted = re.findall(r"(?<!`)`{1,2}([a-z_]+(?:\.\w+)+)(?:\(|`)", text) + re.findall(
        r"\bdif\.([a-z_]+(?:\.\w+)+)", text
    )
    assert [name for name in quoted if not resolves(name)] == []


def test_readme_lists_the_rooms_there_are():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## The rooms") :]
    first_cells = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    assert [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)] == sorted(
        dif.__all__, key=ORDER.index
    )


@pytest.mark.parametrize(
    "source",
    [
        "import devinterp_func.optim",
        "from devinterp_func import tree, optim",
        "from devinterp_func.optim import update",
        "from . import optim",
        "from .optim import update",
        "def late():\n    from devinterp_func.optim import update as u",
    ],
)
def test_no_form_of_import_escapes(source):
    assert "optim" in imported_rooms(source)


def test_importing_the_library_is_silent_and_leaves_torch_alone():
    code = "import sys, devinterp_func as dif; dir(dif); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_an_unknown_room_is_refused_and_the_rooms_are_listed():
    with pytest.raises(AttributeError, match="devinterp_func has no room 'sdg'; it has batches, .*units"):
        _ = dif.sdg
