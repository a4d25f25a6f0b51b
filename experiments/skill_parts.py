"""What skill.py ranks and judges by: the neurons' tally, the model's predictions, growth of norms, and ablations."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import stage
import torch
from torch import Tensor

from devinterp_func import graph as graphs
from devinterp_func import keys, neurons, stats, units
from devinterp_func.batches import Data
from devinterp_func.neurons import Material, Neuron, Sweep, Tally, Work
from devinterp_func.records import Run
from devinterp_func.show import results, tables, terminal

NORMS = {"growth": "norms", "first-order growth": "norms_first_order"}  # name -> file of norms.py


class Known(NamedTuple):
    """What the rankings of all units are made from, and what they are judged by."""

    material: Material
    tally: Tally
    bag: Tensor  # (G, V)
    there: Tensor  # (G, V) outliers by the token that the finished model predicts at their position
    data: Data  # training
    grown: Mapping[str, Mapping[str, Tensor]]  # name -> unit -> (neurons, V), of norms.py
    tested: Tensor  # (n, C) held-out tokens


def side_of(run: Run, folder: Path) -> graphs.Side:
    """Of the neurons that attribute.py tallied: inputs or outputs; inputs where it was not run or found none."""
    if not results.has_table(folder, "neurons"):
        return "inputs"
    names = results.read_table(folder, "neurons", tables.NEURONS)["neuron"]
    if not len(names):
        return "inputs"
    first = neurons.parse(names[0])
    return "inputs" if neurons.axes(run.graph, run.shapes, "inputs")[first.unit] == first.axis else "outputs"


def norms_there(run: Run, folder: Path) -> list[str]:
    """The stages of norms.py that are there of columns and of this run: of the whole run, and of spans."""
    names = sorted(path.stem for path in folder.glob("norms*.json") if re.fullmatch(r"norms(-\d+-\d+)?", path.stem))
    old = results.outdated(folder, run)
    return [name for name in names if name not in old]


def span_of(name: str) -> str:
    """What is said of the amounts of a stage of norms.py, beside their name.

    >>> span_of("norms-0-1464"), span_of("norms")
    (', steps 0 to 1,464', '')
    """
    span = name.split("-")[1:]
    return f", steps {int(span[0]):,} to {int(span[1]):,}" if span else ""


def judged_units(run: Run, patterns: tuple[str, ...]) -> list[str]:
    """The captured units whose neurons are judged."""
    if patterns:
        wanted = units.choose(run.shapes, patterns)
        if wrong := [unit for unit in wanted if len(run.shapes[unit]) < 2 or not graphs.has_operation(run.graph, unit)]:
            raise ValueError(f"{wrong[0]} is not the weight of one linear map or convolution; leave it out of --units")
        return wanted
    hidden = graphs.hidden_maps(run.graph)
    judged = {*hidden, *hidden.values()} or graphs.choose(run.graph)
    return [unit for unit in run.shapes if unit in judged]


def knowledge(
    run: Run, folder: Path, norms: list[str], n_tested: int, n_seen: int, n_predicted: int, seed: int
) -> Known:
    """What the rankings are made from, and the data that they are judged on.

    Args:
        run, folder: the run and its results.
        norms: of ``norms_there``.
        n_tested: held-out data.
        n_seen: training data for the model's activations.
        n_predicted: ... and for its predictions; those are among these.
        seed: of what is drawn.
    """
    tally, bag = tables.read_tally(folder)
    graph, data, key = run.graph, run.data, keys.Key(seed, ("skill",))
    V, params = graph.vocab_size, run.params()
    reference = stats.token_counts(run.corpus.train, V)
    looked_at = keys.permutation(len(data.tokens), key=keys.fold_in(key, "predicted"))[:n_predicted]
    seen, predicted = looked_at[:n_seen], torch.full_like(data.tokens, V)  # V: not looked up
    for part in terminal.watched(looked_at.split(500), -(-len(looked_at) // 500), "the model's predictions"):
        predicted[part] = neurons.predictions(graph, params, (data.tokens[part],)).cpu()
    groups = neurons.groups(run.shapes, {one.unit: one.axis for one in tally.groups if isinstance(one, Neuron)})
    there = neurons.tally(run.shards(), Data(data.tokens, predicted), groups, V + 1).target[:, :V]
    grown = {
        f"{kind}{span_of(name)}": results.read_arrays(folder, name.replace("norms", file, 1), "norms.py")
        for name in norms
        for kind, file in NORMS.items()
    }
    held_out = run.split("valid").tokens
    tested = held_out[keys.permutation(len(held_out), key=key)[:n_tested]]
    often = stats.token_counts(predicted[looked_at].flatten(), V)
    material = Material(graph, params, data.tokens[seen], predicted[seen], reference, often)
    return Known(material, tally, bag, there, data, grown, tested)


def ablated(work: stage.Stage, known: Known, members: list[Neuron], seed: int) -> Sweep:
    """What flips where each neuron is ablated: of an earlier time, where the same was asked, or made now and kept."""
    folder, unit = work.folder / "skill-ablations", members[0].unit
    name = results.slug(f"{unit} {members[0].axis}")
    asked = {"data": len(known.tested), "seed": seed, "neurons": [str(neuron) for neuron in members]}
    origin = {"run": work.run.manifest["digest"], "steps": work.run.n_steps} | asked
    if not results.is_done(folder, name, origin):
        graph, n = known.material.graph, len(known.tested)
        parts = neurons.sweep_in_parts(graph, known.material.params, (known.tested,), members)
        total = neurons.n_sweep_parts(graph, n)
        flips = neurons.join_sweeps(terminal.watched(parts, total, f"ablating neurons of {unit}"))
        kept = {name: column.int() for name, column in flips._asdict().items() if name != "work"}
        results.write_arrays(folder, name, kept)
        results.finish(folder, name, origin)
    there = {name: column.long() for name, column in results.read_arrays(folder, name).items()}
    return Sweep(**there, work=Work(0, 0, 0, 0))


def ranked_tokens(
    known: Known, at: Tensor, members: list[Neuron], key: keys.Key
) -> tuple[Iterator[neurons.Ranking], int]:
    """Every ranking for some neurons of a unit, and how many there are."""
    tally, (unit, _, axis) = known.tally, members[0]
    index = torch.tensor([neuron.index for neuron in members])
    counts = {"bag": known.bag[at], "target": tally.target[at], "input": tally.input[at]}
    by_column = axis == "in"  # norms.py's amounts are of columns
    grew = {name: amounts[unit][index] for name, amounts in known.grown.items() if unit in amounts and by_column}
    expected = neurons.expected_targets(tally.input[at], known.data)
    about = known.material, unit, index, counts, known.there[at], grew
    effects = neurons.has_effect(known.material.graph, unit, axis)
    total = neurons.n_rankings(len(at), len(grew), effects, expected=True)
    return neurons.rankings(*about, key=key, axis=axis, expected=expected), total
