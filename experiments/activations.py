"""What activations alone say of a neuron: whether it stands out on a token (the post's table of ranks, Figures 1-3).

    python experiments/activations.py runs/demo --neuron layers.2.linear2.weight:96 --token "("

"Neuron 96 of MLP layer 3.2" can mean the hidden unit 96, which linear2's column 96 reads and the post ablated, or the
output coordinate 96, whose activations the post seems to have looked at. Both are shown. By default: the neurons that
ablate.py found to flip a notable token most, each on that token.
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
import tyro
from rich.console import Console

from devinterp_func import activations, batches, frames, keys, neurons, records, results, tables, training
from devinterp_func.neurons import Neuron


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""
    out: Path | None = None
    """Where the results are, and go; by default beside the run, RUN-results."""
    neuron: str | None = None
    """A neuron such as layers.2.linear2.weight:96."""
    token: str | None = None
    """The token to look at it on."""
    data: int = 2000
    """Random training data run through the model."""
    against: int = 8
    """Other frequent tokens to compare the token with."""
    neurons: int = 3
    """Without a neuron given: how many."""
    seed: int = 0
    """Of the draw of data."""


def main(settings: Settings) -> Path:
    console, run, folder = Console(), settings.run, results.beside(settings.run, settings.out)
    origin = results.origin(run, settings)
    if results.is_done(folder, "activations", origin):
        console.print(f"activations: done before, in {folder}")
        return folder
    config, recipe, corpus = training.load(run)
    params = records.read_params(run, max(records.snapshots(run)))
    data = batches.chunk(corpus.train, recipe.context)
    drawn = keys.permutation(len(data.tokens), key=keys.Key(settings.seed, ("activations",)))[: settings.data]
    tokens = data.tokens[drawn]
    ranks: list[dict[str, object]] = []
    extremes: list[pl.DataFrame] = []
    values: dict[str, torch.Tensor] = {}
    chosen = choose(settings, folder)
    for number, (neuron, word) in enumerate(tables.watched(chosen, len(chosen), "activations")):
        neurons.require({name: tuple(w.shape) for name, w in params.items()}, neuron)
        token = corpus.vocab.index(word)
        for here in (neuron._replace(axis="in"), neuron._replace(axis="out")):
            means = activations.by_token(params, tokens, config, here.unit, here.axis)
            ranks.append(frames.activation_row(here, word, means, token))
            extremes.append(frames.extremes_frame(here, word, activations.extremes(means, token)))
            compared = dict.fromkeys([token, *means.count.topk(settings.against).indices.tolist()])
            on_tokens = activations.distribution(params, tokens, config, here, [i for i in compared if means.count[i]])
            around = activations.neighbours(params, tokens, config, here, token)
            values |= {f"{number}/{here.axis}/token/{corpus.vocab.tokens[i]}": v for i, v in on_tokens.items()}
            values |= {f"{number}/{here.axis}/neighbour/{i}": v for i, v in around.items()}
    results.write_arrays(folder, "activations", values)
    results.write_table(folder, "activations", table := pl.DataFrame(ranks))
    results.write_table(folder, "extremes", pl.concat(extremes))
    shown = table.select("neuron", "token", "mean activation", "rank among neurons", "percentile among tokens")
    console.print(tables.rich_table(shown, "where neurons stand on their tokens"))
    results.finish(folder, "activations", origin)
    return folder


def choose(settings: Settings, folder: Path) -> list[tuple[Neuron, str]]:
    """Neurons and tokens: as given, or the notable tokens that flip most, one a neuron."""
    if settings.neuron is not None:
        return [(neurons.parse(settings.neuron), settings.token or "(")]
    flips = results.read_table(folder, "flips").filter(pl.col("count") >= 5)
    best = flips.sort(["notable", "proportion", "flips"], descending=True).unique(
        "neuron", keep="first", maintain_order=True
    )
    wanted = best.head(settings.neurons)
    return [(neurons.parse(name), str(word)) for name, word in zip(wanted["neuron"], wanted["token"], strict=True)]


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
