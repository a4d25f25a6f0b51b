"""What every script shares: opening a run, asking whether the work is done already, saying mistakes in one line.

A script has its ``Settings`` on the first screen and a ``main(settings)``; ``run(main, Settings, __doc__)`` makes a
command of it. A mistake that can be expected ends in one line on the error stream and exit status 2; with
DEVINTERP_TRACEBACK=1 in the environment it ends in its traceback.
"""

import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import polars as pl
import tyro
from rich.console import Console

from devinterp_func import records
from devinterp_func.records import Run, RunPath
from devinterp_func.show import results, terminal, words
from devinterp_func.show.schema import Table

EXPECTED = (
    ValueError,
    LookupError,
    RuntimeError,
    FloatingPointError,
    OSError,
    TypeError,
    ImportError,
    pl.exceptions.PolarsError,
)
SAID_WELL = (ValueError, OSError, ImportError, records.RecordError)  # their messages are written for a person


@dataclass(frozen=True)
class Stage:
    """One script's work on one run: its results' folder and what they follow from."""

    name: str
    run: Run
    folder: Path
    console: Console
    origin: dict[str, Any]
    begun: set[str] = field(default_factory=set)  # tables that this work has added rows to
    family: str = ""  # how the names of stages begin that add rows to the same tables; by default only this one does

    @property
    def done(self) -> bool:
        """Whether this very work was done before; says so."""
        found = results.is_done(self.folder, self.name, self.origin)
        if found:
            self.say(f"{self.name}: done before, in {self.folder}")
        return found

    def say(self, text: str) -> None:
        """A line, whatever characters its names have."""
        terminal.say(text, self.console)

    def save(self, name: str, table: pl.DataFrame) -> pl.DataFrame:
        """Writes a table; gives it back."""
        results.write_table(self.folder, name, table)
        return table

    def add(self, name: str, kind: Table, rows: pl.DataFrame, instead_of: Collection[Any] = ()) -> pl.DataFrame:
        """Adds rows to a table beside those it has, as ``results.add_rows``; gives the whole table.

        Rows that followed from another run, or from an earlier state of the stages before, go.
        """
        stages = [path.stem for path in self.folder.glob(f"{self.family}*.json")] if self.family else [self.name]
        if name not in self.begun and not any(results.is_current(self.folder, s, self.origin) for s in stages):
            (self.folder / f"{name}.parquet").unlink(missing_ok=True)
        self.begun.add(name)
        return results.add_rows(self.folder, name, kind, rows, instead_of)

    def read(self, name: str, kind: Table) -> pl.DataFrame:
        """A table that is there."""
        return results.read_table(self.folder, name, kind)

    def show(self, table: pl.DataFrame, title: str, rows: int = 20, width: int = 40, kind: Table | None = None) -> None:
        """The first rows of a table; where its kind is given, in words and in its formats."""
        formats = {}
        if kind is not None:
            table = words.spell(table, kind, words.vocab_of(self.run))
            formats = {name: column.format for name, column in kind.columns.items() if column.format}
        self.console.print(terminal.rich_table(table, title, rows, width, formats))

    def walk_folder(self, stem: str, wanted: Mapping[str, Any]) -> Path:
        """Where the walk that is wanted is, or will be; numbered, where another has that name."""
        for i in count(1):
            path = self.folder / (stem if i == 1 else f"{stem}-{i}")
            if not (path / "manifest.json").exists() or wanted.items() <= records.manifest(path).items():
                return path
        raise AssertionError

    def finish(self) -> Path:
        """Marks the work as done; says where it is."""
        results.finish(self.folder, self.name, self.origin)
        self.say(f"{self.name}: in {self.folder}")
        return self.folder


def start(
    name: str,
    settings: Any,
    after: Sequence[str] = (),
    run: RunPath | None = None,
    family: str = "",
    any_data: bool = False,
) -> Stage:
    """Opens the run of a script's settings, and its results' folder.

    Args:
        name: of the stage, by which it is known to later ones.
        settings: with ``run`` and ``out``.
        after: stages whose results are read; their absence is an error that names the script to run.
        run: another run than that of the settings, or that one where it is open already.
        family: of ``Stage``.
        any_data: the work is not about words alone, so the data need be no text.

    Raises:
        RecordError: as ``records.open`` and ``require_text``.
    """
    opened = records.open(settings.run if run is None else run)
    if opened.is_text or not any_data:
        require_text(opened)
    folder = results.beside(opened, settings.out)
    origin = results.origin(folder, opened, settings, after)
    return Stage(name, opened, folder, terminal.console(), origin, family=family)


def require_text(run: Run) -> None:
    """Refuses a run that a script about words can do nothing with.

    Raises:
        RecordError: its data are no text, or its model cannot be built again from what it holds.
    """
    if not run.is_text:
        raise records.RecordError(
            f"{run}: its data are no text, and this script is about words; attribute.py and report.py take any data"
        )
    _ = run.graph


def say(text: object) -> None:
    """A line, for scripts that have no stage."""
    terminal.say(text, terminal.console())


def run(main: Callable[[Any], object], settings: type, doc: str | None) -> None:
    """A script's command line."""
    terminal.console(), terminal.console(error=True)  # from here on both streams take any character
    chosen: Any = tyro.cli(settings, description=doc)
    try:
        main(chosen)
        sys.stdout.flush()
    except KeyboardInterrupt:
        fail("interrupted; what was written is whole, and the same command goes on or begins again", 130)
    except BrokenPipeError:  # who read the output has gone, as with | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except EXPECTED as error:
        if os.environ.get("DEVINTERP_TRACEBACK"):
            raise
        fail(_said(error))


def fail(message: str, status: int = 2) -> NoReturn:
    """Ends the script with one line on the error stream."""
    console = terminal.console(error=True)
    which = f" in rank {os.environ['RANK']}" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
    console.print(f"error{which}: ", style="bold red", end="")
    terminal.say(message, console)
    sys.exit(status)


def _said(error: BaseException) -> str:
    """An error in one line; of one that was not written for a person, its name and how to see where it is from."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, SAID_WELL) or type(error).__module__.startswith("devinterp_func"):
        return text or type(error).__name__
    return f"{type(error).__name__}: {' '.join(text.split())} (DEVINTERP_TRACEBACK=1 shows where)"
