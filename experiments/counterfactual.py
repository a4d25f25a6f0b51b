"""How far can a credit be trusted? Its completeness, and each datum's amount against leaving the datum out.

    python experiments/counterfactual.py runs/demo --steps 2

At steps spread over the run (those that begin at a snapshot, and the ones after) the change of a few probes is
estimated from gradients at the start, at the end, and by quadrature, past and decay included; and the loss on other
texts is measured again with each datum left out of the step. To leave it out is to take its delta away; where the
optimizer remembers, the step is also rerun without it, its gain (clip coefficient and memory) following. First-order
influence scores are "gradient at the start".
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import stage
import torch
import tyro
from torch import Tensor

from devinterp_func import batches, bigram, checks, credit, keys, per_example, tree, units
from devinterp_func import graph as graphs
from devinterp_func.credit import Entries, probes
from devinterp_func.credit.probes import Probe
from devinterp_func.neurons import Neuron
from devinterp_func.records import Run
from devinterp_func.show import tables, terminal, words
from devinterp_func.stats import Estimate

HELD_OUT, TRAINING = "loss, validation", "loss, other training data"  # probes whose data are left out one by one
TAKEN, RERUN = "delta taken away", "step rerun"  # what it is to leave a datum out
Truth = dict[str, dict[str, list[Tensor]]]
"""Probe -> what it is to leave a datum out -> the effects of each step."""


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]  # the run directory
    out: Path | None = None  # where the results go; by default beside the run, RUN-results
    steps: int = 25  # so many steps, spread over the run's snapshots
    texts: int = 20  # of each loss probe
    nodes: tuple[int, ...] = (1, 2, 3, 4)  # of the quadrature, that are compared
    seed: int = 0  # of the draws and the bootstrap


def main(settings: Settings) -> Path:
    work = stage.start("counterfactual", settings)
    run, key = work.run, keys.Key(settings.seed, ("counterfactual",))
    checks.integer("steps", settings.steps)
    nodes = sorted({checks.integer("nodes", m) for m in settings.nodes})
    if not nodes:
        raise ValueError("nodes is empty; give at least one number of nodes, such as --nodes 3")
    followed = chosen_probes(run, settings.texts, key)
    if work.done:
        return work.folder
    steps = chosen_steps(run, settings.steps)
    found: list[dict[int, Entries]] = []
    kinds = (TAKEN, RERUN) if run.recipe.optimizer.remembers else (TAKEN,)
    truth: Truth = {name: {kind: [] for kind in kinds} for name in (HELD_OUT, TRAINING)}
    norms: list[Tensor] = []
    for step in terminal.watched(steps, len(steps), "leaving data out"):
        (move,) = run.moves(step, step + 1, units.EVERY)
        found.append(credit.split_by_nodes(move, list(followed.values()), nodes, at_start=True))
        for name, effects in truth.items():
            effects[TAKEN].append(credit.leave_one_out(move, followed[name]))
        if RERUN in kinds:
            each = credit.rerun_without(move, [followed[name] for name in truth], run.recipe)
            for effects, own in zip(truth.values(), each, strict=True):
                effects[RERUN].append(own)
        norms.append(per_example.delta_norms(move.factors).double().cpu())
    by_nodes = {m: Entries(*tree.stack([entries[m] for entries in found])) for m in nodes}
    missed = tables.completeness_frame(credit.completeness(by_nodes, key=key), list(followed))
    agreement = tables.agreement_frame(agreements(by_nodes[nodes[-1]], truth, norms, list(followed), key))
    work.add("completeness", tables.COMPLETENESS, missed)
    work.add("agreement", tables.AGREEMENT, agreement)
    wide = missed.with_columns(pl.concat_str("estimate", "nodes", separator=" ", ignore_nulls=True))
    work.show(wide.pivot("estimate", index="probe", values="missed"), "missed, as a share of the probes' changes")
    work.show(agreement, "rank correlation with leaving the datum out of the step", 60)
    return work.finish()


def chosen_steps(run: Run, n: int) -> list[int]:
    """n steps spread over the run: those that begin at a snapshot, and where these are fewer, the ones that follow."""
    starts = [step for step in run.snapshots if step < run.n_steps]
    if n <= len(starts):
        return [starts[place] for place in torch.linspace(0, len(starts) - 1, n).long().tolist()]
    found = {starts[i % len(starts)] + i // len(starts) for i in range(n)}
    return sorted(step for step in found if step < run.n_steps)


def agreements(
    entries: Entries, truth: Truth, norms: list[Tensor], names: list[str], key: keys.Key
) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Rank agreement of each score with each truth, for each probe whose data were left out."""
    found = {}
    for name, kinds in truth.items():
        amounts = {"marginal": entries.marginal, "credit": entries.credit, "gradient at the start": entries.at_start}
        scores = {score: x[:, names.index(name)].sum(-1) for score, x in amounts.items()}
        scores["norm of the datum's delta"] = -torch.stack(norms)  # a large delta is thought to lower a loss
        scores["random"] = keys.uniform(scores["credit"].shape, 0.0, 1.0, key=keys.fold_in(key, "random")).double()
        if RERUN in kinds:
            scores[TAKEN] = torch.stack(kinds[TAKEN])
        found[name] = {
            kind: credit.rank_agreement(
                {score: x for score, x in scores.items() if score != kind}, torch.stack(effects), key=key
            )
            for kind, effects in kinds.items()
        }
    return found


def chosen_probes(run: Run, texts: int, key: keys.Key) -> dict[str, Probe]:
    """The two losses, and probes of other kinds, by the names that the tables have."""
    graph, vocab = run.graph, run.corpus.vocab
    drawn = keys.permutation(len(run.data.tokens), key=key)[:texts]
    others = tree.map(lambda x: x.to(run.device), batches.take(run.data, drawn))
    *prompt, following = run.corpus.valid[:12].tolist()
    pair = bigram.characteristic_pairs(bigram.count_pairs(run.corpus.train, graph.vocab_size), 1, least=1)
    input, output = int(pair.input), int(pair.output)
    maps = credit.linear_maps(graph, graphs.choose(graph))
    last = ([unit for unit in maps if units.is_mlp_weight(unit)] or maps)[-1:]
    followed = {
        HELD_OUT: credit.parse_probe("loss", run, key=key, n=texts),
        TRAINING: probes.loss(graph, tuple(others)),
        "next word": probes.log_probability(graph, torch.tensor(prompt, device=run.device), following),
    }
    if graph.embedding is not None:
        followed[f"bigram, {words.words([input, output], vocab)}"] = probes.bigram(graph, output, input)
    if last:
        followed["squared norm of a neuron"] = probes.squared_norm(Neuron(last[0], 0))
    if graph.attention:
        head = f"{len(graph.attention) - 1}.0"
        probe = credit.parse_probe(f"head:{head} previous", run, key=key, n=texts)
        followed[f"head {head} on previous token"] = probe
    return followed


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
