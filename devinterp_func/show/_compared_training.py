"""Topics of a comparison of runs that follow training: losses, parts of the changes, bigrams, heads, phases."""

import math
from collections.abc import Sequence

import polars as pl

from devinterp_func.show import tables, terminal, words
from devinterp_func.show._compared import Cell, Side, cell, common, signed

FIFTHS = ("first", "second", "third", "fourth", "last")
LEARNT = (  # name of the row, measure and pairs of the table of correlations
    ("unigrams: rank correlation of the bias", "unembedding bias", "tokens that occur"),
    ("bigrams: rank correlation of the direct path", "direct path, centred", "pairs of the corpus"),
    ("bigrams: rank correlation of the whole model", "whole model, centred", "pairs of the corpus"),
)
CREDITS = "credits of single texts for a head: raised, lowered"
SERIES, SHUFFLED = "bigrams of the corpus", "their tokens, shuffled"


def training(side: Side, those: Sequence[Side]) -> dict[str, Cell]:
    """How it was trained, and the perplexity on held-out data after each epoch."""
    recipe = words.in_full(side.manifest["recipe"])
    said = {
        "optimizer": words.optimizer_words(recipe["optimizer"]),
        "learning rate": f"{recipe['lr']:g}, {words.schedule_words(recipe['schedule'])}",
        "clipping": "none" if recipe["max_norm"] is None else f"to a norm of {recipe['max_norm']:g}",
        "steps": f"{side.manifest['n_steps']:,} of {recipe['batch_size']} data",
    }
    found = {name: Cell(None, None, None, text) for name, text in said.items()}
    losses = side.evaluations
    if losses is None and side.has("evaluations"):
        losses = side.read("evaluations", tables.EVALUATIONS, ["step", "epochs", "split", "loss"])
    if losses is None:
        return found
    last = losses["step"].max()
    for row in losses.sort("split", "step", descending=[True, False]).iter_rows(named=True):
        after = f"{row['epochs']:.3g} epochs" if row["epochs"] != 1 else "1 epoch"
        when = f"after {after}" if row["split"] == "valid" else "at the end"
        if row["split"] == "valid" or row["step"] == last:
            text = terminal.perplexity(row["loss"])
            found[f"{row['split']} perplexity {when}"] = Cell(_exp(row["loss"]), None, None, text)
    return found


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def parts(side: Side, those: Sequence[Side]) -> dict[str, Cell]:
    """Shares of the change; the value is the present one."""
    if side.has("split_course"):
        columns = list(tables.SPLIT_COURSE.columns)
        return _shares(side.read("split_course", tables.SPLIT_COURSE, columns))
    if not side.all_is_present:
        return {}
    others = [parts(other, ()) for other in those if other.has("split_course")]
    names = dict.fromkeys(name for cells in others for name in cells) or {"all units, all steps": None}
    return {name: Cell(1.0, None, None, "100.0 %, 0.0 %, 0.0 %") for name in names}


def _shares(course: pl.DataFrame) -> dict[str, Cell]:
    course, stop = tables.with_kinds(course), int(course.select(pl.col("stop").max()).item())
    fifth = (pl.col("first step") * 5 // stop).clip(0, 4)
    course = course.with_columns(fifth.alias("fifth"))
    found = {"all units, all steps": _three(tables.split_shares(course, []))}
    for i, name in enumerate(FIFTHS):
        rows = course.filter(pl.col("fifth") == i)
        if len(rows):
            found[f"all units, {name} fifth"] = _three(tables.split_shares(rows, []))
    for kind in tables.split_shares(course, ["kind"])["kind"]:
        own = course.filter(pl.col("kind") == kind)
        for name, rows in {
            "all steps": own,
            "first fifth": own.filter(pl.col("fifth") == 0),
            "last fifth": own.filter(pl.col("fifth") == 4),
        }.items():
            if len(rows):
                found[f"{kind}, {name}"] = _three(tables.split_shares(rows, []))
    return found


def _three(shares: pl.DataFrame) -> Cell:
    values = [shares[part][0] for part in tables.PARTS]
    if None in values:
        return Cell(None, None, None, "nothing changed")
    return Cell(values[0], None, None, ", ".join(signed(v, ".1%") for v in values))


def bigrams(side: Side, those: Sequence[Side]) -> dict[str, Cell]:
    """When unigrams and bigrams are learnt: rank correlations, and the mean entry of characteristic pairs."""
    found = {}
    if side.has("bigram_correlations"):
        kind = tables.BIGRAM_CORRELATIONS
        read = side.read("bigram_correlations", kind, ["step", "measure", "among", "spearman", "spearman, shuffled"])
        for name, measure, among in LEARNT:
            where = (pl.col("measure") == measure) & (pl.col("among") == among)
            for step in common(those, "bigram_correlations", kind, where, geometric=True):
                row = read.filter(where & (pl.col("step") == step)).row(0, named=True)
                found[f"{name}, step {step:,}"] = cell(row["spearman"], ".2f", row["spearman, shuffled"])
    if side.has("bigram_courses"):
        courses = side.read("bigram_courses", tables.BIGRAM_COURSES, ["step", "series", "entry"])
        series = {
            name: dict(courses.filter(pl.col("series") == name).select("step", "entry").iter_rows())
            for name in (SERIES, SHUFFLED)
        }
        own = series[SERIES]
        for step in common(those, "bigram_courses", tables.BIGRAM_COURSES, pl.col("series") == SERIES, geometric=True):
            name = f"mean entry of characteristic pairs, step {step:,}"
            found[name] = cell(own[step], ".3f", series[SHUFFLED].get(step))
    return found


def heads(side: Side, those: Sequence[Side]) -> dict[str, Cell]:
    """The head that ends farthest above its control, for each pattern; the bracket head's course; its credits."""
    found: dict[str, Cell] = {}
    if side.has("heads"):
        table = side.read("heads", tables.HEADS, ["pattern", "head", "step", "above"])
        for (pattern,), rows in table.group_by("pattern", maintain_order=True):
            where = pl.col("pattern") == pattern
            shared = common(those, "heads", tables.HEADS, where, most=None)
            if shared:
                found |= _head(str(pattern), rows, common(those, "heads", tables.HEADS, where), shared)
    if side.has("ledger_courses"):
        columns = ["probe", "start", "stop", "raised", "lowered", "past", "decay", "net missed"]
        ledger = side.read("ledger_courses", tables.COURSES, columns).filter(pl.col("probe").str.starts_with("head:"))
        sums = ledger.group_by("probe", "start", "stop", maintain_order=True).agg(
            pl.exclude("probe", "start", "stop").sum()
        )
        for row in sums.sort(pl.col("stop") - pl.col("start"), descending=True).head(1).iter_rows(named=True):
            up, down = row["raised"], row["lowered"]
            net = up + down + row["past"] + row["decay"] + row["net missed"]
            text = f"{signed(up, '+.3g')}, {signed(down, '+.3g')}, net {signed(net, '+.3g')}: {row['probe']}"
            said = f"{text}, steps {row['start']:,} to {row['stop']:,}"
            found[CREDITS] = Cell((up - down) / abs(net) if net else None, None, None, said)
    return found


def _head(pattern: str, rows: pl.DataFrame, steps: list[int], shared: list[int]) -> dict[str, Cell]:
    """At some of the steps that all runs share; the best head is that at the last of them."""
    last = rows.filter(pl.col("step") == steps[-1]).sort("above", descending=True, nulls_last=True)
    best = last["head"][0]
    course = dict(rows.filter(pl.col("head") == best).select("step", "above").iter_rows())
    found = {f"{pattern}: best head at step {steps[-1]:,}": cell(course[steps[-1]], ".2f", extra=f", head {best}")}
    if pattern == "bracket":
        found |= {f"bracket: that head at step {step:,}": cell(course[step], ".2f") for step in steps}
        found["bracket: largest fall of a head between two snapshots"] = _fall(
            rows.filter(pl.col("step").is_in(shared))
        )
    return found


def _fall(rows: pl.DataFrame) -> Cell:
    """The largest fall of any head from one step to the next: what is built step by step does not fall."""
    before = (pl.col("above").shift(1).over("head"), pl.col("step").shift(1).over("head").alias("since"))
    fallen = rows.sort("head", "step").with_columns((before[0] - pl.col("above")).alias("fall"), before[1])
    for row in fallen.drop_nulls("fall").sort("fall", descending=True).head(1).iter_rows(named=True):
        return cell(
            max(0.0, row["fall"]), ".2f", extra=f", head {row['head']}, steps {row['since']:,} to {row['step']:,}"
        )
    return cell(None, "")


def phases(side: Side, those: Sequence[Side]) -> dict[str, Cell]:
    """Change points of each measure, what BIC says of them against a smooth course, and the least effective sample."""
    found = {}
    if side.has("phases_changes"):
        changes = side.read("phases_changes", tables.CHANGES, ["run", "series", "at steps", "over a smooth course"])
        for row in changes.filter(pl.col("run") == changes["run"][0]).iter_rows(named=True):
            at = ", ".join(f"{step:,}" for step in row["at steps"]) or "nowhere"
            over = row["over a smooth course"]
            found[f"{row['series']} (BIC over a smooth course)"] = Cell(
                over, None, None, f"{at} ({signed(over, '+.0f')})"
            )
    if side.has("phases_segments"):
        segments = side.read("phases_segments", tables.SEGMENTS, ["run", "from", "to", "effective sample size"])
        own = segments.filter(pl.col("run") == segments["run"][0]).sort("effective sample size")
        row = own.row(0, named=True)
        when = f", steps {row['from']:,} to {row['to']:,}"
        found["least effective sample size of a phase"] = cell(row["effective sample size"], ".1%", extra=when)
    return found
