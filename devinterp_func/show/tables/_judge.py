"""Banks of retrainings as tables, and how scores foretell them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from devinterp_func.credit import Bank, Judged, Reach
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table, frame

BANK = Table(
    "What retrainings without some data led to.",
    "judge.py",
    {
        "draw": Column(INT, "from 0, of what is removed; of nothing removed null", control=True),
        "horizon": Column(INT, "steps from the first on after which it is measured"),
        "measured": Column(NAME, "a number that follows from the weights"),
        "count": Column(INT, "places removed in these steps"),
        "value": Column(FLOAT, "what it was then"),
    },
    ("draw", "horizon", "measured"),
)

JUDGE_KEY = {
    "start": Column(INT, "first step that is retrained"),
    "stop": Column(INT, "the step that retraining stops before at the latest"),
    "kind": Column(NAME, "what a retraining is without: a random subset of places, a single visit, or a datum"),
    "share": Column(FLOAT, "of all places, of a subset", format=".2%"),
    "taken": Column(FLOAT, "part of their weight that is taken from what a retraining is without", format=".0%"),
    "texts": Column(INT, "of each probe that takes texts"),
    "seed": Column(INT, "of the draws"),
    "measured": Column(NAME, "a number that follows from the weights; of queries the mean over all"),
}
INTERVAL = Column(FLOAT, "95 % interval: bootstrap over retrainings, and over queries")
JUDGED = Table(
    "How well scores foretell what retraining without some data does.",
    "judge.py",
    {
        **JUDGE_KEY,
        "horizon": Column(INT, "steps from the first on after which it is measured"),
        "score": Column(NAME, "whose sums over what is removed are held against what retraining did"),
        "removals": Column(INT, "retrainings that lack something in these steps"),
        "rank": Column(FLOAT, "Spearman's correlation of foretold and measured effects", format=".3f"),
        "rank low": INTERVAL._replace(format=".3f"),
        "rank high": INTERVAL._replace(format=".3f"),
        "linear": Column(FLOAT, "Pearson's", format=".3f"),
        "linear low": INTERVAL._replace(format=".3f"),
        "linear high": INTERVAL._replace(format=".3f"),
        "slope": Column(FLOAT, "of measured on foretold effects; 1 where sizes are right", format=".3g"),
        "slope low": INTERVAL._replace(format=".3g"),
        "slope high": INTERVAL._replace(format=".3g"),
        "behind": Column(FLOAT, "influence's rank correlation less this one's, in pairs", format=".3f"),
        "behind low": INTERVAL._replace(format=".3f"),
        "behind high": INTERVAL._replace(format=".3f"),
    },
    (*JUDGE_KEY, "horizon", "score"),
)
JUDGED_HORIZONS = Table(
    "How smooth these steps are, and what retraining without some data does to them.",
    "judge.py",
    {
        **JUDGE_KEY,
        "horizon": JUDGED.columns["horizon"],
        "metasmoothness": Column(
            FLOAT, "1 where training is linear in its data's weights, about 0 in chaos", format=".3f"
        ),
        "growth": Column(FLOAT, "of the derivative's norm from the horizon back to the first step", format=".3g"),
        "change": Column(FLOAT, "what the intact steps did to the number"),
        "effect": Column(FLOAT, "of a retraining, the mean"),
        "deviation": Column(FLOAT, "... and the standard deviation"),
    },
    (*JUDGE_KEY, "horizon"),
)
REACHES = Table(
    "At which horizon a score's rank correlation falls below 0.5: 0 before the first measured, inf beyond the last.",
    "judge.py",
    {
        **JUDGE_KEY,
        "score": JUDGED.columns["score"],
        "reach": Column(FLOAT, "steps", format=".3g"),
        "low": INTERVAL._replace(format=".3g"),
        "high": INTERVAL._replace(format=".3g"),
        "first": Column(INT, "shortest horizon measured"),
        "last": Column(INT, "longest"),
    },
    (*JUDGE_KEY, "score"),
)
JUDGE_TABLES = {"judge": JUDGED, "judge_horizons": JUDGED_HORIZONS, "judge_reaches": REACHES}


class JudgeKey(NamedTuple):
    """What a bank's judgement is of, but for the number that is measured."""

    start: int
    stop: int
    kind: str
    share: float | None  # None but for subsets
    taken: float
    texts: int
    seed: int

    def row(self, measured: str) -> dict[str, Any]:
        return self._asdict() | {"measured": measured}


def bank_frame(
    draw: int | None,
    horizons: Sequence[int],
    names: Sequence[str],
    values: Float[Tensor, "H P"],
    removed: Bool[Tensor, "S n"] | None = None,
) -> pl.DataFrame:
    """One retraining: a row for each horizon and each number that is measured.

    Args:
        draw: of what is removed; None for the intact training.
        horizons, names: of the values.
        values: of ``credit.horizon_values``.
        removed: what is; None for nothing.
    """
    rows = []
    for horizon, row in zip(horizons, values.tolist(), strict=True):
        count = 0 if removed is None else int(removed[:horizon].sum())
        own = {"draw": draw, "horizon": horizon, "count": count}
        rows += [own | {"measured": name, "value": value} for name, value in zip(names, row, strict=True)]
    return frame(BANK, [{name: row[name] for name in BANK.columns} for row in rows])


def missing_draws(draws: int, horizons: Sequence[int], names: Sequence[str], bank: pl.DataFrame) -> list[int | None]:
    """The retrainings of which a bank lacks a horizon or a number: the intact one first."""
    wanted = {(horizon, name) for horizon in horizons for name in names}
    done: dict[int | None, set[tuple[int, str]]] = {}
    for draw, horizon, name in bank.select("draw", "horizon", "measured").iter_rows():
        done.setdefault(draw, set()).add((horizon, name))
    return [draw for draw in (None, *range(draws)) if wanted - done.get(draw, set())]


def bank_of(bank: pl.DataFrame, removed: Bool[Tensor, "D S n"], horizons: Sequence[int], names: Sequence[str]) -> Bank:
    """A table as what D removals did: draws 0 to D − 1, all of which the table has.

    Raises:
        KeyError: the table lacks one.
    """
    keyed = {row[:3]: row[3] for row in bank.select("draw", "horizon", "measured", "value").iter_rows()}

    def values(draw: int | None) -> Float[Tensor, "H P"]:
        own = [[keyed[draw, horizon, name] for name in names] for horizon in horizons]
        return torch.tensor(own, dtype=torch.float64)

    intact = values(None)
    effects = torch.stack([values(draw) - intact for draw in range(len(removed))])
    return Bank(tuple(horizons), removed, intact, effects)


def judged_frame(judged: Iterable[Judged], key: JudgeKey, measured: str) -> pl.DataFrame:
    """Judgements of ``credit.judge``, a row each."""
    rows = []
    for one in judged:
        own = {"horizon": one.horizon, "score": one.score, "removals": one.rank.n}
        rows.append(key.row(measured) | own | estimates_row(one))
    return frame(JUDGED, rows)


def estimates_row(one: Judged) -> dict[str, float]:
    """A judgement's estimates, each with the ends of its interval, by column."""
    row = dict[str, float]()
    for name in ("rank", "linear", "slope", "behind"):
        found = getattr(one, name)
        row |= {name: found.value, f"{name} low": found.low, f"{name} high": found.high}
    return row


def judged_horizon_frame(
    bank: Bank,
    before: Float[Tensor, "P"],
    smooth: Sequence[float],
    growth: Mapping[int, float],
    key: JudgeKey,
    measured: str,
) -> pl.DataFrame:
    """How smooth a bank's horizons are, and what its retrainings did; means over its probes.

    Args:
        bank: of removals.
        before: its probes before the first step.
        smooth: metasmoothness at each horizon.
        growth: of the derivative's norm, at horizons where it is known.
        key, measured: what it is of.
    """
    rows = []
    for i, horizon in enumerate(bank.horizons):
        effect = bank.effect[bank.touched(horizon), i]
        rows.append(
            key.row(measured)
            | {
                "horizon": horizon,
                "metasmoothness": smooth[i],
                "growth": growth.get(horizon),
                "change": float((bank.intact[i] - before).mean()),
                "effect": float(effect.mean()),
                "deviation": float(effect.std(0).mean()) if len(effect) > 1 else None,
            }
        )
    return frame(JUDGED_HORIZONS, rows)


def reach_frame(reaches: Mapping[str, Reach], horizons: Sequence[int], key: JudgeKey, measured: str) -> pl.DataFrame:
    """Where scores' rank correlations fall below 0.5, a row each."""
    ends = {"first": horizons[0], "last": horizons[-1]}
    return frame(
        REACHES,
        [
            key.row(measured) | {"score": score, "reach": found.value, "low": found.low, "high": found.high} | ends
            for score, found in reaches.items()
        ],
    )
