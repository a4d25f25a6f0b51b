"""All probes of the results, and where a new one is asked for."""

from collections.abc import Iterator

import polars as pl

from devinterp_func.show import page, words
from devinterp_func.show.explorer._job_panels import form_panel
from devinterp_func.show.explorer._lines import python
from devinterp_func.show.explorer._named import named
from devinterp_func.show.explorer._probe_rows import TABLES, ledger_frame, probe_frame
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._types import Links, Panel, Query, View

TOLD = """A probe is any number that follows from the weights: a loss, a word's log-probability, an entry of the bigram
decoder, a head's attention. Replayed step by step, its change is split over the data that made it."""
LEDGERS = """What data did to each probe in their own steps. Raised and lowered are sums of credits of either sign;
missed is what all sums miss, by Σ|Δf|."""
LIFETIMES = """What data did in their own steps and, through the optimizer's memory, in all later ones of the span.
Lifetimes, decay, what entered with the memory and what is missed add up to the probe's change."""
INFLUENCES = """What the probe at the end of the span would be less by without data, to first order, and the farthest
horizon up to which this can be forecast."""
RETRAINED = """What leaving data out of some steps did to each number by their end, beside what their amounts foretold
and what as many random data did."""
OTHERS = {
    "lifetimes": ("Lifetimes", LIFETIMES),
    "influences": ("Influences", INFLUENCES),
    "retrain": ("Retrained without data", RETRAINED),
}
HIDDEN = ("nodes", "texts", "seed")


def view(site: Site, id: str, query: Query, links: Links) -> View:
    """Every ledger, lifetime and influence of the results."""
    panels = [*_there(site, links)]
    if not panels:
        told = "No script has followed a probe yet: `python experiments/ledger.py` does, and so does a job here."
        panels.append(Panel("None yet", told, [], python(site, "dif.show.explorer.probes(site)"), {}))
    if site.jobs is not None:
        panels.append(form_panel(site, "ledger", query, links, "A new one"))
    return View("Probes", panels, TOLD)


def _there(site: Site, links: Links) -> Iterator[Panel]:
    ledgers = ledger_frame(site)
    if len(ledgers):
        formats: dict[str, page.Format] = {"missed": ".2%"}
        shown = ledgers.drop(HIDDEN)
        parts = [name for name in ("past", "decay") if not (shown[name] != 0).any()]
        table = page.table(shown.drop(parts), "", formats, links=named(links))
        value = ledgers.to_dict(as_series=False)
        yield Panel("Ledgers", LEDGERS, [table], python(site, "dif.show.explorer.ledgers(site)"), value)
    for name, (title, lead) in OTHERS.items():
        found = probe_frame(site, name)
        if len(found):
            yield _books(site, title, lead, name, found, links)


def _books(site: Site, title: str, lead: str, name: str, found: pl.DataFrame, links: Links) -> Panel:
    columns = [column for column in found.columns if column not in HIDDEN]
    table = page.typed_table(found, TABLES[name], words.vocab_of(site.run), "", columns, links=named(links))
    lines = python(site, f"dif.show.explorer.probe_rows(site, {name!r})")
    return Panel(title, lead, [table], lines, found.to_dict(as_series=False))
