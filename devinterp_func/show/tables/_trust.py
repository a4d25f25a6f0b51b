"""How far credits can be trusted, as tables: what estimates miss, rank agreement, and known causes."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from devinterp_func import stats
from devinterp_func.credit import Completeness, Precision
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table, frame

INTERVAL = {
    "low": Column(FLOAT, "of the 95 % bootstrap interval over steps"),
    "high": Column(FLOAT, "of the 95 % bootstrap interval over steps"),
}
COMPLETENESS = Table(
    "What each estimate of a step's change misses, as a share of Σ|Δf|.",
    "counterfactual.py",
    {
        "probe": Column(NAME),
        "estimate": Column(NAME, "a gradient times the step, or the credits with past and decay"),
        "nodes": Column(INT, "of the credits' quadrature"),
        "missed": Column(FLOAT, "Σ|Δf − estimate| ÷ Σ|Δf|", format=".1%"),
        **{name: column._replace(format=".1%") for name, column in INTERVAL.items()},
        "change": Column(FLOAT, "Σ|Δf| over the steps"),
        "steps": Column(INT, "that were looked at"),
    },
    ("probe", "estimate", "nodes"),
)
AGREEMENT = Table(
    "Rank correlation, over the data of a step, of each score with leaving the datum out of the step.",
    "counterfactual.py",
    {
        "probe": Column(NAME),
        "truth": Column(NAME, "delta taken away: the rest as it was; step rerun: its gain follows"),
        "score": Column(NAME, "that ranks the data of a step"),
        "median": Column(FLOAT, "over the steps"),
        **INTERVAL,
        "steps": Column(INT, "in which the ranks are defined"),
    },
    ("probe", "truth", "score"),
)
PLANTED_CAUSE = Table(
    "Precision of each score, with 95 % bootstrap intervals over probes.",
    "planted_cause.py",
    {
        "score": Column(NAME, "that ranks the training data"),
        "measure": Column(NAME, "average precision, or precision among the highest data"),
        "at": Column(INT, "how many of the highest data, for precision"),
        "mean": Column(FLOAT, "over the probes"),
        "low": Column(FLOAT),
        "high": Column(FLOAT),
        "base rate": Column(FLOAT, "share of all data that contain the bigram", control=True),
        "probes": Column(INT),
    },
    ("score", "measure", "at"),
)


def completeness_frame(found: Sequence[Completeness], probes: Sequence[str]) -> pl.DataFrame:
    """Rows of ``COMPLETENESS``, probe by probe.

    Args:
        found: of ``credit.completeness``.
        probes: names of the probes.
    """
    rows: list[dict[str, Any]] = []
    for i, probe in enumerate(probes):
        for one in found:
            share = one.missed[i]
            row = {"probe": probe, "estimate": one.estimate, "nodes": one.nodes, "missed": share.value}
            rows.append(row | {"low": share.low, "high": share.high, "change": float(one.change[i]), "steps": share.n})
    return frame(COMPLETENESS, rows)


def agreement_frame(found: Mapping[str, Mapping[str, Mapping[str, stats.Estimate]]]) -> pl.DataFrame:
    """Rows of ``AGREEMENT``.

    Args:
        found: probe -> what it is to leave a datum out -> score -> of ``credit.rank_agreement``.
    """
    rows: list[dict[str, Any]] = []
    for probe, truths in found.items():
        for truth, scores in truths.items():
            for score, one in scores.items():
                row = {"probe": probe, "truth": truth, "score": score, "median": one.value}
                rows.append(row | {"low": one.low, "high": one.high, "steps": one.n})
    return frame(AGREEMENT, rows)


def planted_cause_frame(found: Sequence[Precision], base_rate: float) -> pl.DataFrame:
    """Rows of ``PLANTED_CAUSE``.

    Args:
        found: of ``credit.cause_precision``.
        base_rate: share of the data that contain the bigram, which a random ranking has.
    """
    rows: list[dict[str, Any]] = []
    for score, at, mean in found:
        measure = "average precision" if at is None else "precision"
        row: dict[str, Any] = {"score": score, "measure": measure, "at": at}
        row |= {"mean": mean.value, "low": mean.low, "high": mean.high, "base rate": base_rate, "probes": mean.n}
        rows.append(row)
    return frame(PLANTED_CAUSE, rows)
