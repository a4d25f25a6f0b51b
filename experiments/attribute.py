"""Which weights did the data move most, which neurons do those weights belong to, and which tokens stand behind them?

    python experiments/attribute.py runs/demo

Reads the outliers of a run and writes tables beside it: outliers by unit, epoch and bin of steps, the first rows of the
attribution table (the post's Table 1), the most frequent parameters and the neurons they belong to with their notable
tokens, and the token counts of every neuron, which the scripts after this one use. Outliers are of present deltas, what
the steps' own data did; what share of the changes that is, beside past and decay, is in a table, too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl
import stage
import torch
import tyro

from devinterp_func import graph as graphs
from devinterp_func import neurons, records, stats, units
from devinterp_func.checks import integer
from devinterp_func.graph import Graph
from devinterp_func.neurons import Neuron
from devinterp_func.records import Run, Shard
from devinterp_func.show import results, tables, terminal

BINS, HEAD = 60, 1000  # bins of steps; rows of the attribution table that are kept


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""
    out: Path | None = None
    """Where the results go; by default beside the run, RUN-results."""
    parameters: int = 200
    """Most frequent parameters of each unit whose tokens are looked at."""
    neurons: int = 8
    """Neurons of each MLP unit taken from these for a closer look (the post looked at 46 in all)."""
    axis: Literal["in", "out"] = "in"
    """in: a neuron is what one input of its unit feeds, as in the post: a column, or a row where the unit is stored
    (in, out), as GPT-2's are. out: what feeds one output."""
    c: int = 20
    """Univariate heuristic: least count of a token (the post's 20)."""
    d: int = 100
    """... of these so many of highest relative frequency (100)."""
    f: int = 3
    """... of these so many of highest count (3)."""


def main(settings: Settings) -> Path:
    for name in ("parameters", "neurons", "c", "d", "f"):
        integer(f"--{name}", getattr(settings, name))
    work = stage.start("attribute", settings, any_data=True)
    if work.done:
        return work.folder
    parts(work)
    shapes, total = work.run.shapes, outliers(work)
    frequent = of_each_unit(total, shapes, settings.parameters)
    if work.run.is_text:
        behind(work, settings, frequent, total)
    else:
        work.save("parameters", tables.parameter_frame(frequent, total, shapes, [[]] * len(frequent)))
        work.say("the data are no text, so there are no tokens behind parameters and neurons")
    return work.finish()


def shards(run: Run, what: str) -> Iterator[Shard]:
    """The run's records, for the person who waits."""
    return terminal.watched(run.shards(), -(-run.n_steps // run.recording.snapshot_every), what)


def parts(work: stage.Stage) -> None:
    """How much of the changes of all units was present, past and decay; and how training went on held-out data."""
    run = work.run
    course = records.split_course(shards(run, "present, past and decay"), BINS, run.n_steps)
    dimensions = {unit: weight.ndim for unit, weight in records.read_params(run, run.snapshots[0]).items()}
    dimensions = {unit: dimensions[unit] for unit in run.manifest["parameters"]}
    table = work.save("split_course", tables.split_course_frame(course, dimensions))
    evaluations = tables.evaluation_frame(records.read_evaluations(run), run.steps_per_epoch)
    work.save("evaluations", evaluations)
    whole = tables.split_shares(tables.with_kinds(table), ["kind"])
    work.show(whole, "what moved the weights: shares of the change", kind=tables.SPLIT_SHARES)


def outliers(work: stage.Stage) -> torch.Tensor:
    """Where the outliers lie, as tables; how many each parameter has."""
    run, shapes = work.run, work.run.shapes
    counts = neurons.outlier_counts(shards(run, "counting outliers"), units.n_parameters(shapes))
    by_unit = work.save("outlier_units", tables.outlier_unit_frame(counts, shapes))
    course = neurons.outliers_over_training(shards(run, "outliers over training"), shapes, BINS, run.n_steps)
    work.save("outlier_course", tables.outlier_course_frame(course, shapes))
    head = neurons.OutlierRows(*(column[:HEAD] for column in neurons.outlier_rows(next(run.shards()))))
    work.save("attribution", tables.attribution_frame(head, shapes))
    total = counts.sum(0)
    results.write_arrays(work.folder, "outliers", {"by_parameter": total})
    work.show(by_unit.drop("weights", "by epoch"), "outliers by unit", kind=tables.OUTLIER_UNITS)
    return total


def behind(work: stage.Stage, settings: Settings, frequent: torch.Tensor, total: torch.Tensor) -> None:
    """The tokens behind the most frequent parameters and behind every neuron, as tables."""
    run, data, shapes, V = work.run, work.run.data, work.run.shapes, len(work.run.corpus.vocab)
    reference = stats.token_counts(run.corpus.train, V)
    axes = neurons.axes(run.graph, shapes, "inputs" if settings.axis == "in" else "outputs")
    groups = neurons.groups(shapes, axes)
    if without := [unit for unit in shapes if len(shapes[unit]) < 2]:
        work.say(f"no neurons, as they are no matrices: {', '.join(without)}")

    def notable(bags: torch.Tensor) -> list[torch.Tensor]:
        rows = terminal.watched(bags, len(bags), "notable tokens")
        return [stats.univariate_heuristic(row, reference, settings.c, settings.d, settings.f) for row in rows]

    parameters = neurons.parameter_groups(frequent, len(total))
    tally = neurons.tally(shards(run, "tokens behind parameters"), data, parameters, V)
    tokens = notable(neurons.distribution(tally, data))
    work.save("parameters", tables.parameter_frame(frequent, total, shapes, [ids.tolist() for ids in tokens]))
    members = neurons.of_parameters(shapes, frequent.tolist(), axes)
    united = {neuron: torch.cat([tokens[tally.row(p)] for p in of]).unique() for neuron, of in members.items()}

    tally = neurons.tally(shards(run, "tokens behind neurons"), data, groups, V)
    bags = neurons.distribution(tally, data)
    lists = {
        "notable tokens": [united.get(neuron, frequent[:0]) for neuron in neurons.every(shapes, axes)],
        "notable as a whole": notable(bags),
        "notable targets": [stats.notable_tokens(row, reference, "log_likelihood", settings.f) for row in tally.target],
    }
    told = {name: [ids.tolist() for ids in each] for name, each in lists.items()}
    picked = closer(run.graph, members, total, settings.neurons)
    found = work.save("neurons", tables.neuron_frame(tally, members, told, picked))
    tables.write_tally(work.folder, tally, bags)
    chosen = found.filter(pl.col("chosen")).select("neuron", "outliers", "data", "notable tokens")
    work.show(chosen, "neurons chosen for a closer look", 48, 24, kind=tables.NEURONS)


def of_each_unit(counts: torch.Tensor, shapes: units.Shapes, m: int) -> torch.Tensor:
    """The m most frequent parameters of each unit, all together by how often they were outliers."""
    parts, start = [counts[:0]], 0
    for part in units.split(counts, shapes).values():
        parts.append(start + neurons.top_parameters(part, m))
        start += len(part)
    parameters = torch.cat(parts)
    return parameters[counts[parameters].argsort(descending=True, stable=True)]


def closer(graph: Graph, members: dict[Neuron, list[int]], counts: torch.Tensor, n: int) -> list[Neuron]:
    """The n neurons of each unit of an MLP whose frequent parameters were outliers most; without MLPs of each unit."""
    hidden = graphs.hidden_maps(graph)
    able = [neuron for neuron in members if neuron.unit in graphs.choose(graph)]
    ranked = [neuron for neuron in able if neuron.unit in {*hidden, *hidden.values()}] or able
    ranked.sort(key=lambda neuron: -int(counts[members[neuron]].sum()))
    return [neuron for unit in sorted({n.unit for n in ranked}) for neuron in [o for o in ranked if o.unit == unit][:n]]


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
