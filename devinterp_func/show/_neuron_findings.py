"""What the tables of neurons, rankings, bigrams and phases say, each in a sentence with its control."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from devinterp_func import credit, neurons
from devinterp_func.bigram import SEEN_AND_UNSEEN
from devinterp_func.records import Run
from devinterp_func.show import _phase_sections, tables, words
from devinterp_func.show._credit_findings import known, read
from devinterp_func.show._written import counted, p_value, shown

LIKE = 0.05  # below it a p-value among tokens of like frequency is counted


def verdicts(run: Run, folder: Path) -> str | None:
    """How many neurons flip their notable tokens, beside random neurons and random data; and the share by unit."""
    table = read(folder, "verdicts", tables.VERDICTS)
    if table is None:
        return None
    n, judged = len(table), int(table["attributed"].sum())
    near = int((table["p, like frequency"] < LIKE).sum())
    said = f"{counted(n, 'neuron')} ablated: {_any(table, '')} flip a notable token anywhere"
    controls = {"random neurons": "random neurons in their place do", "random data": "on random data do"}
    held = [f"{_any(table, f', {name}')} {how}" for name, how in controls.items() if _any(table, f", {name}")]
    said += (
        f"{''.join(f', {one}' for one in held)}. Beyond chance {judged} flip them (hypergeometric, false discovery "
        f"rate {tables.LEVEL:.0%}); among tokens of like frequency {near} have p < {LIKE:g}, where chance gives "
        f"{LIKE * n:.1f}."
    )
    shares = read(folder, "sublayers", tables.SUBLAYERS)
    share, control = "notable share", "notable share, random neurons"
    both = None if shares is None else shares.drop_nulls([share, control])
    if both is None or not len(both):
        return said
    above = int((both[share] > both[control]).sum())
    best = both.sort(pl.col(share) - pl.col(control), descending=True, maintain_order=True).row(0, named=True)
    return (
        f"{said} Of the tokens that flip, more are notable than with random neurons in {above} of "
        f"{counted(len(both), 'unit')}; farthest apart they are in {words.sublayer(best['unit'])}: {best[share]:.1%}, "
        f"random neurons {best[control]:.1%}."
    )


def _any(verdicts: pl.DataFrame, condition: str) -> str:
    """How many ablations flip a notable token, of those that are known; empty where none is."""
    counts = verdicts[f"notable of these{condition}"].drop_nulls()
    return f"{int((counts > 0).sum())} of {len(counts)}" if len(counts) else ""


def skill(run: Run, folder: Path) -> str | None:
    """How well the record predicts flips, beside the finished model, chance and the post's ranking."""
    table = read(folder, "skill", tables.SKILL)
    if table is None:
        return None
    wide = tables.skill_by_unit(table)
    means = wide.select("kind", "ranking", mean=pl.mean_horizontal(pl.exclude("kind", "ranking").fill_nan(None)))
    best = {"with the record": _best(means, tables.RECORD), "of the finished model alone": _best(means, tables.MODEL)}
    best |= {"by chance": _best(means, ("chance",))}
    told = [f"{shown(row['mean'])} {how} (“{row['ranking']}”)" for how, row in best.items() if row is not None]
    post = means.filter(pl.col("ranking") == neurons.POST)["mean"].to_list()
    told += [f"{shown(post[0])} by the post's" if post and post[0] is not None else ""]
    said = (
        "Which tokens flip on validation data is predicted with a mean average precision, mean over units, of at best "
    )
    said += ", ".join(filter(None, told)) + "."
    contrasts, how = read(folder, "skill_nested", tables.NESTED), ", both chosen on other neurons,"
    if contrasts is not None:
        contrasts = contrasts.filter(pl.col("measure") == tables.MEASURES[0])
    if contrasts is None or contrasts.is_empty():
        contrasts, how = read(folder, "skill_contrasts", tables.CONTRASTS), ""
    if contrasts is None:
        return said
    said += _ahead(contrasts, how)
    census = read(folder, "skill_census", tables.CENSUS)
    return said if census is None or census.is_empty() else said + _beyond_chance(census)


def _ahead(contrasts: pl.DataFrame, how: str) -> str:
    """In how many units the record is ahead of the finished model."""
    sure = contrasts.drop_nulls(["difference: low", "difference: high"])
    higher = int((contrasts["difference"] > 0).sum())
    said = f" With the record it is higher than with the finished model alone{how} in {higher} of "
    said += counted(len(contrasts), "unit")
    if not len(sure):
        return f"{said}; no difference has an interval."
    ahead, behind = int((sure["difference: low"] > 0).sum()), int((sure["difference: high"] < 0).sum())
    return f"{said}: surely in {ahead}, and surely lower in {behind}, of {len(sure)} with an interval of 95 %."


def _beyond_chance(census: pl.DataFrame) -> str:
    """Of how many neurons the flips are found beyond chance, by which rankings."""
    rows, told = {}, []
    for verdict, than in zip(tables.JUDGED_BY.values(), ("of like frequency", "predicted as often"), strict=True):
        summary = tables.census_summary(census, verdict)
        rows[than] = summary.row(by_predicate=pl.col("unit") == "all", named=True)
        counts = ", ".join(f"{rows[than][by]} {by}" for by in tables.MADE_FROM if rows[than].get(by) is not None)
        told.append(f"beyond tokens {than} those of {counts}")
    row = rows["of like frequency"]
    return (
        f" Of {row['neurons']:,} neurons judged {row['with flips']:,} flip a token; found (false discovery rate 5 %) "
        f"are {'; '.join(told)}."
    )


def _best(means: pl.DataFrame, kinds: Sequence[str]) -> dict[str, object] | None:
    rows = means.filter(pl.col("kind").is_in(list(kinds)) & pl.col("mean").is_not_null())
    return rows.sort("mean", descending=True, maintain_order=True).row(0, named=True) if len(rows) else None


def bigrams(run: Run, folder: Path) -> str | None:
    """How far the model's bigrams are the corpus', at the last snapshot, beside shuffled tokens."""
    table = read(folder, "bigram_correlations", tables.BIGRAM_CORRELATIONS)
    if table is None:
        return None
    last = table.filter((pl.col("step") == pl.col("step").max()) & (pl.col("among") == SEEN_AND_UNSEEN))
    told = [
        f"{what} by {shown(row['spearman'])} (tokens shuffled: {shown(row['spearman, shuffled'])})"
        for what in ("whole model", "direct path")
        for row in last.filter(pl.col("measure") == f"{what}, centred").to_dicts()
    ]
    if not told:
        return None
    return (
        f"Before step {last['step'][0]:,} what a single token makes likely next correlates with the corpus' log-odds, "
        f"in rank over {counted(last.filter(pl.col('measure').str.ends_with('centred'))['n'][0], 'pair')}, seen and "
        f"unseen: {', '.join(told)}."
    )


def phases(run: Run, folder: Path) -> str | None:
    """How many change points there are, whether segments beat a smooth course, and whether measures change together."""
    table = read(folder, "phases_changes", tables.CHANGES)
    if table is None:
        return None
    label = _phase_sections.label_of(run, table["run"].unique(maintain_order=True).to_list())
    row = table.row(by_predicate=(pl.col("run") == label) & (pl.col("series") == credit.ALL), named=True)
    at = f" (step {', '.join(f'{step:,}' for step in row['at steps'])})" if row["at steps"] else ""
    smooth = row["over a smooth course"]
    side = f"{'ahead of' if smooth > 0 else 'behind'} a smooth course by {shown(abs(smooth))}"
    said = (
        f"All measures together have {counted(row['change points'], 'change point')}{at}; by BIC segments are ahead of "
        f"a single one by {shown(row['over one segment'])} and {side}."
    )
    together = read(folder, "phases_coincidence", tables.COINCIDENCE)
    own = None if together is None else together.filter((pl.col("run") == label) & (pl.col("axis") == "log steps"))
    near = None if own is None or not len(own) else own.row(0, named=True)
    if near is None or not known(near, "distance", "chance", "p"):  # too few measures have change points
        return said
    return (
        f"{said} Change points of single measures are {shown(near['distance'])} apart in log steps, by chance "
        f"{shown(near['chance'])} (p {_p(near['p'])})."
    )


def _p(value: float) -> str:
    text = p_value(value)
    return text if text.startswith("<") else f"= {text}"
