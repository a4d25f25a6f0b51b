"""What built the neurons: the growth of their squared norms by unit, by neuron, and by token."""

from collections.abc import Iterator

import polars as pl
from jaxtyping import Float64
from torch import Tensor

from devinterp_func.credit import NormGrowth
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table, frame, token

MOST = 10  # tokens whose share tells how concentrated a growth is
READINGS = ("target", "per position", "input")
EFFECTS = {"built": 1, "worn down": -1}  # effect -> sign of the amount
SPAN = {"from": Column(INT, "first step"), "to": Column(INT, "the step it stops before")}
SUMS = {
    "before": Column(FLOAT, "squared norm before the first step"),
    "growth": Column(FLOAT, "what the steps did to it"),
    "first order": Column(FLOAT, "the part that first-order terms explain"),
    "remainder": Column(FLOAT, "the part they leave to no token: Σ ‖Δ‖² over the steps without past and decay"),
    "past": Column(FLOAT, "what data of earlier steps did, through the optimizer's memory"),
    "decay": Column(FLOAT, "what weight decay did"),
}
SHARES = {
    f"share of {MOST} tokens": Column(FLOAT, "of Σ|credit| by target token: the largest ones", format=".1%"),
    "their share of positions": Column(FLOAT, "if all positions weighed the same", format=".1%", control=True),
}
NORM_UNITS = Table(
    "Squared norms of the neurons of each unit, all together; shares are medians over the neurons.",
    "norms.py",
    SPAN
    | {"unit": Column(NAME), "axis": Column(NAME, "in: neurons are columns; out: rows"), "neurons": Column(INT)}
    | SUMS
    | {"missed": Column(FLOAT, "by the credits, at worst, as a share of Σ|credit|", format=".0e")}
    | SHARES,
    ("from", "to", "unit", "axis"),
)
NORM_NEURONS = Table(
    "Neurons of each unit whose squared norms grew most and least.",
    "norms.py",
    SPAN | {"neuron": Column(NAME), "axis": Column(NAME)} | SUMS | SHARES,
    ("from", "to", "neuron"),
)
NORM_TOKENS = Table(
    "The tokens that built those neurons and wore them down.",
    "norms.py",
    SPAN
    | {
        "neuron": Column(NAME),
        "reading": Column(NAME, "target, or input: whose positions; per position: by target token, divided by those"),
        "effect": Column(NAME),
        "rank": Column(INT, "from 0"),
        "token": token(),
        "amount": Column(FLOAT, "credit: its part of the growth"),
    },
    ("from", "to", "neuron", "reading", "effect", "rank"),
)


def norm_unit_frame(growth: NormGrowth, start: int, stop: int) -> pl.DataFrame:
    """Each unit's growth and its parts, the worst miss of a neuron, and how far few tokens make up a growth.

    Args:
        growth: of ``credit.norms``.
        start, stop: its steps.
    """
    rows = []
    for unit, part in growth.by_unit().items():
        row = {"from": start, "to": stop, "unit": unit, "axis": part.neurons[0].axis, "neurons": len(part.neurons)}
        medians = (float(share.median()) for share in part.concentration(MOST))
        rows.append({**row, **_sums(part), "missed": float(part.missed_share().max()), **_named(medians)})
    return frame(NORM_UNITS, rows)


def norm_neuron_frame(growth: NormGrowth, start: int, stop: int, each: int = 2) -> pl.DataFrame:
    """The neurons of each unit that grew most and least, from most to least.

    Args:
        growth, start, stop: as of ``norm_unit_frame``.
        each: so many neurons of either end.
    """
    rows = []
    for one in _extremes(growth, each):
        row = {"from": start, "to": stop, "neuron": str(one.neurons[0]), "axis": one.neurons[0].axis}
        rows.append({**row, **_sums(one), **_named(float(share) for share in one.concentration(MOST))})
    return frame(NORM_NEURONS, rows)


def norm_token_frame(
    growth: NormGrowth, start: int, stop: int, each: int = 2, most: int = 8, least: int = 20
) -> pl.DataFrame:
    """The tokens that built the same neurons and wore them down, those with the largest amounts first.

    Args:
        growth, start, stop, each: as of ``norm_neuron_frame``.
        most: so many tokens of either effect.
        least: positions with a target token, for it to be listed by its amount per position.
    """
    rows: list[dict[str, object]] = []
    for one in _extremes(growth, each):
        readings = dict(zip(READINGS, (one.target, one.per_position(least), one.input), strict=True))
        for reading, amount in readings.items():
            for effect, sign in EFFECTS.items():
                row = {"from": start, "to": stop, "neuron": str(one.neurons[0]), "reading": reading, "effect": effect}
                largest = _largest(amount[:, 0], sign, most)
                rows += [row | {"rank": i, "token": v, "amount": x} for i, (v, x) in enumerate(largest)]
    return frame(NORM_TOKENS, rows)


def _extremes(growth: NormGrowth, each: int) -> Iterator[NormGrowth]:
    """The neurons of each unit that grew most and least, each by itself."""
    for part in growth.by_unit().values():
        order = part.growth().argsort(descending=True, stable=True).tolist()
        for i in dict.fromkeys([*order[:each], *order[-each:]]):
            yield part.part(i, i + 1)


def _largest(amount: Float64[Tensor, "V"], sign: int, most: int) -> list[tuple[int, float]]:
    """The tokens with the largest amounts of one sign, and these."""
    order = (sign * amount).argsort(descending=True, stable=True)[:most]
    return [(v, x) for v, x in zip(order.tolist(), amount[order].tolist(), strict=True) if sign * x > 0]


def _sums(growth: NormGrowth) -> dict[str, float]:
    parts = (growth.before, growth.growth(), growth.linear, growth.remainder, growth.past, growth.decay)
    return {name: float(part.sum()) for name, part in zip(SUMS, parts, strict=True)}


def _named(shares: Iterator[float]) -> dict[str, float]:
    return dict(zip(SHARES, shares, strict=True))
