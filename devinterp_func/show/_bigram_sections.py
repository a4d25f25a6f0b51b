"""What bigram walks found as figures, and as a section of the run's report, from ``experiments/bigram.py``'s tables."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl
from markupsafe import Markup
from matplotlib.figure import Figure

from devinterp_func.bigram import RANKED, SEEN_AND_UNSEEN
from devinterp_func.records import Run
from devinterp_func.show import drawing, page, plots, results, tables, words
from devinterp_func.text import Vocab

WAYS = {  # measure -> its name in a figure
    "unembedding bias": "unigrams: bias",
    "mean logit": "unigrams: mean logit",
    "direct path, centred": "bigrams: direct path",
    "whole model, centred": "bigrams: whole model",
}
CAPTIONS = {
    "groups": "Mean entry of the corpus' most characteristic bigrams, and of the same tokens shuffled.",
    "courses": "Entries of single bigrams.",
    "sizes": "The largest shift in a step, and the least of those kept, in means over windows of steps.",
}
LEAD = """The bigram decoder `W_UE = W_U W_Eᵀ` says what the embedding of one token, read by the unembedding, makes
likely next. It is the direct path only: positions, layer norms, attention and MLPs are left out. Every step of training
was replayed, and the entries that it moved most were found among all pairs of the vocabulary, exactly.

A shift is the sum of three terms, `W_U ΔW_Eᵀ + ΔW_U W_Eᵀ + ΔW_U ΔW_Eᵀ`. Where it says centred, the corpus' mean over
outputs and inputs is taken off, which leaves what belongs to the pair and not to its tokens."""
CAUSES = """A shift is also the sum of what the step's own texts did (present), what texts of earlier steps did through
the optimizer's memory (past), what weight decay did, and the third term, in which these meet. The text shown beside a
shift is the one of the step's own that did most: where most of a shift is past, other texts caused it."""


def stem(start: int) -> str:
    """What the names of a walk's files begin with; ``start`` is its first step.

    >>> stem(0), stem(2928)
    ('bigram', 'bigram-002928')
    """
    return f"bigram-{start:06d}" if start else "bigram"


def sections(run: Run, folder: Path) -> list[page.Section]:
    """The part of a report on bigrams; empty without correlations.

    Args:
        run: the run.
        folder: its results, after ``experiments/bigram.py``.
    """
    if not results.has_table(folder, "bigram_correlations"):
        return []
    wide, narrow = (correlation_figure(run, folder, width) for width in (drawing.WIDE, drawing.NARROW))
    fits, kind = (
        results.read_table(folder, "bigram_correlations", tables.BIGRAM_CORRELATIONS),
        tables.BIGRAM_CORRELATIONS,
    )
    last = fits.filter(pl.col("step") == fits["step"].max()).drop("step")
    items = [
        page.figure(
            wide,
            "When unigrams and bigrams are learnt: rank correlation of biases and mean logits with log frequency, and "
            "of centred entries with the log-odds of the corpus' bigrams. The whole model is shown a single token.",
            "Rank correlations over training",
            narrow,
        ),
        page.details(
            "Correlations at the last snapshot, and with tokens shuffled",
            page.typed_table(last, kind, run.corpus.vocab, fold=None),
        ),
    ]
    for name in walks(folder):
        items += _walk_items(run, folder, name)
    return [page.Section("Bigrams", LEAD, items)]


def walks(folder: Path) -> list[str]:
    """The walks whose tables are there, by what their files' names begin with, the earliest first."""
    return sorted(path.name.removesuffix("_courses.parquet") for path in folder.glob("bigram*_courses.parquet"))


def figures(run: Run, folder: Path, width: float | int = drawing.WIDE) -> dict[str, Figure]:
    """Figures by file name: the correlations, and each walk's courses and sizes of shifts.

    Args:
        run, folder: of ``sections``.
        width: inches.
    """
    drawn = {"bigram_correlations": correlation_figure(run, folder, width)}
    for name in walks(folder):
        drawn |= {f"{name}_{what}": figure for what, figure in walk_figures(run, folder, name, width).items()}
    return drawn


def correlation_figure(run: Run, folder: Path, width: float | int = drawing.WIDE) -> Figure:
    """Rank correlations with the corpus at all snapshots."""
    table = results.read_table(folder, "bigram_correlations", tables.BIGRAM_CORRELATIONS).filter(
        pl.col("among") != SEEN_AND_UNSEEN
    )
    table = table.with_columns(pl.col("spearman").fill_nan(0.0))  # a bias that is still all zeros goes with nothing
    lines = {title: table.filter(pl.col("measure") == measure) for measure, title in WAYS.items()}
    series = {
        title: (part["step"].to_torch(), part["spearman"].to_torch()) for title, part in lines.items() if part.height
    }
    return plots.lines(series, "rank correlation with the corpus", run.steps_per_epoch, markers=True, width=width)


def walk_figures(run: Run, folder: Path, name: str, width: float | int = drawing.WIDE) -> dict[str, Figure]:
    """The figures of ``CAPTIONS``, those without a line left out."""
    courses = results.read_table(folder, f"{name}_courses", tables.BIGRAM_COURSES)
    sizes = results.read_table(folder, f"{name}_sizes", tables.BIGRAM_SIZES)
    middle = sizes["step"] + (sizes["steps"] - 1) // 2
    lines = {
        "groups": {s: courses.filter(pl.col("series") == s).select("step", "entry") for s in tables.BIGRAM_SERIES[:2]},
        "courses": _single(courses, run.corpus.vocab),
        "sizes": {
            "the largest": sizes.select(middle, pl.col("largest").alias("entry")),
            "the least kept": sizes.select(middle, pl.col("least").alias("entry")),
        },
    }
    labels = {"groups": "mean entry of W_UE", "courses": "entry of W_UE", "sizes": "|shift| in one step"}
    return {
        what: _lines(parts, labels[what], run, width)
        for what, parts in lines.items()
        if any(part.height for part in parts.values())
    }


def _walk_items(run: Run, folder: Path, name: str) -> list[Markup]:
    wide, narrow = (walk_figures(run, folder, name, width) for width in (drawing.WIDE, drawing.NARROW))
    items = [page.figure(wide[what], CAPTIONS[what], CAPTIONS[what], narrow[what]) for what in wide]
    vocab = run.corpus.vocab
    kinds = {"spans": tables.BIGRAM_SPANS, "checks": tables.BIGRAM_CHECKS, "net": tables.BIGRAM_NET}
    found = {what: results.read_table(folder, f"{name}_{what}", kind) for what, kind in kinds.items()}
    net = found["net"].filter(pl.col("ranked") == RANKED[1]).drop("ranked")
    largest = results.read_table(folder, f"{name}_largest", tables.BIGRAM_LARGEST)
    texts = [str(_excerpt(run, row)) for row in largest.iter_rows(named=True)]
    largest = largest.with_columns(pl.Series("text", texts, dtype=pl.String))
    shown = ["from step", "input", "output", "shift", "step", "times", "in the corpus", "log-odds", "text"]
    sums = page.typed_table(found["checks"], kinds["checks"], vocab, fold=None)
    spans = _with_shares(found["spans"], vocab)
    return [
        *items,
        *_cause_items(run, folder, name),
        page.typed_table(net, kinds["net"], vocab, "What each span changed most, among all pairs, centred.", fold=45),
        page.typed_table(largest, tables.BIGRAM_LARGEST, vocab, columns=shown, fold=30),
        page.typed_table(spans, kinds["spans"], vocab),
        page.details("Do the shifts add up?", sums),
    ]


def _cause_items(run: Run, folder: Path, name: str) -> list[Markup]:
    """What is present, past and decay; nothing where all is present, as with plain descent, or was not looked for."""
    if not results.has_table(folder, f"{name}_causes"):
        return []
    spans = results.read_table(folder, f"{name}_causes", tables.BIGRAM_CAUSES)
    if not spans.select((pl.col("past") != 0) | (pl.col("decay") != 0)).to_series().any():
        return []
    each = results.read_table(folder, f"{name}_largest_causes", tables.BIGRAM_LARGEST_CAUSES)
    return [
        page.typed_table(spans, tables.BIGRAM_CAUSES, run.corpus.vocab, CAUSES),
        page.typed_table(each, tables.BIGRAM_LARGEST_CAUSES, run.corpus.vocab, fold=30),
    ]


def _with_shares(spans: pl.DataFrame, vocab: Vocab) -> pl.DataFrame:
    """The commonest outputs in words, each with its share."""
    pairs = spans.select("outputs", "shares").iter_rows()
    told = [[f"{vocab.tokens[id]} {share:.0%}" for id, share in zip(*pair, strict=True)] for pair in pairs]
    named = spans.with_columns(pl.Series("commonest outputs", told, dtype=pl.List(pl.String)))
    return named.select(pl.exclude("outputs", "shares", "pairs multiplied", "missed"), "pairs multiplied", "missed")


def _excerpt(run: Run, row: Mapping[str, int]) -> words.Excerpt:
    tokens, targets = (part[row["datum"]] for part in run.data)
    return words.excerpt(tokens, targets, row["position"], run.corpus.vocab)


def _single(courses: pl.DataFrame, vocab: Vocab, most: int = 6) -> dict[str, pl.DataFrame]:
    """The first single pairs' courses, by their words."""
    parts = courses.filter(pl.col("series") == tables.BIGRAM_SERIES[2]).partition_by("input", "output", as_dict=True)
    return {words.pair(output, input, vocab): part for (input, output), part in list(parts.items())[:most]}


def _lines(parts: Mapping[str, pl.DataFrame], label: str, run: Run, width: float | int) -> Figure:
    series = {name: (part["step"].to_torch(), part["entry"].to_torch()) for name, part in parts.items()}
    return plots.lines(series, label, run.steps_per_epoch, width=width)
