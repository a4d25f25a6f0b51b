"""Does the method predict? How well each ranking of tokens predicts which predictions a neuron's ablation truly flips.

    python experiments/skill.py runs/demo
    python experiments/skill.py runs/demo --units '*linear*' --units '*out_proj*'  # attention's units, too

The truth comes from ablating neurons, inputs of MLPs' units unless others are chosen, on the validation split, which
no ranking has seen: a token is flipped if at 5 positions or more it is the prediction before or after, and a tenth of
these change. Every ranking orders the whole vocabulary; its skill is the mean average precision over neurons, with a
bootstrap interval. A ranking is chosen on one half of the neurons and judged on the other: does the record add to what
the finished model says, and of which neurons is what they flip found beyond chance? After norms.py its amounts take
part, of the whole run and of spans. After attribute.py --axis out the neurons are outputs, and the tables' names begin
with skill-rows. Ablations are kept: to judge the same neurons again takes none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import stage
import torch
import tyro
from skill_parts import Known, ablated, judged_units, knowledge, norms_there, ranked_tokens, side_of
from torch import Tensor

from devinterp_func import keys, neurons, records, stats
from devinterp_func.checks import integer
from devinterp_func.neurons import Neuron, Tally
from devinterp_func.show import results, schema, tables, terminal

ENOUGH = 20  # draws as precise as what was observed, after which no more are made


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""
    out: Path | None = None
    """Where the results are, and go; by default beside the run, RUN-results."""
    units: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Name pattern of the units whose neurons are judged, such as '*self_attn*'; repeatable. Default: those of MLPs."""
    data: int = 600
    """Validation data that the neurons are ablated on."""
    seen: int = 2000
    """Random training data for activations and predictions of the finished model."""
    predicted: int = 60_000
    """At most so many random training data whose predictions by the finished model are looked up at the outliers."""
    pointed: int = 30
    """In each unit so many neurons with the most outliers are judged, and as many random others."""
    draws: int = 2000
    """Of random tokens of like frequency, against which each neuron's ranking is held: at most so many."""
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
    of_inputs = side_of(run, folder) == "inputs"
    norms = norms_there(run, folder) if of_inputs else []
    work = stage.start("skill" if of_inputs else "skill-rows", settings, after=["attribute", *norms], run=run)
    if work.done:
        return work.folder
    chosen = judged_units(run, settings.units)
    if not chosen:
        work.say("no MLP unit was captured, so there is nothing to rank")
    sizes = settings.data, settings.seen, settings.predicted
    known, key = knowledge(run, folder, norms, *sizes, settings.seed), keys.Key(settings.seed, ("skill",))
    found: dict[str, list[Any]] = {name: [] for name in ("", "_contrasts", "_nested", "_census")}
    for unit in chosen:
        for name, rows in judge(work, known, unit, settings, key).items():
            found[name] += rows
        save(work, found)  # what there is, where the work is stopped before its end
    table, contrast, compared, census = save(work, found)
    work.show(tables.skill_by_unit(table).drop("kind"), "mean average precision: the best rankings", 15, 50)
    shown = ("unit", "with the record", "model alone", "difference", "difference: low", "difference: high")
    work.show(contrast.select(shown), "the record against the model alone", kind=tables.CONTRASTS)
    work.show(compared.drop("with the record", "model alone"), "the same, chosen on other neurons", kind=tables.NESTED)
    for verdict, told in zip(tables.JUDGED_BY.values(), ("of like frequency", "predicted as often"), strict=True):
        work.show(tables.census_summary(census, verdict), f"neurons whose flips are found beyond tokens {told}", 40)
    return work.finish()


def save(work: stage.Stage, found: dict[str, list[Any]]) -> list[pl.DataFrame]:
    """Writes the tables: skill, contrasts, nested, census and its shares; gives the first four."""
    frames = {
        "": schema.frame(tables.SKILL, found[""]),
        "_contrasts": schema.frame(tables.CONTRASTS, found["_contrasts"]),
        "_nested": schema.frame(tables.NESTED, found["_nested"]),
        "_census": tables.judged_census(found["_census"]),
    }
    work.save(f"{work.name}_shares", tables.share_frame(frames["_census"]))
    return [work.save(f"{work.name}{name}", table) for name, table in frames.items()]


# ---- a unit


def judge(
    work: stage.Stage, known: Known, unit: str, settings: Settings, key: keys.Key
) -> dict[str, list[dict[str, object]]]:
    """Rows of the tables: every ranking's skill, the best with the record against the best without, the census."""
    at, groups = chosen_rows(known.tally, unit, settings.pointed, keys.fold_in(key, unit))
    members = [neuron for neuron in (known.tally.groups[i] for i in at.tolist()) if isinstance(neuron, Neuron)]
    flips = ablated(work, known, members, settings.seed)
    truth = neurons.truly_flips(*neurons.flip_counts(flips, len(at), known.material.graph.vocab_size))
    scores, own, beyond, rows = {}, {}, {}, []
    ranked, total = ranked_tokens(known, at, members, key)
    for kind, name, values in terminal.watched(ranked, total, f"judging rankings for {unit}"):
        scores[kind, name] = values.float().contiguous()
        own[kind, name] = stats.average_precision(scores[kind, name], truth)
        others = stats.average_precision(neurons.swapped_scores(scores[kind, name], key=key), truth)
        beyond[kind, name] = own[kind, name] - others
        rows += tables.skill_rows(unit, kind, name, own[kind, name], groups, key=key)
    second = neurons.halves(len(at), key=keys.fold_in(key, "halves", unit))
    nested = []
    for measure, of in zip(tables.MEASURES, (own, beyond), strict=True):
        record, model = (made_from(of, made) for made in tables.RANKED)
        nested += tables.nested_rows(unit, record, model, second, measure, key=key)
    census = []
    for made in tables.MADE_FROM:
        chosen = neurons.nested(made_from(beyond, tables.source(made)), second)
        p, precision = dict.fromkeys(tables.JUDGED_BY, none := torch.full((len(at),), torch.nan).double()), none
        if chosen is not None:
            under = {name: of for name, of in made_from(scores, tables.source(made)).items() if name in chosen.names}
            if tables.source(made) != made:
                under = {name: neurons.swapped_scores(of, key=key) for name, of in under.items()}
            p, precision = against_random(known, chosen, under, truth, flips.intact, settings.draws, key)
        names = [str(neuron) for neuron in members]
        census += tables.census_rows(unit, names, groups, made, chosen, truth, precision, p)
    return {"": rows, "_contrasts": tables.contrast_rows(unit, own, key=key), "_nested": nested, "_census": census}


def chosen_rows(tally: Tally, unit: str, n: int, key: keys.Key) -> tuple[Tensor, list[str]]:
    """The n neurons of a unit with the most outliers, and as many random others: their rows, and which are which."""
    rows = torch.tensor(
        [i for i, neuron in enumerate(tally.groups) if isinstance(neuron, Neuron) and neuron.unit == unit]
    )
    order = rows[tally.outliers[rows].argsort(descending=True, stable=True)]
    most, rest = order[:n], order[n:]
    other = rest[keys.permutation(len(rest), key=key)][:n]
    return torch.cat([most, other]), ["most outliers"] * len(most) + ["random others"] * len(other)


def made_from(values: Mapping[tuple[str, str], Tensor], made: str) -> dict[str, Tensor]:
    """Those of the rankings that are made from record, model or chance, by name."""
    return {name: of for (kind, name), of in values.items() if tables.made_from(kind, name) == made}


def against_random(
    known: Known,
    chosen: neurons.Nested,
    scores: Mapping[str, Tensor],
    truth: Tensor,
    intact: Tensor,
    draws: int,
    key: keys.Key,
) -> tuple[dict[str, Tensor], Tensor]:
    """p-values of each neuron's ranking against tokens of like frequency, and predicted as often; its precision."""
    alike = (2 * (1 + torch.bincount(intact, minlength=truth.shape[1])).log2()).long()
    strata = {"p": (1 + known.material.reference).log2().long(), "p, predicted alike": alike}
    p = {
        name: neurons.nested_p_values(chosen, scores, truth, labels, draws, key=key, enough=ENOUGH)
        for name, labels in strata.items()
    }
    first, last = (scores[name] for name in chosen.names)
    return p, stats.average_precision(torch.where(chosen.second[:, None], last, first), truth)


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
