"""What a few snapshots show of a run's phases: change points beside those of the full record, and courses."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from devinterp_func import credit
from devinterp_func.credit import Answer, SnapshotMeasures
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table, frame
from devinterp_func.show.tables._phase_dips import BESIDE, DIPS
from devinterp_func.show.tables._phases import (
    CHANGES,
    COINCIDENCE,
    KEY,
    LOSS_COLUMNS,
    LOSSES,
    MAKERS,
    MODELS,
    RUN,
    SEEDS,
    SEGMENTS,
    WINDOWS,
)

SPACED = RUN | {"spacing": Column(NAME, "even, or log: by growing gaps")}
SNAPSHOTS = Table(
    "What a few snapshots tell: the captured weights and the losses.",
    "phases.py",
    SPACED
    | {
        "step": Column(INT),
        "norm": Column(FLOAT, "of the captured units"),
        "moved per step": Column(FLOAT, "‖change since the snapshot before‖ ÷ steps"),
        "turn": Column(FLOAT, "cosine of that change and the one before"),
    }
    | LOSS_COLUMNS,
    KEY,
)
ANSWERS = Table(
    "What a few snapshots say of the change points.",
    "phases.py",
    SPACED
    | {
        "full record": Column(INT, "a change point, step"),
        "from snapshots": Column(INT, "the nearest change point found from the snapshots"),
        "off by": Column(FLOAT, "steps between them"),
        "at best": Column(FLOAT, "steps to the nearest snapshot inside"),
        "by chance": Column(FLOAT, "mean distance if as many change points were any snapshots", control=True),
    },
    KEY,
)
SNAPSHOT_COURSES = Table(
    "How near the courses of a few snapshots come.",
    "phases.py",
    SPACED
    | {
        "measure": Column(NAME),
        "correlation": Column(FLOAT, "with the full record; any two falling courses go together"),
        "less a line in log step": Column(FLOAT, "the same, a straight line in log step taken off both"),
        "missed": Column(FLOAT, "root mean square difference, nats"),
    },
    KEY,
)

PHASE_TABLES: Mapping[str, Table] = {  # by the ends of their files' names, in the order of the page
    "dips": DIPS,
    "beside": BESIDE,
    "changes": CHANGES,
    "segments": SEGMENTS,
    "makers": MAKERS,
    "models": MODELS,
    "coincidence": COINCIDENCE,
    "answers": ANSWERS,
    "courses": SNAPSHOT_COURSES,
    "seeds": SEEDS,
    "windows": WINDOWS,
    "snapshots": SNAPSHOTS,
}


def snapshot_frame(run: str, spacing: str, measured: SnapshotMeasures) -> pl.DataFrame:
    """What the snapshots tell; null for the first ones' movement and turn.

    Args:
        run: its label.
        spacing: of the snapshots.
        measured: of ``credit.measure_snapshots``.
    """
    rows = []
    for i, step in enumerate(measured.step.tolist()):
        weights = (float(x[i]) for x in (measured.norm, measured.moved, measured.turn))
        values = dict(zip(("norm", "moved per step", "turn"), weights, strict=True))
        losses = dict(zip(LOSSES, measured.loss[i].tolist(), strict=True))
        rows.append({"run": run, "spacing": spacing, "step": step, **values, **losses})
    return frame(SNAPSHOTS, rows).with_columns(pl.col("moved per step", "turn").fill_nan(None))


def answer_frame(run: str, spacing: str, answers: Sequence[Answer]) -> pl.DataFrame:
    """Each change point of the full record and what the snapshots say of it.

    Args:
        run, spacing: as of ``snapshot_frame``.
        answers: of ``credit.snapshot_answers``.
    """
    names = [name for name in ANSWERS.columns if name not in SPACED]
    rows = [{"run": run, "spacing": spacing} | dict(zip(names, answer, strict=True)) for answer in answers]
    return frame(ANSWERS, rows)


def snapshot_course_frame(windows: pl.DataFrame, spacing: str, measured: SnapshotMeasures) -> pl.DataFrame:
    """For each class of losses, how near the course drawn through the snapshots comes to that of the full record.

    Args:
        windows: of ``window_frame``, of one run: the full record.
        spacing, measured: as of ``snapshot_frame``.
    """
    whole, rows = windows.filter(pl.col("units") == credit.ALL), []
    known = measured.step.double().numpy()
    for i, name in enumerate(LOSSES):
        part = whole.select("run", "step", name).drop_nulls().drop_nans()
        if len(part) < 3:
            continue
        step, full = part["step"].to_numpy().astype(np.float64), part[name].to_numpy()
        likeness = credit.course_likeness(step, full, known, measured.loss[:, i].numpy())
        row = {"run": part["run"][0], "spacing": spacing, "measure": name, "correlation": likeness.correlation}
        rows.append(row | {"less a line in log step": likeness.detrended, "missed": likeness.missed})
    return frame(SNAPSHOT_COURSES, rows)
