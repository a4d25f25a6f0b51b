"""Directions of a unit: what each pair gained, which tokens moved it, and singular ones beside rotated ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import torch
from scipy import stats as tests

from devinterp_func import credit
from devinterp_func.credit import DirectionName, Side
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table, frame, tokens

SIDES: tuple[Side, ...] = ("target", "input")
LEAST = 20  # positions of a token, for it to be listed by its amount per position
SPAN = {"from": Column(INT, "first step"), "to": Column(INT, "the step it stops before")}
PAIR = SPAN | {"unit": Column(NAME), "kind": Column(NAME), "rank": Column(INT, "from 0 within unit and kind")}
KEY = ("from", "to", "unit", "kind", "rank")
DIRECTIONS = Table(
    "Each pair of directions: singular ones of what the unit gained, its weights that changed most, rotated ones.",
    "directions.py",
    PAIR
    | {
        "change": Column(FLOAT, "uᵀ ΔW v"),
        "consistency": Column(FLOAT, "|Σ amounts| ÷ Σ|amounts|: 1 where every position pushed the same way"),
    }
    | {f"{side}: divergence": Column(FLOAT, "of its tokens from the usual ones, nats") for side in SIDES},
    KEY,
)
TEST = "one-sided Mann-Whitney test"
DIRECTION_UNITS = Table(
    "How far the tokens that move a pair are from the usual ones: median divergences over pairs, nats.",
    "directions.py",
    SPAN
    | {"unit": Column(NAME)}
    | {
        name: column
        for side in SIDES
        for name, column in (
            *((f"{side}: {kind}", Column(FLOAT, control=kind == "rotated")) for kind in credit.DIRECTION_KINDS),
            (f"{side}: p", Column(FLOAT, f"{TEST}: singular pairs have more than rotated ones", format="p")),
        )
    },
    ("from", "to", "unit"),
)
DIRECTION_TOKENS = Table(
    "The tokens that moved each pair most, up (with its change) and down.",
    "directions.py",
    PAIR
    | {
        "side": Column(NAME, "whose positions: of target or of input tokens"),
        "reading": Column(NAME, f"total, or per position (of tokens at {LEAST} positions or more)"),
        "up": tokens("its change came by these"),
        "down": tokens("and in spite of these"),
    },
    (*KEY, "side", "reading"),
)


def direction_frame(
    amounts: Mapping[Side, credit.TokenAmounts], names: Sequence[DirectionName], start: int, stop: int
) -> pl.DataFrame:
    """A row for each pair: what it gained, how consistently, and how far its tokens are from the usual.

    Args:
        amounts: of ``credit.directions``, after its last step.
        names: of the pairs, in their order.
        start, stop: the steps.
    """
    columns: dict[str, Sequence[Any]] = {
        "from": [start] * len(names),
        "to": [stop] * len(names),
        **dict(zip(DirectionName._fields, zip(*names, strict=True), strict=True)),
        "change": amounts["target"].net.sum(0).tolist(),
        "consistency": credit.consistency(amounts["target"]).tolist(),
    }
    columns |= {f"{side}: divergence": credit.divergence(amounts[side]).tolist() for side in SIDES}
    return frame(DIRECTIONS, columns)


def direction_unit_frame(pairs: pl.DataFrame) -> pl.DataFrame:
    """By unit: the median divergence of each kind, and how sure it is that singular pairs have more than rotated ones.

    Args:
        pairs: of ``direction_frame``.
    """
    rows = []
    for (start, stop, unit), own in pairs.group_by("from", "to", "unit", maintain_order=True):
        row: dict[str, object] = {"from": start, "to": stop, "unit": unit}
        for side in SIDES:
            by = {kind: own.filter(pl.col("kind") == kind)[f"{side}: divergence"] for kind in credit.DIRECTION_KINDS}
            row |= {f"{side}: {kind}": values.median() for kind, values in by.items()}
            more = tests.mannwhitneyu(by["singular"].to_numpy(), by["rotated"].to_numpy(), alternative="greater")
            row[f"{side}: p"] = float(more.pvalue)
        rows.append(row)
    return frame(DIRECTION_UNITS, rows)


def direction_token_frame(
    amounts: Mapping[Side, credit.TokenAmounts], names: Sequence[DirectionName], start: int, stop: int, most: int = 8
) -> pl.DataFrame:
    """The tokens that moved each pair most, up and down, in all and per position.

    Args:
        amounts, names, start, stop: as of ``direction_frame``.
        most: tokens of each list.
    """
    rows = []
    for r, name in enumerate(names):
        for side in SIDES:
            net, positions = amounts[side].net[:, r], amounts[side].positions
            mean = torch.where(positions >= LEAST, net / positions.clamp(min=1), 0)
            for reading, score in (("total", net), ("per position", mean)):
                row = {"from": start, "to": stop, **name._asdict(), "side": side, "reading": reading}
                rows.append(row | {"up": _positive(score, most), "down": _positive(-score, most)})
    return frame(DIRECTION_TOKENS, rows)


def _positive(score: torch.Tensor, most: int) -> list[int]:
    """The tokens with the largest scores above 0, largest first."""
    top = score.topk(min(most, len(score)))
    return top.indices[top.values > 0].tolist()
