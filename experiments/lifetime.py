"""What did each text do in the end? Follows every gradient through the optimizer's memory, over a span of steps.

    python experiments/lifetime.py runs/demo --start 100 --stop 140
    python experiments/lifetime.py runs/demo --stop 40 --probe "bigram:of the" --probe "head:0.1 bracket"

With momentum, Adam or Muon a text acts on after its own step. Its lifetime is what it did to a probe up to the end of
the span; its present credit, as in ledger.py, is the part of its own step. Lifetimes, weight decay and what entered
with the memory add up to what the probe did. The span is walked backwards, as a whole: interrupted, it begins again.
Probes are named as for ledger.py; of the post's model each takes 0.05 GB of memory a step of a block (--block).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import stage
import tyro

from devinterp_func import checks, credit, keys, records
from devinterp_func.credit import Lifetimes
from devinterp_func.show import results, tables, terminal, words


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]  # the run directory
    out: Path | None = None  # where the results go; by default beside the run, RUN-results
    probe: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A number to follow; may be repeated. By default the loss."""
    start: int = 0  # first step
    stop: int | None = None  # step to stop before; by default as far as the run is recorded
    nodes: int = 2  # of the quadrature along each step: gradients of each probe
    texts: int = 20  # of each probe that takes texts
    seed: int = 0  # of the draw of texts, and of the bootstrap
    block: int = 8  # steps held in memory at once; fewer take less of it and more time
    kept: int = 64  # weights and states held on the disk at once; fewer take less of it and more time
    scratch: Path | None = None  # a folder on that disk; by default where the system keeps temporary files


def main(settings: Settings) -> Path:
    work = stage.start("lifetime", settings)
    run, key = work.run, keys.Key(settings.seed, ("lifetime",))
    start, stop = run.span(settings.start, settings.stop)
    checks.integer("nodes", settings.nodes)
    names = list(dict.fromkeys(settings.probe or ("loss",)))
    drawn = keys.Key(settings.seed, ("ledger",))  # the texts of ledger.py, so that the two can be compared
    followed = [credit.parse_probe(name, run, key=drawn, n=settings.texts) for name in names]
    about = {"texts": settings.texts, "seed": settings.seed}
    span: dict[str, Any] = {"start": start, "stop": stop, "m": settings.nodes}
    stem = f"lifetime-{results.slug(' '.join(names))[:100]}-{start}-{stop}"
    folder = work.walk_folder(stem, about | {"probes": names} | span)
    span |= {"block": settings.block, "kept": settings.kept, "scratch": settings.scratch}
    for _ in terminal.watched(credit.lifetime(run, folder, followed, about=about, **span), stop - start, "going back"):
        pass
    found = records.read_walk(folder, Lifetimes)
    ledger = tables.LedgerKey(start, stop, settings.nodes, settings.texts, settings.seed)
    frames = tables.lifetime_frames(found, names, ledger, random=key)
    for table, kind in tables.LIFETIME_TABLES.items():
        work.add(table, kind, frames[table])
    for name in names:
        show(work, {table: frame.filter(pl.col("probe") == name) for table, frame in frames.items()})
    return work.finish()


def show(work: stage.Stage, probe: dict[str, pl.DataFrame]) -> None:
    """What a probe's lifetimes say, in words."""
    [row] = probe["lifetimes"].iter_rows(named=True)
    change = row["at the end"] - row["at the start"]
    work.say(f"\n{row['probe']}, steps {row['start']:,} to {row['stop']:,}: its change is {change:.4g}")
    parts = ("lifetimes", "decay", "entering", "missed", "unexplained")
    work.say(", ".join(f"{name} {row[name]:.4g}" for name in parts))
    interval = f"{row['rank correlation']:.3f} [{row['low']:.3f}, {row['high']:.3f}] over {row['steps']:,} steps"
    work.say(f"present credits {row['present']:.4g}; rank correlation with lifetimes, median: {interval}")
    texts, vocab = probe["lifetime_texts"], work.run.corpus.vocab
    said = []
    for text in texts.iter_rows(named=True):
        tokens, targets = (x[text["datum"]] for x in work.run.data)
        said.append(str(words.excerpt(tokens, targets, text["position"], vocab)))
    columns = ("why", "present", "lifetime", "present place", "lifetime place")
    work.show(texts.select(columns).with_columns(pl.Series("text", said, dtype=pl.String)), "texts", 30, width=200)


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
