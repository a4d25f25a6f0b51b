"""One self-contained HTML page of everything that was found about a run, each table with its control beside it.

    python experiments/report.py runs/demo

Writes RUN-results/report.html. What has no results yet is left out, and the page says which script makes it.
"""

from dataclasses import dataclass
from pathlib import Path

import stage
import tyro

from devinterp_func import records, show
from devinterp_func.show import results, terminal


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""
    out: Path | None = None
    """Where the results are, and the page goes; by default beside the run, RUN-results."""
    export: Path | None = None
    """Also copy page, tables, figures and the run's manifest there: a few megabytes."""


def main(settings: Settings) -> Path:
    console, run = terminal.console(), records.open(settings.run)
    folder = results.beside(run, settings.out)
    written = results.write(folder / "report.html", show.report(run, folder).encode())
    terminal.say(f"the report is {written}", console)
    if settings.export:
        copies = results.export(run, folder, settings.export)
        size = sum(path.stat().st_size for path in copies) / 1e6
        terminal.say(f"{len(copies)} files, {size:.1f} MB, are copied to {settings.export}", console)
    return written


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
