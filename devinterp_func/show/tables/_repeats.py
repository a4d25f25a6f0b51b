"""Texts that repeat themselves, as tables: what is predicted in them, and what they have of a probe's credit."""

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devinterp_func import keys
from devinterp_func.credit import PLACES, Entries, credit_share, mean_where
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table, frame
from devinterp_func.show.tables._ledger import LEDGER_KEY, LedgerKey

TEXTS = ("repeating", "other")
ALL = "all"
WHERE = {
    "text": Column(NAME, "repeating: goes on saying its beginning, to its end; other: all else"),
    "place": Column(NAME, "again: the token stood before in the text, the same one after it; otherwise: others alone"),
}
LOW_HIGH = {side: Column(FLOAT, "of the 95 % bootstrap interval") for side in ("low", "high")}
REPEAT_LOSSES = Table(
    "Loss where a text says again what it has said, and elsewhere.",
    "repeats.py",
    {"step": Column(INT, "before which the weights were looked at"), **WHERE}
    | {"positions": Column(INT, "in validation texts"), "loss": Column(FLOAT, "mean over them, nats"), **LOW_HIGH},
    ("step", "text", "place"),
)
REPEAT_CREDITS = Table(
    "What each probe's credit is made of: texts that repeat themselves and others, by kind of place.",
    "repeats.py",
    {
        **LEDGER_KEY,
        **WHERE,
        "of positions": Column(FLOAT, "share of all positions of these steps", format=".2%", control=True),
        "of gross": Column(FLOAT, "share of the sum of absolute credits", format=".2%"),
        **{name: column._replace(format=".2%") for name, column in LOW_HIGH.items()},
        "credit": Column(FLOAT, "sum of theirs"),
        "of net": Column(FLOAT, "share of the sum of all credits", format=".2%"),
        "net low": Column(FLOAT, "of the 95 % bootstrap interval", format=".2%"),
        "net high": Column(FLOAT, "of the 95 % bootstrap interval", format=".2%"),
    },
    (*LEDGER_KEY, "text", "place"),
)


def repeat_loss_rows(
    step: int,
    losses: Float[Tensor, "n C"],
    repeating: Bool[Tensor, "n"],
    kinds: Int[Tensor, "n C"],
    *,
    key: keys.Key | int,
) -> list[dict[str, Any]]:
    """Rows of ``REPEAT_LOSSES`` of one snapshot, of kinds that there are.

    Args:
        step: before which the weights are.
        losses: of ``credit.position_losses``.
        repeating: which of the texts repeat themselves.
        kinds: of ``credit.place_kinds``.
        key: of the bootstrap.
    """
    rows = []
    for text, place, chosen in _cells(repeating, kinds):
        mean = mean_where(losses, chosen, key=key)
        row = {"step": step, "text": text, "place": place, "positions": int(chosen.sum())}
        rows.append(row | {"loss": mean.value, "low": mean.low, "high": mean.high})
    return rows


def repeat_loss_frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """The table of ``repeat_loss_rows``."""
    return frame(REPEAT_LOSSES, rows)


def repeat_credit_frame(
    found: Entries,
    probes: Sequence[str],
    ledger: LedgerKey,
    repeating: Bool[Tensor, "S n"],
    kinds: Int[Tensor, "S n C"],
    *,
    key: keys.Key | int,
) -> pl.DataFrame:
    """What every kind of place has of each probe's credit.

    Args:
        found: of ``credit.ledger``.
        probes: names of its probes.
        ledger: of the span.
        repeating: which of the visits were of texts that repeat themselves.
        kinds: of ``credit.place_kinds``, at each visit.
        key: of the bootstrap.
    """
    rows = []
    for i, probe in enumerate(probes):
        for text, place, chosen in _cells(repeating, kinds):
            share = credit_share(found.credit[:, i], chosen, key=key)
            row = {"probe": probe, **ledger._asdict(), "text": text, "place": place, "of positions": share.positions}
            row |= dict(zip(("of gross", "low", "high"), share.gross[:3], strict=True))
            row |= dict(zip(("of net", "net low", "net high"), share.net[:3], strict=True))
            rows.append(row | {"credit": share.credit})
    return frame(REPEAT_CREDITS, rows)


def _cells(
    repeating: Bool[Tensor, "*S n"], kinds: Int[Tensor, "*S n C"]
) -> Iterator[tuple[str, str, Bool[Tensor, "*S n C"]]]:
    """Each kind of text with each kind of place, and with all, where there are any."""
    for text, own in zip(TEXTS, (repeating, ~repeating), strict=True):
        for place, at in ((ALL, kinds >= 0), *((name, kinds == i) for i, name in enumerate(PLACES))):
            chosen = own[..., None] & at
            if bool(chosen.any()):
                yield text, place, chosen
