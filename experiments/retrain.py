"""Is a credit true? Retrains some steps without the data most credited for a probe, and without others.

    python experiments/retrain.py runs/demo --start 300 --steps 40 --shares 0.1 --draws 3     # the validation loss
    python experiments/retrain.py runs/demo --start 300 --steps 20 --shares 0.1 --draws 2 --probe "bigram:of the"
    python experiments/retrain.py runs/demo --start 300 --steps 20 --shares 0.1 --scores credit influence --among "("
    python experiments/retrain.py runs/demo --start 300 --steps 20 --shares --without 6 11          # these texts alone

Beside the credits: the norms of the data's deltas, and random draws. Measured are the probes and the loss on other
validation texts, after the same steps and after one more step on chosen data alone (without dropout). The optimizer's
memory is carried through both. To help is to
lower a loss and to raise any other probe. Interrupted, the same command goes on; shares, draws and scores can be added.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import polars as pl
import stage
import torch
import tyro
from torch import Tensor

from devinterp_func import batches, checks, credit, keys, records
from devinterp_func.credit import DatumAmounts, Influences, Window, probes
from devinterp_func.credit.probes import Probe
from devinterp_func.records import Run
from devinterp_func.show import results, schema, tables, terminal

OTHERS = "loss, other texts"
PROBES = ("nodes", "texts", "others", "seed")  # settings that, besides their names, say what probes are followed


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]  # the run directory
    start: int  # first step; the run has a snapshot before it
    out: Path | None = None  # where the results go; by default beside the run, RUN-results
    probe: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A number to follow, named as for ledger.py; may be repeated. By default the loss."""
    steps: int = 300  # so many steps are retrained
    shares: tuple[float, ...] = (0.01, 0.05, 0.1)  # of all places in these steps' batches: what is removed
    draws: int = 5  # random removals of each share
    scores: tuple[Literal["credit", "marginal", "at_start", "influence"], ...] = ("credit",)
    """Amounts by which data are chosen: of the ledger, where at_start is of the gradient before the step; or what the
    numbers after these steps would have been without them, to first order."""
    among: str = ""  # also remove random data of those with this token
    without: tuple[int, ...] = ()  # also remove these data, wherever they occur in these steps
    tail_draws: int = 10  # random batches of one more step
    nodes: int = 3  # of the quadrature
    texts: int = 20  # of each probe that takes texts
    others: int = 200  # other validation texts
    seed: int = 0  # of all draws


def main(settings: Settings) -> Path:
    run, names = records.open(settings.run), list(dict.fromkeys(settings.probe or ("loss",)))
    stage.require_text(run)
    check(settings, run)
    window, followed = credit.window(run, settings.start, settings.steps), probes_of(settings, run, names)
    given = occurrences(settings, run, window)
    about = "-".join(f"{name}-{getattr(settings, name)}" for name in PROBES)
    about += "-at-start" if "at_start" in settings.scores else ""
    stem = f"retrain-{window.start}-{window.stop}-{results.slug(' '.join(names))[:80]}-{about}"
    work, key = stage.start(stem, settings, run=run, family="retrain-"), keys.Key(settings.seed, ("retrain",))
    if work.done:
        return work.folder
    amounts = credited(settings, run, followed[:-1], window, work.folder / stem)
    more = influences(settings, run, followed[:-1], window, work.folder / f"{stem}-influence")
    scores, intact = amounts.scores(names, settings.scores, more), credit.retrain(window)
    before, end = (credit.probe_values(followed, params) for params in (window.params, intact.params))
    pools = {f"random, with {settings.among}": has_token(run, settings.among)[amounts.datum]} if settings.among else {}
    wanted = credit.removals(scores, settings.shares, settings.draws, key=key, among=pools, given=given)
    table = f"{stem}-outcomes"
    outcomes = results.add_rows(work.folder, table, tables.OUTCOMES, schema.frame(tables.OUTCOMES, []))
    todo = tables.missing_choices(wanted, end, outcomes)
    for choice in terminal.watched(todo, len(todo), "retraining"):
        effects = credit.probe_changes(followed, credit.retrain(window, wanted[choice]).params, end)
        predicted = tables.named_predictions(amounts.predicted(wanted[choice], more), names)
        rows = tables.outcome_frame(choice, int(wanted[choice].sum()), effects, predicted)
        outcomes = results.add_rows(work.folder, table, tables.OUTCOMES, rows)  # an interrupted call's stay
    tail = credit.tail_batches(scores, amounts.datum, settings.tail_draws, key=keys.Key(settings.seed, ("tail",)))
    patched = []
    for choice, ids in terminal.watched(tail.items(), len(tail), "one more step"):
        effects = credit.probe_changes(followed, credit.tail_patch(intact, ids, window), end)
        patched.append(tables.outcome_frame(choice, len(ids), effects))
    change = {name: value - before[name] for name, value in end.items()}
    removed = tables.removal_frame(outcomes, change, window.start, window.stop)
    patches = tables.patch_frame(pl.concat(patched), window.start, window.stop)
    work.add("retrain", tables.REMOVALS, removed)
    work.add("retrain_tail", tables.PATCHES, patches)
    for name, amount in change.items():
        work.say(f"{name}: {before[name]:.5g} before step {window.start:,}, {amount:+.4g} at the end")
    work.show(removed.select("measured", "share", "score", "effect", "SDs"), tables.REMOVALS.caption, 60)
    work.show(patches.select("measured", "score", "effect", "SDs"), tables.PATCHES.caption, 60)
    return work.finish()


def check(settings: Settings, run: Run) -> None:
    """All that can be seen before the work, but for what ``credit.window`` and the probes say."""
    for name in ("nodes", "texts", "others"):
        checks.integer(f"--{name}", getattr(settings, name))
    for name in ("draws", "tail_draws"):
        checks.integer(f"--{name}", getattr(settings, name), least=0)
    if not settings.scores:
        raise ValueError("--scores is empty; name at least one")
    if not settings.shares and not settings.without:
        raise ValueError("--shares is empty; name at least one, or data that --without leaves out")
    for share in settings.shares:
        credit.require_share(share)
    if settings.texts >= (there := len(run.split("valid").tokens)):
        raise ValueError(f"--texts is {settings.texts}, and the validation part has {there}: none is left for others")


def probes_of(settings: Settings, run: Run, names: list[str]) -> list[Probe]:
    """The probes that are named, and the loss on other texts than theirs."""
    key, n, data = keys.Key(settings.seed, ("ledger",)), settings.texts, run.split("valid")
    followed = [credit.parse_probe(name, run, key=key, n=n) for name in names]
    other = batches.take(data, keys.permutation(len(data.tokens), key=key)[n : n + settings.others])
    return [*followed, probes.loss(run.graph, tuple(other), OTHERS)]


def credited(settings: Settings, run: Run, followed: list[Probe], window: Window, folder: Path) -> DatumAmounts:
    """What each datum did to the probes; steps that were split before are read."""
    what = {name: getattr(settings, name) for name in PROBES}
    span, first = {"start": window.start, "stop": window.stop}, "at_start" in settings.scores
    steps = credit.datum_ledger(run, folder, followed, what, **span, m=settings.nodes, at_start=first)
    for _ in terminal.watched(steps, settings.steps, "crediting"):
        pass
    return records.read_walk(folder, DatumAmounts)


def influences(settings: Settings, run: Run, followed: list[Probe], window: Window, folder: Path) -> dict[str, Tensor]:
    """The influences of each datum of these steps on the probes after them, where data are chosen by them."""
    if "influence" not in settings.scores:
        return {}
    about = {name: getattr(settings, name) for name in ("texts", "seed")}
    steps = credit.influence(run, folder, followed, start=window.start, stop=window.stop, about=about)
    for _ in terminal.watched(steps, settings.steps, "going back"):
        pass
    return {"influence": records.read_walk_back(folder, Influences).influence.sum(-1)}


def occurrences(settings: Settings, run: Run, window: Window) -> dict[str, Tensor]:
    """Where the data that are named occur in the steps.

    Raises:
        ValueError: one of them does nowhere.
    """
    if not settings.without:
        return {}
    datum = torch.stack([record.datum for record in records.scan(run, window.start, window.stop)])
    if absent := [id_ for id_ in settings.without if not bool((datum == id_).any())]:
        raise ValueError(f"--without names datum {absent[0]}, which none of the steps of the {window} saw")
    return {_named(sorted(set(settings.without))): torch.isin(datum, torch.tensor(settings.without))}


def _named(ids: list[int], most: int = 8) -> str:
    """What a table calls the removal of some data; of many, by how many and a digest."""
    if len(ids) <= most:
        return f"without {', '.join(map(str, ids))}"
    return f"without {len(ids):,} data, {hashlib.sha256(repr(ids).encode()).hexdigest()[:8]}"


def has_token(run: Run, token: str) -> Tensor:
    """Which of the training texts have a token among their inputs or targets.

    Raises:
        ValueError: it is not in the vocabulary.
    """
    id_ = run.corpus.vocab.index(token)
    return torch.stack([(x == id_).flatten(1).any(1) for x in run.data]).any(0)


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
