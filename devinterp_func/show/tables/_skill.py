"""How well rankings of tokens predict flips, as tables."""

from collections.abc import Mapping, Sequence

import polars as pl
from jaxtyping import Float64
from torch import Tensor

from devinterp_func import keys, stats, units
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table

RECORD, MODEL = ("record", "record and model"), ("model",)  # kinds of rankings: with the record's help, and without
SKILL = Table(
    "Mean average precision of rankings of tokens, against the tokens that a neuron's ablation truly flips.",
    "skill.py",
    {
        "unit": Column(NAME),
        "neurons": Column(NAME, "all, those with the most outliers in their unit, or random others"),
        "kind": Column(NAME, "what the ranking is made from"),
        "ranking": Column(NAME),
        "MAP": Column(FLOAT, "mean average precision over the neurons", format=".3f"),
        "low": Column(FLOAT, "end of its 95 % bootstrap interval", format=".3f"),
        "high": Column(FLOAT, "end of its 95 % bootstrap interval", format=".3f"),
        "neurons with flips": Column(INT, "that it is a mean over"),
    },
)
CONTRASTS = Table(
    "The best ranking that uses the record against the best that the finished model alone gives, in pairs of neurons. "
    "Both are the best on these very neurons, out of many.",
    "skill.py",
    {
        "unit": Column(NAME),
        "with the record": Column(NAME),
        "model alone": Column(NAME),
        "difference": Column(FLOAT, "of their mean average precisions", format="+.3f"),
        "difference: low": Column(FLOAT, "end of its 95 % bootstrap interval", format="+.3f"),
        "difference: high": Column(FLOAT, "end of its 95 % bootstrap interval", format="+.3f"),
        "ratio": Column(FLOAT, "of their mean average precisions", format=".2f"),
        "ratio: low": Column(FLOAT, "end of its 95 % bootstrap interval", format=".2f"),
        "ratio: high": Column(FLOAT, "end of its 95 % bootstrap interval", format=".2f"),
        "neurons with flips": Column(INT, "that the means are over"),
    },
)


def skill_rows(
    unit: str, kind: str, ranking: str, precision: Float64[Tensor, "G"], groups: Sequence[str], *, key: keys.Key | int
) -> list[dict[str, object]]:
    """A ranking's mean average precision over all neurons of a unit, and over groups of them.

    Args:
        unit: the neurons' unit.
        kind, ranking: what the ranking is made from, and its name.
        precision: of ``stats.average_precision``.
        groups: the neurons' labels.
        key: of the bootstrap.
    """
    estimates = {"all": stats.mean_average_precision(precision, key=key), **stats.by_group(precision, groups, key=key)}
    return [
        {"unit": unit, "neurons": group, "kind": kind, "ranking": ranking}
        | {"MAP": e.value, "low": e.low, "high": e.high, "neurons with flips": e.n}
        for group, e in estimates.items()
    ]


def contrast_rows(
    unit: str, precisions: Mapping[tuple[str, str], Float64[Tensor, "G"]], *, key: keys.Key | int
) -> list[dict[str, object]]:
    """The best ranking with the record's help against the best without: a row, none where no neuron flips anything.

    Args:
        unit: the neurons' unit.
        precisions: (kind, ranking) -> average precision of each of the unit's neurons.
        key: of the bootstrap.
    """
    best = {}
    for kinds in (RECORD, MODEL):
        means = {name: float(p.nanmean()) for name, p in precisions.items() if name[0] in kinds}
        known = {name: mean for name, mean in means.items() if mean == mean}
        if not known:
            return []
        best[kinds] = max(known, key=lambda name: known[name])
    found = stats.compare_scores(precisions[best[RECORD]], precisions[best[MODEL]], key=key)
    row: dict[str, object] = {"unit": unit, "with the record": best[RECORD][1], "model alone": best[MODEL][1]}
    for name, e in found._asdict().items():
        row |= {name: e.value, f"{name}: low": e.low, f"{name}: high": e.high}
    return [row | {"neurons with flips": found.difference.n}]


def skill_by_unit(table: pl.DataFrame, neurons: str = "all") -> pl.DataFrame:
    """A row for each ranking and a column for each unit with its mean average precision, the best mean first.

    Args:
        table: of ``SKILL``.
        neurons: which of them.
    """
    named = pl.col("unit").map_elements(units.label, return_dtype=pl.String)
    rows = table.filter(pl.col("neurons") == neurons).with_columns(named)
    wide = rows.pivot("unit", index=["kind", "ranking"], values="MAP", maintain_order=True)
    order = pl.mean_horizontal(pl.exclude("kind", "ranking").fill_nan(None))
    return wide.sort(order, descending=True, nulls_last=True) if wide.width > 2 else wide
