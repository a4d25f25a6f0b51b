"""Can layers be read in other bases than the neurons'? Singular directions of what each unit gained, and their tokens.

    python experiments/bases.py runs/demo                                 # over the whole run
    python experiments/bases.py runs/post --start 976 --stop 1464         # between two snapshots: two minutes

For every unit of the layers: its leading singular pairs, the single weights that changed most, and random rotations for
control. Each one's change is split over target and input tokens, and how far these are from the usual tokens is
compared.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console

from devinterp_func import bases, keys, records, results, tables, training, walks


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""
    out: Path | None = None
    """Where the results go; by default beside the run, RUN-results."""
    start: int = 0
    """First step."""
    stop: int | None = None
    """Step to stop before; by default as far as the run is recorded."""
    pairs: int = 8
    """Pairs of directions of each kind in each unit."""
    seed: int = 0
    """Of the rotations."""


def main(settings: Settings) -> Path:
    console, run, folder = Console(), settings.run, results.beside(settings.run, settings.out)
    start, stop = walks.span(run, settings.start, settings.stop)
    stem, origin = f"bases-{start:06d}", results.origin(run, settings)
    if results.is_done(folder, stem, origin):
        console.print(f"bases: done before, in {folder}")
        return folder
    torch.set_num_threads(records.manifest(run)["threads"])  # the same bits need the same threads
    _, _, corpus = training.load(run)
    before, after = walks.weights(run, start), walks.weights(run, stop)
    key, r = keys.Key(settings.seed, ("bases",)), settings.pairs
    directions, names = {}, []
    for unit in training.shapes(run):
        change = after[unit] - before[unit]
        kinds = (
            bases.singular(change, r),
            bases.largest(change, r),
            bases.rotated(change, r, key=keys.fold_in(key, unit)),
        )
        directions[unit] = bases.Directions(*map(torch.cat, zip(*kinds, strict=True)))
        names += [(unit, kind, rank) for kind in bases.KINDS for rank in range(r)]
    *_, (_, tallies) = tables.watched(bases.over(run, directions, start, stop), stop - start, "walking")
    table = bases.frame(tallies, names)
    results.write_table(folder, stem, table)
    results.write_table(folder, f"{stem}_units", summary := bases.summary(table))
    results.write_table(folder, f"{stem}_words", words := bases.words_frame(tallies, names, corpus.vocab))
    for side in ("target", "input"):
        columns = [c for c in summary.columns if c.startswith(side)]
        short = summary.select("unit", *columns).rename({c: c.removeprefix(f"{side}: ") for c in columns})
        console.print(tables.rich_table(short, f"divergence of {side} tokens from the usual, nats: medians over pairs"))
    leading = words.filter((words["kind"] == "singular") & (words["rank"] == 0))
    console.print(
        tables.rich_table(leading.select("unit", "target: up", "input: up"), "the leading singular pair's tokens", 20)
    )
    results.finish(folder, stem, origin)
    return folder


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
