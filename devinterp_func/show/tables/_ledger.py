"""Ledgers as tables: each probe over training, the texts and tokens that moved it. One set of tables for all of a run.

A row begins with what tells its ledger from others (``LedgerKey``); all rows of a ledger are written together, so they
replace those that the same ledger wrote before. Sums that the rows are made of are in ``credit``.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import polars as pl
from torch import Tensor

from devinterp_func import credit
from devinterp_func.batches import Data
from devinterp_func.credit import Entries
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table, frame, token


class LedgerKey(NamedTuple):
    """What a ledger is of, besides its probes."""

    start: int  # first step
    stop: int  # step after the last
    nodes: int
    texts: int
    seed: int


LEDGER_KEY = {
    "probe": Column(NAME, "the number that was followed"),
    "start": Column(INT, "first step"),
    "stop": Column(INT, "step after the last"),
    "nodes": Column(INT, "gradients of the probe along each step"),
    "texts": Column(INT, "validation texts of a probe that takes texts"),
    "seed": Column(INT, "of the draw of texts"),
}
COURSES = Table(
    "Each probe over training, in windows of steps.",
    "ledger.py",
    {
        **LEDGER_KEY,
        "step": Column(INT, "first of the window"),
        "steps": Column(INT, "in the window"),
        "value": Column(FLOAT, "before the window"),
        "raised": Column(FLOAT, "sum of the positive credits of single data"),
        "lowered": Column(FLOAT, "sum of the negative credits of single data"),
        "past": Column(FLOAT, "what data of earlier steps did, through the optimizer's memory"),
        "decay": Column(FLOAT, "what weight decay did"),
        "net missed": Column(FLOAT, "change less all of these"),
        "missed": Column(FLOAT, "the same, absolute values step by step"),
        "change": Column(FLOAT, "absolute changes step by step"),
    },
    tuple(LEDGER_KEY),
)
TEXTS = Table(
    "The texts that moved each probe most.",
    "ledger.py",
    {
        **LEDGER_KEY,
        "effect": Column(NAME, "raised or lowered"),
        "rank": Column(INT, "among the texts of this effect, from 1"),
        "datum": Column(INT, "id of the training datum"),
        "steps": Column(INT, "it was in"),
        "credit": Column(FLOAT, "over all its steps"),
        "position": Column(INT, "where most of it is, from 0"),
        "credits": Column(pl.List(pl.Float64), "of each position: of predicting its target there"),
    },
    tuple(LEDGER_KEY),
)
TARGETS = Table(
    "Target tokens at whose positions each probe gained and lost most.",
    "ledger.py",
    {
        **LEDGER_KEY,
        "target": token("the token that was to be predicted"),
        "credit": Column(FLOAT, "of all its positions"),
        "positions": Column(INT, "with this target in the steps"),
    },
    tuple(LEDGER_KEY),
)
INPUTS = Table(
    "Input tokens at whose positions each probe was moved most, either way, beside how often they occur.",
    "ledger.py",
    {
        **LEDGER_KEY,
        "input": token("the token that was read"),
        "credit": Column(FLOAT, "of all its positions"),
        "gross": Column(FLOAT, "absolute credits of all its positions"),
        "share of gross": Column(FLOAT, "of the absolute credits of all positions", format=".1%"),
        "share of positions": Column(
            FLOAT, "what the share would be if all positions weighed the same", format=".1%", control=True
        ),
        "positions": Column(INT, "with this input in the steps"),
    },
    tuple(LEDGER_KEY),
)
LEDGER_TABLES = {"ledger_courses": COURSES, "ledger_texts": TEXTS, "ledger_tokens": TARGETS, "ledger_inputs": INPUTS}


def ledger_frames(
    entries: Entries, probes: Sequence[str], key: LedgerKey, data: Data, vocab_size: int, every: int = 10
) -> dict[str, pl.DataFrame]:
    """All tables of a ledger, by the names of ``LEDGER_TABLES``.

    Args:
        entries: of consecutive steps, stacked.
        probes: names of the entries' probes.
        key: of the ledger.
        data: the training data.
        vocab_size: V.
        every: steps of a window of the courses.
    """
    tokens, targets = (x[entries.datum.long()] for x in data)
    rows: dict[str, list[dict[str, Any]]] = {
        "ledger_courses": list(_course_rows(entries, probes, every)),
        "ledger_texts": list(_text_rows(entries, probes)),
        "ledger_tokens": list(_target_rows(entries, probes, targets, vocab_size)),
        "ledger_inputs": list(_input_rows(entries, probes, tokens, vocab_size)),
    }
    return {name: frame(kind, [{**row, **key._asdict()} for row in rows[name]]) for name, kind in LEDGER_TABLES.items()}


def _course_rows(entries: Entries, probes: Sequence[str], every: int) -> Iterator[dict[str, Any]]:
    found = credit.probe_courses(entries, every)
    for i, probe in enumerate(probes):
        for w, (step, steps) in enumerate(zip(found.step.tolist(), found.steps.tolist(), strict=True)):
            sums = {name.replace("_", " "): float(x[w, i]) for name, x in found._asdict().items() if x.ndim == 2}
            yield {"probe": probe, "step": step, "steps": steps, **sums}


def _text_rows(entries: Entries, probes: Sequence[str]) -> Iterator[dict[str, Any]]:
    for i, probe in enumerate(probes):
        for text in credit.most_credited(entries, i):
            credits = text.credit.tolist()
            sums = {"credit": float(text.credit.sum()), "position": text.position, "credits": credits}
            yield {"probe": probe, **text._asdict(), **sums}


def _target_rows(
    entries: Entries, probes: Sequence[str], targets: Tensor, vocab_size: int, most: int = 15
) -> Iterator[dict[str, Any]]:
    """For each probe the targets of the largest and of the smallest credit, those without any left out."""
    for i, probe in enumerate(probes):
        found = credit.by_token(entries.credit[:, i], targets, vocab_size)
        for sign in (1, -1):
            for v in _largest(sign * found.net, most):
                yield {"probe": probe, "target": v, "credit": float(found.net[v]), "positions": int(found.positions[v])}


def _input_rows(
    entries: Entries, probes: Sequence[str], tokens: Tensor, vocab_size: int, most: int = 15
) -> Iterator[dict[str, Any]]:
    """For each probe the inputs of the largest gross credit, that is Σ |credit| over their positions."""
    for i, probe in enumerate(probes):
        found = credit.by_token(entries.credit[:, i], tokens, vocab_size)
        for v in _largest(found.gross, most):
            row = {"probe": probe, "input": v, "credit": float(found.net[v]), "gross": float(found.gross[v])}
            row["share of gross"] = float(found.gross[v] / found.gross.sum())
            row["share of positions"] = float(found.positions[v] / found.positions.sum())
            yield row | {"positions": int(found.positions[v])}


def _largest(amounts: Tensor, most: int) -> list[int]:
    """The tokens of the largest positive amounts, largest first."""
    order = amounts.argsort(descending=True, stable=True)[:most]
    return order[amounts[order] > 0].tolist()


def longest(courses: pl.DataFrame) -> pl.DataFrame:
    """Of each ledger that was followed to several stops, the rows of the last one."""
    of = [name for name in LEDGER_KEY if name != "stop"]
    return courses.filter(pl.col("stop") == pl.col("stop").max().over(of))


def ledger_summary(courses: pl.DataFrame) -> pl.DataFrame:
    """Each probe of each ledger at the start and the end, what led from one to the other, and the share missed.

    Args:
        courses: of ``COURSES``.
    """
    end = pl.sum_horizontal("value", "raised", "lowered", "past", "decay", "net missed").last().alias("end")
    missed = (pl.col("missed").sum() / pl.col("change").sum()).alias("missed")
    return courses.group_by(*LEDGER_KEY, maintain_order=True).agg(
        pl.col("value").first().alias("at the start"),
        end.alias("at the end"),
        pl.col("raised", "lowered", "past", "decay").sum(),
        missed,
    )
