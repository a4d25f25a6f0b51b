"""Every corpus by its name, with the tokenizer that is asked for: from text to token streams."""

import ast
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from devinterp_func.text._corpus import BASIC_ENGLISH, Corpus, Texts, from_texts
from devinterp_func.text._planted import planted_texts
from devinterp_func.text._subwords import AnyTokenizer, Subwords, read_tokenizer
from devinterp_func.text._wikitext import wikitext2_texts

# Standard-library packages without docstrings worth reading, that other Python versions lack, or read otherwise.
SKIPPED_PACKAGES = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "distutils", "encodings", "pydoc_data"}


def load(name: str, tokenizer: AnyTokenizer = BASIC_ENGLISH) -> Corpus:
    """A corpus by name: ``wikitext2``, ``python_docs``, ``python_help``, ``planted`` (key 0), or a UTF-8 file's path.

    Args:
        name: of the corpus.
        tokenizer: ``basic_english``, the path of a ``tokenizer.json``, or what ``train_bpe`` gave.

    Raises:
        FileNotFoundError: no tokenizer is there.
        ValueError: there is no such corpus, it has too little text, or the tokenizer's file holds none.

    >>> load("planted").name
    'planted'
    """
    if not (isinstance(tokenizer, Subwords) or tokenizer == BASIC_ENGLISH):
        tokenizer = read_tokenizer(tokenizer)  # what is wrong with it is said before the text is read
    return from_texts(texts(name), tokenizer)


def texts(name: str) -> Texts:
    """The documents of a corpus by name, as ``load`` finds them, before any tokenizer.

    Raises:
        ValueError: there is no such corpus, or it has too little text.

    >>> texts("planted").train[0][0]
    '0: topic 1'
    """
    named: dict[str, Callable[[], Texts]] = {
        "wikitext2": wikitext2_texts,
        "python_docs": _python_docs_texts,
        "python_help": _python_help_texts,
        "planted": planted_texts,
    }
    if name in named:
        return named[name]()
    if not name or not Path(name).exists():
        raise ValueError(f"no corpus {name!r}: give {', '.join(named)} or the path of a UTF-8 text file that exists")
    return _file_texts(Path(name))


def python_docs(tokenizer: AnyTokenizer = BASIC_ENGLISH) -> Corpus:
    """English that comes with every Python: the topics of ``help()`` and the docstrings of the standard library.

    On Python 3.11 about 351,000 train tokens of 6,000 types (those rarer than 3 are ``<unk>``), 15,000 tokens each for
    validation and testing. A document is a topic or a file of the library; of every twenty the tenth is for validation,
    the last for testing. Sources are parsed in the order of their names, never imported; parsing is most of the 2-3
    seconds.

    Args:
        tokenizer: of ``from_texts``.
    """
    return from_texts(_python_docs_texts(), tokenizer)


def _python_docs_texts() -> Texts:
    from pydoc_data.topics import topics

    documents = [*((f"help({name!r})", topics[name]) for name in sorted(topics)), *_module_docs()]
    held_out = documents[9::20], documents[19::20]
    del documents[9::10]
    return Texts("python_docs", documents, *held_out, min_count=3)


def python_help(tokenizer: AnyTokenizer = BASIC_ENGLISH) -> Corpus:
    """The topics of ``help()`` alone: a corpus of which a small model sees every text several times in a minute.

    On Python 3.11 about 61,000 train tokens of 1,700 types (those rarer than 3 are ``<unk>``), 3,000 for validation and
    1,500 for testing. Topics that are a part of another, such as ``while`` of ``compound``, are left out, so that no
    held-out text is in the training data; of every ten the third is for validation, the eighth for testing.

    Args:
        tokenizer: of ``from_texts``.
    """
    return from_texts(_python_help_texts(), tokenizer)


def _python_help_texts() -> Texts:
    from pydoc_data.topics import topics

    documents = [(f"help({name!r})", topics[name]) for name in _whole_topics(topics)]
    held_out = documents[2::10], documents[7::10]
    del documents[2::5]
    return Texts("python_help", documents, *held_out, min_count=3)


def _whole_topics(topics: dict[str, str]) -> list[str]:
    """The names of topics, in order, of whose long lines less than half are in one longer topic."""
    lines = {name: {line for x in text.splitlines() if len(line := x.strip()) > 40} for name, text in topics.items()}
    sizes = {name: (len(text), name) for name, text in topics.items()}

    def is_part(name: str, of: str) -> bool:
        return sizes[name] < sizes[of] and 2 * len(lines[name] & lines[of]) >= len(lines[name])

    return [name for name in sorted(topics) if not any(is_part(name, other) for other in topics)]


def from_file(path: str | Path, tokenizer: AnyTokenizer = BASIC_ENGLISH) -> Corpus:
    """A UTF-8 text file, split by lines: the last twentieth for testing, the one before it for validation.

    Args:
        path: the file; blank lines do not count.
        tokenizer: of ``from_texts``.

    Raises:
        FileNotFoundError, IsADirectoryError: ``path`` is not a file.
        ValueError: it is not UTF-8 (the message has the byte offset), or has fewer than three lines with text.
    """
    return from_texts(_file_texts(Path(path)), tokenizer)


def _file_texts(path: Path) -> Texts:
    lines = _read_utf8(path).splitlines(keepends=True)
    with_text = [i for i, line in enumerate(lines) if line.strip()]
    if len(with_text) < 3:
        raise ValueError(f"{path} has {len(with_text)} lines with text; it needs at least 3, for train, valid and test")
    n = max(1, len(with_text) // 20)
    parts = lines[: with_text[-2 * n]], lines[with_text[-2 * n] : with_text[-n]], lines[with_text[-n] :]
    train, valid, test = ([(path.name, "".join(part))] for part in parts)
    return Texts(path.name, train, valid, test)


def _read_utf8(path: Path) -> str:
    try:
        return (
            path.read_bytes().decode("utf-8").removeprefix("\ufeff")
        )  # the mark that Windows editors begin files with
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte offset {error.start}") from error


def _module_docs() -> Iterator[tuple[str, str]]:
    """Each file's name below the library's root and all its docstrings, in the order of the modules' names."""
    root = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names - SKIPPED_PACKAGES):
        for file in (root / f"{name}.py", *sorted((root / name).rglob("*.py"))):
            if file.is_file() and not SKIPPED_PACKAGES & set(file.relative_to(root).parts):
                text = "".join(f"{doc}\n" for doc in _docstrings(ast.parse(file.read_bytes())))
                # a docstring may quote half a surrogate pair
                yield file.relative_to(root).as_posix(), text.encode("utf-8", "replace").decode()


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Docstrings of ``node`` and of everything defined in it; expressions, most of a syntax tree, are not entered."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node) or ""
    for field in ("body", "handlers", "orelse", "finalbody", "cases"):
        for statement in getattr(node, field, ()):
            yield from _docstrings(statement)
