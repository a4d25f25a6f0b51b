"""Topics of a comparison of runs that look at units and neurons: outliers, verdicts, skill, trust, lifetimes."""

from collections.abc import Sequence

import polars as pl

from devinterp_func import units
from devinterp_func.show import tables
from devinterp_func.show._compared import Cell, Side, cell, within
from devinterp_func.show._written import counted

RANKINGS = {  # name of the row -> ranking in the table of skill
    "the post's": "bag, relative frequency of c ≥ 20 (post)",
    "target token, log odds": "target, log odds",
    "where it predicts, share × moved logit": "where it predicts, share × moved logit",
    "control: token frequency": "token frequency",
    "control: random": "random",
}
BEST = {"best with the record": tables.RECORD, "best of the model alone": tables.MODEL}
CORRELATION = "{}: rank correlation, median over steps"


def outliers(side: Side, those: Sequence[Side]) -> dict[str, Cell]:
    """The share of all outliers that a unit has."""
    if not side.has("outlier_units"):
        return {}
    table = side.read("outlier_units", tables.OUTLIER_UNITS, ["unit", "share"])
    return {units.label(unit): cell(share, ".1%") for unit, share in table.select("unit", "share").iter_rows()}


def verdicts(side: Side, those: Sequence[Side]) -> dict[str, Cell]:
    """Share of flipped tokens that is notable, flipped tokens, and neurons judged attributed, by unit."""
    if not side.has("sublayers"):
        return {}
    columns = ["unit", "neurons", "attributed"]
    columns += [f"{name}{end}" for name in ("notable share", "flipped tokens") for end in ("", ", random neurons")]
    table = side.read("sublayers", tables.SUBLAYERS, columns)
    found = {"neurons whose notable tokens flip": _of(int(table["attributed"].sum()), int(table["neurons"].sum()))}
    for row in table.iter_rows(named=True):
        label = units.label(row["unit"])
        for name, format_ in (("notable share", ".3f"), ("flipped tokens", ".0f")):
            found[f"{label}: {name}"] = cell(row[name], format_, row[f"{name}, random neurons"])
        found[f"{label}: neurons whose notable tokens flip"] = _of(row["attributed"], row["neurons"])
    return found


def _of(n: int, of: int) -> Cell:
    return Cell(float(n), None, None, f"{n} of {of}")


def skill(side: Side, those: Sequence[Side]) -> dict[str, Cell]:
    """Mean average precision of some rankings, and of the best ones that read the record and that do not, by unit."""
    if not side.has("skill"):
        return {}
    table = side.read("skill", tables.SKILL, ["unit", "neurons", "kind", "ranking", "MAP", "low", "high"])
    table, found = table.filter(pl.col("neurons") == "all").drop_nans("MAP"), {}
    for (unit,), rows in table.group_by("unit", maintain_order=True):
        label = units.label(str(unit))
        for name, kinds in BEST.items():
            controls = pl.col("ranking").is_in(["token frequency", "prediction frequency"])
            best = rows.filter(pl.col("kind").is_in(kinds) & ~controls).sort("MAP", descending=True).head(1)
            for row in best.iter_rows(named=True):
                found[f"{label}: {name}"] = within(row["MAP"], row["low"], row["high"], ".3f", f", {row['ranking']}")
        for name, ranking in RANKINGS.items():
            for row in rows.filter(pl.col("ranking") == ranking).iter_rows(named=True):
                found[f"{label}: {name}"] = within(row["MAP"], row["low"], row["high"], ".3f")
    return found


def trust(side: Side, those: Sequence[Side]) -> dict[str, Cell]:
    """What estimates miss of the validation loss's change, and how scores agree with leaving a datum out."""
    found = {}
    if side.has("completeness"):
        table = side.read("completeness", tables.COMPLETENESS, ["probe", "estimate", "nodes", "missed", "low", "high"])
        for row in table.filter(pl.col("probe") == "loss, validation").iter_rows(named=True):
            nodes = "" if row["nodes"] is None else f", {counted(row['nodes'], 'node')}"
            name = f"missed of the change of the loss: {row['estimate']}{nodes}"
            found[name] = within(row["missed"], row["low"], row["high"], ".1%")
    if side.has("agreement"):
        table = side.read("agreement", tables.AGREEMENT, ["probe", "truth", "score", "median", "low", "high"])
        for row in table.filter(pl.col("probe") == "loss, validation").iter_rows(named=True):
            name = f"rank correlation with leaving a datum out, {row['truth']}: {row['score']}"
            found[name] = within(row["median"], row["low"], row["high"], ".2f")
    return found


def lifetimes(side: Side, those: Sequence[Side]) -> dict[str, Cell]:
    """How the lifetimes of a span's data correlate with their present credits, and what each adds up to."""
    if side.has("lifetimes"):
        columns = ["probe", "start", "stop", "present", "lifetimes", "rank correlation", "low", "high"]
        found = {}
        for row in side.read("lifetimes", tables.LIFETIMES, columns).iter_rows(named=True):
            span = f", steps {row['start']:,} to {row['stop']:,}"
            name = CORRELATION.format(row["probe"])
            found[name] = within(row["rank correlation"], row["low"], row["high"], ".3f", span)
            text = f"{row['present']:+.3g}, {row['lifetimes']:+.3g}".replace("-", "−") + span
            found[f"{row['probe']}: sums of present credits, of lifetimes"] = Cell(None, None, None, text)
        return found
    if not side.all_is_present:
        return {}
    others = [lifetimes(other, ()) for other in those if other.has("lifetimes")]
    same = Cell(1.0, None, None, "1, as nothing is remembered")
    return {name: same for cells in others for name, found in cells.items() if found.value is not None}
