"""What the experiments on influence share: banks of retrainings that go on where they stopped, and scores beside them.

The forecast of a removal by a score is minus the sum of what is removed; how well it orders the removals is Spearman's
rank correlation with what retraining without them did, with a 95 % bootstrap interval over removals.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from jaxtyping import Bool
from torch import Tensor

from devinterp_func import credit
from devinterp_func.credit import Bank, Judged, Window
from devinterp_func.credit.probes import Probe
from devinterp_func.show import results, schema, tables
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table

ENDS = "of its 95 % bootstrap interval"
JUDGED = Table(
    "How well scores foretell what retraining without some data shows.",
    "gpt2_influence.py",
    {
        "setting": Column(NAME, "of the training"),
        "horizon": Column(INT, "steps from the first that data are left out of to where the probes are read"),
        "score": Column(NAME, "whose sums over what is left out are held against what retraining shows"),
        "rank": Column(FLOAT, "Spearman's correlation over removals, its mean over probes", format=".3f"),
        "rank low": Column(FLOAT, ENDS, format=".3f"),
        "rank high": Column(FLOAT, ENDS, format=".3f"),
        "linear": Column(FLOAT, "Pearson's", format=".3f"),
        "linear low": Column(FLOAT, ENDS, format=".3f"),
        "linear high": Column(FLOAT, ENDS, format=".3f"),
        "slope": Column(FLOAT, "of what retraining shows by what is foretold: 1 where sizes are right", format=".3g"),
        "slope low": Column(FLOAT, ENDS, format=".3g"),
        "slope high": Column(FLOAT, ENDS, format=".3g"),
        "behind": Column(FLOAT, "the influence's rank correlation less this score's, in pairs", format=".3f"),
        "behind low": Column(FLOAT, ENDS, format=".3f"),
        "behind high": Column(FLOAT, ENDS, format=".3f"),
        "removals": Column(INT, "retrainings, each without other data"),
        "growth": Column(FLOAT, "of the derivative by the weights, from the end back to the first step", format=".3g"),
    },
    ("setting", "horizon", "score"),
)


def fill(
    folder: Path,
    name: str,
    window: Window,
    probes: Sequence[Probe],
    horizons: Sequence[int],
    removals: Bool[Tensor, "D S n"],
    at_once: int = 21,
) -> Bank:
    """Retrains without each removal that a table lacks, some at once and beside the intact training; gives them all.

    Args:
        folder, name: of the table, ``tables.BANK``, to which each lot is added when it is done.
        window: what is trained again.
        probes: what is measured.
        horizons: after how many steps, in rising order.
        removals: of the window's steps; draw d of the table is the d-th.
        at_once: retrainings of a lot.
    """
    names = [probe.name for probe in probes]
    table = results.add_rows(folder, name, tables.BANK, schema.frame(tables.BANK, []))
    while missing := tables.missing_draws(len(removals), horizons, names, table):
        lot = missing[:at_once]
        left_out = [torch.zeros_like(removals[0]) if draw is None else removals[draw] for draw in lot]
        values = credit.together_values(window, probes, horizons, torch.stack(left_out))
        rows = [
            tables.bank_frame(draw, horizons, names, v, r) for draw, v, r in zip(lot, values, left_out, strict=True)
        ]
        table = results.add_rows(folder, name, tables.BANK, pl.concat(rows))
    return tables.bank_of(table, removals, horizons, names)


def kept(folder: Path, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Arrays from a file, made and written where it is not there."""
    if not (folder / f"{name}.safetensors").exists():
        results.write_arrays(folder, name, make())
    return results.read_arrays(folder, name)


def of_probe(bank: Bank, probe: int) -> Bank:
    """One probe's part of a bank."""
    return bank._replace(intact=bank.intact[:, [probe]], effect=bank.effect[..., [probe]])


def judged_frame(setting: str, judged: Sequence[Judged], growth: float, horizon: int) -> pl.DataFrame:
    """Rows of ``JUDGED``.

    Args:
        setting: of the training.
        judged: of ``credit.judge``.
        growth: of the derivative by the weights, from the end back to the start.
        horizon: steps from the start to the end.
    """
    rows = []
    for one in judged:
        row: dict[str, Any] = {"setting": setting, "horizon": horizon, "score": one.score}
        row |= {"removals": one.rank.n, "growth": growth}
        row |= tables.estimates_row(one)
        rows.append({name: row[name] for name in JUDGED.columns})
    return schema.frame(JUDGED, rows)
