"""Check every bit of a run directory: digests, the chain of shards, and that nothing is missing.

python experiments/verify.py runs/demo
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from devinterp_func import records


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""


def main(settings: Settings) -> None:
    console = Console(soft_wrap=True)
    try:
        console.print(f"[green]whole[/green] {settings.run}: {records.verify(settings.run)}")
    except records.RecordError as error:
        console.print("[bold red]not whole[/bold red]", f"{error}", markup=True)
        sys.exit(1)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
