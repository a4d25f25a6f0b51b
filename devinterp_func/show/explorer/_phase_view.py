"""A phase's page: its steps, what its data were, which units they moved."""

from collections.abc import Iterator
from typing import Any

import polars as pl
from jaxtyping import Float
from torch import Tensor

from devinterp_func.show import page, tables
from devinterp_func.show.explorer._lines import python
from devinterp_func.show.explorer._phase_tables import phase_table
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._spans import number
from devinterp_func.show.explorer._types import Links, NotThere, Panel, Query, View
from devinterp_func.show.explorer._words import said

STEPS = 10  # shown: those whose data moved the weights most


def view(site: Site, id: str, query: Query, links: Links) -> View:
    """One phase."""
    segments = phase_table(site, "segments")
    if segments is None:
        raise NotThere("the phases of this run were not looked for", [("how to", "phases", None)])
    phase = number(site, id, "phase", len(segments))
    row = segments.row(phase, named=True)
    panels = [_measures(site, segments, row), *_made(site, phase), _steps(site, row)]
    before = links("phase", phase - 1) if phase else None
    after = links("phase", phase + 1) if phase + 1 < len(segments) else None
    first, last = row["from"], min(row["to"], site.n_steps)
    told = links.a(f"Steps {first:,} to {last:,}", "run", None, start=first, stop=last) + ". "
    return View(f"Phase {phase}", panels, told + links.a("All phases", "phases"), before, after)


def _measures(site: Site, segments: pl.DataFrame, row: dict[str, Any]) -> Panel:
    """Its means beside those of the phase before."""
    at, names = row["phase"], [*tables.STEPWISE, *tables.LOSSES]
    columns = {"measure": names, "here": [row[name] for name in names]}
    if at:
        columns["in the phase before"] = [segments[name][at - 1] for name in names]
    table = page.table(pl.DataFrame(columns, strict=False), controls=[*columns][2:], fold=None)
    lines = python(site, "dif.show.explorer.phase_table(site, 'segments')")
    return Panel("What it is like", "Means over its steps.", [table], lines, segments)


def _made(site: Site, phase: int) -> Iterator[Panel]:
    """The units and data with most of the way, and their tokens."""
    makers = phase_table(site, "makers")
    if makers is None or not len(own := makers.filter(pl.col("phase") == phase)):
        return
    row, kind = own.row(0, named=True), tables.PHASE_TABLES["makers"]
    units = pl.DataFrame({"unit": row["units"], "share": row["shares of the units"]})
    datum = row["largest datum"]
    largest = pl.DataFrame({"largest datum": [datum], "text": [said(site, datum, 40)]})
    items = [
        page.table(units, "Units with most of its Σ‖Δ‖².", {"share": ".1%"}, fold=None),
        page.typed_table(own, kind, site.vocab, "", ["share of the top 1 %", "over-represented"]),
        page.table(largest, "The datum with the largest share."),
    ]
    lines = python(site, "dif.show.explorer.phase_table(site, 'makers')")
    yield Panel("What made it", "", items, lines, makers)


def steps_amounts(site: Site, start: int, stop: int) -> Float[Tensor, "T"]:
    """Σ|Δ| over the recorded outliers of all data of each of the steps start to stop − 1."""
    return site.index.course.amount[start:stop].sum(1)


def _steps(site: Site, row: dict[str, Any]) -> Panel:
    """The steps whose data moved the weights most."""
    start, stop = row["from"], min(row["to"], site.n_steps)
    amount = steps_amounts(site, start, stop)
    order = amount.argsort(descending=True, stable=True)[:STEPS]
    loss = site.index.course.loss[start:stop].mean(1)
    columns = {"step": (start + order).tolist(), "Σ|Δ|": amount[order].tolist(), "mean loss": loss[order].tolist()}
    lines = python(site, f"dif.show.explorer.steps_amounts(site, {start}, {stop})")
    lead = "Those whose data moved the weights most, by Σ|Δ| of recorded outliers."
    return Panel("Its steps", lead, [page.table(pl.DataFrame(columns), fold=None)], lines, amount)
