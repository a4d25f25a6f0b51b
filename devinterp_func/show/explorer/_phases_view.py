"""The phases of the training: change points of its measures, and the phases between them."""

import polars as pl
import torch
from markupsafe import Markup

from devinterp_func import credit
from devinterp_func.show import page, results, tables
from devinterp_func.show._phase_sections import change_steps
from devinterp_func.show.explorer._charts import course
from devinterp_func.show.explorer._lines import python
from devinterp_func.show.explorer._phase_tables import phase_table
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._types import Links, Panel, Query, View

LEAD = """How much the data of a step did, how they agree, what can be predicted by then, in windows of steps. Where
these courses change together a new phase begins; whether they change at all stands beside each."""
TOLD = {  # table -> its panel's title
    "changes": "Change points",
    "makers": "What makes each phase",
    "coincidence": "Do they coincide?",
}


def view(site: Site, id: str, query: Query, links: Links) -> View:
    """All phases."""
    if site.vocab is None:
        return View("Phases", [Panel("None here", "Phases are told in words; the data of this run are no text.")])
    segments = phase_table(site, "segments")
    if segments is None:
        how = (
            f"Its phases were not looked for: `{results.command('phases', site.run)}` does it, by replaying all steps."
        )
        return View("Phases", [Panel("Not measured", how)])
    panels = [_segments(site, segments, links), _courses(site, links)]
    for name, title in TOLD.items():
        if (table := phase_table(site, name)) is not None:
            shown = page.typed_table(table.drop("run"), tables.PHASE_TABLES[name], site.vocab, fold=12)
            panels.append(Panel(title, "", [shown], _lines(site, name), table))
    return View("Phases", panels, page.counted(len(segments), "phase") + " by all measures together.")


def _lines(site: Site, name: str) -> str:
    return python(site, f"dif.show.explorer.phase_table(site, {name!r})")


def _segments(site: Site, segments: pl.DataFrame, links: Links) -> Panel:
    """Each phase with its steps."""
    kept = links_to_phases(segments, site, links)
    shown = page.typed_table(segments.drop("run"), tables.SEGMENTS, site.vocab, fold=12)
    return Panel("Phases", LEAD, [kept, shown], _lines(site, "segments"), segments)


def links_to_phases(segments: pl.DataFrame, site: Site, links: Links) -> Markup:
    """A list of the phases."""
    found = []
    for row in segments.iter_rows(named=True):
        told = f"phase {row['phase']}: steps {row['from']:,} to {row['to']:,}"
        found.append(links.a(told, "phase", row["phase"]))
    return page.links(found)


def _courses(site: Site, links: Links) -> Panel:
    """The losses of classes of positions with the change points of all measures."""
    windows, changes = phase_table(site, "windows"), phase_table(site, "changes")
    assert windows is not None and changes is not None  # written together
    whole = windows.filter(pl.col("units") == credit.ALL)
    steps = torch.tensor(whole["step"].to_list())
    series = {name: (steps, torch.tensor(whole[name].to_list(), dtype=torch.float64)) for name in tables.LOSSES}
    marks = tuple(change_steps(changes))
    to = links("step", 0).replace("0.html", "{}.html")
    caption = "Losses of classes of positions; dotted, the change points of all measures together."
    drawn = course(series, "loss, nats", caption, per_epoch=site.run.steps_per_epoch, marks=marks, to=to)
    return Panel("Courses", "", [drawn], _lines(site, "windows"), windows)
