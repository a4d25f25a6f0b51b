"""Does the method predict? How well each ranking of tokens predicts which predictions a neuron's ablation truly flips.

    python experiments/skill.py runs/demo

The truth comes from ablating neurons of MLPs (columns of their units) on the validation split, which no ranking has
seen: a token is flipped if at 5 positions or more it is the prediction before or after, and a tenth of these change.
Every ranking orders the whole vocabulary; its skill is the mean average precision over neurons, with a bootstrap
interval. After norms.py its amounts take part.
"""

from dataclasses import dataclass
from pathlib import Path

import stage
import torch
import tyro
from torch import Tensor

from devinterp_func import graph as graphs
from devinterp_func import keys, neurons, records, stats
from devinterp_func.batches import Data
from devinterp_func.checks import integer
from devinterp_func.neurons import Neuron, Tally
from devinterp_func.show import results, schema, tables, terminal

NORMS = {"growth": "norms", "first-order growth": "norms_first_order"}  # name -> file of norms.py


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
    """In each unit so many neurons with the most outliers are judged, and as many random others."""
    draws: int = 2000
    """Of random tokens of like frequency, against which each neuron's ranking is held."""
    seed: int = 0
    """Of draws and bootstrap."""


def main(settings: Settings) -> Path:
    for name in ("data", "seen", "predicted", "pointed", "draws"):
        integer(f"--{name}", getattr(settings, name))
    if settings.seen > settings.predicted:
        raise ValueError(f"--seen is {settings.seen}; it must be at most --predicted, which is {settings.predicted}")
    run = records.open(settings.run)
    stage.require_text(run)
    folder = results.beside(run, settings.out)
    norms = ["norms"] if (folder / "norms.json").exists() and "norms" not in results.outdated(folder, run) else []
    work = stage.start("skill", settings, after=["attribute", *norms], run=run)
    if work.done:
        return work.folder
    tally, bag = tables.read_tally(folder)
    columns = neurons.every(run.shapes)
    if tally.groups != tuple(columns):
        raise ValueError("attribute.py was run with --axis out; rankings are of columns: run it with --axis in")
    graph, data, key = run.graph, run.data, keys.Key(settings.seed, ("skill",))
    hidden, V = graphs.hidden_maps(graph), graph.vocab_size
    judged = {*hidden, *hidden.values()} or graphs.choose(graph)
    projections = [unit for unit in run.shapes if unit in judged]
    if not projections:
        work.say("no MLP unit was captured, so there is nothing to rank")
    params, reference = run.params(), stats.token_counts(run.corpus.train, V)
    looked_at = keys.permutation(len(data.tokens), key=keys.fold_in(key, "predicted"))[: settings.predicted]
    seen, predicted = looked_at[: settings.seen], torch.full_like(data.tokens, V)  # V: not looked up
    for part in terminal.watched(looked_at.split(500), -(-len(looked_at) // 500), "the model's predictions"):
        predicted[part] = neurons.predictions(graph, params, (data.tokens[part],)).cpu()
    there = neurons.tally(run.shards(), Data(data.tokens, predicted), run.shapes, V + 1).target[:, :V]
    grown = {name: results.read_arrays(folder, file, "norms.py") for name, file in NORMS.items()} if norms else {}
    held_out = run.split("valid").tokens
    tested = held_out[keys.permutation(len(held_out), key=key)[: settings.data]]
    of_model = graph, params, data.tokens[seen], predicted[seen]
    material = neurons.Material(*of_model, reference, stats.token_counts(predicted[looked_at].flatten(), V))
    rows, contrasts, nested, census = [], [], [], []
    strata = (1 + reference).log2().long()
    for unit in projections:
        at, groups = chosen_rows(tally, unit, settings.pointed, keys.fold_in(key, unit))
        members = [columns[i] for i in at.tolist()]
        parts = neurons.sweep_in_parts(graph, params, (tested,), members)
        n_parts = len(graphs.logit_blocks(graph, len(tested)))
        flips = neurons.join_sweeps(terminal.watched(parts, n_parts, f"ablating neurons of {unit}"))
        truth = neurons.truly_flips(*neurons.flip_counts(flips, len(at), V))
        index = torch.tensor([neuron.index for neuron in members])
        counts = {"bag": bag[at], "target": tally.target[at], "input": tally.input[at]}
        grew = {name: amounts[unit][index] for name, amounts in grown.items() if unit in amounts}
        ranked = neurons.rankings(material, unit, index, counts, there[at], grew, key=key)
        precisions, kept = {}, {}
        n_ranked = neurons.n_rankings(len(at), len(grew))
        for kind, name, scores in terminal.watched(ranked, n_ranked, f"judging rankings for {unit}"):
            kept[kind, name] = scores.float().contiguous()
            precisions[kind, name] = stats.average_precision(kept[kind, name], truth)
            rows += tables.skill_rows(unit, kind, name, precisions[kind, name], groups, key=key)
        contrasts += tables.contrast_rows(unit, precisions, key=key)
        found = choose_on_other_halves(precisions, keys.fold_in(key, "halves", unit))
        nested += tables.nested_rows(unit, found["with the record"], found["model alone"], key=key)
        for made_from, chosen in found.items():
            if chosen is not None:
                of = {name: scores for (kind, name), scores in kept.items() if name in chosen.names}
                p = neurons.nested_p_values(chosen, of, truth, strata, settings.draws, key=key)
                about = unit, [str(neuron) for neuron in members], made_from, chosen, truth.sum(1), p
                census += tables.census_rows(*about)
    table = work.save("skill", schema.frame(tables.SKILL, rows))
    work.save("skill_contrasts", contrast := schema.frame(tables.CONTRASTS, contrasts))
    work.save("skill_nested", compared := schema.frame(tables.NESTED, nested))
    work.save("skill_census", judged_neurons := tables.judged_census(census))
    work.show(tables.skill_by_unit(table).drop("kind"), "mean average precision: the best rankings", 15, 50)
    shown = ("unit", "with the record", "model alone", "difference", "difference: low", "difference: high")
    work.show(contrast.select(shown), "the record against the model alone", kind=tables.CONTRASTS)
    work.show(compared.drop("with the record", "model alone"), "the same, chosen on other neurons", kind=tables.NESTED)
    work.show(tables.census_summary(judged_neurons), "neurons whose flips are found beyond chance", 40)
    return work.finish()


def choose_on_other_halves(
    precisions: dict[tuple[str, str], Tensor], key: keys.Key
) -> dict[str, neurons.Nested | None]:
    """Made from record, model or chance: every neuron under the one that is best on the half it is not in."""
    second = neurons.halves(len(next(iter(precisions.values()))), key=key)
    groups: dict[str, dict[str, Tensor]] = {}
    for (kind, name), precision in precisions.items():
        groups.setdefault(tables.made_from(kind, name), {})[name] = precision
    return {made_from: neurons.nested(group, second) for made_from, group in groups.items()}


def chosen_rows(tally: Tally, unit: str, n: int, key: keys.Key) -> tuple[Tensor, list[str]]:
    """The n neurons of a unit with the most outliers, and as many random others: their rows, and which are which."""
    rows = torch.tensor(
        [i for i, neuron in enumerate(tally.groups) if isinstance(neuron, Neuron) and neuron.unit == unit]
    )
    order = rows[tally.outliers[rows].argsort(descending=True, stable=True)]
    most, rest = order[:n], order[n:]
    other = rest[keys.permutation(len(rest), key=key)][:n]
    return torch.cat([most, other]), ["most outliers"] * len(most) + ["random others"] * len(other)


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
