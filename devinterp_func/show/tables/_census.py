"""Of which neurons a ranking finds what they flip, and whether the record adds to the finished model, as tables."""

from collections.abc import Mapping, Sequence

import polars as pl
from jaxtyping import Bool, Float64
from torch import Tensor

from devinterp_func import keys, stats, units
from devinterp_func.neurons import Nested, nested, nested_difference
from devinterp_func.show.schema import BOOL, FLOAT, INT, NAME, Column, Table, frame
from devinterp_func.show.tables._skill import MODEL, RECORD

CENSUS = Table(
    "Every judged neuron under the ranking that is best on the half of its unit's neurons that it is not in, by how "
    "much more precise it is than another neuron's, and whether that finds what it flips beyond what random tokens do.",
    "skill.py",
    {
        "unit": Column(NAME),
        "neuron": Column(NAME),
        "neurons": Column(NAME, "those with the most outliers in their unit, or random others"),
        "made from": Column(NAME, "of the ranking; controls: random, and another neuron's scores by the same ranking"),
        "ranking": Column(NAME, "chosen on the other half; none where no neuron of that flips anything"),
        "flips": Column(INT, "tokens that its ablation truly flips on held-out text"),
        "precision": Column(FLOAT, "average precision; none without flips", format=".3f"),
        "p": Column(FLOAT, "against random tokens of like frequency in place of these", format="p"),
        "beyond chance": Column(BOOL, "at a false discovery rate of 5 % over all neurons of the run"),
        "p, predicted alike": Column(FLOAT, "against random tokens that the model predicts as often", format="p"),
        "beyond chance, predicted alike": Column(BOOL, "at a false discovery rate of 5 % over all neurons of the run"),
    },
)
SHARES = Table(
    "Of how many neurons a ranking finds what they flip beyond what random tokens do, at a false discovery rate of 5 % "
    "over all neurons of the run, with 95 % intervals (Wilson 1927) of their share.",
    "skill.py",
    {
        "unit": Column(NAME),
        "neurons": Column(NAME, "all, those with the most outliers in their unit, or random others"),
        "made from": Column(NAME, "of the ranking; controls: random, and another neuron's scores by the same ranking"),
        "judged": Column(INT, "neurons"),
        "with flips": Column(INT, "neurons that truly flip a token"),
        "found": Column(INT, "neurons, beyond tokens of like frequency"),
        "share": Column(FLOAT, "of the judged", format=".1%"),
        "share: low": Column(FLOAT, format=".1%"),
        "share: high": Column(FLOAT, format=".1%"),
        "found, predicted alike": Column(INT, "neurons, beyond tokens that the model predicts as often"),
        "share, predicted alike": Column(FLOAT, "of the judged", format=".1%"),
        "share, predicted alike: low": Column(FLOAT, format=".1%"),
        "share, predicted alike: high": Column(FLOAT, format=".1%"),
    },
)
MEASURES = ("precision", "beyond another neuron's")  # of a neuron under a ranking
NESTED = Table(
    "The best ranking that uses the record against the best that the finished model alone gives, in pairs of neurons; "
    "both chosen on the half of the neurons that a neuron is not in. The bootstrap draws neurons within each half and "
    "chooses anew.",
    "skill.py",
    {
        "unit": Column(NAME),
        "measure": Column(NAME, "average precision, or that less the one of another neuron's scores"),
        "with the record": Column(NAME, "chosen on either half"),
        "model alone": Column(NAME, "chosen on either half"),
        "MAP with the record": Column(FLOAT, "mean of the measure over the neurons", format=".3f"),
        "MAP of the model alone": Column(FLOAT, format=".3f"),
        "difference": Column(FLOAT, "of these", format="+.3f"),
        "difference: low": Column(FLOAT, "end of its 95 % bootstrap interval", format="+.3f"),
        "difference: high": Column(FLOAT, "end of its 95 % bootstrap interval", format="+.3f"),
        "neurons with flips": Column(INT, "that the means are over"),
    },
)
RANKED = ("with the record", "model alone")  # what rankings are made from, and the controls
MADE_FROM = (*RANKED, *(f"another neuron's, {made}" for made in RANKED), "random")
LEVEL = 0.05  # false discovery rate
JUDGED_BY = {"p": "beyond chance", "p, predicted alike": "beyond chance, predicted alike"}


def made_from(kind: str, ranking: str) -> str:
    """What a ranking is made from, as the census has it: record, model, or one of the controls.

    >>> made_from("record and model", "where it predicts, share"), made_from("chance", "random")
    ('with the record', 'random')
    """
    if kind in RECORD + MODEL:
        return "with the record" if kind in RECORD else "model alone"
    return ranking.partition(":")[0]


def source(made_from: str) -> str:
    """What the rankings of a row of the census are chosen from: of a control with other neurons' scores, the same.

    >>> source("another neuron's, model alone"), source("random")
    ('model alone', 'random')
    """
    return made_from.removeprefix("another neuron's, ")


def census_rows(
    unit: str,
    neurons: Sequence[str],
    groups: Sequence[str],
    made_from: str,
    found: Nested | None,
    truth: Bool[Tensor, "G V"],
    precision: Float64[Tensor, "G"],
    p: Mapping[str, Float64[Tensor, "G"]],
) -> list[dict[str, object]]:
    """Rows of ``CENSUS``, not judged yet.

    Args:
        unit: the neurons' unit.
        neurons: their names.
        groups: their labels.
        made_from: of the rankings.
        found: each neuron under its half's ranking; None where in a half no neuron flips anything.
        truth: which tokens each truly flips.
        precision: average precision of each.
        p: of ``neurons.nested_p_values``, against tokens of either kind, by column.
    """
    rows = []
    for i, (neuron, group) in enumerate(zip(neurons, groups, strict=True)):
        row: dict[str, object] = {"unit": unit, "neuron": neuron, "neurons": group, "made from": made_from}
        name = None if found is None else found.names[int(found.second[i])]
        row |= {"ranking": name, "flips": int(truth[i].sum())}
        row |= {"precision": _or_none(float(precision[i]))}
        row |= {name: _or_none(float(values[i])) for name, values in p.items()}
        rows.append(row | {verdict: False for verdict in JUDGED_BY.values()})
    return rows


def judged_census(rows: Sequence[Mapping[str, object]]) -> pl.DataFrame:
    """The census with its verdicts: false discovery is controlled over all neurons of each kind of rankings."""
    table = frame(CENSUS, rows)
    parts = []
    for (_,), part in table.group_by("made from", maintain_order=True):
        for p, verdict in JUDGED_BY.items():
            found = stats.false_discovery(part[p].fill_null(1.0).to_torch(), LEVEL)
            part = part.with_columns(pl.Series(verdict, found.numpy()))
        parts.append(part)
    return pl.concat(parts) if parts else table


def share_frame(census: pl.DataFrame) -> pl.DataFrame:
    """By unit and in all, and of each group of neurons: how many flip something, and of how many that is found.

    Args:
        census: of ``judged_census``.
    """
    everything = census.with_columns(pl.lit("all").alias("unit"))
    groups = [pl.concat([census, everything])]
    groups = [groups[0].with_columns(pl.lit("all").alias("neurons")), *groups]
    rows = []
    for key, part in pl.concat(groups).group_by("unit", "neurons", "made from", maintain_order=True):
        row: dict[str, object] = dict(zip(("unit", "neurons", "made from"), key, strict=True))
        row |= {"judged": len(part), "with flips": int((part["flips"] > 0).sum())}
        for verdict, told in zip(JUDGED_BY.values(), ("", ", predicted alike"), strict=True):
            e = stats.share(part[verdict].to_torch())
            row |= {f"found{told}": int(part[verdict].sum()), f"share{told}": e.value}
            row |= {f"share{told}: low": e.low, f"share{told}: high": e.high}
        rows.append(row)
    return frame(SHARES, rows)


def census_summary(census: pl.DataFrame, verdict: str = "beyond chance") -> pl.DataFrame:
    """By unit and in all: how many neurons flip something, and of how many that is found beyond chance, by what.

    Args:
        census: of ``judged_census``.
        verdict: beyond which tokens, of ``JUDGED_BY``.
    """
    everything = census.with_columns(pl.lit("all").alias("unit"))
    labelled = census.with_columns(pl.col("unit").map_elements(units.label, return_dtype=pl.String))
    grouped = pl.concat([labelled, everything]).group_by("unit", "made from", maintain_order=True)
    counted = grouped.agg(
        pl.len().alias("neurons"), (pl.col("flips") > 0).sum().alias("with flips"), pl.col(verdict).sum()
    )
    return counted.pivot("made from", index=["unit", "neurons", "with flips"], values=verdict)


def nested_rows(
    unit: str,
    record: Mapping[str, Float64[Tensor, "G"]],
    model: Mapping[str, Float64[Tensor, "G"]],
    second: Bool[Tensor, "G"],
    measure: str = MEASURES[0],
    *,
    key: keys.Key | int,
) -> list[dict[str, object]]:
    """A row of ``NESTED``; none where in a half no neuron flips anything.

    Args:
        unit: the neurons' unit.
        record, model: ranking -> measure of each neuron.
        second: of ``neurons.halves``.
        measure: which, of ``MEASURES``.
        key: of the bootstrap.
    """
    ours, theirs = nested(record, second), nested(model, second)
    if ours is None or theirs is None:
        return []
    found = nested_difference(record, model, second, key=key)
    row: dict[str, object] = {"unit": unit, "measure": measure}
    row |= {made: " / ".join(dict.fromkeys(of.names)) for made, of in zip(RANKED, (ours, theirs), strict=True)}
    row |= {"MAP with the record": float(ours.precision.nanmean())}
    row |= {"MAP of the model alone": float(theirs.precision.nanmean())}
    row |= {"difference": found.value, "difference: low": found.low, "difference: high": found.high}
    return [row | {"neurons with flips": found.n}]


def _or_none(value: float) -> float | None:
    return None if value != value else value
