"""Which amounts foretell what a datum changed? A bank of retrainings without some data, and scores judged by it.

    python experiments/judge.py runs/demo --start 300 --steps 20 --horizons 5 20 --draws 6   # without 5 % of all places
    python experiments/judge.py runs/demo --start 300 --steps 5 --kind visit --draws 10       # without single visits
    python experiments/judge.py runs/demo --start 300 --steps 5 --queries 3 --draws 6         # losses of single texts

Retrained are the steps from --start on, without a random --share of all places in their batches (subset), without
single places (visit), or without all places of single data (datum); dropout masks, order and rates are the run's. Each
training is read at all horizons. The bank keeps every retraining as it is made: interrupted, the same command goes on,
and --draws, --horizons and --probe can be added to. Probes are named as for ledger.py, scores are in judge_scores.py.

A score foretells minus the sum of what is removed. Its rank correlation with what retraining did is, of subsets, the
linear datamodeling score; the slope says whether sizes are right as well. --taken 0.25 0.5 retrains besides with a part
of the weight taken: where sums fail for whole removals and hold for small parts, effects of second order are why.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import stage
import torch
import tyro
from jaxtyping import Bool, Float
from judge_scores import EVERY, SCORES, Asked, influences, require
from torch import Tensor

from devinterp_func import batches, checks, credit, keys, records, tree
from devinterp_func.credit import Bank, RemovalKind, Window, probes
from devinterp_func.credit.probes import Probe
from devinterp_func.records import Run
from devinterp_func.show import results, schema, tables, terminal


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]  # the run directory
    start: int  # first step; the run has a snapshot before it
    out: Path | None = None  # where the results go; by default beside the run, RUN-results
    steps: int = 100  # so many steps are retrained
    horizons: tuple[int, ...] = ()
    """Steps from --start on after which probes are read; by default after the last."""
    kind: RemovalKind = "subset"  # what a retraining is without
    share: float = 0.05  # of all places in these steps' batches: of a subset
    draws: int = 40  # retrainings
    taken: tuple[float, ...] = ()
    """Retrainings besides, with such parts of the weights taken in place of all."""
    probe: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A number to follow, named as for ledger.py; may be repeated. By default the loss, if there are no queries."""
    queries: int = 0  # besides, the loss of so many validation data, each alone
    scores: tuple[str, ...] = tuple(SCORES)  # what is judged; also ekfac, trak and bm25
    nodes: int = 2  # of the quadrature of credits and lifetimes
    texts: int = 20  # of each probe that takes texts
    seed: int = 0  # of all draws
    block: int = 4  # steps held in memory at once by what goes backwards
    kept: int = 64  # weights and states it holds on the disk at once; fewer take less of it and more time
    scratch: Path | None = None  # a folder on that disk; by default where the system keeps temporary files
    only_retrain: bool = False  # fill the bank and judge nothing
    threads: int | None = None  # of the CPU; by default, and for all that is replayed, as the run was made


@dataclass(frozen=True)
class Job:
    """What is asked for, ready to be done."""

    settings: Settings
    work: stage.Stage
    window: Window
    followed: list[Probe]
    horizons: tuple[int, ...]
    removed: Bool[Tensor, "D S n"] = field(repr=False)

    @property
    def names(self) -> list[str]:
        return [probe.name for probe in self.followed]


def main(settings: Settings) -> Path:
    run = records.open(settings.run)
    if settings.threads is not None:
        torch.set_num_threads(checks.integer("threads", settings.threads))
    job = prepare(settings, run)
    if job.work.done:
        return job.work.folder
    banks = {taken: fill(job, taken) for taken in (1.0, *settings.taken)}
    if settings.only_retrain:
        return job.work.folder
    judge(job, banks)
    return job.work.finish()


def prepare(settings: Settings, run: Run) -> Job:
    """All that can be seen before the work."""
    window = credit.window(run, settings.start, settings.steps)
    horizons = credit.require_horizons(window, settings.horizons or (settings.steps,))
    datum, key = credit.window_data(window), keys.Key(settings.seed, ("judge",))
    draws = credit.require_draws(datum, settings.kind, settings.draws, settings.share)
    for name, least in (("nodes", 1), ("block", 1), ("kept", 2)):
        checks.integer(f"--{name}", getattr(settings, name), least)
    for taken in settings.taken:
        if not 0 < taken < 1:
            raise ValueError(f"--taken is {taken}; parts of a weight are between 0 and 1")
    followed = probes_of(settings, run)
    require(settings.scores, run, window, followed)
    own: dict[str, Any] = {"share": settings.share, "key": key}
    removed = torch.stack([credit.draw_removal(datum, settings.kind, draw, **own) for draw in range(draws)])
    work = stage.start(stem(settings, "judge"), settings, run=run, family="judge-", any_data=True)
    return Job(settings, work, window, followed, horizons, removed)


# ---- the bank


def fill(job: Job, taken: float) -> Bank:
    """The bank with every retraining that is asked for; those that it has are not made again."""
    settings, work, names = job.settings, job.work, job.names
    table = stem(settings, "bank", work.run) + (f"-taken-{taken:g}" if taken < 1 else "")
    bank = results.add_rows(work.folder, table, tables.BANK, schema.frame(tables.BANK, []))
    if taken < 1:  # the intact training is the same
        whole = results.read_table(work.folder, stem(settings, "bank", work.run), tables.BANK)
        bank = results.add_rows(work.folder, table, tables.BANK, whole.filter(pl.col("draw").is_null()))
    todo = tables.missing_draws(len(job.removed), job.horizons, names, bank)
    done = len(job.removed) + 1 - len(todo)
    for draw in terminal.watched(todo, len(job.removed) + 1, f"retraining, {taken:.0%} taken", first=done):
        without = None if draw is None else job.removed[draw]
        if without is None or taken == 1:
            values = credit.horizon_values(job.window, job.followed, job.horizons, removed=without)
        else:
            weights = 1 - taken * without.float()
            values = credit.horizon_values(job.window, job.followed, job.horizons, weights=weights)
        rows = tables.bank_frame(draw, job.horizons, names, values, without)
        bank = results.add_rows(work.folder, table, tables.BANK, rows)  # an interrupted call's stay
    work.say(f"{len(job.removed)} retrainings: {work.folder / table}.parquet")
    return tables.bank_of(bank, job.removed, job.horizons, names)


def stem(settings: Settings, family: str, run: Run | None = None) -> str:
    """The name of what these settings make; of a bank, of all that its draws and numbers follow from."""
    kind = f"{settings.kind}-{settings.share:g}" if settings.kind == "subset" else settings.kind
    found = f"{family}-{settings.start}-{settings.start + settings.steps}-{kind}-seed-{settings.seed}"
    found += f"-texts-{settings.texts}"
    return found if run is None else f"{found}-{run.manifest['digest'][:8]}"


def probes_of(settings: Settings, run: Run) -> list[Probe]:
    """The probes that are named, and the loss of single validation data: the first of those that ledger.py draws."""
    key = keys.Key(settings.seed, ("ledger",))
    names = list(dict.fromkeys(settings.probe or (() if settings.queries else ("loss",))))
    followed = [credit.parse_probe(name, run, key=key, n=settings.texts) for name in names]
    n = checks.integer("--queries", settings.queries, 0)
    if not n:
        return followed
    held_out = run.split("valid")
    if n > (there := batches.n_data(held_out)):
        raise ValueError(f"--queries is {n}, and the validation part has {there}")
    for datum in keys.permutation(there, key=key)[:n].tolist():
        one = tree.map(lambda x: x.to(run.device), batches.take(held_out, torch.tensor([datum])))
        followed.append(probes.loss(run.graph, tuple(one), f"loss of {datum}"))
    return followed


# ---- judging


def judge(job: Job, banks: dict[float, Bank]) -> None:
    """Tables of how each score foretells each probe, and all queries together, at every horizon."""
    settings, work, window = job.settings, job.work, job.window
    about = {"texts": settings.texts, "seed": settings.seed}
    held: dict[str, Any] = {name: getattr(settings, name) for name in ("block", "kept", "scratch")}
    asked = Asked(work, window, job.followed, about, held, settings.nodes, settings.seed)
    found = {name: {h: EVERY[name](asked, h) for h in job.horizons} for name in settings.scores}
    growth = {h: influences(asked, h).growth()[0] for h in job.horizons if "influence" in settings.scores}
    key = keys.Key(settings.seed, ("judge", "bootstrap"))
    smooth = credit.metasmoothness(window, job.horizons, key=keys.Key(settings.seed, ("metasmoothness",)))
    values = credit.probe_values(job.followed, window.params)
    before = torch.tensor(list(values.values()), dtype=torch.float64)
    for measured, own in groups(job).items():
        for taken, whole in banks.items():
            bank, of = whole.of(own), key_of(settings, taken)
            rows = [
                tables.judged_frame(
                    credit.judge(bank, h, {name: taken * at[h][own] for name, at in found.items()}, key=key),
                    of,
                    measured,
                )
                for h in job.horizons
            ]
            work.add("judge", tables.JUDGED, pl.concat(rows))
            grown = {h: float(each[own].mean()) for h, each in growth.items()}
            shown = tables.judged_horizon_frame(bank, before[own], smooth, grown, of, measured)
            work.add("judge_horizons", tables.JUDGED_HORIZONS, shown)
            reaches = {}
            if settings.kind == "subset":
                reaches = {name: credit.reach(bank, of_each(at, own), key=key) for name, at in found.items()}
            work.add("judge_reaches", tables.REACHES, tables.reach_frame(reaches, job.horizons, of, measured))
            show(work, f"{measured}, {taken:.0%} of the weight taken", pl.concat(rows), shown)


def of_each(scores: dict[int, Float[Tensor, "P h n"]], own: list[int]) -> dict[int, Float[Tensor, "Q h n"]]:
    """Scores of some of the probes, by horizon."""
    return {horizon: each[own] for horizon, each in scores.items()}


def groups(job: Job) -> dict[str, list[int]]:
    """Which probes are judged together: each that is named alone, and all queries."""
    single = len(job.followed) - job.settings.queries
    found = {name: [i] for i, name in enumerate(job.names[:single])}
    if job.settings.queries:
        found[f"mean of {job.settings.queries} queries"] = list(range(single, len(job.followed)))
    return found


def key_of(settings: Settings, taken: float) -> tables.JudgeKey:
    share = settings.share if settings.kind == "subset" else None
    stop = settings.start + settings.steps
    return tables.JudgeKey(settings.start, stop, settings.kind, share, taken, settings.texts, settings.seed)


def show(work: stage.Stage, title: str, judged: pl.DataFrame, horizons: pl.DataFrame) -> None:
    """What was found of one number."""
    told = ["horizon", "score", "rank", "rank low", "rank high", "slope", "behind", "behind low", "behind high"]
    work.show(judged.select(told), f"{title}: rank, size, and how far behind influence", 200)
    told = ["horizon", "metasmoothness", "growth", "change", "effect", "deviation"]
    work.show(horizons.select(told), f"{title}: how smooth, and what retraining did", 50)


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
