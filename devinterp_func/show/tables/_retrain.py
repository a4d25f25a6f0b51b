"""What a removal did, beside random removals and what the ledger predicted; and one more step on chosen data."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float
from torch import Tensor

from devinterp_func.credit import (
    EQUAL_NORM,
    RANDOM,
    Choice,
    difference_interval,
    distance_from_chance,
    mean_interval,
)
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table, frame

PREDICTIONS = {"by credit": "credit", "by marginal": "marginal", "by influence": "influence"}  # column -> amount
CHOICE = {
    "score": Column(NAME, "by which data were chosen"),
    "share": Column(FLOAT, "of all that could be chosen", format=".2%"),
    "draw": Column(INT, "from 0, of random choices"),
}
SPAN = {"from": Column(INT, "first step"), "to": Column(INT, "the step it stops before")}
MEASURED = Column(NAME, "a number that follows from the weights")
COUNT = Column(INT, "data chosen, each time they occur counted")
EFFECT = Column(FLOAT, "by the end of these steps, against the intact weights; of random choices the mean")
PREDICTED = {
    name: Column(FLOAT, f"the effect that is predicted: minus the {amount}s of what is removed")
    for name, amount in PREDICTIONS.items()
}
CHANCE = {
    "low": Column(FLOAT, "95 % interval of the mean of random choices", control=True),
    "high": Column(FLOAT, "95 % interval of the mean of random choices", control=True),
    "SDs": Column(FLOAT, "standard deviations of the random choices' effects between this effect and their mean"),
    "SDs low": Column(FLOAT, "95 % interval"),
    "SDs high": Column(FLOAT, "95 % interval"),
}
OUTCOMES = Table(
    "What each removal did.",
    "retrain.py",
    CHOICE | {"count": COUNT, "measured": MEASURED, "effect": EFFECT} | PREDICTED,
    ("score", "share", "draw", "measured"),
)
REMOVALS = Table(
    "What removing data did to each number by the end of these steps.",
    "retrain.py",
    SPAN
    | {"measured": MEASURED, "share": CHOICE["share"], "score": CHOICE["score"], "count": COUNT, "effect": EFFECT}
    | {"of the change": Column(FLOAT, "the effect, relative to what the intact steps did")}
    | PREDICTED
    | CHANCE,
    ("from", "to", "measured", "share", "score"),
)
REMOVAL_CONTROLS = Table(
    "What removing data did to each number, beside each kind of random removal.",
    "retrain.py",
    SPAN
    | {"measured": MEASURED, "share": CHOICE["share"], "score": CHOICE["score"], "effect": EFFECT}
    | {
        "control": Column(NAME, "where as many others were drawn from: all, some, or those next in norm", control=True),
        "draws": Column(INT, "of the control", control=True),
        "mean": Column(FLOAT, "of their effects", control=True),
        "difference": Column(FLOAT, "the effect minus that mean"),
        "difference low": Column(FLOAT, "95 % interval, where the effect itself scatters as a draw's does"),
        "difference high": Column(FLOAT, "95 % interval, where the effect itself scatters as a draw's does"),
        "SDs": Column(FLOAT, "the difference in standard deviations of the draws' effects"),
        "SDs low": CHANCE["SDs low"],
        "SDs high": CHANCE["SDs high"],
        "norm": Column(FLOAT, "of a removed datum's delta, mean"),
        "control's norm": Column(FLOAT, "the same of the draws", control=True),
    },
    ("from", "to", "measured", "share", "score", "control"),
)
PATCHES = Table(
    "One more step on chosen data alone.",
    "retrain.py",
    SPAN
    | {"measured": MEASURED, "share": CHOICE["share"], "score": CHOICE["score"], "count": COUNT, "effect": EFFECT}
    | CHANCE,
    ("from", "to", "measured", "share", "score"),
)


def missing_choices(wanted: Iterable[Choice], measured: Iterable[str], outcomes: pl.DataFrame) -> list[Choice]:
    """The choices of which a table of outcomes lacks a measured number; a share counts as written, to six digits.

    Args:
        wanted: choices.
        measured: all that is measured of each.
        outcomes: of OUTCOMES, perhaps without rows.
    """
    names = set(measured)
    done: dict[tuple[str, str, int], set[str]] = {}
    for score, share, draw, name in outcomes.select(*Choice._fields, "measured").iter_rows():
        done.setdefault((score, f"{share:g}", draw), set()).add(name)
    return [choice for choice in wanted if names - done.get((choice.score, f"{choice.share:g}", choice.draw), set())]


def outcome_frame(
    choice: Choice,
    count: int,
    effects: Mapping[str, float],
    predicted: Mapping[str, Mapping[str, float]] | None = None,
) -> pl.DataFrame:
    """What a choice did to each number that is measured: a row each.

    Args:
        choice: of ``credit.removals``, or of ``credit.tail_batches``.
        count: of its occurrences.
        effects: by the name of what is measured, against the intact weights.
        predicted: amount ("credit", "marginal") -> by name, the predicted effect; null where there is none.
    """
    predicted, rows = predicted or {}, []
    for name, effect in effects.items():
        row = choice._asdict() | {"count": count, "measured": name, "effect": effect}
        rows.append(row | {f"by {kind}": predicted.get(kind, {}).get(name) for kind in PREDICTIONS.values()})
    return frame(OUTCOMES, rows)


def named_predictions(predicted: Mapping[str, Float[Tensor, "P"]], names: Iterable[str]) -> dict[str, dict[str, float]]:
    """``DatumAmounts.predicted`` with the probes' names."""
    names = list(names)
    return {kind: dict(zip(names, values.tolist(), strict=True)) for kind, values in predicted.items()}


def removal_frame(outcomes: pl.DataFrame, change: Mapping[str, float], start: int, stop: int) -> pl.DataFrame:
    """Each score's effect beside that of chance: the mean of the random draws and its 95 % interval (Student's t).

    ``SDs`` is how many standard deviations of the draws an effect lies from their mean, with the exact 95 % interval
    for normal draws, the effect itself taken as given (noncentral t). Null where there are fewer than two draws.

    Args:
        outcomes: of OUTCOMES.
        change: what the intact steps did to each number that is measured, to divide by.
        start, stop: the steps.
    """
    rows = []
    for row, own in _effects(outcomes, start, stop):
        of_change = row["effect"] / change[row["measured"]] if change[row["measured"]] else None
        rows.append(row | {"of the change": of_change} | {name: own[name].mean() for name in PREDICTIONS})
    return frame(REMOVALS, rows)


def control_frame(outcomes: pl.DataFrame, norms: Mapping[Choice, float], start: int, stop: int) -> pl.DataFrame:
    """Each score's effect beside every pool of draws: of all data, of some, of those as large as what it removes.

    Args:
        outcomes: of OUTCOMES.
        norms: the mean norm of a removed datum's delta, of each choice; the outcomes of others are left out.
        start, stop: the steps.
    """
    rows, known = [], {(choice.score, f"{choice.share:g}", choice.draw): norm for choice, norm in norms.items()}
    size = [known.get((score, f"{share:g}", draw)) for score, share, draw in outcomes.select(*Choice._fields).rows()]
    whole = outcomes.with_columns(pl.Series("norm", size, dtype=pl.Float64)).drop_nulls("norm")
    for (measured, share), part in whole.group_by("measured", "share", maintain_order=True):
        named = {score: own for (score,), own in part.group_by("score", maintain_order=True)}
        pools = {name: own for name, own in named.items() if name.startswith(RANDOM)}
        for score, own in named.items():
            beside = [name for name in pools if not name.startswith(EQUAL_NORM) or name == EQUAL_NORM + score]
            for control in beside if score not in pools else ():
                row = {"from": start, "to": stop, "measured": measured, "share": share, "score": score}
                rows.append(row | _beside(own, pools[control]) | {"control": _control(control, score)})
    return frame(REMOVAL_CONTROLS, rows)


def _control(pool: str, score: str) -> str:
    """What a pool is called beside the score that it is matched with."""
    return pool.removesuffix(f": {score}") if pool == EQUAL_NORM + score else pool


def _beside(own: pl.DataFrame, pool: pl.DataFrame) -> dict[str, Any]:
    effect, draws = float(own["effect"].mean()), pool["effect"].to_list()  # type: ignore[arg-type]
    mean = float(np.mean(draws))
    low, high = difference_interval(effect, draws) or (None, None)
    distance = dict(zip(("SDs", "SDs low", "SDs high"), distance_from_chance(effect, draws) or [None] * 3, strict=True))
    row: dict[str, Any] = {"effect": effect, "draws": len(draws), "mean": mean, "difference": effect - mean}
    row |= {"difference low": low, "difference high": high, **distance}
    return row | {"norm": own["norm"].mean(), "control's norm": pool["norm"].mean()}


def patch_frame(outcomes: pl.DataFrame, start: int, stop: int) -> pl.DataFrame:
    """The same of one more step on chosen data: no share of a change, nothing predicted."""
    return frame(PATCHES, [row for row, _ in _effects(outcomes, start, stop)])


def _effects(outcomes: pl.DataFrame, start: int, stop: int) -> Iterator[tuple[dict[str, Any], pl.DataFrame]]:
    for (measured, share), part in outcomes.group_by("measured", "share", maintain_order=True):
        chance = part.filter(pl.col("score") == RANDOM)["effect"].to_list()
        for (score,), own in part.group_by("score", maintain_order=True):
            draws = own["effect"].to_list()
            effect = float(np.mean(draws))
            interval = mean_interval(draws) if len(draws) > 1 else None
            distance = None if score == RANDOM else distance_from_chance(effect, chance)
            row = {"from": start, "to": stop, "measured": measured, "share": share, "score": score}
            row |= {"count": own["count"][0], "effect": effect}
            row |= dict(zip(CHANCE, (*(interval or [None] * 2), *(distance or [None] * 3)), strict=True))
            yield row, own
