"""From text to token streams: every corpus by its name, and all that belongs to one.

The tokenizer and the vocabulary are in ``vocabulary``, the corpora with more to them in ``wikitext`` and ``planted``;
their public names are here too.
"""

import ast
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from devinterp_func.text._planted import planted
from devinterp_func.text._vocabulary import Corpus, from_splits
from devinterp_func.text._wikitext import wikitext2

# Standard-library packages without docstrings worth reading, that other Python versions lack, or read otherwise.
SKIPPED_PACKAGES = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "distutils", "encodings", "pydoc_data"}


def load(name: str) -> Corpus:
    """A corpus by name: ``wikitext2``, ``python_docs``, ``planted`` (key 0), or the path of a UTF-8 text file.

    >>> load("planted").name
    'planted'
    """
    named: dict[str, Callable[[], Corpus]] = {
        "wikitext2": wikitext2,
        "python_docs": python_docs,
        "planted": lambda: planted(key=0),
    }
    if name in named:
        return named[name]()
    if not name or not Path(name).exists():
        raise ValueError(f"no corpus {name!r}: give {', '.join(named)} or the path of a UTF-8 text file that exists")
    return from_file(name)


def python_docs() -> Corpus:
    """English that comes with every Python: the topics of ``help()`` and the docstrings of the standard library.

    On Python 3.11 about 351,000 train tokens of 6,000 types (those rarer than 3 are ``<unk>``), 15,000 tokens each for
    validation and testing. A document is a topic or a module; of every twenty the tenth is for validation, the last for
    testing. Sources are parsed in the order of their names, never imported; parsing is most of the 2-3 seconds.
    """
    from pydoc_data.topics import topics

    documents = [topics[name] for name in sorted(topics)] + list(_module_docs())
    held_out = documents[9::20], documents[19::20]
    del documents[9::10]
    return from_splits("python_docs", (documents, *held_out), min_count=3)


def from_file(path: str | Path) -> Corpus:
    """A UTF-8 text file, split by lines: the last twentieth for testing, the one before it for validation.

    Args:
        path: the file; blank lines do not count.

    Raises:
        FileNotFoundError, IsADirectoryError: ``path`` is not a file.
        ValueError: it is not UTF-8 (the message has the byte offset), or has fewer than three lines with text.
    """
    path = Path(path)
    lines = [line for line in _read_utf8(path).splitlines() if line.strip()]
    if len(lines) < 3:
        raise ValueError(f"{path} has {len(lines)} lines with text; it needs at least 3, for train, valid and test")
    n = max(1, len(lines) // 20)
    return from_splits(path.name, (lines[: -2 * n], lines[-2 * n : -n], lines[-n:]))


def _read_utf8(path: Path) -> str:
    try:
        return (
            path.read_bytes().decode("utf-8").removeprefix("\ufeff")
        )  # the mark that Windows editors begin files with
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte offset {error.start}") from error


def _module_docs() -> Iterator[str]:
    """All docstrings of one module after the other, in the order of their names."""
    root = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names - SKIPPED_PACKAGES):
        for file in (root / f"{name}.py", *sorted((root / name).rglob("*.py"))):
            if file.is_file() and not SKIPPED_PACKAGES & set(file.relative_to(root).parts):
                text = "\n".join(_docstrings(ast.parse(file.read_bytes())))
                yield text.encode("utf-8", "replace").decode()  # a docstring may quote half a surrogate pair


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Docstrings of ``node`` and of everything defined in it; expressions, most of a syntax tree, are not entered."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node) or ""
    for field in ("body", "handlers", "orelse", "finalbody", "cases"):
        for statement in getattr(node, field, ()):
            yield from _docstrings(statement)
