"""Runs side by side: what the same scripts found about each, in one table, a row a measure and a column a run.

Only tables are read, of a run's results or of a folder to which ``report.py --export`` copied them. What a run's folder
does not have is "not measured".
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl

from devinterp_func import records
from devinterp_func.show import _compared_parts, _compared_training, results, tables
from devinterp_func.show._compared import NOT_MEASURED, Cell, Side
from devinterp_func.show.schema import FLOAT, NAME, Column, Table, frame

COMPARISON = Table(
    "Runs side by side.",
    "compare.py",
    {
        "topic": Column(NAME),
        "measure": Column(NAME),
        "run": Column(NAME),
        "value": Column(FLOAT, "null where it was not measured, or is no number"),
        "low": Column(FLOAT, "end of its 95 % bootstrap interval, where it has one"),
        "high": Column(FLOAT, "end of its 95 % bootstrap interval, where it has one"),
        "said": Column(NAME, "the value as a person reads it, with its control where it has one"),
    },
)
TOPICS: dict[str, Callable[[Side, Sequence[Side]], Mapping[str, Cell]]] = {
    "training": _compared_training.training,
    "what moved the weights: present, past, decay": _compared_training.parts,
    "outliers of present deltas, share by unit": _compared_parts.outliers,
    "notable tokens; in brackets random neurons": _compared_parts.verdicts,
    "ranking skill: mean average precision": _compared_parts.skill,
    "bigrams; in brackets shuffled": _compared_training.bigrams,
    "heads: attention above control": _compared_training.heads,
    "phases: where a new one begins": _compared_training.phases,
    "how far a credit can be trusted": _compared_parts.trust,
    "lifetime against present credit": _compared_parts.lifetimes,
}


def sides(paths: Sequence[Path]) -> list[Side]:
    """The runs to compare.

    Args:
        paths: of each a run directory, whose results are beside it, or a folder with its results and ``manifest.json``.

    Raises:
        ValueError: fewer than two are given, or one twice.
        Missing: one is neither.
    """
    if len(paths) < 2:
        raise ValueError(f"{len(paths)} runs are given; name at least two, such as runs/post runs/modern")
    return [_side(Path(path), label) for path, label in zip(paths, tables.run_labels(paths), strict=True)]


def compare(those: Sequence[Side]) -> pl.DataFrame:
    """The whole table, of type ``COMPARISON``: topic by topic, each measure of every run."""
    rows = []
    for topic, of in TOPICS.items():
        found = {side.label: of(side, those) for side in those}
        for measure in dict.fromkeys(name for cells in found.values() for name in cells):
            for label, cells in found.items():
                cell = cells.get(measure, NOT_MEASURED)
                rows.append({"topic": topic, "measure": measure, "run": label} | cell._asdict())
    return frame(COMPARISON, rows)


def side_by_side(compared: pl.DataFrame) -> pl.DataFrame:
    """A row a measure and a column a run, as a person reads them."""
    return compared.pivot("run", index=["topic", "measure"], values="said", maintain_order=True)


def markdown(compared: pl.DataFrame) -> str:
    """The same as Markdown, each topic a row of its own in italics."""
    wide = side_by_side(compared)
    labels = wide.columns[2:]
    lines = [_row(["", *labels]), "|---" * (len(labels) + 1) + "|"]
    for (topic,), rows in wide.group_by("topic", maintain_order=True):
        lines.append(_row([f"*{topic}*", *[""] * len(labels)]))
        lines += [_row(cells) for cells in rows.drop("topic").iter_rows()]
    return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _side(path: Path, label: str) -> Side:
    manifest = path / "manifest.json"
    if not manifest.exists():
        raise results.Missing(f"{path} has no manifest.json: it is neither a run nor a folder with a run's results")
    if not (path / "steps").is_dir():
        return Side(label, path, json.loads(manifest.read_text()), None)
    run = records.open(path)
    evaluations = tables.evaluation_frame(records.read_evaluations(run), run.steps_per_epoch)
    return Side(label, results.beside(path), run.manifest, evaluations)
