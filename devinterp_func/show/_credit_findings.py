"""What the tables of credits, heads, influences and retraining say, each in a sentence with its control."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from devinterp_func.records import Run
from devinterp_func.show import _influence_sections, _judge_sections, results, tables
from devinterp_func.show._written import counted, shown
from devinterp_func.show.schema import Table

REST = {"past": "earlier data's, through the optimizer's memory", "decay": "weight decay's"}


def read(folder: Path, name: str, kind: Table) -> pl.DataFrame | None:
    """A table; None where there is none, or it has no rows."""
    table = results.read_table(folder, name, kind) if results.has_table(folder, name) else None
    return table if table is not None and len(table) else None


def between(row: Mapping[str, Any], value: str, low: str = "low", high: str = "high") -> str:
    """A number with its interval, without one where it has none.

    >>> between({"x": 0.5, "low": 0.25, "high": None}, "x"), between({"x": 0.5, "low": 0.25, "high": 1.0}, "x")
    ('0.500', '0.500 [0.250, 1.00]')
    """
    if not known(row, low, high):
        return shown(row[value])
    return f"{shown(row[value])} [{shown(row[low])}, {shown(row[high])}]"


def known(row: Mapping[str, Any], *names: str) -> bool:
    """Whether all of these are numbers."""
    return all(row[name] is not None and row[name] == row[name] for name in names)


def credits(run: Run, folder: Path) -> str | None:
    """How the first probe went, what raised and what lowered it, what the books miss, and the token that did most."""
    courses = read(folder, "ledger_courses", tables.COURSES)
    if courses is None:
        return None
    rows = tables.ledger_summary(tables.longest(courses))
    row = rows.row(0, named=True)
    rest = "".join(f", {name} ({whose}) {shown(row[name])}" for name, whose in REST.items() if row[name])
    said = (
        f"`{row['probe']}` went from {shown(row['at the start'])} to {shown(row['at the end'])} in steps "
        f"{row['start']:,} to {row['stop']:,}: single data raised it by {shown(row['raised'])} and lowered it by "
        f"{shown(-row['lowered'])}{rest}; the credits miss {row['missed']:.2%} of Σ|Δf|."
    )
    said += f" {counted(len(rows) - 1, 'more ledger is', 'more ledgers are')} there." if len(rows) > 1 else ""
    inputs = read(folder, "ledger_inputs", tables.INPUTS)
    own = None if inputs is None else _of(inputs, row, tables.LEDGER_KEY)
    if own is None or not len(own):
        return said
    most = own.sort("share of gross", descending=True, maintain_order=True).row(0, named=True)
    word = run.corpus.vocab.tokens[most["input"]]
    return (
        f"{said} Positions that read “{word}” made {most['share of gross']:.1%} of the absolute credits and are "
        f"{most['share of positions']:.1%} of the positions."
    )


def heads(run: Run, folder: Path) -> str | None:
    """The head that ends farthest above its control, and how many do."""
    table = read(folder, "heads", tables.HEADS)
    if table is None:
        return None
    last = table.filter(pl.col("step") == pl.col("step").max())
    held = last.filter(pl.col("by distance").is_not_null() & pl.col("by distance").is_not_nan())
    rows = held if len(held) else last
    best = rows.sort("above", descending=True, maintain_order=True).row(0, named=True)
    said = (
        f"Before step {best['step']:,} head {best['head']} gives {best['attention']:.1%} of its attention to the keys "
    )
    said += f"of the pattern “{best['pattern']}”; "
    if not len(held):
        return f"{said}this pattern has no control."
    twice = int((held["attention"] >= 2 * held["by distance"]).sum())
    return (
        f"{said}from other queries, keys at the same distances get {best['by distance']:.1%} of it. It is the farthest "
        f"above its control of {counted(len(held), 'pair')} of head and pattern; {twice} give at least twice as much."
    )


def influences(run: Run, folder: Path) -> str | None:
    """How far ahead the first probe can be forecast, and whether credits put data in the order of influences."""
    books = read(folder, "influences", tables.INFLUENCES)
    horizons = (
        results.read_table(folder, "influence_horizons", tables.INFLUENCE_HORIZONS) if books is not None else None
    )
    if books is None or horizons is None:
        return None
    row = books.row(0, named=True)
    verdict = _influence_sections.verdict(row, _of(horizons, row, tables.INFLUENCE_KEY))
    return (
        f"`{row['probe']}`, steps {row['start']:,} to {row['stop']:,}: {verdict[0].lower()}{verdict[1:]} Influence and "
        f"credit put {counted(row['data'], 'datum', 'data')} in orders that correlate by "
        f"{between(row, 'rank correlation')}; 0 is chance."
    )


def removals(run: Run, folder: Path) -> str | None:
    """What retraining without the data of highest credit did to each probe, beside retraining without random ones."""
    table = read(folder, "retrain", tables.REMOVALS)
    if table is None:
        return None
    by_credit = table.filter(pl.col("score") == pl.format("credit, {}", "measured"))
    own = by_credit.filter(pl.col("share") == pl.col("share").max().over("from", "to", "measured"))
    if not len(own):
        return None
    row = own.row(0, named=True)
    same = ("from", "to", "measured", "share")
    chance = _of(table.filter(pl.col("score") == "random"), row, same)
    sure = [known(one, "SDs low", "SDs high") and (one["SDs low"] > 0 or one["SDs high"] < 0) for one in own.to_dicts()]
    beside = f"; random removals change it by {between(chance.row(0, named=True), 'effect')}" if len(chance) else ""
    far = f", {between(row, 'SDs', 'SDs low', 'SDs high')} standard deviations away" if known(row, "SDs") else ""
    return (
        f"Retrained over steps {row['from']:,} to {row['to']:,} without the {row['count']:,} data credited most for "
        f"it, `{row['measured']}` ends {shown(row['effect'])} from where it ended{beside}{far}. Of "
        f"{counted(len(own), 'probe')} removed by credit, {sum(sure)} surely differ from random removals."
    )


def judge(run: Run, folder: Path) -> str | None:
    """Which score foretells what retraining did to the first number that was measured."""
    judged = read(folder, "judge", tables.JUDGED)
    if judged is None:
        return None
    key = judged.row(0, named=True)
    horizons = results.read_table(folder, "judge_horizons", tables.JUDGED_HORIZONS)
    return _judge_sections.verdict(*(_of(table, key, tables.JUDGE_KEY) for table in (judged, horizons)))


def _of(table: pl.DataFrame, row: Mapping[str, Any], names: Any) -> pl.DataFrame:
    """The rows that have the same values as one has."""
    return table.filter(pl.all_horizontal(pl.col(name).eq_missing(pl.lit(row[name])) for name in names))
