"""What a bigram walk found as tables: the shifts of each span of training, net changes, courses, and correlations."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import polars as pl
import torch
from jaxtyping import Int
from torch import Tensor

from devinterp_func import bigram, keys
from devinterp_func.batches import Data
from devinterp_func.bigram import Correlation, Followed, PairCounts, Pairs, Shifts, Span
from devinterp_func.graph import Graph
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table, frame, token, tokens
from devinterp_func.tree import Params

BIGRAM_SERIES = ("bigrams of the corpus", "their tokens, shuffled", "one pair")  # groups' means, and single pairs
SPAN = {"from step": Column(INT, "first step of the span"), "to step": Column(INT, "last step of the span")}
PAIR = {"input": token("the token before"), "output": token("the token made likelier or less likely after it")}
CORPUS = {
    "in the corpus": Column(INT, "how often the training text has the pair"),
    "log-odds": Column(FLOAT, "log (p(output | input) / p(output)) in the training text, nats", format="+.2f"),
}

BIGRAM_LARGEST = Table(
    "The largest shifts of single steps, and the text that moved each pair most.",
    "bigram.py",
    {
        **SPAN,
        **PAIR,
        "shift": Column(FLOAT, "change of W_UE in one step", format="+.4f"),
        "step": Column(INT, "the step that made it"),
        "earliest": Column(INT, "first step of the span where the pair is among the largest"),
        "times": Column(INT, "in how many of the span's steps it is"),
        "embedding moved": Column(FLOAT, "part of the shift: W_U ΔW_Eᵀ", format="+.4f"),
        "unembedding moved": Column(FLOAT, "part of the shift: ΔW_U W_Eᵀ", format="+.4f"),
        **CORPUS,
        "datum": Column(INT, "the text that moved the pair farthest in this direction"),
        "position": Column(INT, "where it has the pair, or else its output, or else its input"),
        "its part": Column(FLOAT, "of the shift", format="+.4f"),
    },
    ("from step", "input", "output"),
)
BIGRAM_SPANS = Table(
    "What the largest shifts have in common; beside it the same with their tokens shuffled.",
    "bigram.py",
    {
        **SPAN,
        "median of the largest": Column(FLOAT, "over steps, of the largest |shift|"),
        "median of the least": Column(FLOAT, "over steps, of the least |shift| kept"),
        "embedding's share": Column(FLOAT, "of the terms' absolute values: W_U ΔW_Eᵀ", format=".0%"),
        "in the corpus": Column(FLOAT, "share of the pairs that the training text has", format=".1%"),
        "in the corpus, shuffled": Column(FLOAT, "the same with the tokens shuffled", format=".1%", control=True),
        "towards the log-odds": Column(FLOAT, "share of the shifts with the log-odds' sign", format=".1%"),
        "towards the log-odds, shuffled": Column(FLOAT, "with the tokens shuffled", format=".1%", control=True),
        "outputs": tokens("the commonest output tokens"),
        "shares": Column(pl.List(pl.Float64), "the commonest output tokens' shares of the pairs"),
        "pairs multiplied": Column(FLOAT, "mean of a step, to find the largest among all"),
        "missed": Column(FLOAT, "largest difference between a shift and the sum of its data's parts"),
    },
    ("from step",),
)
BIGRAM_NET = Table(
    "What each span changed most.",
    "bigram.py",
    {
        **SPAN,
        "ranked": Column(NAME, "among which pairs; centred: less the corpus' mean over outputs and inputs"),
        **PAIR,
        "change": Column(FLOAT, "of W_UE over the span", format="+.3f"),
        "before": Column(FLOAT, "W_UE before the span", format="+.3f"),
        "after": Column(FLOAT, "W_UE after it", format="+.3f"),
        **CORPUS,
    },
    ("from step", "ranked", "input", "output"),
)
BIGRAM_COURSES = Table(
    "Entries of the bigram decoder over training.",
    "bigram.py",
    {
        "step": Column(INT, "before which"),
        "series": Column(NAME, "a group's mean, or one pair"),
        **{name: token("of a single pair") for name in PAIR},
        "entry": Column(FLOAT, "of W_UE"),
    },
    ("step", "series", "input", "output"),
)
BIGRAM_SIZES = Table(
    "The size of the largest shifts.",
    "bigram.py",
    {
        "step": Column(INT, "first of the window"),
        "steps": Column(INT, "in the window, of those searched for the largest"),
        "largest": Column(FLOAT, "mean over the window's steps of the largest |shift|"),
        "least": Column(FLOAT, "of the least |shift| kept"),
    },
    ("step",),
)
BIGRAM_CHECKS = Table(
    "Entries at the snapshots against the sum of the shifts before.",
    "bigram.py",
    {
        "step": Column(INT, "of the snapshot"),
        "pairs": Column(INT, "followed"),
        "largest entry": Column(FLOAT, "|W_UE| at these pairs"),
        "missed": Column(FLOAT, "largest difference from the walk's first entry plus all shifts since"),
    },
    ("step",),
)
BIGRAM_CORRELATIONS = Table(
    "How the weights go with the corpus: with log frequency, or with the log-odds of pairs.",
    "bigram.py",
    {
        "step": Column(INT, "of the snapshot"),
        "measure": Column(NAME, "of the weights"),
        "among": Column(NAME, "which tokens or pairs"),
        "n": Column(INT, "their number"),
        "pearson": Column(FLOAT, format=".3f"),
        "spearman": Column(FLOAT, "rank correlation", format=".3f"),
        "slope": Column(FLOAT, "of the weights' measure over the corpus'"),
        "pearson, shuffled": Column(FLOAT, "mean over shuffles", format=".3f", control=True),
        "spearman, shuffled": Column(FLOAT, "mean over shuffles", format=".3f", control=True),
        "largest |pearson|, shuffled": Column(FLOAT, "of all shuffles", format=".3f", control=True),
    },
    ("step", "measure", "among"),
)


def largest_frame(
    shifts: Shifts, spans: Sequence[Span], data: Data, counts: PairCounts, most: int = 15, each: int = 2
) -> pl.DataFrame:
    """The largest shifts that single steps of each span made, and the text that caused the most of each.

    Args:
        shifts: of a walk.
        spans: of ``bigram.spans``.
        data, counts: the training data, and their pairs' counts.
        most, each: of ``bigram.largest_shifts``.
    """
    rows = []
    for span in spans:
        found = bigram.largest_shifts(shifts, span, most, each)
        pairs = [(shift.output, shift.input) for shift in found]
        for shift, corpus in zip(found, _in_corpus(pairs, counts), strict=True):
            row: dict[str, Any] = _span(span) | {"input": shift.input, "output": shift.output, "shift": shift.shift}
            row |= {"step": shift.step, "earliest": shift.earliest, "times": shift.steps}
            row |= {"embedding moved": shift.embedding, "unembedding moved": shift.unembedding, **corpus}
            where = _position(data.tokens[shift.datum], data.targets[shift.datum], shift.output, shift.input)
            rows.append(row | {"datum": shift.datum, "position": where, "its part": shift.amount})
    return frame(BIGRAM_LARGEST, rows)


def span_frame(shifts: Shifts, spans: Sequence[Span], counts: PairCounts, *, key: keys.Key | int) -> pl.DataFrame:
    """What the k largest shifts of all steps of a span have in common; arguments as ``bigram.span_summary``.

    A span without a step that was searched for the largest has no row.
    """
    rows, searched = [], shifts.searched().step
    for span in spans:
        if not ((searched >= span.start) & (searched < span.stop)).any():
            continue
        found = bigram.span_summary(shifts, span, counts, key=key)
        values = dict(zip(list(BIGRAM_SPANS.columns)[len(SPAN) :], found, strict=True))  # in the summary's order
        rows.append(_span(span) | values)
    return frame(BIGRAM_SPANS, rows)


def net_frame(
    graph: Graph,
    before: Params,
    after: Params,
    span: Span,
    counts: PairCounts,
    least: int,
    most: int = 15,
    each: int = 2,
) -> pl.DataFrame:
    """The largest changes of W_UE over a span; arguments as ``bigram.net_changes``."""
    found = list(bigram.net_changes(graph, before, after, counts, least, most, each))
    rows = []
    for change, corpus in zip(found, _in_corpus([(c.output, c.input) for c in found], counts), strict=True):
        row: dict[str, Any] = _span(span) | {"ranked": change.ranked, "input": change.input, "output": change.output}
        row |= {"change": change.after - change.before, "before": change.before, "after": change.after}
        rows.append(row | corpus)
    return frame(BIGRAM_NET, rows)


def bigram_course_frame(shifts: Shifts, followed: Followed, every: int) -> pl.DataFrame:
    """W_UE over the walk: the mean of the characteristic pairs, that of their tokens shuffled, and single pairs.

    Args:
        shifts: of a walk.
        followed: the pairs it followed.
        every: steps from one row to the next.
    """
    entry, steps = shifts.entry[::every], shifts.step[::every].tolist()
    series: list[tuple[str, int | None, int | None, Tensor]] = []
    if followed.n_group:
        series += [(BIGRAM_SERIES[0], None, None, entry[:, followed.group()].mean(1))]
        series += [(BIGRAM_SERIES[1], None, None, entry[:, followed.shuffled()].mean(1))]
    for at in followed.single():
        series.append((BIGRAM_SERIES[2], int(followed.pairs.input[at]), int(followed.pairs.output[at]), entry[:, at]))
    rows = [
        {"step": step, "series": name, "input": input, "output": output, "entry": value}
        for name, input, output, values in series
        for step, value in zip(steps, values.tolist(), strict=True)
    ]
    return frame(BIGRAM_COURSES, rows)


def size_frame(shifts: Shifts, every: int) -> pl.DataFrame:
    """Mean |shift| of the largest and of the k-th largest pair, over windows of so many steps."""
    found = shifts.searched()
    window, value = (found.step - shifts.step[0]).div(every, rounding_mode="floor"), found.value().abs()
    rows = []
    for w in window.unique():
        mean = value[window == w].mean(0).tolist()
        row = {"step": int(shifts.step[0] + w * every), "steps": int((window == w).sum())}
        rows.append(row | {"largest": mean[0], "least": mean[-1]})
    return frame(BIGRAM_SIZES, rows)


def check_frame(graph: Graph, shifts: Shifts, snapshots: Iterable[tuple[int, Params]], pairs: Pairs) -> pl.DataFrame:
    """At each snapshot that a walk passed: do its shifts add up?

    Args:
        graph: the model.
        shifts: of a walk.
        snapshots: steps in the walk, or the one after its last, and the weights stored for them.
        pairs: the followed pairs.
    """
    rows = []
    for step, params in snapshots:
        entry = bigram.entries(*pairs, *bigram.decoder_matrices(graph, params))
        row = {"step": step, "pairs": len(entry), "largest entry": float(entry.abs().max())}
        rows.append(row | {"missed": bigram.telescope(shifts, step, entry)})
    return frame(BIGRAM_CHECKS, rows)


def correlation_frame(found: Iterable[tuple[int, Correlation]]) -> pl.DataFrame:
    """Correlations of ``bigram.correlations`` at the snapshots whose steps stand before them."""
    names = list(BIGRAM_CORRELATIONS.columns)
    rows = [dict(zip(names, (step, c.measure, c.among, c.n, *c.fit), strict=True)) for step, c in found]
    return frame(BIGRAM_CORRELATIONS, rows)


def _span(span: Span) -> dict[str, int]:
    return {"from step": span.start, "to step": span.stop - 1}


def _in_corpus(pairs: Sequence[tuple[int, int]], counts: PairCounts) -> Iterator[dict[str, int | float]]:
    """How often the corpus has each pair of an output and an input, and its log-odds."""
    columns = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    each = Pairs(columns[0], columns[1])
    values = bigram.pair_counts(counts, each).tolist(), bigram.pair_log_odds(counts, each).tolist()
    return (dict(zip(CORPUS, row, strict=True)) for row in zip(*values, strict=True))


def _position(tokens: Int[Tensor, "C"], targets: Int[Tensor, "C"], output: int, input: int) -> int:
    """The first place of a text where a pair stands: else where its output is wanted, else where its input stands."""
    return int((2 * (targets == output).int() + (tokens == input).int()).argmax())
