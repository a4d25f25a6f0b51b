"""Lifetimes as tables: each probe's books over a span beside its present credits, and the texts that change place.

Rows begin with what tells their span from others, as a ledger's do.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from devinterp_func import credit, keys
from devinterp_func.credit import Lifetimes, PlacedText
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table, frame
from devinterp_func.show.tables._ledger import LEDGER_KEY, LedgerKey

LIFETIMES = Table(
    "What each probe's change over the span is made of.",
    "lifetime.py",
    {
        **LEDGER_KEY,
        "at the start": Column(FLOAT, "the probe before the first step"),
        "at the end": Column(FLOAT, "the probe after the last step"),
        "lifetimes": Column(FLOAT, "what all data did in their own steps and in all later ones of the span"),
        "present": Column(FLOAT, "of that, in their own steps"),
        "decay": Column(FLOAT, "what weight decay did"),
        "entering": Column(FLOAT, "what earlier data did, through the memory that the span began with"),
        "missed": Column(FLOAT, "what the quadrature along the steps misses"),
        "unexplained": Column(FLOAT, "the rest: rounding"),
        "rank correlation": Column(FLOAT, "Spearman's, of present credit and lifetime over a step's data: the median"),
        "low": Column(FLOAT, "of its 95 % bootstrap interval over steps"),
        "high": Column(FLOAT, "of its 95 % bootstrap interval over steps"),
        "steps": Column(INT, "in which the ranks are defined"),
    },
    tuple(LEDGER_KEY),
)
LIFETIME_TEXTS = Table(
    "The texts whose lifetimes moved each probe most, and those that change place most.",
    "lifetime.py",
    {
        **LEDGER_KEY,
        "why": Column(NAME, "raised, lowered, or changed place"),
        "rank": Column(INT, "among these, from 1"),
        "datum": Column(INT, "id of the training datum"),
        "steps": Column(INT, "it was in"),
        "present": Column(FLOAT, "credit in its own steps"),
        "lifetime": Column(FLOAT, "... and in all later ones of the span"),
        "present place": Column(INT, "among all data of the span: from 1, which raised the probe most"),
        "lifetime place": Column(INT, "among all data of the span: from 1, which raised the probe most"),
        "data": Column(INT, "of the span"),
        "position": Column(INT, "where most of its lifetime is, from 0"),
        "credits": Column(pl.List(pl.Float64), "the lifetime at each position: of predicting its target there"),
    },
    tuple(LEDGER_KEY),
)
LIFETIME_TABLES = {"lifetimes": LIFETIMES, "lifetime_texts": LIFETIME_TEXTS}


def lifetime_frames(
    found: Lifetimes, probes: Sequence[str], key: LedgerKey, *, random: keys.Key | int, most: int = 10
) -> dict[str, pl.DataFrame]:
    """Both tables of a span, by the names of ``LIFETIME_TABLES``.

    Args:
        found: of ``credit.lifetime``.
        probes: names of its probes.
        key: of the span.
        random: key of the bootstrap.
        most: texts of each kind.
    """
    rows = {
        "lifetimes": list(_book_rows(found, probes, random)),
        "lifetime_texts": [row for i, name in enumerate(probes) for row in _text_rows(found, i, name, most)],
    }
    return {
        name: frame(kind, [{**row, **key._asdict()} for row in rows[name]]) for name, kind in LIFETIME_TABLES.items()
    }


def _book_rows(found: Lifetimes, probes: Sequence[str], random: keys.Key | int) -> Iterator[dict[str, Any]]:
    books = found.books()
    for i, probe in enumerate(probes):
        amounts = {name: getattr(found, name)[:, i].sum(-1) for name in ("present", "lifetime")}
        agreement = credit.rank_agreement({"present": amounts["present"]}, amounts["lifetime"], key=random)["present"]
        sums = {name: float(getattr(books, name)[i]) for name in ("present", "decay", "entering", "missed")}
        yield {
            "probe": probe,
            "at the start": float(found.before[0, i]),
            "at the end": float(found.after[i]),
            "lifetimes": float(books.lifetime[i]),
            **sums,
            "unexplained": float(books.unexplained()[i]),
            "rank correlation": agreement.value,
            "low": agreement.low,
            "high": agreement.high,
            "steps": agreement.n,
        }


def _text_rows(found: Lifetimes, i: int, probe: str, most: int) -> Iterator[dict[str, Any]]:
    lived, n = credit.most_lived(found, i, most), len(found.datum.unique())
    kinds: dict[str, list[PlacedText]] = {
        "raised": [text for text in lived if text.lifetime.sum() > 0],
        "lowered": [text for text in lived if text.lifetime.sum() < 0],
        "changed place": credit.changed_places(found, i, most),
    }
    for why, texts in kinds.items():
        for rank, text in enumerate(texts, start=1):
            yield {
                "probe": probe,
                "why": why,
                "rank": rank,
                "datum": text.datum,
                "steps": text.steps,
                "present": float(text.present.sum()),
                "lifetime": float(text.lifetime.sum()),
                "present place": text.present_place,
                "lifetime place": text.lifetime_place,
                "data": n,
                "position": text.position,
                "credits": text.lifetime.tolist(),
            }
