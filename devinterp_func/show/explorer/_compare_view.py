"""The run beside others: their losses on one chart, what scripts found about each, neurons of the same name."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import polars as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from devinterp_func import records
from devinterp_func.records import Run
from devinterp_func.show import comparison, page, results, tables
from devinterp_func.show.explorer._charts import course
from devinterp_func.show.explorer._lines import python
from devinterp_func.show.explorer._site import Site, beside
from devinterp_func.show.explorer._spans import binned
from devinterp_func.show.explorer._types import Links, Panel, Query, View

NEURONS = 20  # shown: those with the most outliers in this run
NEURONS_TOLD = "Columns of the captured weights by their outliers over all indexed steps, in runs that have an index."


def view(site: Site, id: str, query: Query, links: Links) -> View:
    """Runs side by side."""
    if not site.others:
        how = f"`python experiments/explore.py {site.run.path} --against OTHER` opens this run beside another."
        return View("Compare", [Panel("No other run", how)])
    found = losses(site)
    series = {label: binned(values) for label, values in found.items()}
    to = links("step", 0).replace("0.html", "{}.html")
    drawn = course(
        series, "loss, nats", "Means over bins of steps, each run's own. A click opens a step of this run.", to=to
    )
    panels = [Panel("Loss", "", [drawn], python(site, "dif.show.explorer.losses(site)"), found)]
    panels += [*_neurons(site), *_tables(site)]
    return View("Compare", panels, f"`{site.run.path.name}` and {page.counted(len(site.others), 'other run')}.")


def labels(site: Site) -> dict[str, Run]:
    """All runs by what tells them apart, this one first."""
    runs = [site.run, *site.others]
    return dict(zip(tables.run_labels([run.path for run in runs]), runs, strict=True))


def losses(site: Site) -> dict[str, Float[Tensor, "T"]]:
    """The mean loss of each step of each run, nats."""
    return {label: _loss(site, run) for label, run in labels(site).items()}


def _loss(site: Site, run: Run) -> Float[Tensor, "T"]:
    if (index := _index(site, run)) is not None:
        return index.course.loss.mean(1)
    return _read_losses(run.path, run.n_steps)


@lru_cache(maxsize=8)
def _read_losses(run: Path, n_steps: int) -> Float[Tensor, "T"]:
    """Of a run without an index, from its steps."""
    return torch.stack([records.read(run, step).loss.mean() for step in range(n_steps)])


def _index(site: Site, run: Run) -> records.Index | None:
    """A run's index; None if it has none, or one of another run."""
    if run is site.run:
        return site.index
    path = beside(run)
    if not (path / "manifest.json").exists():
        return None
    index = records.read_index(path)
    return index if index.manifest["run"] == run.manifest["digest"] else None


def outliers_of_runs(site: Site) -> dict[str, Int64[Tensor, "G"]]:
    """How many outliers each column had in each run that has an index and units of the same shapes."""
    found = {}
    for label, run in labels(site).items():
        index = _index(site, run)
        if index is not None and run.shapes == site.run.shapes:
            found[label] = index.totals("in")
    return found


def _neurons(site: Site) -> Iterator[Panel]:
    """Neurons of the same name."""
    counts = outliers_of_runs(site)
    if len(counts) < 2:
        return
    members, own = site.groups["in"].members, next(iter(counts.values()))
    top = own.argsort(descending=True, stable=True)[:NEURONS]
    columns: dict[str, list[object]] = {"neuron": [str(members[i]) for i in top.tolist()]}
    columns |= {f"outliers, {label}": many[top].tolist() for label, many in counts.items()}
    lines = python(site, "dif.show.explorer.outliers_of_runs(site)")
    yield Panel("Neurons", NEURONS_TOLD, [page.table(pl.DataFrame(columns), fold=10)], lines, counts)


def compared(site: Site) -> pl.DataFrame:
    """What the same scripts found about each run (``comparison.COMPARISON``)."""
    return comparison.compare(comparison.sides([run.path for run in (site.run, *site.others)]))


def _tables(site: Site) -> Iterator[Panel]:
    """Topic by topic what the same scripts found about each."""
    lines = python(site, "dif.show.explorer.compared(site)")
    try:
        whole = compared(site)
    except (ValueError, results.Missing) as error:
        yield Panel("What scripts found", f"It cannot be compared: {error}")
        return
    items = [
        page.table(rows.drop("topic"), str(topic), fold=12)
        for (topic,), rows in comparison.side_by_side(whole).group_by("topic", maintain_order=True)
    ]
    yield Panel("What scripts found", "Controls are in brackets.", items, lines, whole)
