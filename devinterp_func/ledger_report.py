"""Credits, heads and what bears on their trust as sections of a run's report, from the tables that the scripts write.

A section stands where its tables are: ``ledger.py``, ``heads.py``, ``counterfactual.py`` and those of ``OTHERS``.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import torch
from markupsafe import Markup
from matplotlib.figure import Figure

from devinterp_func import phase_tables, plots, report, results
from devinterp_func.drawing import NARROW, WIDE
from devinterp_func.report import Excerpt, Section, Word

CREDITS = """A probe is a number that follows from the weights: the loss on some texts, a word's log-probability, an
entry of the bigram decoder, a neuron's squared norm, a head's attention. Every step was made again, and what it did to
each probe was split over the data of the step and their token positions. These credits add up to what the probe really
did; what they miss is told as a share of Σ|Δf|.

A credit has the sign of the probe's change: data of positive credit raised it, data of negative credit lowered it. For
a loss, to lower it is to help."""
HEADS = """At every snapshot: each head's attention from a token to the ones that a pattern marks (from a closing
bracket to its opening one, to the token before, to earlier ones of the same kind), less what the same head gives, from
other queries, to keys at the same distances. Every query has a token before it, so that pattern has no control."""
TRUST = """Two questions to a credit. Do the books balance: how much of what a step did to a probe does an estimate
miss? And does a datum's amount tell what the step would have done without it? The gradient at the start is what
first-order influence scores go by."""
OTHERS = {  # what the tables' names begin with -> title and lead of a section
    "growth": ("What built the neurons", "The growth of every neuron's squared norm, split over tokens."),
    "bases": (
        "Directions",
        "Singular directions of what each unit gained, beside single weights and rotations.",
    ),
    "phases": ("Phases", "How large steps are, how their data agree, what can be predicted by then; change points."),
    "retrain": ("Trained again", "The same steps without the data that were credited most, and without others."),
    "planted_cause": ("A known cause", "Planted bigrams: are the data that contain them those of the highest credits?"),
}
CAPTIONS = {  # what they end with, or else begin with -> caption
    "units": "By unit.",
    "neurons": "Neurons that grew most and least, with the targets that built them and wore them down.",
    "words": "The words that moved each direction most.",
    "changes": "Change points, and by how much BIC prefers the segments to one, and to the best smooth course.",
    "models": "BIC by the number of segments, and of coefficients of a smooth course; less is better.",
    "coincidence": "Do the change points of single measures coincide?",
    "segments": "Means of each phase.",
    "makers": "What makes each phase: units and data with most of its Σ‖Δ‖², tokens over-represented in those data.",
    "answers": "What a few snapshots say of the change points.",
    "courses": "How near the courses of a few snapshots come.",
    "seeds": "Do the change points of several seeds agree?",
    "tail": "One more step on chosen data alone.",
    "retrain": "What the removal did to each measure by the end of these steps.",
    "bases": "Each direction.",
    "planted_cause": "Precision of each score, with 95 % bootstrap intervals over probes.",
}
MORE = "^.*, (per position|by input)$"  # columns for which a page has no room
LISTS = ("built by", "worn down by")
RAW = ("windows", "snapshots", "outcomes")  # tables that others sum up


def sections(folder: Path, per_epoch: int | None = None) -> list[Section]:
    """All sections whose tables are there.

    Args:
        folder: the run's results.
        per_epoch: steps of an epoch, to mark epochs.
    """
    found = credit_sections(folder, per_epoch)
    if (folder / "heads.csv").exists():
        found.append(head_section(folder, per_epoch))
    if (folder / "balance.csv").exists():
        found.append(trust_section(folder))
    return found + other_sections(folder, per_epoch)


# ---- credits


def credit_sections(folder: Path, per_epoch: int | None = None) -> list[Section]:
    """One of all probes of all ledgers together, and one of each probe; none without a ledger."""
    whole, parts = [], []
    for path in sorted(folder.glob("ledger-*_courses.csv")):
        stem = path.stem.removesuffix("_courses")
        tables = [results.read_table(folder, f"{stem}_{what}") for what in ("courses", "excerpts", "tokens", "inputs")]
        for row in summary(tables[0]).iter_rows(named=True):
            if row not in whole:  # two ledgers may follow the same probe
                whole.append(row)
                own = [table.filter(pl.col("probe") == row["probe"]) for table in tables]
                parts.append(_probe(row, own, per_epoch))
    if not whole:
        return []
    caption = "All probes. Raised and lowered: sums of the positive and of the negative credits of single data."
    formats: dict[str, report.Format] = dict.fromkeys(("start", "end", "raised", "lowered"), report.shown)
    table = report.table(pl.DataFrame(whole), caption, formats | {"missed": ".2%"})
    return [Section("Credits", CREDITS, [table]), *parts]


def summary(courses: pl.DataFrame) -> pl.DataFrame:
    """Each probe of a ledger at the walk's start and end, what raised and what lowered it, and the share missed.

    Args:
        courses: of ``accounts.course_frame``.
    """
    end = pl.sum_horizontal("value", "raised", "lowered", "residual").last().alias("end")
    missed = (pl.col("missed").sum() / pl.col("change").sum()).alias("missed")
    return courses.group_by("probe", maintain_order=True).agg(
        pl.col("step").first().alias("from step"),
        pl.col("steps").sum(),
        pl.col("value").first().alias("start"),
        end,
        pl.col("raised", "lowered").sum(),
        missed,
    )


def course_figure(courses: pl.DataFrame, probe: str, per_epoch: int | None = None, width: float | int = WIDE) -> Figure:
    """``plots.credit_bands`` of a probe in a table of ``accounts.course_frame``."""
    own = courses.filter(pl.col("probe") == probe)
    last = own.select(
        pl.col("step") + pl.col("steps"), pl.sum_horizontal("value", "raised", "lowered", "residual").alias("value")
    ).tail(1)
    ends = pl.concat([own.select("step", "value"), last])
    edges, value, raised, lowered = (x.to_torch() for x in (ends["step"], ends["value"], own["raised"], own["lowered"]))
    return plots.credit_bands(edges, value, raised, lowered, probe, per_epoch, width)


def _probe(row: dict, tables: list[pl.DataFrame], per_epoch: int | None) -> Section:
    courses, texts, tokens, inputs = tables
    probe, start, end = row["probe"], row["from step"], row["from step"] + row["steps"]
    facts = {
        "at the start": (row["start"], f"before step {start:,}"),
        "at the end": (row["end"], f"before step {end:,}"),
        "raised by": (row["raised"], "sum of the positive credits"),
        "lowered by": (row["lowered"], "sum of the negative credits"),
        "missed": (f"{row['missed']:.2%}", "of Σ|Δf|"),
    }
    wide, narrow = (course_figure(courses, probe, per_epoch, width) for width in (WIDE, NARROW))
    below = "Above, the probe. Below, the credits of each window: data that raised it, and data that lowered it."
    figure = report.figure(wide, below, f"{probe} and its credits over training", narrow)
    lead = f"Steps {start:,} to {end:,}."
    caption = "Input tokens at whose positions it was moved most, either way, beside how often they occur."
    formats = {"share of gross": ".1%", "share of positions": ".1%"}
    read = report.table(inputs.drop("probe"), caption, formats, fold=8)
    items = [report.facts(facts), figure, *_texts(texts, probe), *_tokens(tokens), read]
    return Section(f"Credits: {probe}", lead, items)


def _texts(texts: pl.DataFrame, probe: str) -> Iterator[Markup]:
    """The most credited texts of either effect, each word in the colour of the credit of predicting it."""
    for effect in ("raised", "lowered"):
        caption = (
            f"The texts that {effect} it most. A word's colour is the credit of predicting it where it stands: blue "
            "raised the probe, orange lowered it, and the deepest colour is each text's largest credit. The first word "
            "is not predicted."
        )
        if probe.startswith("loss"):
            caption += " The probe is a loss: orange helped."
        own = texts.filter(pl.col("effect") == effect)
        if len(own):
            yield report.excerpts([_excerpt(text) for _, text in own.group_by("rank", maintain_order=True)], caption)


def _excerpt(text: pl.DataFrame) -> Excerpt:
    """A text of ``accounts.excerpt_frame``; its colours are relative to its largest credit."""
    most = max(map(abs, text["credit"])) or 1.0
    words = [Word(text["token"][0])]
    words += [Word(target, credit / most) for target, credit in text.select("target", "credit").iter_rows()]
    steps = f"{text['steps'][0]:,} step" + "s" * (text["steps"][0] > 1)
    return Excerpt(words, f"datum {text['datum'][0]:,}, in {steps}: credit {report.shown(text['credit'].sum())}")


def _tokens(tokens: pl.DataFrame) -> Iterator[Markup]:
    """The target tokens of either effect."""
    each = tokens.drop("probe").with_columns((pl.col("credit") / pl.col("positions")).alias("per position"))
    for effect, sign in (("raised", 1), ("lowered", -1)):
        own = each.filter(sign * pl.col("credit") > 0).sort(sign * pl.col("credit"), descending=True)
        yield report.table(own, f"Target tokens that {effect} it most, all their positions together.", fold=6)


# ---- heads


def head_section(folder: Path, per_epoch: int | None = None) -> Section:
    """Which heads come to attend to what, and when."""
    table = results.read_table(folder, "heads")
    wide, narrow = (head_figures(table, per_epoch, width) for width in (WIDE, NARROW))
    steps = table["step"].unique().sort()
    some = steps.gather(torch.linspace(0, len(steps) - 1, min(8, len(steps))).round().long().unique().tolist())
    best = pl.concat([farthest(table, step, 1).select(pl.lit(step).alias("before step"), pl.all()) for step in some])
    above = pl.col("above").map_elements("{:+.3f}".format, return_dtype=pl.String).str.replace("-", "−")
    rows = best.with_columns(pl.format("{}: {}", "head", above).alias("cell")).pivot(
        "pattern", index="before step", values="cell"
    )
    last = farthest(table, steps[-1], 3)
    items = [
        report.table(rows, "The head farthest above its control, and by how much, on the way.", fold=None),
        report.table(last, f"Heads farthest above their control before step {steps[-1]:,}.", fold=None),
    ]
    for name, drawn in wide.items():
        what = name.removeprefix("heads_")
        caption = f"{what.capitalize()}: the four heads that end farthest above their control."
        items.append(report.figure(drawn, caption, f"Attention above control, {what}", narrow[name]))
    return Section("What heads attend to", HEADS, items)


def head_figures(table: pl.DataFrame, per_epoch: int | None = None, width: float | int = WIDE) -> dict[str, Figure]:
    """By file name, for each pattern: the heads that end farthest above their control, over training."""
    best, drawn = farthest(table, max(table["step"]), 4), {}
    for pattern in table["pattern"].unique(maintain_order=True):
        shown = best.filter(pl.col("pattern") == pattern)["head"]
        own = table.filter(pl.col("pattern") == pattern)
        parts = {f"head {head}": own.filter(pl.col("head") == head) for head in shown}
        series = {head: (part["step"].to_torch(), part["above"].to_torch()) for head, part in parts.items()}
        drawn[f"heads_{pattern}"] = plots.lines(series, "attention above control", per_epoch, True, width)
    return drawn


def farthest(table: pl.DataFrame, step: int, most: int) -> pl.DataFrame:
    """Of each pattern the heads farthest above their control at a snapshot."""
    own = table.filter(pl.col("step") == step).sort("above", descending=True).drop("step")
    return own.group_by("pattern", maintain_order=True).head(most)


# ---- trust, and others


def trust_section(folder: Path) -> Section:
    """How far a credit can be trusted, from ``experiments/counterfactual.py``."""
    balance = results.read_table(folder, "balance")
    wide = balance.pivot("estimate", index="probe", values="missed")
    shares = dict.fromkeys(wide.columns[1:], ".1%")
    caption = "What each estimate of a step's change misses, as a share of Σ|Δf|; Gauss-Legendre: credits, by nodes."
    items = [report.table(wide, caption, shares)]
    share = dict.fromkeys(("missed", "low", "high"), ".1%")
    items.append(report.details("With 95 % bootstrap intervals over steps", report.table(balance, "", share)))
    if (folder / "agreement.csv").exists():
        caption = (
            "Rank correlation over a step's data of each score with leaving the datum out of the step: medians over "
            "steps and their 95 % bootstrap intervals."
        )
        items.append(report.table(results.read_table(folder, "agreement"), caption))
    return Section("How far can a credit be trusted?", TRUST, items)


def other_sections(folder: Path, per_epoch: int | None = None) -> list[Section]:
    """A section for each of ``OTHERS`` that has tables."""
    found = []
    for start, (title, lead) in OTHERS.items():
        items = _phases(folder, per_epoch) if (folder / f"{start}_windows.csv").exists() else []
        for path in sorted(folder.glob(f"{start}*.csv")):
            last = path.stem.rpartition("_")[2]
            if last not in RAW:
                caption = f"`{path.stem}`. {CAPTIONS.get(last) or CAPTIONS.get(start, '')}"
                items.append(report.table(_fitted(results.read_table(folder, path.stem)), caption, fold=12))
        if items:
            found.append(Section(title, lead, items))
    return found


def _fitted(table: pl.DataFrame) -> pl.DataFrame:
    """Without the columns of ``MORE``; the words of those of ``LISTS`` come early, each apart with its amount."""
    first, lists = table.columns[0], [column for column in LISTS if column in table.columns]
    split = pl.col(lists).map_elements(lambda words: re.split(r"(?<=\d), ", words), return_dtype=pl.List(pl.String))
    return table.select(first, split, pl.exclude(first, *lists, MORE))


def _phases(folder: Path, per_epoch: int | None) -> list[Markup]:
    """Losses of the classes of positions and how many data make the steps, with the change points of all measures."""
    windows, points = (results.read_table(folder, f"phases_{what}") for what in ("windows", "changes"))
    run = pl.col("run") == windows["run"][0]
    own = windows.filter(run & (pl.col("units") == phase_tables.ALL))
    [at] = points.filter(run & (pl.col("series") == phase_tables.ALL))["at steps"]
    marks = [float(step) for step in (at or "").split(", ") if step]
    found = []
    for names, label, caption in (
        (phase_tables.LOSSES, "loss, nats", "Losses of classes of positions"),
        (("effective data",), "share of all data", "Effective number of data of a window's steps"),
    ):
        series = {name: (own["step"].to_torch(), own[name].to_torch()) for name in names}
        wide, narrow = (plots.lines(series, label, per_epoch, False, width, marks) for width in (WIDE, NARROW))
        said = f"{caption}; dotted, the change points of all measures together."
        found.append(report.figure(wide, said, f"{caption} over training", narrow))
    return found
