"""Which amounts foretell what a datum changed: a section of a run's report, from ``judge.py``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import Markup
from matplotlib.figure import Figure

from devinterp_func import credit
from devinterp_func.records import Run
from devinterp_func.show import page, plots, results, tables, words
from devinterp_func.show.drawing import CYCLE, NARROW, WIDE
from devinterp_func.show.page import Section
from devinterp_func.show.schema import Table

TITLE = "Which amounts foretell what a datum changed"
LEAD = f"""Some steps were trained again and again, each time without some data. A score of every visit of a datum
foretells minus its sum over what is removed; the rank correlation with what retraining did says whether it puts
removals in the right order (of random subsets it is the linear datamodeling score), and the slope, 1 where sizes are
right, whether it foretells how much. Behind is influence's rank correlation less the score's own, over the same
removals: above 0 where the score is worse. A horizon is a number of steps from the first that is retrained to where the
number is read. A score foretells where its rank correlation is surely above {credit.BELOW:g}."""
SPAN = tuple(name for name in tables.JUDGE_KEY if name != "measured")
SCORE = ("score", "rank", "rank low", "rank high", "slope")
BEHIND = ("behind", "behind low", "behind high")
SMOOTH = ("metasmoothness", "growth")
REST = ("slope low", "slope high", "removals")
SHOWN = Table(
    tables.JUDGED.caption,
    tables.JUDGED.script,
    {**tables.JUDGED.columns, **{name: tables.JUDGED_HORIZONS.columns[name] for name in SMOOTH}},
)
KINDS = {"visit": "single visits", "datum": "single data"}


def sections(run: Run, folder: Path) -> list[Section]:
    """One section, of all spans that were judged; none where the tables are not there.

    Args:
        run: the run.
        folder: its results.
    """
    if not results.has_table(folder, "judge"):
        return []
    whole = {name: results.read_table(folder, name, kind) for name, kind in tables.JUDGE_TABLES.items()}
    items: list[Markup] = []
    for key in whole["judge"].select(SPAN).unique(maintain_order=True).iter_rows(named=True):
        same = pl.all_horizontal(pl.col(name).eq_missing(pl.lit(value)) for name, value in key.items())
        items += _span(run, key, {name: table.filter(same) for name, table in whole.items()})
    return [Section(TITLE, LEAD, items)]


def rank_figures(judged: pl.DataFrame, reaches: pl.DataFrame, width: float | int = WIDE) -> list[Figure]:
    """Rank correlation by horizon with intervals: a panel for each score, a line for each number that is measured.

    Args:
        judged: rows of ``tables.JUDGED``, of one span.
        reaches: rows of ``tables.REACHES``; where one number is measured they are told under the scores.
        width: inches.

    Returns:
        As many as there must be for every line to have a colour of its own: one, of up to six numbers.
    """
    names = list(dict.fromkeys(judged["measured"]))
    figures = []
    for first in range(0, len(names), len(CYCLE)):
        some = names[first : first + len(CYCLE)]
        panels = {
            str(score): {name: _forecasts(rows.filter(pl.col("measured") == name)) for name in some}
            for (score,), rows in judged.sort("horizon", maintain_order=True).group_by("score", maintain_order=True)
        }
        remarks = {row["score"]: _remark(row) for row in reaches.iter_rows(named=True)} if len(names) == 1 else {}
        figures.append(plots.forecast_panels(panels, credit.BELOW, remarks, width))
    return figures


def _forecasts(rows: pl.DataFrame) -> plots.Forecasts:
    x, rank, low, high = (
        rows[name].cast(pl.Float64).fill_null(float("nan")).to_torch()
        for name in ("horizon", "rank", "rank low", "rank high")
    )
    return x, rank, low, high


def _remark(row: dict[str, Any]) -> str:
    """Where a score's rank correlation falls below the bound, in the words of a panel."""
    if row["reach"] is None or row["reach"] != row["reach"]:
        return ""
    if row["reach"] == 0:
        return f"below {credit.BELOW:g} at {row['first']:,}"
    return f"below {credit.BELOW:g} " + ("at none" if row["reach"] == float("inf") else f"from {row['reach']:,.0f} on")


# ---- in a sentence


def verdict(judged: pl.DataFrame, horizons: pl.DataFrame) -> str:
    """How far ahead what data changed is foretold, and by which score, in a sentence.

    Args:
        judged: rows of ``tables.JUDGED``, of one span and one number that is measured.
        horizons: its rows of ``tables.JUDGED_HORIZONS``.
    """
    known = judged.filter(pl.col("rank").is_not_nan() & pl.col("rank").is_not_null())
    known = known.sort("horizon", "rank", descending=[False, True], maintain_order=True)
    name, last = judged["measured"][0], judged["horizon"].max()
    if not len(known):
        return f"{name}: too few trainings to tell, or nothing differs between them."
    foretold = known.filter(pl.col("rank low") > credit.BELOW)
    told = foretold["horizon"].max() if len(foretold) else known["horizon"].min()
    first, *others = known.filter(pl.col("horizon") == told).iter_rows(named=True)
    over = f"over {page.counted(first['horizon'], 'step')}"
    state = _state(horizons.filter(pl.col("horizon") == first["horizon"]))
    if not len(foretold):
        found = f"{name}: no score surely foretells what data changed; {over} {first['score']} comes nearest"
        return f"{found}, with a rank correlation of {_interval(first, 'rank')}{state}."
    beside = _beside(first, others)
    found = f"{name}: {over} what data changed is foretold, best by {first['score']}, with a rank correlation of "
    found += f"{_interval(first, 'rank')} and a slope of {_interval(first, 'slope')}{beside}{state}"
    if first["horizon"] == last:
        return f"{found}."
    after = known.filter(pl.col("horizon") > first["horizon"])
    if not len(after):
        return f"{found}; farther it is not known."
    beyond = after.row(0, named=True)
    state = _state(horizons.filter(pl.col("horizon") == beyond["horizon"]))
    over = f"over {page.counted(beyond['horizon'], 'step')} no score surely does"
    return f"{found}; {over}: {beyond['score']} has {_interval(beyond, 'rank')}{state}."


def _beside(best: dict[str, Any], others: list[dict[str, Any]]) -> str:
    """How the best score and influence, or the next one, differ over the same removals."""
    influence = next((row for row in others if row["score"] == credit.REFERENCE), None)
    pair = best if influence else others[0] if others and best["score"] == credit.REFERENCE else None
    if pair is None or any(pair[name] is None or pair[name] != pair[name] for name in BEHIND):
        return ""
    sure = pair["behind low"] > 0 or pair["behind high"] < 0
    if influence:
        told = "ahead of influence" if sure else "not surely ahead of influence"
        return f" ({told}, which has {_interval(influence, 'rank')})"
    told = "surely behind" if sure else "not surely behind"
    return f" (next is {pair['score']}, {told}: by {_interval(pair, 'behind')})"


def _state(horizons: pl.DataFrame) -> str:
    """How smooth training is over a horizon."""
    if not len(horizons):
        return ""
    row = horizons.row(0, named=True)
    growth = "" if row["growth"] is None else f", the growth {page.shown(row['growth'])}"
    return f", where the metasmoothness is {row['metasmoothness']:.2f}{growth}"


def _interval(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name} low']:.2f}, {row[f'{name} high']:.2f}]"


# ---- a span


def _span(run: Run, key: dict[str, Any], of: dict[str, pl.DataFrame]) -> Iterator[Markup]:
    """The verdict, the figure and the tables of steps that were retrained without the same draws."""
    judged, horizons, reaches = (of[name] for name in tables.JUDGE_TABLES)
    title, vocab = _title(key), words.vocab_of(run)
    each = [(rows, horizons.filter(pl.col("measured") == rows["measured"][0])) for rows in _by_measured(judged)]
    yield page.note(f"{title}. {' '.join(verdict(*one) for one in each)}")
    for wide, narrow in zip(rank_figures(judged, reaches), rank_figures(judged, reaches, NARROW), strict=True):
        below = f"{title}: rank correlation of each score with retraining, with intervals of 95 %."
        yield page.figure(wide, below, "Rank correlation by horizon, for each score", narrow)
    smooth = horizons.select("measured", "horizon", *SMOOTH)
    beside = pl.concat([rows.sort("horizon", maintain_order=True) for rows in _by_measured(judged)])
    beside = beside.join(smooth, on=("measured", "horizon"), how="left", maintain_order="left")
    caption = f"{SHOWN.caption} {title}."
    columns = ["measured", "horizon", *SCORE, *BEHIND, *SMOOTH, *REST]
    yield page.typed_table(beside, SHOWN, vocab, caption, columns)
    if len(reaches):
        columns = [name for name in tables.REACHES.columns if name not in SPAN]
        yield page.typed_table(reaches, tables.REACHES, vocab, columns=columns, fold=12)
    columns = [name for name in tables.JUDGED_HORIZONS.columns if name not in SPAN]
    yield page.typed_table(horizons, tables.JUDGED_HORIZONS, vocab, columns=columns, fold=12)


def _by_measured(judged: pl.DataFrame) -> list[pl.DataFrame]:
    return judged.partition_by("measured", maintain_order=True)


def _title(key: dict[str, Any]) -> str:
    """What was retrained without what."""
    what = f"random {100 * key['share']:g} % of all places" if key["kind"] == "subset" else KINDS[key["kind"]]
    part = "" if key["taken"] == 1 else f" {100 * key['taken']:g} % of the weight of"
    texts = f"{key['texts']} of each probe that takes some, seed {key['seed']}"
    return f"Steps {key['start']:,} to {key['stop']:,} without{part} {what} (texts: {texts})"
