"""How far can a credit be trusted? Books that balance or not, and each datum's amount against leaving it out.

    python experiments/counterfactual.py runs/demo

At steps spread over the run (those that begin at a snapshot) the change of a few probes is estimated from gradients at
the start, at the end, and by quadrature; and the loss on other texts is measured again with each datum left out of the
step. First-order influence scores are "gradient at the start".
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
import tyro
from rich.console import Console

from devinterp_func import (
    accounts,
    batches,
    bigram_corpus,
    keys,
    ledger,
    probes,
    records,
    results,
    tables,
    training,
    walks,
)
from devinterp_func.ledger import Entries
from devinterp_func.text import Corpus
from devinterp_func.transformer import Config


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""
    out: Path | None = None
    """Where the results go; by default beside the run, RUN-results."""
    steps: int = 25
    """So many steps, spread over the run's snapshots."""
    texts: int = 20
    """Texts of each loss probe."""
    nodes: tuple[int, ...] = (1, 2, 3, 4)
    """Nodes of the quadrature that are compared."""
    seed: int = 0
    """Of the draws and the bootstrap."""


def main(settings: Settings) -> Path:
    console, run, folder = Console(), settings.run, results.beside(settings.run, settings.out)
    origin = results.origin(run, settings)
    if results.is_done(folder, "counterfactual", origin):
        console.print(f"counterfactuals: done before, in {folder}")
        return folder
    config, recipe, corpus = training.load(run)
    key = keys.Key(settings.seed, ("counterfactual",))
    data = batches.chunk(corpus.train, recipe.context)
    others = keys.permutation(len(data.tokens), key=key)[: settings.texts]
    followed = [
        accounts.parse("loss", corpus, config, recipe, key=key, n=settings.texts)._replace(name="loss, validation"),
        probes.loss(data.tokens[others], data.targets[others], config, "loss, other training data"),
        *(
            accounts.parse(form, corpus, config, recipe, key=key)._replace(name=name)
            for name, form in forms(corpus, config).items()
        ),
    ]
    names = [probe.name for probe in followed]
    starts = [step for step in records.snapshots(run) if step < records.n_steps(run)]
    chosen = [starts[i] for i in torch.linspace(0, len(starts) - 1, min(settings.steps, len(starts))).long().tolist()]
    found: list[dict[int, Entries]] = []
    truth: dict[str, list[torch.Tensor]] = {name: [] for name in names[:2]}
    norms: list[torch.Tensor] = []
    for step in tables.watched(chosen, len(chosen), "leaving data out"):
        (move,) = walks.roll(run, step, step + 1, ledger.UNITS)
        found.append(ledger.by_nodes(move, followed, settings.nodes, start=True))
        for probe in followed[:2]:
            truth[probe.name].append(ledger.left_out(move, probe))
        norms.append(ledger.norms(move.factors).double())
    stacked = {
        m: Entries(*map(torch.stack, zip(*(entries[m] for entries in found), strict=True))) for m in settings.nodes
    }
    results.write_table(folder, "balance", balance := accounts.balance_frame(stacked, names, key=key))
    some, parts = stacked[max(settings.nodes)], []
    for i, (name, left) in enumerate(truth.items()):
        amounts = {"marginal": some.marginal, "credit": some.credit, "gradient at the start": some.start}
        scores = {what: x[:, i].sum(-1) for what, x in amounts.items()}
        scores["norm of the datum's delta"] = -torch.stack(norms)
        scores["random"] = keys.uniform(scores["marginal"].shape, 0, 1, key=key).double()
        frame = accounts.agreement_frame(scores, torch.stack(left), key=key)
        parts.append(frame.select(pl.lit(name).alias("probe"), pl.all()))
    results.write_table(folder, "agreement", agreement := pl.concat(parts))
    short = {"gradient at the start": "start", "gradient at the end": "end"}
    wide = balance.with_columns(pl.col("estimate").replace(short).str.replace("Gauss-Legendre, ", "m = "))
    wide = wide.pivot("estimate", index="probe", values="missed")
    console.print(tables.rich_table(wide, "missed, as a share of the probes' changes"))
    console.print(tables.rich_table(agreement, "rank correlation with leaving the datum out of the step", 60))
    results.finish(folder, "counterfactual", origin)
    return folder


def forms(corpus: Corpus, config: Config) -> dict[str, str]:
    """Probes beside the losses, by name."""
    words = corpus.vocab.decode(corpus.valid[:12])
    pair = bigram_corpus.characteristic(bigram_corpus.counts(corpus.train, config.vocab_size), 1, least=1)
    input, output = corpus.vocab.decode(torch.cat([pair.input, pair.output]))
    last = config.n_layers - 1
    return {
        "next word": f"next:{' '.join(words[:-1])} => {words[-1]}",
        f"bigram, {input} {output}": f"bigram:{input} {output}",
        "squared norm of a neuron": f"norm:layers.{last}.linear2.weight:0",
        "head on previous token": f"head:{last}.0 previous",
    }


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
