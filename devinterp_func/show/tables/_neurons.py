"""Neurons as tables: what the record and the finished model say of each; the tally that later stages read."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from jaxtyping import Int
from torch import Tensor

from devinterp_func import neurons
from devinterp_func.neurons import ModelView, Neuron, Tally
from devinterp_func.show import results
from devinterp_func.show.schema import BOOL, FLOAT, INT, NAME, Column, Table, frame, tokens

NEURONS = Table(
    "Neurons, how often their weights were outliers, and their notable tokens.",
    "attribute.py",
    {
        "neuron": Column(NAME),
        "unit": Column(NAME),
        "outliers": Column(INT, "how often one of its weights was among those that a datum moved most"),
        "data": Column(INT, "that moved it so"),
        "frequent parameters": Column(INT, "its weights among the unit's most frequent outliers"),
        "notable tokens": tokens("of the data behind these weights, by the univariate heuristic, united"),
        "notable as a whole": tokens("of all its attributed data, by the univariate heuristic"),
        "notable targets": tokens("target tokens at the outliers' positions, by G²"),
        "chosen": Column(BOOL, "for ablation"),
    },
    key=("neuron",),
)
VIEWS = Table(
    "What the finished model says of neurons, and the datum attributed to each most often.",
    "ablate.py",
    {
        "neuron": Column(NAME),
        "logits raised": tokens("most, on the direct path"),
        "logits lowered": tokens("most, on the direct path"),
        "mean activation": Column(FLOAT, "on random training data"),
        "share active": Column(FLOAT, "of positions with an activation above 0", format=".0%"),
        "most active on": tokens("input tokens, for the standard error"),
        "datum": Column(INT, "attributed to it most often"),
        "times": Column(INT, "steps in which it was"),
    },
    key=("neuron",),
)


def neuron_frame(
    tally: Tally,
    frequent: Mapping[Neuron, Sequence[int]],
    notable: Mapping[str, Sequence[Iterable[int]]],
    chosen: Iterable[Neuron],
) -> pl.DataFrame:
    """Neurons: how often their weights were outliers, for how many data, and their notable tokens.

    Args:
        tally: of ``neurons.groups``.
        frequent: neuron -> its parameters among the most frequent.
        notable: column -> token ids of each neuron.
        chosen: neurons looked at more closely.
    """
    members = [group for group in tally.groups if isinstance(group, Neuron)]
    columns: dict[str, list[Any]] = {
        "neuron": [str(neuron) for neuron in members],
        "unit": [neuron.unit for neuron in members],
        "outliers": tally.outliers.tolist(),
        "data": (tally.events > 0).sum(0).tolist(),
        "frequent parameters": [len(frequent.get(neuron, ())) for neuron in members],
        **{name: [[int(i) for i in ids] for ids in each] for name, each in notable.items()},
        "chosen": [neuron in set(chosen) for neuron in members],
    }
    return frame(NEURONS, columns)


def view_frame(views: Mapping[Neuron, ModelView], top: Mapping[Neuron, tuple[int, int]]) -> pl.DataFrame:
    """What the finished model says of neurons, and the datum attributed to each most often.

    Args:
        views: of ``neurons.view``.
        top: neuron -> id of a datum, and in how many steps it was attributed.
    """

    def ids(found: Int[Tensor, "m"] | None) -> list[int] | None:
        return None if found is None else found.tolist()

    rows = []
    for neuron, view in views.items():
        datum, times = top[neuron]
        row: dict[str, object] = {
            "neuron": str(neuron),
            "logits raised": ids(view.promoted),
            "logits lowered": ids(view.suppressed),
        }
        row |= {"mean activation": view.mean_activation, "share active": view.share_active}
        rows.append(row | {"most active on": ids(view.active_on), "datum": datum, "times": times})
    return frame(VIEWS, rows)


def write_tally(folder: Path, tally: Tally, bag: Int[Tensor, "G V"]) -> None:
    """Stores a tally of neurons, and the tokens of their attributed data."""
    arrays = {name: getattr(tally, name) for name in ("outliers", "events", "target", "input")}
    results.write_arrays(folder, "tally", arrays | {"bag": bag.int()})


def read_tally(folder: Path) -> tuple[Tally, Int[Tensor, "G V"]]:
    """What ``write_tally`` stored: the tally, and the tokens of the attributed data.

    Raises:
        Missing: it is not there; the message names the script that makes it.
    """
    names = results.read_table(folder, "neurons", NEURONS)["neuron"]
    arrays = results.read_arrays(folder, "tally", "attribute.py")
    bag = arrays.pop("bag")
    return Tally(tuple(map(neurons.parse, names)), **arrays), bag
