"""Activations alone as tables: where a neuron stands on a token, the post's table of ranks, its figures in bins."""

from collections.abc import Mapping

import polars as pl
import torch

from devinterp_func.neurons import ActivationMeans, Extremes, Histogram, Neuron, percentile
from devinterp_func.show.schema import FLOAT, IDS, INT, NAME, Column, Table, frame, token

FREQUENT = 20  # occurrences of a token that others are compared with
ACTIVATIONS = Table(
    "Where neurons stand on their tokens: among the neurons of their unit, and among frequent tokens.",
    "activations.py",
    {
        "neuron": Column(NAME),
        "token": token("the input token"),
        "positions": Column(INT, "where it is the input"),
        "mean activation": Column(FLOAT, "there"),
        "rank among neurons": Column(INT, "of the unit, by mean activation; 1 is the most active"),
        "of neurons": Column(INT, "in the unit"),
        "percentile among tokens": Column(FLOAT, "of the mean, among those on frequent tokens", format=".1f"),
    },
    key=("neuron", "token"),
)
EXTREMES = Table(
    "Neurons of the unit that are most and least active on the token.",
    "activations.py",
    {
        "neuron": Column(NAME, "the one looked at"),
        "token": token("the input token"),
        "rank": Column(INT, "1 is the most, or the least, active"),
        "most active": Column(INT, "index of the neuron in the unit"),
        "its mean": Column(FLOAT),
        "least active": Column(INT, "index of the neuron in the unit"),
        "mean of it": Column(FLOAT),
    },
    key=("neuron", "token"),
)
HISTOGRAMS = Table(
    "Activations in bins: of the neuron on several tokens, and of it and its neighbours on one.",
    "activations.py",
    {
        "neuron": Column(NAME, "the one looked at"),
        "token": token("it is looked at on"),
        "on token": token("whose positions these are, for the neuron itself"),
        "index": Column(INT, "which neuron's activations these are, on the token"),
        "zeros": Column(INT, "exact zeros, in no bin"),
        "median": Column(FLOAT, "without the zeros"),
        "low": Column(FLOAT, "where the first bin begins"),
        "high": Column(FLOAT, "where the last bin ends"),
        "counts": Column(IDS, "of each bin"),
    },
    key=("neuron", "token"),
)


def activation_row(neuron: Neuron, means: ActivationMeans, id: int) -> dict[str, object]:
    """Where a neuron's mean activation on a token stands, among neurons and among frequent tokens.

    Args:
        neuron: its axis is that of ``means``.
        means: of the neuron's unit.
        id: the token.
    """
    mean, seen = means.mean[id], int(means.count[id])
    frequent = int((means.count >= FREQUENT).sum()) > int(seen >= FREQUENT)
    row: dict[str, object] = {"neuron": str(neuron), "token": id, "positions": seen}
    row["mean activation"] = float(mean[neuron.index]) if seen else None
    row["rank among neurons"] = int((mean > mean[neuron.index]).sum()) + 1 if seen else None
    row["of neurons"] = len(mean)
    known = seen and frequent
    row["percentile among tokens"] = float(percentile(means, id, FREQUENT)[neuron.index]) if known else None
    return row


def extreme_rows(neuron: Neuron, id: int, extremes: Extremes) -> list[dict[str, object]]:
    """The neurons of a unit least and most active on a token: the post's table of ranks.

    Args:
        neuron: the one looked at.
        id: the token.
        extremes: of ``neurons.extreme_neurons``.
    """
    columns = (column.tolist() for column in (extremes.most, extremes.most_mean, extremes.least, extremes.least_mean))
    return [
        {"neuron": str(neuron), "token": id, "rank": rank, "most active": most, "its mean": most_mean}
        | {"least active": least, "mean of it": least_mean}
        for rank, (most, most_mean, least, least_mean) in enumerate(zip(*columns, strict=True), 1)
    ]


def histogram_rows(
    neuron: Neuron, id: int, by_token: Mapping[int, Histogram], by_index: Mapping[int, Histogram]
) -> list[dict[str, object]]:
    """A row for each histogram.

    Args:
        neuron: the one looked at.
        id: the token.
        by_token: of ``activations_on``.
        by_index: of ``activations_of_neighbours``.
    """
    ours = [(t, neuron.index, h) for t, h in by_token.items()] + [(None, i, h) for i, h in by_index.items()]
    return [
        {"neuron": str(neuron), "token": id, "on token": on, "index": index, "zeros": h.zeros, "median": h.median}
        | {"low": float(h.edges[0]), "high": float(h.edges[-1]), "counts": h.counts.tolist()}
        for on, index, h in ours
    ]


def read_histograms(table: pl.DataFrame) -> tuple[dict[int, Histogram], dict[int, Histogram]]:
    """The histograms of one neuron and token that ``histogram_rows`` wrote: by token, and by index."""
    by_token, by_index = {}, {}
    for row in table.iter_rows(named=True):
        counts = torch.tensor(row["counts"])
        edges = torch.linspace(row["low"], row["high"], len(counts) + 1, dtype=torch.float64)
        histogram = Histogram(edges, counts, row["zeros"], row["median"])
        if row["on token"] is None:
            by_index[row["index"]] = histogram
        else:
            by_token[row["on token"]] = histogram
    return by_token, by_index


def activation_frames(
    ranks: list[dict[str, object]], extremes: list[dict[str, object]], histograms: list[dict[str, object]]
) -> dict[str, tuple[Table, pl.DataFrame]]:
    """Rows of the three tables as frames, by file name."""
    parts = {
        "activations": (ACTIVATIONS, ranks),
        "extremes": (EXTREMES, extremes),
        "activation_histograms": (HISTOGRAMS, histograms),
    }
    return {name: (kind, frame(kind, rows)) for name, (kind, rows) in parts.items()}
