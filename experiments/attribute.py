"""Which weights did the data move most, which neurons do those weights belong to, and which tokens stand behind them?

    python experiments/attribute.py runs/demo

Reads the outliers of a run and writes tables beside it: outliers by unit and epoch, the first rows of the attribution
table (the post's Table 1), the most frequent parameters and the neurons they belong to with their notable tokens, and
the token counts of every neuron, which the scripts after this one use.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl
import torch
import tyro
from rich.console import Console

from devinterp_func import attribution, batches, frames, keyness, neurons, records, results, tables, training
from devinterp_func.neurons import Neuron
from devinterp_func.records import Shard


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
    """in: a neuron is a column of its unit, as in the post; out: a row."""
    c: int = 20
    """Univariate heuristic: least count of a token (the post's 20)."""
    d: int = 100
    """... of these so many of highest relative frequency (100)."""
    f: int = 3
    """... of these so many of highest count (3)."""


def main(settings: Settings) -> Path:
    console, run, folder = Console(), settings.run, results.beside(settings.run, settings.out)
    origin = results.origin(run, settings)
    if results.is_done(folder, "attribute", origin):
        console.print(f"attribution: done before, in {folder}")
        return folder
    config, recipe, corpus = training.load(run)
    data, shapes = batches.chunk(corpus.train, recipe.context), training.shapes(run)
    reference = attribution.reference(corpus.train, config.vocab_size)
    everyone, groups = neurons.groups(shapes, settings.axis)

    def shards(what: str) -> Iterator[Shard]:
        return tables.watched(records.scan_shards(run), len(records.shards(run)), what)

    def notable(bags: torch.Tensor) -> list[torch.Tensor]:
        rows = tables.watched(bags, len(bags), "notable tokens")
        return [keyness.univariate_heuristic(row, reference, settings.c, settings.d, settings.f) for row in rows]

    counts = attribution.counts(shards("counting outliers"), len(groups))
    results.write_table(folder, "units", units := frames.unit_frame(counts, shapes))
    head = attribution.rows(next(iter(records.scan_shards(run))))
    results.write_table(folder, "attribution_head", frames.attribution_frame(head, shapes).head(1000))
    bins = attribution.over_training(shards("outliers over training"), shapes, 60, records.n_steps(run))
    results.write_arrays(folder, "outliers", {"over_training": bins, "by_parameter": counts.sum(0)})

    frequent = of_each_unit(counts.sum(0), shapes, settings.parameters)
    own = torch.full_like(groups, -1).index_copy_(0, frequent, torch.arange(len(frequent)))
    tally = attribution.tally(shards("tokens behind parameters"), data, own, len(frequent), config.vocab_size)
    tokens = notable(attribution.distribution(tally, data, config.vocab_size, "bag"))
    results.write_table(folder, "parameters", frames.parameter_frame(frequent, counts, shapes, tokens, corpus.vocab))
    members = neurons.of_parameters(shapes, frequent.tolist(), settings.axis)
    tokens_of = dict(zip(frequent.tolist(), tokens, strict=True))
    united = {neuron: torch.cat([tokens_of[p] for p in of]).unique() for neuron, of in members.items()}

    tally = attribution.tally(shards("tokens behind neurons"), data, groups, len(everyone), config.vocab_size)
    bags = attribution.distribution(tally, data, config.vocab_size, "bag")
    arrays = {"outliers": tally.outliers, "events": tally.events, "target": tally.target, "input": tally.input}
    results.write_arrays(folder, "tally", arrays | {"bag": bags.int()})
    columns = {
        "notable": [united.get(neuron, torch.zeros(0, dtype=torch.int64)) for neuron in everyone],
        "notable as a whole": notable(bags),
        "notable targets": [keyness.notable(row, reference, "log_likelihood", settings.f) for row in tally.target],
    }
    chosen = closer(members, counts.sum(0), settings.neurons)
    frame = frames.neuron_frame(everyone, tally.outliers, tally.events, members, columns, chosen, corpus.vocab)
    results.write_table(folder, "neurons", frame)
    shown = units.select("unit", "outliers", "share", "outliers per weight")
    console.print(tables.rich_table(shown, "outliers by unit"))
    shown = frame.filter(pl.col("chosen")).select("neuron", "outliers", "data", "notable", "notable targets")
    console.print(tables.rich_table(shown, "neurons chosen for a closer look", 48, width=24))
    results.finish(folder, "attribute", origin)
    return folder


def of_each_unit(counts: torch.Tensor, shapes: dict[str, tuple[int, ...]], m: int) -> torch.Tensor:
    """The m most frequent parameters of each unit, all together by how often they were outliers."""
    parts, start = [], 0
    for shape in shapes.values():
        size = torch.Size(shape).numel()
        parts.append(start + attribution.top_parameters(counts[start : start + size], m))
        start += size
    found = torch.cat(parts)
    return found[counts[found].argsort(descending=True, stable=True)]


def closer(members: dict[Neuron, list[int]], counts: torch.Tensor, n: int) -> list[Neuron]:
    """The n neurons of each MLP unit whose frequent parameters were outliers most often."""
    weight = {neuron: int(counts[of].sum()) for neuron, of in members.items()}
    ranked = sorted((neuron for neuron in members if ".linear" in neuron.unit), key=lambda neuron: -weight[neuron])
    units = sorted({neuron.unit for neuron in ranked})
    return [neuron for unit in units for neuron in [other for other in ranked if other.unit == unit][:n]]


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
