"""Where to begin, on the run's page: what was found, the probes that were followed, the neurons moved most."""

from collections.abc import Iterator

import polars as pl
from markupsafe import Markup

from devinterp_func.show import page
from devinterp_func.show._summary import summary
from devinterp_func.show.explorer._lines import python
from devinterp_func.show.explorer._neurons_view import large_table, largest_neurons
from devinterp_func.show.explorer._probe_rows import ledger_frame, probe_rows
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._types import Links, Panel
from devinterp_func.show.explorer._words import said

NEURONS, PROBES, TEXTS = 6, 6, 2  # shown; texts of each probe
MADE = """The probes whose changes were split over the data, each with the texts that raised it most, each in a step of
its own. A probe's page has its course and all its texts."""
MOVED = "Each with the text that moved it most in a single step. A neuron's page has its life and all its texts."


def beginnings(site: Site, links: Links) -> Iterator[Panel]:
    """Panels to begin with: what was found, probes where the results have any, neurons."""
    if told := summary(site.run, site.folder):
        items = [page.links([page.prose(sentence) for sentence in told])]
        yield Panel("What was found", "", items, python(site, "dif.show.summary(site.run, site.folder)"), told)
    if site.vocab is not None and len(ledger_frame(site)):
        yield _probes(site, links)
    found = largest_neurons(site, NEURONS)
    lines = python(site, f"dif.show.explorer.largest_neurons(site, {NEURONS})")
    everyone = Markup("<p>{}</p>").format(links.a("all neurons", "neurons"))
    yield Panel("What moved the neurons", MOVED, [large_table(site, found, links), everyone], lines, found)


def _probes(site: Site, links: Links) -> Panel:
    texts = pl.DataFrame(probe_rows(site, "ledger_texts", effect="raised"))
    shown = texts.filter(pl.col("rank") <= TEXTS).unique(["probe", "datum"], keep="first", maintain_order=True)
    shown = shown.filter(pl.col("probe").is_in(shown["probe"].unique(maintain_order=True).head(PROBES)))
    frame = shown.select(
        "probe",
        "credit",
        pl.col("datum").map_elements(lambda datum: said(site, datum), return_dtype=pl.String).alias("text"),
        "datum",
    )
    lines = python(site, "dif.show.explorer.probe_rows(site, 'ledger_texts', effect='raised')")
    everyone = Markup("<p>{}</p>").format(links.a("all probes", "probes"))
    return Panel(
        "What built the probes", MADE, [page.table(frame, fold=None), everyone], lines, texts.to_dict(as_series=False)
    )
