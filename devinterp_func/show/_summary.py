"""What was found about a run in a few sentences, each with its control beside it: what a report begins with.

A sentence is made of one topic's tables and says what speaks against a finding as plainly as what speaks for it. Where
a table is not there, neither is its sentence.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import polars as pl

from devinterp_func.records import Run
from devinterp_func.show import _credit_findings, _neuron_findings, results

MOST = 8  # sentences


class Finding(NamedTuple):
    """What one topic's tables say."""

    text: str  # ``page.prose``
    section: str  # title of the report's section that it is from


Say = Callable[[Run, Path], str | None]
TOPICS: dict[str, Say] = {  # title of a section of the report -> what its tables say; in the order of the report
    "Credits": _credit_findings.credits,
    "What heads attend to": _credit_findings.heads,
    "Influences": _credit_findings.influences,
    "Retrained without credited data": _credit_findings.removals,
    "Verdicts": _neuron_findings.verdicts,
    "Does the method predict?": _neuron_findings.skill,
    "Bigrams": _neuron_findings.bigrams,
    "Phases": _neuron_findings.phases,
    "Which amounts foretell what a datum changed": _credit_findings.judge,
}


def summary(run: Run, folder: Path) -> list[str]:
    """What was found, in sentences with their controls; none where nothing was looked for yet.

    Args:
        run: the run.
        folder: its results.

    Raises:
        ValueError: a table is damaged or of another version; the message names the script to run.
    """
    return [finding.text for finding in findings(run, folder)]


def findings(run: Run, folder: Path) -> list[Finding]:
    """The sentences of ``summary``, each with the section of the report that it is from."""
    found = []
    for section, say in TOPICS.items() if run.is_text else ():
        try:
            text = say(run, folder)
        except (results.Missing, pl.exceptions.NoRowsReturnedError):  # a part of a topic's results
            continue
        if text is not None:
            found.append(Finding(text, section))
    return found[:MOST]
