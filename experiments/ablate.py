"""Ablate neurons and see whether just the tokens flip that the training data behind them stood out by.

    python experiments/ablate.py runs/demo --data 200                   # the neurons that attribute.py chose
    python experiments/ablate.py runs/demo --data 200 --neuron layers.1.linear2.weight:13    # one by name, beside those
    python experiments/ablate.py runs/demo --data 200 --neuron layers.1.linear2.weight:13 --ablation mean

Every table has its controls beside it: the same neuron on random data, and random neurons of its unit on the same data.
A neuron asked for by name is added to what is there; verdicts are then judged anew over all. With --ablation mean or
resample the activation becomes its mean over random data, or that on another datum; these have tables of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import polars as pl
import stage
import torch
import tyro

from devinterp_func import graph as graphs
from devinterp_func import keys, neurons, stats
from devinterp_func.checks import integer
from devinterp_func.graph import Graph
from devinterp_func.neurons import Ablation, Neuron, Tally
from devinterp_func.show import tables, terminal


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""
    out: Path | None = None
    """Where the results are, and go; by default beside the run, RUN-results."""
    neuron: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Neurons such as layers.2.linear2.weight:96 (a column) or ...:96:out (a row); by default those chosen before."""
    ablation: neurons.Kind = "zero"
    """zero: the weights become 0, as in the post; mean, resample: the activation becomes another."""
    data: int = 2000
    """At most so many attributed data, drawn at random, and as many random data (the post's 2,000)."""
    others: int = 5
    """Random neurons of the same unit, for control."""
    excerpts: int = 8
    """Excerpts kept of each neuron."""
    seed: int = 0
    """Of the draws."""


def main(settings: Settings) -> Path:
    for name, least in {"data": 1, "others": 1, "excerpts": 0}.items():
        integer(f"--{name}", getattr(settings, name), least)
    suffix = "" if settings.ablation == "zero" else f"-{settings.ablation}"
    work = stage.start(f"ablate{suffix}", settings, after=("attribute",))
    tally, _ = tables.read_tally(work.folder)
    listed = work.read("neurons", tables.NEURONS)
    chosen = choose(settings.neuron, work.run.graph, tally, listed.filter(pl.col("chosen"))["neuron"])
    if work.done:
        return work.folder
    data, graph, params = work.run.data, work.run.graph, work.run.params()
    notable = dict(zip(map(neurons.parse, listed["neuron"]), listed["notable tokens"].to_list(), strict=True))
    key = keys.Key(settings.seed, ("ablate",))
    random = data.tokens[keys.permutation(len(data.tokens), key=key)[: settings.data]]
    ablation = Ablation(settings.ablation, (random,), keys.fold_in(key, settings.ablation))
    events = {neuron: tally.events[:, tally.row(neuron)] for neuron in chosen}
    drawn = {
        neuron: neurons.sample_attributed(events[neuron], settings.data, key=keys.fold_in(key, str(neuron)))
        for neuron in chosen
    }
    sizes = {neuron: len(ids) for neuron, ids in drawn.items()}
    controls = neurons.on_random_data(graph, params, (random,), sizes, ablation)
    elsewhere = dict(terminal.watched(controls, len(chosen), "on random data"))
    trials, quoted, views, top = [], {}, {}, {}
    for neuron in terminal.watched(chosen, len(chosen), "ablating neurons"):
        ids, tokens = torch.tensor(notable[neuron], dtype=torch.int64), data.tokens[drawn[neuron]]
        n_neurons = neurons.width(work.run.shapes[neuron.unit], neuron.axis)
        others = neurons.other_neurons(neuron, n_neurons, settings.others, key=key)
        trials.append(neurons.try_neuron(graph, params, (tokens,), neuron, ids, others, elsewhere[neuron], ablation))
        views[neuron] = neurons.view(graph, params, (random[:500],), neuron, 6)
        top[neuron] = int(events[neuron].argmax()), int(events[neuron].max())
        some = neurons.flip_excerpts(graph, params, tokens[:100], neuron, ids, settings.excerpts, ablation)
        quoted[neuron] = [excerpt._replace(datum=int(drawn[neuron][excerpt.datum])) for excerpt in some]
    reference = stats.token_counts(work.run.corpus.train, graph.vocab_size)
    frames = {
        "flips": (tables.FLIPS, tables.flips_frame(trials)),
        "flip_excerpts": (tables.FLIP_EXCERPTS, tables.flip_excerpt_frame(quoted, notable)),
        "views": (tables.VIEWS, tables.view_frame(views, top)),
        "verdicts": (tables.VERDICTS, tables.verdict_frame(trials, reference, list(sizes.values()), key=key)),
    }
    names = [str(neuron) for neuron in chosen]
    whole = {name: work.add(name + suffix, kind, rows, names) for name, (kind, rows) in frames.items()}
    judged = work.save(f"verdicts{suffix}", tables.judged(whole["verdicts"]))
    summary = work.save(f"sublayers{suffix}", tables.sublayer_frame(judged))
    for title, shown in tables.narrow_summary(summary).items():
        work.show(shown, title)
    work.say(f"{judged['attributed'].sum()} of {len(judged)} neurons flip their notable tokens beyond chance")
    return work.finish()


def choose(names: Sequence[str], graph: Graph, tally: Tally, by_default: pl.Series) -> list[Neuron]:
    """Neurons by name, or those that attribute.py chose; all of them with data.

    Raises:
        ValueError: a neuron is not there, is of no linear map, or has no data attributed to it.
    """
    chosen = [neurons.parse(name) for name in dict.fromkeys(names or by_default)]
    axes = {group.unit: group.axis for group in tally.groups if isinstance(group, Neuron)}
    for neuron in chosen:
        if neuron.axis != axes.get(neuron.unit, neuron.axis):
            lines = "columns" if axes[neuron.unit] == "in" else "rows"
            raise ValueError(f"{neuron} was not looked at: attribute.py read {lines}; run it with the other --axis")
        row = tally.row(neuron)
        if not graphs.below_head(graph, neuron.unit):
            raise ValueError(f"{neuron} cannot be ablated: {neuron.unit} is not the weight of one map before the head")
        if not tally.outliers[row]:
            raise ValueError(f"no data are attributed to {neuron}: none of its weights was ever an outlier")
    return chosen


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
