"""Does training have phases, and do a few snapshots show them?

    python experiments/phases.py runs/demo                          # about as long as it took to train
    python experiments/phases.py runs/demo --stop 100 --window 10   # its beginning, in short windows

Every step is replayed and measured: how much its data did (past and decay, where the optimizer remembers or decays, are
left out), how they agree, how few of them do most, and what the model can predict by then. Several runs of one text,
such as seeds, are compared: do their change points agree? Interrupted, the same command goes on where it stopped. What
was measured at every step is in RUN-results/phases of each run, tables and figures in the results of the first.
"""

from dataclasses import dataclass
from pathlib import Path

import stage
import tyro
from torch import Tensor

from devinterp_func import bigram, checks, credit, keys, records
from devinterp_func.credit import Coherence
from devinterp_func.records import Run
from devinterp_func.show import results, tables, terminal
from devinterp_func.show._phase_sections import step_figures
from devinterp_func.tree import Params

SHOWN = ("dips", "changes", "segments", "makers", "coincidence", "answers", "courses")


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[tuple[Path, ...]]
    """The run directories: one, or several of one text."""
    out: Path | None = None
    """Where the results go; by default beside the first run, RUN-results."""
    start: int = 0
    """First step."""
    stop: int | None = None
    """Step to stop before; by default as far as each run is recorded."""
    window: int = 50
    """Steps that are put together."""
    every: int = 10
    """Steps from one measurement of the losses to the next; at most the window."""
    texts: int = 60
    """Validation texts whose losses are measured."""
    phrase: str = ""
    """Tokens, such as "= =": the texts with them are told apart in what stands beside the effective sample size."""
    common: int = 100
    """How many tokens count as common: unigram statistics predict them."""
    snapshots: int = 8  # how many are few
    seed: int = 0  # of the draws


def main(settings: Settings) -> Path:
    labels = tables.run_labels(settings.run)
    runs = [records.open(run) for run in settings.run]
    check(settings, runs)
    work, key, seeds = stage.start("phases", settings, run=runs[0]), keys.Key(settings.seed, ("phases",)), {}
    for label, run in zip(labels, runs, strict=True):
        records.open(run)  # again: the process takes each run's number of threads
        start, stop = run.span(settings.start, settings.stop)
        losses = losses_of(settings, run, key)
        steps = replayed(settings, run, losses, start, stop)
        phrase = [run.corpus.vocab.index(token) for token in settings.phrase.split()]
        frames, course, points = tables.phase_frames(label, run, steps, settings.window, phrase, key=key)
        seeds[label] = course, points
        near = [step for step in run.snapshots if start <= step <= stop]
        if len(near) >= credit.FEWEST_SNAPSHOTS:
            frames |= tables.snapshot_frames(label, run, frames["windows"], points, losses, near, settings.snapshots)
        else:
            work.say(f"{label}: {len(near)} snapshots of these steps, too few to look for phases among")
        for name, frame in frames.items():
            kind = tables.PHASE_TABLES[name]
            work.add(f"phases_{name}", kind, frame)
            if name in SHOWN:
                work.show(frame.drop("run"), f"{label}: {kind.caption}", kind=kind)
        if label == labels[0]:
            for name, figure in step_figures(frames["windows"], course, points, run.steps_per_epoch).items():
                results.write_figure(work.folder, name, figure)
    if len(seeds) > 1:
        agreement = tables.seed_frame(seeds, key=keys.fold_in(key, "seeds"))
        work.show(work.add("phases_seeds", tables.SEEDS, agreement), tables.SEEDS.caption)
    return work.finish()


def check(settings: Settings, runs: list[Run]) -> None:
    """All that can be seen before the work."""
    if not runs:
        raise ValueError("no run is given; name at least one run directory, such as runs/demo")
    checks.integer("--texts", settings.texts)
    checks.integer("--snapshots", settings.snapshots, least=credit.FEWEST_SNAPSHOTS)
    for run in runs:
        stage.require_text(run)
        for token in settings.phrase.split():
            run.corpus.vocab.index(token)
        start, stop = run.span(settings.start, settings.stop)
        credit.require_windows(stop - start, settings.window, settings.every)
        if run.manifest["data"] != runs[0].manifest["data"]:
            raise ValueError(f"{run} was trained on another text than {runs[0]}; runs of one text can be compared")


def losses_of(settings: Settings, run: Run, key: keys.Key) -> tables.Losses:
    """The losses of classes of positions of some validation texts, as a function of the weights."""
    held_out, V = run.split("valid"), run.graph.vocab_size
    texts = bigram.class_texts(held_out, run.corpus.train, V, settings.texts, settings.common, key=key)

    def losses(params: Params) -> Tensor:
        return bigram.class_losses(run.graph, params, texts)

    return losses


def replayed(settings: Settings, run: Run, losses: tables.Losses, start: int, stop: int) -> Coherence:
    """What each step is like; steps that were measured before are read."""
    what = {name: getattr(settings, name) for name in ("texts", "common", "seed")}
    slug = "-".join(f"{name}-{value}" for name, value in {"start": start, "every": settings.every, **what}.items())
    folder = results.beside(run) / "phases" / slug
    steps = credit.coherence(run, folder, losses, what, start=start, stop=stop, every=settings.every)
    for _ in terminal.watched(steps, stop - start, f"replaying {run}"):
        pass
    return Coherence(*(field[: stop - start] for field in records.read_walk(folder, Coherence)))


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
