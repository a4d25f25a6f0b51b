"""What differs between runs, such as of two optimizers? What the same scripts found about each, in one table.

    python experiments/compare.py runs/demo runs/demo-sgd
    python experiments/compare.py experiments/results/post runs/modern

Runs that were read with the same commands are compared by their tables, in RUN-results beside each; where a run itself
is not there, a folder does to which report.py --export copied its results. What no script has measured of a run is said
to be so. Writes comparison.parquet, a row a measure and run, and comparison.md, a column a run.
"""

from dataclasses import dataclass
from pathlib import Path

import stage
import tyro

from devinterp_func.show import comparison, results, terminal


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[tuple[Path, ...]]
    """Two or more runs, or folders with the results of runs."""
    out: Path | None = None
    """Where the comparison goes; by default to the results of the last run."""


def main(settings: Settings) -> Path:
    those = comparison.sides(settings.run)
    folder = those[-1].folder if settings.out is None else settings.out
    compared = comparison.compare(those)
    results.write_table(folder, "comparison", compared)
    written = results.write(folder / "comparison.md", comparison.markdown(compared).encode())
    console = terminal.console()
    for (topic,), rows in comparison.side_by_side(compared).group_by("topic", maintain_order=True):
        console.print(terminal.rich_table(rows.drop("topic"), str(topic), rows.height, width=500))
    stage.say(f"the comparison is {written}")
    return folder


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
