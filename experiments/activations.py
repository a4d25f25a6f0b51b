"""What activations alone say of a neuron: whether it stands out on a token (the post's table of ranks, Figures 1-3).

    python experiments/activations.py runs/demo
    python experiments/activations.py runs/demo --neuron layers.2.linear2.weight:13 --token "("

"Neuron 13" of the post's MLP layer 3.2 (`layers.2.linear2.weight`) can mean the hidden neuron 13, which column 13 reads
and the post ablated, or the output coordinate 13, whose activations the post seems to have looked at. Both are shown.
By default: the neurons that ablate.py found to flip a notable token most, each on that token. A neuron asked for by
name is added to what is there.
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import stage
import tyro

from devinterp_func import graph as graphs
from devinterp_func import keys, neurons, records
from devinterp_func.checks import integer
from devinterp_func.neurons import Neuron
from devinterp_func.show import results, tables, terminal


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""
    out: Path | None = None
    """Where the results are, and go; by default beside the run, RUN-results."""
    neuron: str | None = None
    """A neuron such as layers.2.linear2.weight:96; with a token."""
    token: str | None = None
    """The token to look at it on; with a neuron."""
    data: int = 2000
    """Random training data run through the model."""
    against: int = 8
    """Other frequent tokens to compare the token with."""
    neurons: int = 3
    """Without a neuron given: how many."""
    seed: int = 0
    """Of the draw of data."""


def main(settings: Settings) -> Path:
    for name in ("data", "against", "neurons"):
        integer(f"--{name}", getattr(settings, name))
    if (settings.neuron is None) != (settings.token is None):
        raise ValueError("--neuron and --token go together: which neuron, and the token to look at it on")
    run = records.open(settings.run)
    ablated = (results.beside(run, settings.out) / "ablate.json").exists()
    work = stage.start("activations", settings, after=("ablate",) if ablated or not settings.neuron else (), run=run)
    params, graph = run.params(), run.graph
    if settings.neuron is not None and settings.token is not None:
        neuron = neurons.parse(settings.neuron)
        neurons.require(graph.shapes, neuron)
        graphs.operation(graph, neuron.unit)
        chosen = [(neuron, run.corpus.vocab.index(settings.token))]
    else:
        chosen = flipped_most(work.read("flips", tables.FLIPS), settings.neurons)
    if work.done:
        return work.folder
    if not chosen:
        work.say("no neuron flips a token; --neuron and --token look at any")
    data = run.data.tokens
    tokens = data[keys.permutation(len(data), key=keys.Key(settings.seed, ("activations",)))[: settings.data]]
    ranks, extremes, histograms = [], [], []
    for neuron, id in terminal.watched(chosen, len(chosen), "activations"):
        for here in (neuron._replace(axis="in"), neuron._replace(axis="out")):
            if here.index >= neurons.width(graph.shapes[here.unit], here.axis):
                work.say(f"{here} does not exist, so {neuron} is shown in one of the two meanings")
                continue
            means = neurons.activations_by_token(graph, params, (tokens,), here.unit, here.axis)
            ranks.append(tables.activation_row(here, means, id))
            extremes += tables.extreme_rows(here, id, neurons.extreme_neurons(means, id))
            frequent = means.count.topk(min(settings.against + 1, len(means.count))).indices.tolist()
            compared = [t for t in dict.fromkeys([id, *frequent]) if means.count[t]][: settings.against + 1]
            on_tokens = neurons.histograms(neurons.activations_on(graph, params, (tokens,), here, compared))
            around = neurons.histograms(neurons.activations_of_neighbours(graph, params, (tokens,), here, id))
            histograms += tables.histogram_rows(here, id, on_tokens, around)
    for name, (kind, rows) in tables.activation_frames(ranks, extremes, histograms).items():
        work.add(name, kind, rows)
    shown = ("neuron", "token", "mean activation", "percentile among tokens")
    work.show(
        work.read("activations", tables.ACTIVATIONS).select(shown), "where neurons stand", kind=tables.ACTIVATIONS
    )
    return work.finish()


def flipped_most(flips: pl.DataFrame, n: int) -> list[tuple[Neuron, int]]:
    """The notable tokens that flip most, one a neuron."""
    often = flips.filter(pl.col("count") >= neurons.LEAST_COUNT)
    ranked = often.sort(["notable", "proportion", "flips"], descending=True, maintain_order=True)
    best = ranked.unique("neuron", keep="first", maintain_order=True).head(n)
    return [(neurons.parse(name), id) for name, id in best.select("neuron", "token").iter_rows()]


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
