"""What built a number? Splits every step's change of some probes over the data and token positions that caused it.

    python experiments/ledger.py runs/demo --stop 40                                    # the validation loss
    python experiments/ledger.py runs/demo --stop 40 --probe "bigram:of the" --probe "head:0.1 bracket"

Probes: loss; next:WORDS => WORD (its log-probability); bigram:WORD WORD; norm:NEURON; effect:NEURON WORD;
head:LAYER.HEAD PATTERN, where the pattern is previous, same, induction or bracket. Interrupted, the same command goes
on where it stopped. With past (earlier data's, through the optimizer's memory) and weight decay, credits add up to what
the probe really did; their sign is that of the probe's change. Tables hold all ledgers of a run; a probe's figure,
ledger_PROBE.svg, is of its last one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import polars as pl
import stage
import tyro

from devinterp_func import checks, credit, keys, records
from devinterp_func.credit import Entries
from devinterp_func.show import _credit_sections, results, tables, terminal, words

ENDS = (("start", "start"), ("end", "stop"))  # of a ledger: where the table has the value, and the step


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]  # the run directory
    out: Path | None = None  # where the results go; by default beside the run, RUN-results
    probe: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A number to follow; may be repeated. By default the loss."""
    start: int = 0  # first step
    stop: int | None = None  # step to stop before; by default as far as the run is recorded; later it may be larger
    nodes: int = 3  # of the quadrature: gradients of each probe a step, besides that at its end
    texts: int = 20  # of each probe that takes texts
    every: int = 10  # steps from one row to the next in the table of time courses
    seed: int = 0  # of the draw of texts


def main(settings: Settings) -> Path:
    work = stage.start("ledger", settings)
    run = work.run
    start, stop = run.span(settings.start, settings.stop)
    checks.integer("every", settings.every)
    names = list(dict.fromkeys(settings.probe or ("loss",)))
    entries = walked(work, names, start, stop, settings.nodes, settings.texts, settings.seed)
    ledger = tables.LedgerKey(start, stop, settings.nodes, settings.texts, settings.seed)
    frames = tables.ledger_frames(entries, names, ledger, run.data, run.graph.vocab_size, settings.every)
    for table, kind in tables.LEDGER_TABLES.items():
        work.add(table, kind, frames[table])
    for name in names:
        probe = {table: frame.filter(pl.col("probe") == name) for table, frame in frames.items()}
        figure = _credit_sections.course_figure(probe["ledger_courses"], run.steps_per_epoch)
        results.write_figure(work.folder, f"ledger_{results.slug(name)}", figure)
        show(work, probe)
    return work.finish()


def walked(work: stage.Stage, names: list[str], start: int, stop: int, nodes: int, texts: int, seed: int) -> Entries:
    """The ledger of some probes; steps that were split before are read."""
    key, about = keys.Key(seed, ("ledger",)), {"texts": texts, "seed": seed}
    checks.integer("nodes", nodes)
    followed = [credit.parse_probe(name, work.run, key=key, n=texts) for name in names]
    stem = f"ledger-{results.slug(' '.join(names))[:100]}-from-{start}"
    folder = work.walk_folder(stem, about | {"probes": names, "start": start, "m": nodes})
    steps = credit.ledger(work.run, folder, followed, start=start, stop=stop, m=nodes, about=about)
    for _ in terminal.watched(steps, stop - start, "splitting steps"):
        pass
    found = records.read_walk(folder, Entries)
    return Entries(*(field[: stop - start] for field in found))  # the walk may have gone farther before


def show(work: stage.Stage, probe: dict[str, pl.DataFrame]) -> None:
    """What a probe's ledger says, in words."""
    [row] = tables.ledger_summary(probe["ledger_courses"]).iter_rows(named=True)
    began, ended = (f"{row[f'at the {end}']:.4g} before step {row[step]:,}" for end, step in ENDS)
    rest = {name: row[name] for name in ("past", "decay") if row[name]}
    told = "".join(f"{name} {amount:+.4g}; " for name, amount in rest.items())
    books = f"its credits{', past and decay' if rest else ''} miss {row['missed']:.2%} of Σ|Δf|"
    work.say(f"\n{row['probe']}: {began}, {ended}; {told}{books}")
    shown = {name: frame.drop(tables.LEDGER_KEY) for name, frame in probe.items()}
    courses, vocab = shown["ledger_courses"], work.run.corpus.vocab
    work.show(courses.gather_every(max(1, len(courses) // 12)), "over training", 14)
    texts = []
    for row in shown["ledger_texts"].iter_rows(named=True):
        tokens, targets = (x[row["datum"]] for x in work.run.data)
        said = words.excerpt(tokens, targets, row["position"], vocab)
        texts.append({"credit": row["credit"], "steps": row["steps"], "text": str(said)})
    frame = pl.DataFrame(texts, {"credit": pl.Float64, "steps": pl.Int64, "text": pl.String})
    work.show(frame, "most credited texts, of either sign", 20, width=300)
    for name, title, rows in (("ledger_tokens", "by target token", 30), ("ledger_inputs", "by input token", 10)):
        work.show(words.spell(shown[name], tables.LEDGER_TABLES[name], vocab), title, rows)


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
