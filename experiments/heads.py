"""Which heads come to attend to what, and when: from ")" back to its "(", to the token before, to earlier ones.

    python experiments/heads.py runs/demo
    python experiments/heads.py runs/demo --pattern previous --pattern induction

At every snapshot, for every head: its attention on each pattern, and from other queries at the same distances for
control. Which data built a head is what ledger.py answers: --probe "head:0.1 bracket".
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import stage
import torch
import tyro

from devinterp_func import checks, keys
from devinterp_func.credit import patterns
from devinterp_func.credit.patterns import Pattern
from devinterp_func.records import Run
from devinterp_func.show import _credit_sections, results, tables, terminal


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]  # the run directory
    out: Path | None = None  # where the results go; by default beside the run, RUN-results
    pattern: Annotated[tuple[Literal["previous", "same", "induction", "bracket"], ...], tyro.conf.UseAppendAction] = ()
    """What is attended to; may be repeated. By default every pattern that occurs in the validation texts."""
    texts: int = 400  # validation texts in which a pattern occurs, at most
    seed: int = 0  # of the draw of texts


def main(settings: Settings) -> Path:
    work = stage.start("heads", settings)
    checks.integer("texts", settings.texts)
    if work.done:
        return work.folder
    run, rows, chosen = work.run, [], {}
    for name in settings.pattern or patterns.NAMES:
        found = occurrences(run, name, settings)
        if isinstance(found, str) and settings.pattern:
            raise ValueError(f"--pattern {name}: {found}")
        if isinstance(found, str):
            work.say(f"without the pattern {name}: {found}")
        else:
            chosen[name] = found
    if not chosen:
        raise ValueError("no pattern occurs in the validation texts; a longer text would have some")
    for step in terminal.watched(run.snapshots, len(run.snapshots), "attention at snapshots"):
        params = run.params(step)
        for name, (tokens, pattern) in chosen.items():
            attention = patterns.attention(run.graph, params, (tokens,), pattern)
            rows += tables.head_rows(name, step, attention)
    frame = tables.head_frame(rows)
    work.add("heads", tables.HEADS, frame)
    last = max(run.snapshots)
    work.show(tables.farthest_heads(frame, last, 3), f"heads farthest above their control, before step {last:,}")
    for name, figure in _credit_sections.head_figures(frame, run.steps_per_epoch).items():
        results.write_figure(work.folder, f"heads_{name}", figure)
    return work.finish()


def occurrences(run: Run, name: str, settings: Settings) -> tuple[torch.Tensor, Pattern] | str:
    """Drawn validation texts in which a pattern occurs, with their marked keys; or why there are none."""
    tokens, vocab = run.split("valid").tokens, run.corpus.vocab
    tokens = tokens[keys.permutation(len(tokens), key=keys.Key(settings.seed, ("heads",)))].to(run.device)
    if name == "bracket" and (missing := [repr(token) for token in "()" if token not in vocab]):
        return f"{' and '.join(missing)} {'are' if missing[1:] else 'is'} not in the vocabulary"
    pattern = patterns.by_name(name, tokens, vocab.index)
    there = pattern.any((1, 2))
    if not bool(there.any()):
        return f"it occurs in none of the {len(tokens)} validation texts"
    return tokens[there][: settings.texts], pattern[there][: settings.texts]


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
