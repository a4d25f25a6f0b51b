"""Is a credit true? Retrains some steps without the data most credited for a probe, and without others.

    python experiments/retrain.py runs/demo --start 300 --steps 40 --shares 0.1 --draws 3     # the validation loss
    python experiments/retrain.py runs/demo --start 300 --steps 20 --shares 0.1 --draws 2 --probe "bigram:of the"
    python experiments/retrain.py runs/demo --start 300 --steps 20 --shares 0.1 --scores credit influence --among "("
    python experiments/retrain.py runs/demo --start 300 --steps 20 --shares 0.1 --scores lifetime --stances for against
    python experiments/retrain.py runs/demo --start 300 --steps 20 --shares --without 6 11          # these texts alone
    python experiments/retrain.py runs/demo-repeated --start 20 --steps 20 --shares --repeated --draws 2 --tail-draws 0

Beside each removal stand random ones: of all data, of those with a token (--among), and of equal norm, another datum of
nearly the same norm in place of each; and the removal of the largest. Measured are the probes and the loss on other
validation texts, after the same steps and after one more step on chosen data alone (without dropout). The optimizer's
memory is carried through both. To help is to lower a loss and to raise any other probe; --stances against removes what
worked against it. Interrupted, the same command goes on; shares, draws and scores can be added.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
import stage
import torch
import tyro
from repeats import repeats
from torch import Tensor

from devinterp_func import batches, checks, credit, keys, records
from devinterp_func.credit import Choice, DatumAmounts, Influences, Lifetimes, Retrained, Window, probes
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
    scores: tuple[Literal["credit", "marginal", "at_start", "lifetime", "influence"], ...] = ("credit",)
    """Amounts by which data are chosen: of the ledger, where at_start is of the gradient before the step; what they did
    in these steps through the optimizer's memory too; or what the numbers after these steps would have been without
    them, to first order."""
    stances: tuple[Literal["for", "against"], ...] = ("for",)
    """Remove what helped a number most, what worked against it most, or each in turn."""
    among: str = ""  # also remove random data of those with this token
    repeated: bool = False
    """Also remove all data that repeat their beginning (capture.py --repeated), all others, random ones of either."""
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
    more |= lifetimes(settings, run, followed[:-1], window, work.folder / f"{stem}-lifetime")
    scores, intact = amounts.scores(names, settings.scores, more, settings.stances), credit.retrain(window)
    before, end = (credit.probe_values(followed, params) for params in (window.params, intact.params))
    pools = pools_of(settings, run, amounts.datum)
    size: dict[str, Any] = {"key": key, "among": pools, "given": given, "norms": amounts.norm}
    wanted = credit.removals(scores, settings.shares, settings.draws, **size)
    predicted = {
        c: tables.named_predictions(amounts.predicted(left_out, more), names) for c, left_out in wanted.items()
    }
    outcomes = measure(work, f"{stem}-outcomes", followed, window, wanted, end, predicted)
    change = {name: value - before[name] for name, value in end.items()}
    norms = {choice: float(amounts.norm[left_out].mean()) for choice, left_out in wanted.items()}
    span, ends = (window.start, window.stop), amounts.scores(names, settings.scores, more)
    removed, controls = tables.removal_frame(outcomes, change, *span), tables.control_frame(outcomes, norms, *span)
    patches = tables.patch_frame(tails(settings, followed, window, intact, end, ends, amounts.datum), *span)
    work.add("retrain", tables.REMOVALS, removed)
    work.add("retrain_controls", tables.REMOVAL_CONTROLS, controls)
    work.add("retrain_tail", tables.PATCHES, patches)
    for name, amount in change.items():
        work.say(f"{name}: {before[name]:.5g} before step {window.start:,}, {amount:+.4g} at the end")
    beside = ("measured", "share", "score", "control", "difference", "SDs", "SDs low", "SDs high")
    work.show(removed.select("measured", "share", "score", "effect", "SDs"), tables.REMOVALS.caption, 60)
    work.show(controls.select(beside), tables.REMOVAL_CONTROLS.caption, 60)
    work.show(patches.select("measured", "score", "effect", "SDs"), tables.PATCHES.caption, 60)
    return work.finish()


def measure(
    work: stage.Stage,
    table: str,
    followed: list[Probe],
    window: Window,
    wanted: dict[Choice, Tensor],
    end: dict[str, float],
    predicted: dict[Choice, dict[str, dict[str, float]]],
) -> pl.DataFrame:
    """What every removal did; those that a table of outcomes has are not made again."""
    outcomes = results.add_rows(work.folder, table, tables.OUTCOMES, schema.frame(tables.OUTCOMES, []))
    todo = tables.missing_choices(wanted, end, outcomes)
    for choice in terminal.watched(todo, len(todo), "retraining"):
        effects = credit.probe_changes(followed, credit.retrain(window, wanted[choice]).params, end)
        rows = tables.outcome_frame(choice, int(wanted[choice].sum()), effects, predicted[choice])
        outcomes = results.add_rows(work.folder, table, tables.OUTCOMES, rows)  # an interrupted call's stay
    return outcomes


def tails(
    settings: Settings,
    followed: list[Probe],
    window: Window,
    intact: Retrained,
    end: dict[str, float],
    scores: dict[str, Tensor],
    datum: Tensor,
) -> pl.DataFrame:
    """What one more step on chosen data did."""
    tail = credit.tail_batches(scores, datum, settings.tail_draws, key=keys.Key(settings.seed, ("tail",)))
    patched = []
    for choice, ids in terminal.watched(tail.items(), len(tail), "one more step"):
        effects = credit.probe_changes(followed, credit.tail_patch(intact, ids, window), end)
        patched.append(tables.outcome_frame(choice, len(ids), effects))
    return pl.concat(patched)


def check(settings: Settings, run: Run) -> None:
    """All that can be seen before the work, but for what ``credit.window`` and the probes say."""
    for name in ("nodes", "texts", "others"):
        checks.integer(f"--{name}", getattr(settings, name))
    for name in ("draws", "tail_draws"):
        checks.integer(f"--{name}", getattr(settings, name), least=0)
    if not settings.scores:
        raise ValueError("--scores is empty; name at least one")
    if not (settings.shares or settings.without or settings.repeated):
        raise ValueError("--shares is empty; name at least one, or data that --without leaves out")
    if settings.repeated:
        repeats(run, "train")  # refuses a run without such texts
    if not settings.stances:
        raise ValueError("--stances is empty; name for, against, or both")
    for share in settings.shares:
        credit.require_share(share)
        if share > 0.5:
            raise ValueError(f"--shares names {share}; at most 0.5, as so many others of equal norm are removed too")
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


def lifetimes(settings: Settings, run: Run, followed: list[Probe], window: Window, folder: Path) -> dict[str, Tensor]:
    """What each datum did to the probes by the end of these steps, where data are chosen by it."""
    if "lifetime" not in settings.scores:
        return {}
    about = {name: getattr(settings, name) for name in ("texts", "seed")}
    span: dict[str, Any] = {"start": window.start, "stop": window.stop, "m": settings.nodes}
    steps = credit.lifetime(run, folder, followed, about=about, **span)
    for _ in terminal.watched(steps, settings.steps, "going back over memory"):
        pass
    return {"lifetime": records.read_walk(folder, Lifetimes).lifetime.sum(-1)}


def pools_of(settings: Settings, run: Run, datum: Tensor) -> dict[str, Tensor]:
    """Of which occurrences other random ones are drawn."""
    pools = {f"random, with {settings.among}": has_token(run, settings.among)[datum]} if settings.among else {}
    own = repeats(run, "train")[datum] if settings.repeated else None
    return pools if own is None else pools | {"random, repeated": own, "random, not repeated": ~own}


def occurrences(settings: Settings, run: Run, window: Window) -> dict[str, Tensor]:
    """Where the data that are named occur in the steps.

    Raises:
        ValueError: one of them does nowhere.
    """
    if not (settings.without or settings.repeated):
        return {}
    datum = torch.stack([record.datum for record in records.scan(run, window.start, window.stop)])
    own = repeats(run, "train")[datum] if settings.repeated else None
    given = {} if own is None else {"all repeated": own, "all not repeated": ~own}
    if absent := [id_ for id_ in settings.without if not bool((datum == id_).any())]:
        raise ValueError(f"--without names datum {absent[0]}, which none of the steps of the {window} saw")
    if settings.without:
        given[_named(sorted(set(settings.without)))] = torch.isin(datum, torch.tensor(settings.without))
    return given


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
