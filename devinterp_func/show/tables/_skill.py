"""How well rankings of tokens predict flips, as tables."""

from collections.abc import Mapping, Sequence

import polars as pl
from jaxtyping import Float64, Int
from torch import Tensor

from devinterp_func import keys, stats, units
from devinterp_func.neurons import Nested
from devinterp_func.show.schema import BOOL, FLOAT, INT, NAME, Column, Table, frame

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


CENSUS = Table(
    "Every judged neuron under the ranking that is best on the half of its unit's neurons that it is not in, and "
    "whether that finds what it flips beyond what tokens of like frequency do.",
    "skill.py",
    {
        "unit": Column(NAME),
        "neuron": Column(NAME),
        "made from": Column(NAME, "of the ranking; controls: random, and another neuron's ranking"),
        "ranking": Column(NAME, "chosen on the other half"),
        "flips": Column(INT, "tokens that its ablation truly flips on held-out text"),
        "precision": Column(FLOAT, "average precision; none without flips", format=".3f"),
        "p": Column(FLOAT, "against random tokens of like frequency in place of these", format="p"),
        "beyond chance": Column(BOOL, "at a false discovery rate of 5 % over all neurons of the run"),
    },
)
NESTED = Table(
    "The best ranking that uses the record against the best that the finished model alone gives, in pairs of neurons; "
    "both chosen on the half of the neurons that a neuron is not in.",
    "skill.py",
    {
        "unit": Column(NAME),
        "with the record": Column(NAME, "chosen on either half"),
        "model alone": Column(NAME, "chosen on either half"),
        "MAP with the record": Column(FLOAT, "mean average precision over the neurons", format=".3f"),
        "MAP of the model alone": Column(FLOAT, format=".3f"),
        "difference": Column(FLOAT, "of these", format="+.3f"),
        "difference: low": Column(FLOAT, "end of its 95 % bootstrap interval", format="+.3f"),
        "difference: high": Column(FLOAT, "end of its 95 % bootstrap interval", format="+.3f"),
        "neurons with flips": Column(INT, "that the means are over"),
    },
)
MADE_FROM = ("with the record", "model alone", "random", "another neuron's")  # of rankings; the last two are controls
LEVEL = 0.05  # false discovery rate


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


def made_from(kind: str, ranking: str) -> str:
    """What a ranking is made from, as the census has it: record, model, or one of the controls.

    >>> made_from("record and model", "where it predicts, share"), made_from("chance", "random")
    ('with the record', 'random')
    """
    if kind in RECORD + MODEL:
        return "with the record" if kind in RECORD else "model alone"
    return ranking.partition(":")[0]


def census_rows(
    unit: str, neurons: Sequence[str], made_from: str, found: Nested, flips: Int[Tensor, "G"], p: Float64[Tensor, "G"]
) -> list[dict[str, object]]:
    """Rows of ``CENSUS``, not judged yet.

    Args:
        unit: the neurons' unit.
        neurons: their names.
        made_from: of the rankings.
        found: each neuron under its half's ranking.
        flips: how many tokens each truly flips.
        p: of ``neurons.nested_p_values``.
    """
    names = [found.names[int(half)] for half in found.second.tolist()]
    columns = zip(neurons, names, flips.tolist(), found.precision.tolist(), p.tolist(), strict=True)
    return [
        {"unit": unit, "neuron": neuron, "made from": made_from, "ranking": name, "flips": n}
        | {"precision": _or_none(precision), "p": _or_none(chance), "beyond chance": False}
        for neuron, name, n, precision, chance in columns
    ]


def judged_census(rows: Sequence[Mapping[str, object]]) -> pl.DataFrame:
    """The census with its verdicts: false discovery is controlled over all neurons of each kind of rankings."""
    table = frame(CENSUS, rows)
    parts = []
    for (_,), part in table.group_by("made from", maintain_order=True):
        p = part["p"].fill_null(1.0).to_torch()
        parts.append(part.with_columns(pl.Series("beyond chance", stats.false_discovery(p, LEVEL).numpy())))
    return pl.concat(parts) if parts else table


def census_summary(census: pl.DataFrame) -> pl.DataFrame:
    """By unit and in all: how many neurons flip something, and of how many that is found beyond chance, by what."""
    everything = census.with_columns(pl.lit("all").alias("unit"))
    labelled = census.with_columns(pl.col("unit").map_elements(units.label, return_dtype=pl.String))
    grouped = pl.concat([labelled, everything]).group_by("unit", "made from", maintain_order=True)
    counted = grouped.agg(
        pl.len().alias("neurons"), (pl.col("flips") > 0).sum().alias("with flips"), pl.col("beyond chance").sum()
    )
    return counted.pivot("made from", index=["unit", "neurons", "with flips"], values="beyond chance")


def nested_rows(
    unit: str, record: Nested | None, model: Nested | None, *, key: keys.Key | int
) -> list[dict[str, object]]:
    """A row of ``NESTED``; none where in a half no neuron flips anything."""
    if record is None or model is None:
        return []
    found = stats.compare_scores(record.precision, model.precision, key=key).difference
    named = {
        name: " / ".join(dict.fromkeys(chosen.names))
        for name, chosen in (("with the record", record), ("model alone", model))
    }
    means = {"MAP with the record": record.precision.nanmean(), "MAP of the model alone": model.precision.nanmean()}
    row: dict[str, object] = {"unit": unit, **named, **{name: float(mean) for name, mean in means.items()}}
    row |= {"difference": found.value, "difference: low": found.low, "difference: high": found.high}
    return [row | {"neurons with flips": found.n}]


def _or_none(value: float) -> float | None:
    return None if value != value else value
