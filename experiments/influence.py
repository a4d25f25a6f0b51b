"""What would the end have been without each text? Goes back through training from a probe to all data before it.

    python experiments/influence.py runs/demo --start 300 --stop 330
    python experiments/influence.py runs/demo --stop 40 --probe "bigram:of the" --tried 10

An influence is the probe's derivative, at the end of the span, by the weight of a text's loss in a step, through every
step between: without it the probe would be less by it, to first order. Beside it stands the credit, what the text did
in its own step; that is another question. Influences are worth as much as training is smooth in the weights of its
data: so the last 10, 30, ... steps are trained again without random texts and held against the forecasts, and every
ranking says how far it can be believed. To help is to lower a loss and to raise any other probe. Probes are named as
for ledger.py. Interrupted, the same command goes on; with an earlier --start it goes on from what is there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import stage
import tyro

from devinterp_func import checks, credit, keys, records
from devinterp_func.credit import Curvature, DatumAmounts, Influences
from devinterp_func.credit.probes import Probe
from devinterp_func.show import _influence_sections, results, tables, terminal, words


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]  # the run directory
    out: Path | None = None  # where the results go; by default beside the run, RUN-results
    probe: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A number to follow; may be repeated. By default the loss."""
    start: int = 0  # first step
    stop: int | None = None  # step to stop before, where the probes are read; by default as far as the run is recorded
    curvature: Curvature = "hessian"  # exact; fisher takes the empirical Fisher in its place
    tried: int = 100
    """The farthest horizon, in steps, at which forecasts are tried; each takes as many trainings of so many steps as
    there are draws, and three more for metasmoothness. 0 tries none."""
    draws: int = 10  # removals of 5 % of all places at each horizon
    nodes: int = 2  # of the credits' quadrature along each step
    texts: int = 20  # of each probe that takes texts
    seed: int = 0  # of the draws of texts and of removals, and of the bootstrap
    block: int = 4  # steps held in memory at once; fewer take less of it and more time
    kept: int = 64  # weights and states held on the disk at once; fewer take less of it and more time
    scratch: Path | None = None  # a folder on that disk; by default where the system keeps temporary files


def main(settings: Settings) -> Path:
    work = stage.start("influence", settings)
    run, key = work.run, keys.Key(settings.seed, ("influence",))
    start, stop = run.span(settings.start, settings.stop)
    for name, least in (("nodes", 1), ("block", 1), ("kept", 2)):
        checks.integer(name, getattr(settings, name), least)
    checks.integer("draws", settings.draws, 4)
    horizons = credit.usual_horizons(stop - start, checks.integer("tried", settings.tried, 0))
    names = list(dict.fromkeys(settings.probe or ("loss",)))
    drawn = keys.Key(settings.seed, ("ledger",))  # the texts of ledger.py, so that the two can be compared
    followed = [credit.parse_probe(name, run, key=drawn, n=settings.texts) for name in names]
    found, credits = walked(settings, work, followed, names, start, stop)
    trials = []
    for horizon in terminal.watched(horizons, len(horizons), "trying"):
        window = credit.last_steps(run, stop, horizon)
        trials.append(credit.try_forecast(window, followed, found, draws=settings.draws, key=key))
    before = list(credit.probe_values(followed, run.params(start)).values())
    of = tables.InfluenceKey(start, stop, settings.curvature, settings.nodes, settings.texts, settings.seed)
    shown = found, credits, before, names, of, trials, run.steps_per_epoch
    frames = tables.influence_frames(*shown, random=key)
    for table, kind in tables.INFLUENCE_TABLES.items():
        work.add(table, kind, frames[table])
    for name in names:
        probe = {table: frame.filter(pl.col("probe") == name) for table, frame in frames.items()}
        figure = _influence_sections.growth_figure(probe["influence_courses"], run.steps_per_epoch)
        results.write_figure(work.folder, f"influence_{results.slug(name)}", figure)
        show(work, probe)
    return work.finish()


def walked(
    settings: Settings, work: stage.Stage, followed: list[Probe], names: list[str], start: int, stop: int
) -> tuple[Influences, Any]:
    """The span's influences and, of the same visits, the credits; steps that were walked before are read."""
    about, slug = {"texts": settings.texts, "seed": settings.seed}, results.slug(" ".join(names))[:80]
    what: dict[str, Any] = about | {"probes": names, "curvature": settings.curvature, "stop": stop}
    folder = work.walk_folder(f"influence-{slug}-to-{stop}", what)
    held: dict[str, Any] = {"block": settings.block, "kept": settings.kept, "scratch": settings.scratch}
    span: dict[str, Any] = {"start": start, "stop": stop}
    steps = credit.influence(work.run, folder, followed, curvature=settings.curvature, about=about, **span, **held)
    for _ in terminal.watched(steps, stop - start, "going back"):
        pass
    found = Influences(*(field[start - stop :] for field in records.read_walk_back(folder, Influences)))
    what = about | {"probes": names, "nodes": settings.nodes, "start": start}
    folder = work.walk_folder(f"credits-{slug}-from-{start}", what)
    for _ in terminal.watched(
        credit.datum_ledger(work.run, folder, followed, about, **span, m=settings.nodes), stop - start, "crediting"
    ):
        pass
    return found, records.read_walk(folder, DatumAmounts).credit[: stop - start]


def show(work: stage.Stage, probe: dict[str, pl.DataFrame]) -> None:
    """What a probe's influences say, in words."""
    [row] = probe["influences"].iter_rows(named=True)
    span = f"steps {row['start']:,} to {row['stop']:,}"
    work.say(f"\n{row['probe']}, {span}: {row['at the start']:.4g}, at the end {row['at the end']:.4g}")
    work.say(_influence_sections.verdict(row, probe["influence_horizons"]))
    shown = ("horizon", "step", "correlation", "low", "high", "slope", "metasmoothness", "growth", "verdict")
    work.show(probe["influence_horizons"].select(shown), "how far ahead", 12)
    interval = f"{row['rank correlation']:.3f} [{row['low']:.3f}, {row['high']:.3f}] over {row['data']:,} texts"
    work.say(f"influence (what would have been) and credit (what was applied): rank correlation {interval}")
    texts, vocab = probe["influence_texts"], work.run.corpus.vocab
    if warning := _influence_sections.warning(row, texts):
        work.say(warning.replace("`", ""))
    said = []
    for text in texts.iter_rows(named=True):
        tokens, targets = (x[text["datum"]] for x in work.run.data)
        said.append(str(words.excerpt(tokens, targets, text["position"], vocab)))
    columns = ("effect", "influence", "credit", "influence place", "credit place", "steps")
    work.show(texts.select(columns).with_columns(pl.Series("text", said, dtype=pl.String)), "texts", 20, width=200)


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
