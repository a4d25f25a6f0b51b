"""Phases of few effective data as tables: where they are, what chance finds, what stands beside, other trainings."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from devinterp_func import credit, keys
from devinterp_func.credit import BesideWindows, DipFound, StepSums
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table, frame
from devinterp_func.show.tables._phases import KEY, LOSS_COLUMNS, LOSSES, RUN

Row = dict[str, str | float | None]
PLACE = {
    "series": Column(NAME, "effective sample size as a share of the data: of all data of a window, or of a step"),
    "from": Column(INT, "first step of the dip"),
    "to": Column(INT, "first step after it"),
}
SHARES = {
    name: Column(FLOAT, f"mean of the windows {where}, of the logarithm", format=".1%")
    for name, where in (("before", "before it"), ("inside", "in it"), ("after", "after it"))
}
DEPTH = {
    "depth": Column(FLOAT, "how many times its lowest phase is contained in the lower of its sides; 1 without a dip"),
    "over a smooth course": Column(FLOAT, "BIC: more than 0 is in favour of segments", control=True),
}
CHANCE = {
    "null": Column(NAME, "courses without a dip: the steps in any order, or a smooth course with noise", control=True),
    "chance": Column(FLOAT, "depth that one draw in twenty exceeds", control=True),
    "p": Column(FLOAT, "share of draws as deep", format="p"),
}
DIPS = Table(
    "Is there a phase of few effective data? The deepest fall of the effective sample size that comes back, and what "
    "chance finds. The first window is left out.",
    "phases.py",
    RUN | PLACE | SHARES | DEPTH | CHANCE,
    KEY,
)
MEASURES = {
    "learning rate": Column(FLOAT),
    "clip": Column(FLOAT, "coefficient by which gradients are multiplied"),
    "gradient norm": Column(FLOAT, "unclipped"),
    "effective": Column(FLOAT, "effective sample size as a share of the window's data", format=".1%"),
    "between steps": Column(FLOAT, "1 where all steps are as long; times the next it is the one before", format=".1%"),
    "within steps": Column(FLOAT, "1 where all data of a step are as long", format=".1%"),
    "of a step": Column(FLOAT, "effective sample size of a single step, median", format=".1%"),
    "largest unit": Column(NAME, "by share of Σ‖Δ‖²"),
    "its share": Column(FLOAT, format=".1%"),
}
OF_KIND = {
    "kind, of the data": Column(FLOAT, "share of the texts with the phrase", format=".1%"),
    "kind, of Σ‖Δ‖²": Column(FLOAT, "what they do", format=".1%"),
    "effective, others": Column(FLOAT, "effective sample size of the others, as a share of their number", format=".1%"),
    "loss, kind": Column(FLOAT, "in training, nats"),
    "loss, others": Column(FLOAT, "in training, nats"),
}
WINDOW = {"step": Column(INT, "first of the window")}
BESIDE = Table(
    "What stands beside the effective sample size: rates, clipping, units, and texts with a phrase.",
    "phases.py",
    RUN | WINDOW | MEASURES | OF_KIND,
    KEY,
)
CHANGED = {
    "change": Column(NAME, "what differs from the run"),
    "draw": Column(INT, "of several at random"),
    "left out": Column(INT, "occurrences"),
    "changed from": Column(INT, "first step that was made in another way"),
}
CHANGED_KEY = ("run", "change", "draw", "changed from")
LOSS_OF_KIND = {"loss, held-out kind": Column(FLOAT, "mean of held-out texts with the phrase, nats")}
CHANGED_STEPS = Table(
    "The same steps made in another way, in windows.",
    "phase_causes.py",
    RUN | CHANGED | WINDOW | MEASURES | OF_KIND | LOSS_COLUMNS | LOSS_OF_KIND,
    CHANGED_KEY,
)


CHANGED_DIPS = Table(
    "Is there a phase of few effective data, where the same steps are made in another way? As in the table of the run.",
    "phase_causes.py",
    RUN | CHANGED | PLACE | SHARES | DEPTH | CHANCE,
    CHANGED_KEY,
)


def dips(sums: StepSums, width: int, *, key: keys.Key | int) -> dict[str, DipFound]:
    """The dip of each series that can be cut: not of few windows, nor of one in which nothing moved the weights.

    Args:
        sums: of ``credit.step_sums``.
        width: steps of a window.
        key: of the draws.
    """
    shares = credit.effective_shares(sums, width)
    return {
        name: credit.effective_dip(sums, width, name, key=keys.fold_in(key, name))
        for name, series in credit.SERIES.items()
        if len(shares.step) > credit.FEWEST_WINDOWS and (series(shares)[1:] > 0).all()
    }


def dip_frame(run: str, found: Mapping[str, DipFound], width: int) -> pl.DataFrame:
    """The dip of each series and what chance finds, a row a null hypothesis; null places where there is no dip.

    Args:
        run: its label.
        found: of ``credit.effective_dip``, by series.
        width: steps of a window.
    """
    return frame(DIPS, [{"run": run} | row for row in _dip_rows(found, width)])


def changed_dip_frame(
    run: str, change: tuple[str, int, int, int], found: Mapping[str, DipFound], width: int
) -> pl.DataFrame:
    """The same of a changed training, as ``changed_frame`` has it."""
    told = {"run": run} | dict(zip(CHANGED, change, strict=True))
    return frame(CHANGED_DIPS, [told | row for row in _dip_rows(found, width)])


def _dip_rows(found: Mapping[str, DipFound], width: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for series, one in found.items():
        dip, there = one.dip, one.dip.depth > 0
        place = [int(one.step[dip.first]), int(one.step[dip.stop - 1]) + width] if there else [None, None]
        means = [float(np.exp(x)) if there else None for x in (dip.before, dip.inside, dip.after)]
        row: dict[str, object] = dict(zip((*PLACE, *SHARES), (series, *place, *means), strict=True))
        row |= {"depth": float(np.exp(dip.depth)), "over a smooth course": dip.over_smooth}
        for null, depths in one.chance.items():
            chance = float(np.exp(np.quantile(depths, 0.95)))
            rows.append(row | {"null": null, "chance": chance, "p": one.p(null)})
    return rows


def beside_frame(run: str, beside: BesideWindows, names: Sequence[str], of_kind: bool) -> pl.DataFrame:
    """What stands beside the effective sample size, in windows.

    Args:
        run: its label.
        beside: of ``credit.beside_windows``.
        names: of the units.
        of_kind: whether a kind of data was named; else its columns are null.
    """
    rows = [{"run": run, "step": int(step)} | row for step, row in zip(*_beside(beside, names, of_kind), strict=True)]
    return frame(BESIDE, rows)


def changed_frame(
    run: str,
    change: tuple[str, int, int, int],
    beside: BesideWindows,
    names: Sequence[str],
    losses: Sequence[Sequence[float]],
    of_kind: bool,
) -> pl.DataFrame:
    """A changed training's windows.

    Args:
        run: its label.
        change: its name, draw, how many occurrences are left out, and the first step made again.
        beside, names, of_kind: of ``beside_frame``.
        losses: of each window the classes' and the kind's.
    """
    told = {"run": run} | dict(zip(CHANGED, change, strict=True))
    steps, rows = _beside(beside, names, of_kind)
    columns = (*LOSSES, *LOSS_OF_KIND)
    made = [
        told | {"step": int(step)} | row | {name: _known(x) for name, x in zip(columns, own, strict=True)}
        for step, row, own in zip(steps, rows, losses, strict=True)
    ]
    return frame(CHANGED_STEPS, made)


def _beside(beside: BesideWindows, names: Sequence[str], of_kind: bool) -> tuple[list[int], list[Row]]:
    shares, kind = beside.shares, beside.kind
    numbers = (beside.rate, beside.clip, beside.norm, shares.pooled, shares.between, shares.within, shares.single)
    of = (kind.data, kind.square, kind.rest, kind.loss, kind.rest_loss)
    rows = []
    for w in range(len(shares.step)):
        unit = names[int(beside.unit[w])], float(beside.unit_share[w])
        measures = dict(zip(MEASURES, (*(_known(x[w]) for x in numbers), *unit), strict=True))
        rows.append(measures | {name: _known(x[w]) if of_kind else None for name, x in zip(OF_KIND, of, strict=True)})
    return shares.step.tolist(), rows


def _known(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None
