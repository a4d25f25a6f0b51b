"""Influences as tables: each probe's sums beside its credits, how far training can be forecast, and the texts.

Rows begin with what tells their span from others, as a ledger's do.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import polars as pl
from jaxtyping import Float
from torch import Tensor

from devinterp_func import credit, keys
from devinterp_func.credit import Curvature, Influences, Trial
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table, frame
from devinterp_func.show.tables._ledger import LEDGER_KEY


class InfluenceKey(NamedTuple):
    """What influences are of, besides their probes."""

    start: int  # first step
    stop: int  # step after the last
    curvature: Curvature
    nodes: int  # of the credits beside them
    texts: int
    seed: int


INFLUENCE_KEY = {
    **{name: LEDGER_KEY[name] for name in ("probe", "start", "stop")},
    "curvature": Column(NAME, "hessian: exact; fisher: the empirical Fisher in its place"),
    "nodes": Column(INT, "of the credits: gradients of the probe along each step"),
    **{name: LEDGER_KEY[name] for name in ("texts", "seed")},
}
INFLUENCES = Table(
    "Each probe, the sums of its influences and credits, and how they rank the data of the span.",
    "influence.py",
    {
        **INFLUENCE_KEY,
        "at the start": Column(FLOAT, "the probe before the first step"),
        "at the end": Column(FLOAT, "the probe after the last step: what influences are on"),
        "influences": Column(FLOAT, "sum: the probe's derivative by the weight of all data in all steps at once"),
        "credits": Column(FLOAT, "sum: what the data did in their own steps"),
        "growth": Column(FLOAT, "of the derivative's norm going back: before the first step, by that at the end"),
        "largest growth": Column(FLOAT, "... before any step"),
        "largest at": Column(INT, "that step"),
        "rank correlation": Column(FLOAT, "Spearman's, of influence and credit over the data, visits summed up"),
        "low": Column(FLOAT, "of its 95 % bootstrap interval over data"),
        "high": Column(FLOAT, "of its 95 % bootstrap interval over data"),
        "data": Column(INT, "of the span"),
        "forecast": Column(INT, "steps that can be forecast: the farthest horizon that was tested and holds"),
    },
    tuple(INFLUENCE_KEY),
)
INFLUENCE_HORIZONS = Table(
    "How far ahead this training can be forecast: visits up to so many steps before the probe is read.",
    "influence.py",
    {
        **INFLUENCE_KEY,
        "horizon": Column(INT, "steps from a visit to where the probe is read"),
        "step": Column(INT, "the step so far before the end"),
        "verdict": Column(NAME, "forecast, beyond (what can be forecast), unsure (too few draws), or untested"),
        "correlation": Column(FLOAT, "of forecasts with what training without random visits of these steps found"),
        "low": Column(FLOAT, "of its 95 % interval"),
        "high": Column(FLOAT, "of its 95 % interval"),
        "slope": Column(FLOAT, "of what was found on what was foretold: 1 where sizes are foretold, too"),
        "draws": Column(INT, "trainings without random visits"),
        "metasmoothness": Column(FLOAT, "of these steps: 1 smooth in the weights of their data, 0 not"),
        "growth": Column(FLOAT, "of the derivative's norm going back, the largest in these steps, by that at the end"),
    },
    tuple(INFLUENCE_KEY),
)
INFLUENCE_COURSES = Table(
    "Going back from the end of the span: the derivative's norm, and the influences of each step's data.",
    "influence.py",
    {
        **INFLUENCE_KEY,
        "step": Column(INT),
        "growth": Column(FLOAT, "of the norm of the derivative by the weights before the step, by that at the end"),
        "influence": Column(FLOAT, "sum over the step's data"),
        "gross": Column(FLOAT, "sum of the absolute values"),
    },
    tuple(INFLUENCE_KEY),
)
INFLUENCE_TEXTS = Table(
    "The texts that influenced each probe most, beside their credits.",
    "influence.py",
    {
        **INFLUENCE_KEY,
        "effect": Column(NAME, "helped or harmed: to help is to lower a loss, and to raise any other probe"),
        "rank": Column(INT, "among the texts of this effect, from 1"),
        "datum": Column(INT, "id of the training datum"),
        "influence": Column(FLOAT, "over all its visits: without them the probe would be less by it, to first order"),
        "credit": Column(FLOAT, "in its own steps: what it did there"),
        "influence place": Column(INT, "among all data of the span: from 1, which helped most"),
        "credit place": Column(INT, "among all data of the span, by credit: from 1, which helped most"),
        "data": Column(INT, "of the span"),
        "position": Column(INT, "where most of its influence is, from 0"),
        "steps": Column(pl.List(pl.Int64), "of its visits", subject="step"),
        "epochs": Column(pl.List(pl.Int64), "of its visits, from 0"),
        "by visit": Column(pl.List(pl.Float64), "the influence of each visit"),
        "credits": Column(pl.List(pl.Float64), "the credit of each visit"),
        "by position": Column(pl.List(pl.Float64), "the influence by the weight of predicting the target there"),
    },
    tuple(INFLUENCE_KEY),
)
INFLUENCE_TABLES = {
    "influences": INFLUENCES,
    "influence_horizons": INFLUENCE_HORIZONS,
    "influence_courses": INFLUENCE_COURSES,
    "influence_texts": INFLUENCE_TEXTS,
}


def influence_frames(
    found: Influences,
    credits: Float[Tensor, "S P n"],
    before: Sequence[float],
    probes: Sequence[str],
    key: InfluenceKey,
    trials: Sequence[Trial],
    per_epoch: int,
    *,
    random: keys.Key | int,
    most: int = 10,
) -> dict[str, pl.DataFrame]:
    """All tables of a span, by the names of ``INFLUENCE_TABLES``.

    Args:
        found: of ``credit.influence``, of the span's steps.
        credits: of the same visits, such as of ``credit.datum_ledger``.
        before: each probe before the first step.
        probes: their names.
        key: of the span.
        trials: of ``credit.try_forecast``, of the horizons that were tried.
        per_epoch: steps of an epoch.
        random: key of the bootstrap.
        most: texts of each effect.
    """
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in INFLUENCE_TABLES}
    for i, probe in enumerate(probes):
        own = {"probe": probe, **key._asdict()}
        horizons = credit.forecast(found.growth()[:, i], trials, i)
        book = {"at the start": before[i], "forecast": credit.forecast_horizon(horizons)}
        book |= _book(found, credits[:, i], i, random)
        rows["influences"].append(own | book)
        rows["influence_horizons"] += [own | _horizon_row(one, key.stop) for one in horizons]
        rows["influence_courses"] += [own | row for row in _course_rows(found, i)]
        rows["influence_texts"] += [own | row for row in _text_rows(found, credits[:, i], i, probe, per_epoch, most)]
    return {name: frame(kind, rows[name]) for name, kind in INFLUENCE_TABLES.items()}


def _book(found: Influences, credits: Float[Tensor, "S n"], i: int, random: keys.Key | int) -> dict[str, Any]:
    growth = found.growth()[:, i]
    at = int(growth.argmax())
    agreement = credit.influence_and_credit(found, credits, i, key=random)
    return {
        "at the end": float(found.value[-1, i]),
        "influences": float(found.influence[:, i].sum()),
        "credits": float(credits.sum(dtype=growth.dtype)),
        "growth": float(growth[0]),
        "largest growth": float(growth[at]),
        "largest at": int(found.step[at]),
        "rank correlation": agreement.value,
        "low": agreement.low,
        "high": agreement.high,
        "data": agreement.n,
    }


def _horizon_row(one: credit.Horizon, stop: int) -> dict[str, Any]:
    known = (None,) * 4 if one.correlation is None else tuple(one.correlation)
    tried = dict(zip(("correlation", "low", "high", "draws"), known, strict=True))
    return {**one._asdict(), **tried, "step": stop - one.horizon}


def _course_rows(found: Influences, i: int) -> Iterator[dict[str, Any]]:
    each = found.scores()[i]
    columns = found.step, found.growth()[:, i], each.sum(1), each.abs().sum(1)
    for row in zip(*(x.tolist() for x in columns), strict=True):
        yield dict(zip(("step", "growth", "influence", "gross"), row, strict=True))


def _text_rows(
    found: Influences, credits: Float[Tensor, "S n"], i: int, probe: str, per_epoch: int, most: int
) -> Iterator[dict[str, Any]]:
    n = len(found.datum.unique())
    for text in credit.most_influential(found, credits, i, credit.helping_sign(probe), most):
        yield {
            "effect": text.effect,
            "rank": text.rank,
            "datum": text.datum,
            "influence": float(text.influence.sum()),
            "credit": float(text.credit.sum()),
            "influence place": text.influence_place,
            "credit place": text.credit_place,
            "data": n,
            "position": text.position,
            "steps": text.step.tolist(),
            "epochs": (text.step // per_epoch).tolist(),
            "by visit": text.influence.sum(1).tolist(),
            "credits": text.credit.tolist(),
            "by position": text.influence.sum(0).tolist(),
        }
