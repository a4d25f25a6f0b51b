"""Check every bit of a run directory: digests, the chain of shards, and that nothing is missing.

python experiments/verify.py runs/demo
"""

from dataclasses import dataclass
from pathlib import Path

import stage
import tyro

from devinterp_func import records


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""


def main(settings: Settings) -> None:
    try:
        stage.say(f"whole {settings.run}: {records.verify(settings.run)}")
    except records.RecordError as error:
        raise records.RecordError(f"not whole: {error}") from error


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
