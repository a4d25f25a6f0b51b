"""Does the method predict? How well each ranking of tokens foretells which predictions a neuron's ablation truly flips.

    python experiments/skill.py runs/demo

The truth comes from ablating MLP neurons (columns of linear1 and linear2) on the validation split, which no ranking has
seen: a token is flipped if at 5 positions or more it is the prediction before or after, and a tenth of these change.
Every ranking orders the whole vocabulary; its skill is the mean average precision over neurons, with a bootstrap
interval. After growth.py its amounts take part.
"""

import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import polars as pl
import torch
import tyro
from rich.console import Console

from devinterp_func import (
    ablation,
    attribution,
    batches,
    frames,
    keys,
    neurons,
    records,
    results,
    scores,
    skill,
    sweeps,
    tables,
    training,
)
from devinterp_func.batches import Data

GROWTH = {"growth": "growth", "first-order growth": "growth_first_order"}  # name -> file of growth.py


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""
    out: Path | None = None
    """Where the results are, and go; by default beside the run, RUN-results."""
    data: int = 600
    """Validation data that the neurons are ablated on."""
    seen: int = 2000
    """Random training data for activations and predictions of the finished model."""
    predicted: int = 60_000
    """At most so many random training data whose predictions by the finished model are looked up at the outliers."""
    pointed: int = 30
    """In each unit so many neurons with the most outliers are "pointed at"; as many random others are compared."""
    seed: int = 0
    """Of draws and bootstrap."""


def main(settings: Settings) -> Path:
    console, run, folder = Console(), settings.run, results.beside(settings.run, settings.out)
    marker = folder / "growth.json"
    made = {"growth": json.loads(marker.read_text())} if marker.exists() else {}
    origin = results.origin(run, settings) | made
    if results.is_done(folder, "skill", origin):
        console.print(f"skill: done before, in {folder}")
        return folder
    config, recipe, corpus = training.load(run)
    params, shapes = records.read_params(run, max(records.snapshots(run))), training.shapes(run)
    data, held_out = batches.chunk(corpus.train, recipe.context), batches.chunk(corpus.valid, recipe.context)
    key, V = keys.Key(settings.seed, ("skill",)), config.vocab_size
    reference = attribution.reference(corpus.train, V)

    looked_at = keys.permutation(len(data.tokens), key=keys.fold_in(key, "predicted"))[: settings.predicted]
    parts = tables.watched(looked_at.split(500), -(-len(looked_at) // 500), "the model's predictions")
    predicted = torch.full_like(data.tokens, V)  # V: not looked up
    for part in parts:
        predicted[part] = ablation.predictions(params, data.tokens[part], config)
    everyone, groups = neurons.groups(shapes)
    shards = tables.watched(records.scan_shards(run), len(records.shards(run)), "what is predicted at the outliers")
    there = attribution.tally(shards, Data(data.tokens, predicted), groups, len(everyone), V + 1).target[:, :V]
    total = attribution.reference(predicted[looked_at].flatten(), V)
    grown = {name: results.read_arrays(folder, stem) for name, stem in GROWTH.items()} if made else {}
    arrays, drawn = results.read_arrays(folder, "tally"), looked_at[: settings.seen]
    tested = held_out.tokens[keys.permutation(len(held_out.tokens), key=key)[: settings.data]]
    rows: list[dict[str, object]] = []
    for unit in [name for name in shapes if ".linear" in name]:
        of = [i for i, neuron in enumerate(everyone) if neuron.unit == unit]
        most = arrays["outliers"][of].argsort(descending=True, stable=True)
        rest = most[settings.pointed :]
        other = rest[keys.permutation(len(rest), key=keys.fold_in(key, unit))][: settings.pointed]
        chosen = torch.cat([most[: settings.pointed], other])
        steps = sweeps.stream(params, tested, config, [everyone[of[i]] for i in chosen.tolist()])
        blocks = len(ablation.blocks(tested, config))
        found = sweeps.join(tables.watched(steps, blocks, f"switching off the neurons of {unit}"))
        truth = skill.relevant(*sweeps.flip_counts(found, len(chosen), V))
        group = ["pointed at"] * len(most[: settings.pointed]) + ["random"] * len(other)
        at = torch.tensor(of)[chosen]

        effect = scores.logit_effects(params, data.tokens[drawn], config, unit)[chosen]
        read = {reading: arrays[reading][at] for reading in ("bag", "target", "input")}
        of_model = scores.of_model(params, data.tokens[drawn], predicted[drawn], config, unit, reference)
        model = {name: score[chosen] for name, score in of_model}
        with_model = scores.of_record_and_model(
            there[at], read["target"], reference, total, effect, model[scores.MOVED]
        )
        grew = {name: amount[unit][chosen] for name, amount in grown.items() if unit in amount}
        ranked = chain(
            (("record", *pair) for pair in chain(scores.of_record(read, reference), scores.of_growth(grew, reference))),
            (("record and model", *pair) for pair in with_model),
            (("model", *pair) for pair in model.items()),
            (("chance", *pair) for pair in scores.of_chance(there[at] / (total + scores.SMOOTH), key=key)),
        )
        for kind, name, score in tables.watched(ranked, 41 + 6 * len(grew), f"judging scores for {unit}"):
            precision = skill.average_precision(score.float().contiguous(), truth)
            rows += frames.skill_rows(unit, kind, name, precision, group, key=key)
    table = pl.DataFrame(rows)
    results.write_table(folder, "skill", table)
    last = table.filter((pl.col("neurons") == "all") & pl.col("sublayer").str.starts_with(f"{config.n_layers}."))
    wide = last.pivot("sublayer", index=["score", "kind"], values="MAP").drop("kind")
    wide = wide.sort(wide.columns[-1], descending=True, nulls_last=True)
    known = wide["score"].is_in([scores.POST, "random"])
    shown = pl.concat([wide.filter(~known).head(12), wide.filter(known)])
    console.print(tables.rich_table(shown, "mean average precision in the last layer: the best, the post's, chance"))
    results.finish(folder, "skill", origin)
    return folder


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
