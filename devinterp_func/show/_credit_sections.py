"""Credits, heads, how far to trust them, and known causes: sections of a run's report, where their tables are."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import torch
from markupsafe import Markup
from matplotlib.figure import Figure

from devinterp_func.records import Run
from devinterp_func.show import page, plots, results, tables
from devinterp_func.show.drawing import NARROW, WIDE
from devinterp_func.show.page import Excerpt, Section, Word

CREDITS = """A probe is a number that follows from the weights: the loss on some texts, a word's log-probability, an
entry of the bigram decoder, a neuron's squared norm, a head's attention. Every step was replayed, and what it did to
each probe was split over the data of the step and their token positions. These credits are complete up to the
quadrature: they add up to what the probe did, and what they miss is given as a share of Σ|Δf|. Where the optimizer
remembers or decays, two more parts belong to no datum of the step and are counted beside the credits: past, what
earlier data did through the optimizer's memory, and decay, what weight decay did. A credit is then of a datum's present
share of its step.

A credit has the sign of the probe's change: data of positive credit raised it, data of negative credit lowered it. For
a loss, to lower it is to help."""
HEADS = """At every snapshot: each head's attention from a token to the ones that a pattern marks (from a closing
bracket to its opening one, to the token before, to earlier ones of the same kind), less what the same head gives, from
other queries, to keys at the same distances. Every query has a token before it, so that pattern has no control."""
TRUST = """Two tests of a credit. Completeness: how much of what a step did to a probe does an estimate miss?
Counterfactual: does a datum's amount predict what the step would have done without it? To take its delta away is to
hold the rest of the step as it was; where the optimizer remembers, the step was rerun without it, too, with the clip
coefficient and the memory that follow. The gradient at the start is what first-order influence scores use."""
REST = {"past": "earlier data's, through the optimizer's memory", "decay": "weight decay's"}
CAUSE = "Planted bigrams: are the data of the highest credits those that contain them?"


def sections(run: Run, folder: Path) -> list[Section]:
    """All sections whose tables are there.

    Args:
        run: the run, whose words and texts are shown.
        folder: its results.
    """
    found = credit_sections(run, folder)
    if results.has_table(folder, "heads"):
        found.append(head_section(run, folder))
    if results.has_table(folder, "completeness"):
        found.append(trust_section(run, folder))
    if results.has_table(folder, "planted_cause"):
        table = results.read_table(folder, "planted_cause", tables.PLANTED_CAUSE)
        found.append(Section("A known cause", CAUSE, [page.typed_table(table, tables.PLANTED_CAUSE, run.corpus.vocab)]))
    return found


# ---- credits


def credit_sections(run: Run, folder: Path) -> list[Section]:
    """One of all probes together, and one of each probe; none without a ledger."""
    if not results.has_table(folder, "ledger_courses"):
        return []
    whole = {name: results.read_table(folder, name, kind) for name, kind in tables.LEDGER_TABLES.items()}
    whole["ledger_courses"] = tables.longest(whole["ledger_courses"])
    summary = tables.ledger_summary(whole["ledger_courses"])
    caption = "All probes. Raised and lowered: sums of the positive and of the negative credits of single data."
    told = ("at the start", "at the end", "raised", "lowered", *REST)
    formats: dict[str, page.Format] = dict.fromkeys(told, page.shown)
    shown = summary.drop("nodes", "texts", "seed", *(name for name in REST if not (summary[name] != 0).any()))
    formats = {name: how for name, how in formats.items() if name in shown.columns}
    found = [Section("Credits", CREDITS, [page.table(shown, caption, formats | {"missed": ".2%"})])]
    for row in summary.iter_rows(named=True):
        key = pl.all_horizontal(pl.col(name) == row[name] for name in tables.LEDGER_KEY)
        found.append(_probe_section(run, row, {name: table.filter(key) for name, table in whole.items()}))
    return found


def _probe_section(run: Run, row: dict[str, Any], parts: dict[str, pl.DataFrame]) -> Section:
    probe, start, stop = row["probe"], row["start"], row["stop"]
    facts = {
        "at the start": (row["at the start"], f"before step {start:,}"),
        "at the end": (row["at the end"], f"before step {stop:,}"),
        "raised by": (row["raised"], "sum of the positive credits"),
        "lowered by": (row["lowered"], "sum of the negative credits"),
        "missed": (f"{row['missed']:.2%}", "of Σ|Δf|"),
    }
    facts |= {name: (row[name], said) for name, said in REST.items() if row[name]}
    courses = parts["ledger_courses"]
    wide, narrow = (course_figure(courses, run.steps_per_epoch, width) for width in (WIDE, NARROW))
    below = "Above, the probe. Below, the credits of each window: data that raised it, and data that lowered it."
    if courses.select(*REST).to_numpy().any():
        below += " Dashed, past and decay, which are no datum's of these steps; they count in the net."
    figure = page.figure(wide, below, f"{probe} and its credits over training", narrow)
    inputs = parts["ledger_inputs"].drop(tables.LEDGER_KEY)
    items = [
        page.facts(facts),
        figure,
        *_texts(run, parts["ledger_texts"], probe),
        *_targets(run, parts["ledger_tokens"]),
        page.typed_table(inputs, tables.LEDGER_TABLES["ledger_inputs"], run.corpus.vocab, fold=8),
    ]
    lead = f"Steps {start:,} to {stop:,}; {row['nodes']} nodes of the quadrature; texts of seed {row['seed']}."
    return Section(f"Credits: {probe}", lead, items)


def course_figure(courses: pl.DataFrame, per_epoch: int | None = None, width: float | int = WIDE) -> Figure:
    """``plots.credit_bands`` of one probe's rows of the table of courses."""
    last = courses.select(
        pl.col("step") + pl.col("steps"),
        pl.sum_horizontal("value", "raised", "lowered", *REST, "net missed").alias("value"),
    ).tail(1)
    ends = pl.concat([courses.select("step", "value"), last])
    columns = ends["step"], ends["value"], courses["raised"], courses["lowered"]
    edges, value, raised, lowered = (x.to_torch() for x in columns)
    rest = courses.select(pl.sum_horizontal(*REST)).to_series().to_torch()
    return plots.credit_bands(edges, value, raised, lowered, courses["probe"][0], per_epoch, width, rest=rest)


def _texts(run: Run, texts: pl.DataFrame, probe: str, most: int = 6) -> Iterator[Markup]:
    """The most credited texts of either effect, each word in the colour of the credit of predicting it."""
    for effect in ("raised", "lowered"):
        caption = (
            f"The texts that {effect} it most. A word's colour is the credit of predicting it where it stands: blue "
            "raised the probe, orange lowered it, and the deepest colour is each text's largest credit. The first word "
            "is not predicted."
        )
        if probe.startswith("loss"):
            caption += " The probe is a loss: orange helped."
        rows = texts.filter((pl.col("effect") == effect) & (pl.col("rank") <= most)).sort("rank")
        if len(rows):
            yield page.excerpts([_excerpt(run, row) for row in rows.iter_rows(named=True)], caption)


def _excerpt(run: Run, row: dict[str, Any]) -> Excerpt:
    """A text with its credits; its colours are relative to its largest credit."""
    tokens, targets = (run.corpus.vocab.decode(x[row["datum"]]) for x in run.data)
    largest = max(map(abs, row["credits"])) or 1.0
    coloured = [Word(word, credit / largest) for word, credit in zip(targets, row["credits"], strict=True)]
    steps = f"{row['steps']:,} step" + "s" * (row["steps"] > 1)
    return Excerpt(
        [Word(tokens[0]), *coloured], page.source(row["datum"], f", in {steps}: credit {page.shown(row['credit'])}")
    )


def _targets(run: Run, targets: pl.DataFrame) -> Iterator[Markup]:
    """The target tokens of either effect."""
    each = targets.drop(tables.LEDGER_KEY).with_columns((pl.col("credit") / pl.col("positions")).alias("per position"))
    for effect, sign in (("raised", 1), ("lowered", -1)):
        rows = each.filter(sign * pl.col("credit") > 0).sort(sign * pl.col("credit"), descending=True)
        caption = f"Target tokens that {effect} it most, all their positions together."
        yield page.typed_table(rows, tables.LEDGER_TABLES["ledger_tokens"], run.corpus.vocab, caption, fold=6)


# ---- heads


def head_section(run: Run, folder: Path) -> Section:
    """Which heads come to attend to what, and when."""
    table = results.read_table(folder, "heads", tables.HEADS)
    per_epoch, vocab, columns = run.steps_per_epoch, run.corpus.vocab, list(tables.HEADS.columns)
    wide, narrow = (head_figures(table, per_epoch, width) for width in (WIDE, NARROW))
    steps = table["step"].unique().sort()
    shown = steps.gather(torch.linspace(0, len(steps) - 1, min(8, len(steps))).round().long().unique().tolist())
    best = pl.concat([tables.farthest_heads(table, step, 1) for step in shown]).sort("step", maintain_order=True)
    best = best.select("step", "pattern", "head", "above")
    last = tables.farthest_heads(table, steps[-1], 3)
    caption = f"Heads farthest above their control before step {steps[-1]:,}."
    way = "The head farthest above its control, and by how much, on the way."
    items = [
        page.typed_table(last, tables.HEADS, vocab, caption, [name for name in columns if name != "step"], fold=None),
        page.typed_table(best, tables.HEADS, vocab, way, fold=8),
    ]
    for pattern, drawn in wide.items():
        caption = f"{pattern.capitalize()}: the four heads that end farthest above their control."
        items.append(page.figure(drawn, caption, f"Attention above control, {pattern}", narrow[pattern]))
    return Section("What heads attend to", HEADS, items)


def head_figures(table: pl.DataFrame, per_epoch: int | None = None, width: float | int = WIDE) -> dict[str, Figure]:
    """For each pattern the heads that end farthest above their control, over training."""
    drawn = {}
    for (pattern,), rows in table.group_by("pattern", maintain_order=True):
        best = tables.farthest_heads(rows, int(rows.select(pl.col("step").max()).item()), 4)["head"]
        parts = {f"head {head}": rows.filter(pl.col("head") == head).sort("step") for head in best}
        series = {head: (part["step"].to_torch(), part["above"].to_torch()) for head, part in parts.items()}
        drawn[str(pattern)] = plots.lines(series, "attention above control", per_epoch, True, width)
    return drawn


# ---- trust


def trust_section(run: Run, folder: Path) -> Section:
    """How far a credit can be trusted."""
    vocab = run.corpus.vocab
    table = results.read_table(folder, "completeness", tables.COMPLETENESS)
    counted = (
        pl.when(pl.col("nodes") == 1).then(pl.lit("credit, 1 node")).otherwise(pl.format("credit, {} nodes", "nodes"))
    )
    nodes = pl.when(pl.col("nodes").is_null()).then("estimate").otherwise(counted)
    wide = table.with_columns(nodes.alias("estimate")).pivot("estimate", index="probe", values="missed")
    shares = dict.fromkeys(wide.columns[1:], ".1%")
    items = [
        page.table(wide, tables.COMPLETENESS.caption, shares),
        page.details(
            "With 95 % bootstrap intervals over steps", page.typed_table(table, tables.COMPLETENESS, vocab, "")
        ),
    ]
    if results.has_table(folder, "agreement"):
        agreement = results.read_table(folder, "agreement", tables.AGREEMENT)
        items.append(page.typed_table(agreement, tables.AGREEMENT, vocab))
    return Section("How far can a credit be trusted?", TRUST, items)
