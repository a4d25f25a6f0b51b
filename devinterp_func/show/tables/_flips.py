"""Flips as tables: the post's tables of tokens, each proportion beside its controls, and where in the texts."""

from collections.abc import Iterable, Mapping, Sequence

import polars as pl

from devinterp_func.neurons import Excerpt, Neuron, Trial
from devinterp_func.show.schema import BOOL, FLOAT, INT, NAME, Column, Table, frame, token

FLIPS = Table(
    "Tokens that flip when a neuron is ablated.",
    "ablate.py",
    {
        "neuron": Column(NAME),
        "token": token("the prediction before or after the ablation"),
        "proportion": Column(FLOAT, "of the positions where it is predicted, those that flip", format=".1%"),
        "count": Column(INT, "positions where it is predicted before or after"),
        "flips": Column(INT, "of these, where the prediction changes"),
        "notable": Column(BOOL, "of the data attributed to the neuron"),
        "random data: proportion": Column(FLOAT, "the same neuron on random data", format=".1%", control=True),
        "random data: count": Column(INT, "positions there", control=True),
        "random neurons: proportion": Column(FLOAT, "of its unit, on the same data", format=".1%", control=True),
    },
    key=("neuron",),
)
FLIP_EXCERPTS = Table(
    "Flipped predictions in their texts.",
    "ablate.py",
    {
        "neuron": Column(NAME),
        "datum": Column(INT, "its id: row of the training data"),
        "position": Column(INT, "in the datum; the next token is predicted"),
        "before": token("the prediction"),
        "after": token("the prediction after the ablation"),
        "notable": Column(BOOL, "whether one of them is notable"),
    },
    key=("neuron",),
)


def flips_frame(trials: Sequence[Trial]) -> pl.DataFrame:
    """The post's flip tables, one below the other, of tokens that flip at all; each proportion beside its controls."""
    rows = []
    for trial in trials:
        own, random, others = trial.attributed, trial.random_data, trial.random_neurons
        flipping = (own.flips > 0).nonzero().squeeze(1)
        notable = set(trial.notable.tolist())
        for id in flipping[own.flips[flipping].argsort(descending=True, stable=True)].tolist():
            row = {"neuron": str(trial.neuron), "token": id, "notable": id in notable}
            row |= {"proportion": float(own.proportion()[id]), "count": int(own.count[id]), "flips": int(own.flips[id])}
            row |= {
                "random data: proportion": float(random.proportion()[id]),
                "random data: count": int(random.count[id]),
            }
            rows.append(row | {"random neurons: proportion": float(others.proportion()[id])})
    return frame(FLIPS, rows)


def flip_excerpt_frame(
    excerpts: Mapping[Neuron, Sequence[Excerpt]], notable: Mapping[Neuron, Iterable[int]]
) -> pl.DataFrame:
    """Flipped predictions: which datum, where, and what became of them.

    Args:
        excerpts: of ``neurons.excerpts``, by neuron; their datum is its id.
        notable: token ids of each neuron.
    """
    rows = []
    for neuron, quoted in excerpts.items():
        ids = {int(i) for i in notable[neuron]}
        for e in quoted:
            row = {"neuron": str(neuron), "datum": e.datum, "position": e.position, "before": e.before}
            rows.append(row | {"after": e.after, "notable": not ids.isdisjoint((e.before, e.after))})
    return frame(FLIP_EXCERPTS, rows)
