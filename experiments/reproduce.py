"""The whole post: train and record, attribute, ablate, compare, report. Goes on where it stopped, at every stage.

    python experiments/reproduce.py                                                        # five minutes, no download
    python experiments/reproduce.py --corpus wikitext2 --preset post --run runs/post       # the post's run: two hours
    python experiments/reproduce.py --corpus wikitext2 --preset modern --run runs/modern   # the same with AdamW

The report is RUN-results/report.html, one file to open in a browser.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ablate
import activations
import attribute
import capture
import report
import skill
import stage

SMALL: dict[str, dict[str, Any]] = {
    "attribute": {"parameters": 50, "neurons": 3},
    "ablate": {"data": 300},
    "skill": {"data": 150, "seen": 500, "pointed": 20},
    "activations": {"data": 500},
}


@dataclass(frozen=True)
class Settings:
    corpus: str = "python_docs"
    """wikitext2, python_docs, planted, or the path of a UTF-8 text file."""
    preset: Literal["demo", "post", "modern"] = "demo"
    """demo: a small model and small samples. post: the post's model, five epochs. modern: the same with AdamW."""
    run: Path = Path("runs/demo")
    """The run directory: new, or one that the same command began."""
    out: Path | None = None
    """Where the results go; by default beside the run, RUN-results."""
    steps: int | None = None
    """Stop training after so many steps."""
    threads: int | None = None
    """CPU threads."""


def main(settings: Settings) -> Path:
    given = {"corpus": settings.corpus, "preset": settings.preset, "steps": settings.steps, "threads": settings.threads}
    capture.main(capture.Settings(out=settings.run, **given))  # type: ignore[arg-type]
    small = SMALL if settings.preset == "demo" else {}
    for script in (attribute, ablate, skill, activations):
        script.main(script.Settings(run=settings.run, out=settings.out, **small.get(script.__name__, {})))
    return report.main(report.Settings(run=settings.run, out=settings.out))


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
