"""Switch neurons off and see whether just the tokens flip that the training data behind them stood out by.

    python experiments/ablate.py runs/demo                                        # the neurons that attribute.py chose
    python experiments/ablate.py runs/demo --neuron layers.1.linear2.weight:13    # one by name

Every table has its controls beside it: the same neuron on random data, and random neurons of its unit on the same data.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import polars as pl
import torch
import tyro
from rich.console import Console

from devinterp_func import (
    ablation,
    attribution,
    batches,
    cards,
    frames,
    keys,
    neurons,
    records,
    results,
    tables,
    training,
    verdicts,
)
from devinterp_func.neurons import Neuron
from devinterp_func.text import Vocab
from devinterp_func.transformer import Config
from devinterp_func.tree import Params


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""
    out: Path | None = None
    """Where the results are, and go; by default beside the run, RUN-results."""
    neuron: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Neurons such as layers.2.linear2.weight:96 (a column) or ...:96:out (a row); by default those chosen before."""
    data: int = 2000
    """At most so many attributed data, drawn at random, and as many random data (the post's 2,000)."""
    others: int = 5
    """Random neurons of the same unit, for control."""
    excerpts: int = 8
    """Excerpts kept of each neuron."""
    seed: int = 0
    """Of the draws."""


def main(settings: Settings) -> Path:
    console, run, folder = Console(), settings.run, results.beside(settings.run, settings.out)
    origin = results.origin(run, settings)
    if results.is_done(folder, "ablate", origin):
        console.print(f"ablation: already in {folder}")
        return folder
    config, recipe, corpus = training.load(run)
    data, shapes = batches.chunk(corpus.train, recipe.context), training.shapes(run)
    params = records.read_params(run, max(records.snapshots(run)))
    found = results.read_table(folder, "neurons")
    chosen = [neurons.require(shapes, neurons.parse(name)) for name in settings.neuron] or [
        neurons.parse(name) for name in found.filter(pl.col("chosen"))["neuron"]
    ]
    place = {name: i for i, name in enumerate(found["neuron"])}
    events = results.read_arrays(folder, "tally")["events"]
    key = keys.Key(settings.seed, ("ablate",))
    random = data.tokens[keys.permutation(len(data.tokens), key=key)[: settings.data]]
    drawn = {
        neuron: verdicts.sample(events[:, place[str(neuron)]], settings.data, key=keys.fold_in(key, str(neuron)))
        for neuron in chosen
    }
    if silent := [str(neuron) for neuron in chosen if not len(drawn[neuron])]:
        raise ValueError(f"no data are attributed to {', '.join(silent)}: none of its weights was ever an outlier")
    alike: dict[tuple[str, str, int], list[Neuron]] = {}  # neurons of a unit that go through the same random data
    for neuron in chosen:
        alike.setdefault((neuron.unit, neuron.axis, len(drawn[neuron])), []).append(neuron)
    elsewhere: dict[Neuron, verdicts.Counts] = {}
    for (*_, size), group in tables.watched(alike.items(), len(alike), "on random data"):
        elsewhere |= zip(group, verdicts.counts_of(params, random[:size], config, group), strict=True)
    trials, quoted, looks, top = [], [], {}, {}
    for neuron in tables.watched(chosen, len(chosen), "switching neurons off"):
        row = place[str(neuron)]
        notable = corpus.vocab.encode((found["notable"][row] or "").split())
        others = verdicts.others(neuron, neurons.width(shapes[neuron.unit], neuron.axis), settings.others, key=key)
        tokens = data.tokens[drawn[neuron]]
        trials.append(verdicts.trial(params, tokens, config, neuron, notable, others, elsewhere[neuron]))
        looks[neuron] = cards.look(params, random[:500], config, neuron, 6)
        most = int(events[:, row].argmax())
        top[neuron] = most, int(events[most, row])
        quoted += quotes(params, tokens[:100], config, neuron, notable, settings.excerpts, corpus.vocab)
    reference = attribution.reference(corpus.train, config.vocab_size)
    verdict = verdicts.judge(trials, reference, key=key)
    results.write_table(folder, "flips", frames.flips_frame(trials, corpus.vocab))
    results.write_table(folder, "verdicts", frames.verdict_frame(trials, verdict, corpus.vocab))
    results.write_table(folder, "sublayers", summary := frames.sublayer_frame(trials, verdict))
    results.write_table(folder, "looks", frames.look_frame(looks, top, data, corpus.vocab))
    results.write_table(folder, "excerpts", pl.DataFrame(quoted, schema=frames.EXCERPTS))
    for what, title in (
        ("flipped tokens", "tokens that flip, mean"),
        ("notable share", "share of them that is notable"),
    ):
        kinds = {"": "its data", ", random data": "random data", ", random neurons": "random neurons"}
        columns = [pl.col(what + kind).alias(name) for kind, name in kinds.items()]
        shown = summary.select("sublayer", "neurons", *columns, pl.col(f"post: {what}").alias("the post"))
        console.print(tables.rich_table(shown, title))
    console.print(f"{int(verdict.attributed.sum())} of {len(trials)} neurons flip their notable tokens beyond chance")
    results.finish(folder, "ablate", origin)
    return folder


def quotes(
    params: Params, tokens: torch.Tensor, config: Config, neuron: Neuron, notable: torch.Tensor, n: int, vocab: Vocab
) -> list[dict[str, object]]:
    """Flipped predictions in context; those to or from notable tokens first."""
    before = ablation.predictions(params, tokens, config)
    after = ablation.predictions(ablation.zero(params, neuron), tokens, config)
    first = list(ablation.excerpts(tokens, before, after, of=notable.tolist()))[:n]
    found = (
        first + [quote for quote in ablation.excerpts(tokens, before, after) if quote not in first][: n - len(first)]
    )
    return [{"neuron": str(neuron), "notable": quote in first, "text": quote.text(vocab)} for quote in found]


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
