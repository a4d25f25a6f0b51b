"""A run in the browser: every neuron, datum, step, token, probe and head has a page of its own, all linked.

    python experiments/explore.py runs/demo                      # http://127.0.0.1:8000, on this machine alone
    python experiments/explore.py runs/demo --export runs/demo-site --pages 200      # as files, to be opened offline

The first time, an index is built beside the run (RUN-index); it is said before how large it gets. The run is only read.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stage
import tyro

from devinterp_func import checks, records
from devinterp_func.show import explorer, page, results, terminal


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""
    out: Path | None = None
    """Where its results are; by default beside the run, RUN-results."""
    against: tuple[Path, ...] = ()
    """Other runs to compare it with."""
    port: int | None = None
    """Of 127.0.0.1; by default 8000."""
    export: Path | None = None
    """Write the pages as files to this folder, instead of serving them."""
    pages: int | None = None
    """Of an export, at most; by default 2,000."""
    most: int | None = None
    """Index only so many of the visits that moved each neuron most, a part of the run; by default all, or as many as an
    index that is there keeps."""


def main(settings: Settings) -> None:
    check(settings)
    run = records.open(settings.run)
    index(run, settings.most)
    site = explorer.open(run, settings.out, settings.against)
    if settings.export is not None:
        return export(site, settings.export, settings.pages or 2000)
    port = settings.port or 8000
    told = f"http://127.0.0.1:{port}  (Ctrl-C ends it)"
    explorer.serve(site, port, commands(settings), lambda: stage.say(told))


def check(settings: Settings) -> None:
    """All that can be seen before the work."""
    for name in ("port", "pages", "most"):
        if (value := getattr(settings, name)) is not None:
            checks.integer(f"--{name}", value)
    if settings.port is not None and settings.export is not None:
        raise ValueError("--port means nothing with --export, which serves nothing: leave it out")
    if settings.pages is not None and settings.export is None:
        raise ValueError("--pages means nothing without --export: add it, or leave --pages out")


def export(site: explorer.Site, to: Path, most: int) -> None:
    """Writes the pages as files."""
    files = explorer.export(site, to, most, lambda pages: terminal.watched(pages, most, "pages, at most"))
    size = page.n_bytes(sum(file.stat().st_size for file in files))
    stage.say(f"{len(files):,} files, {size}; open {to / 'index.html'}")


def commands(settings: Settings) -> dict[str, explorer.Command]:
    """The scripts that pages can start on the run, from the checked values of their forms."""
    here = Path(__file__).parent
    out = ["--out", str(results.beside(settings.run, settings.out).absolute())]

    def script(name: str, *given: object) -> list[str]:
        return [sys.executable, str(here / name), str(settings.run.absolute()), *map(str, given)]

    def probes(values: explorer.Values) -> list[str]:
        named: Any = values["probe"]
        return [part for name in named for part in ("--probe", name)]

    def ledger(values: explorer.Values) -> list[str]:
        return script("ledger.py", "--start", values["start"], "--stop", values["stop"], *probes(values), *out)

    def retrain(values: explorer.Values) -> list[str]:
        without: Any = values["without"]
        span = ("--start", values["start"], "--steps", values["steps"], "--shares", "--without", *without)
        return script("retrain.py", *span, *probes(values), *out)

    return {
        "replay": lambda values: script("replay.py", "--step", values["step"]),
        "ledger": ledger,
        "retrain": retrain,
    }


def index(run: records.Run, asked: int | None) -> None:
    """Builds what is missing of a run's index; of so many visits a neuron as are asked for."""
    folder, most, there = explorer.beside(run), asked, 0
    if (folder / "manifest.json").exists():
        most, there = records.manifest(folder).get("most"), records.n_steps(folder)
        if asked not in (None, most):
            kept = "all visits" if most is None else f"{most:,} visits a neuron"
            raise ValueError(f"{folder} keeps {kept}, not {asked:,}: leave --most out, or remove that folder")
    if there == run.n_steps:
        return
    size = page.n_bytes(explorer.index_bytes(run, most))
    stage.say(f"indexing {page.counted(run.n_steps, 'step')} in {folder}, {size} at most when it is done")
    for _ in terminal.watched(explorer.build(run, most), run.n_steps, "indexing", first=there):
        pass


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
