"""Which heads come to attend to what, and when: from ")" back to its "(", to the token before, to earlier ones.

    python experiments/heads.py runs/demo

At every snapshot, for every head: its attention on each pattern, and from other queries at the same distances for
control. Which data built a head is what ledger.py answers: --probe "head:2.1 bracket".
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import tyro
from rich.console import Console

from devinterp_func import accounts, batches, heads, keys, ledger_report, records, results, tables, training


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""
    out: Path | None = None
    """Where the results go; by default beside the run, RUN-results."""
    texts: int = 400
    """Validation texts in which a pattern occurs, at most."""
    seed: int = 0
    """Of the draw of texts."""


def main(settings: Settings) -> Path:
    console, run, folder = Console(), settings.run, results.beside(settings.run, settings.out)
    origin = results.origin(run, settings)
    if results.is_done(folder, "heads", origin):
        console.print(f"heads: done before, in {folder}")
        return folder
    config, recipe, corpus = training.load(run)
    data = batches.chunk(corpus.valid, recipe.context).tokens
    data = data[keys.permutation(len(data), key=keys.Key(settings.seed, ("heads",)))]
    chosen = {}
    for name in accounts.PATTERNS:
        pattern = accounts.pattern(name, data, corpus.vocab)
        there = pattern.any((1, 2))
        chosen[name] = data[there][: settings.texts], pattern[there][: settings.texts]
    rows: list[dict[str, object]] = []
    snapshots = records.snapshots(run)
    for step in tables.watched(snapshots, len(snapshots), "heads"):
        params = records.read_params(run, step)
        for name, (tokens, pattern) in chosen.items():
            found = heads.attention(params, tokens, pattern, config)
            for layer in range(config.n_layers):
                for head in range(config.n_heads):
                    row = {"pattern": name, "head": f"{layer}.{head}", "step": step, "queries": found.queries}
                    row["attention"] = float(found.value[layer, head])
                    rows.append(row | {"by distance": float(found.control[layer, head])})
    table = pl.DataFrame(rows).with_columns((pl.col("attention") - pl.col("by distance").fill_nan(0)).alias("above"))
    results.write_table(folder, "heads", table)
    best = ledger_report.farthest(table, snapshots[-1], 3)
    console.print(tables.rich_table(best, f"heads farthest above their control, before step {snapshots[-1]:,}"))
    per_epoch = training.epoch_length(corpus, recipe)
    for name, drawn in ledger_report.head_figures(table, per_epoch).items():
        results.write_figure(folder, name, drawn)
    results.finish(folder, "heads", origin)
    return folder


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
