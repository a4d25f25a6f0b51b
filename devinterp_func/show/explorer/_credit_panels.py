"""What a datum is credited with, by the walks that are in the results."""

import shlex
from collections.abc import Iterator, Sequence

import polars as pl
from markupsafe import Markup

from devinterp_func.show import page, results
from devinterp_func.show.explorer._lines import python
from devinterp_func.show.explorer._named import coloured, named
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._types import Links, NotThere, Panel
from devinterp_func.show.explorer._visits import Visits
from devinterp_func.show.explorer._walks import KINDS, SCRIPTS, Credited, credited, walks
from devinterp_func.show.page import Excerpt, Word

MOST = 6  # texts in colours
LEAD = """What it did to each probe that was followed through a step that saw it. A credit is what it did in its own
step, a lifetime credit that and what the optimizer's memory carried of it later; an influence is what the probe at the
end would be less by without it. Blue raised the probe, orange lowered it; a word's colour is that of predicting it."""


def credits(site: Site, datum: int, seen: Visits, probe: str | None, links: Links) -> list[Panel]:
    """A panel of all that is known, of one probe where it is asked for.

    Raises:
        NotThere: no walk follows that probe.
    """
    every = walks(site)
    known = {results.slug(name): name for walk in every for name in walk.probes}
    if probe is not None and probe not in known:
        raise NotThere(
            f"no ledger of these results follows a probe {probe!r}", [(n, "probe", s) for s, n in known.items()]
        )
    found = credited(site, datum, probe)
    lines = python(site, f"dif.show.explorer.credited(site, {datum}{'' if probe is None else f', {probe!r}'})")
    items = [page.table(_frame(found), fold=None, links=named(links))] if found else []
    items += _texts(site, datum, found[:MOST], links)
    items += _missing(
        site, seen, {walk.kind for walk in every if any(one.folder == walk.folder for one in found)}, links
    )
    if probe is None and len({one.probe for one in found}) > 1 and site.jobs is not None:
        chosen = [links.a(name, "datum", datum, probe=slug) for slug, name in known.items()]
        items.append(page.details("One probe alone", page.links(chosen)))
    return [Panel("Its credits", LEAD, items, lines, found)]


def _frame(found: Sequence[Credited]) -> pl.DataFrame:
    rows = [
        (one.probe, one.what, float(one.amounts.sum()), int(step), float(amounts.sum()))
        for one in found
        for step, amounts in zip(one.step, one.amounts, strict=True)
    ]
    names = {
        "probe": pl.String,
        "amount": pl.String,
        "in all": pl.Float64,
        "step": pl.Int64,
        "of this visit": pl.Float64,
    }
    return pl.DataFrame(rows, names, orient="row")


def _texts(site: Site, datum: int, found: Sequence[Credited], links: Links) -> Iterator[Markup]:
    """The text in the colours of each amount."""
    if site.vocab is None:
        return
    tokens, targets = (ids[datum].tolist() for ids in site.run.data)
    (first,) = site.vocab.decode(tokens[:1])
    parts = []
    for one in found:
        each = one.amounts.sum(0).tolist()
        if len(each) == len(targets):
            words = [Word(links.a(first, "token", tokens[0])), *coloured(site, targets, each, links)]
            source = Markup("{}: {} {}").format(_probe(one.probe, links), one.what, page.shown(sum(each)))
            parts.append(Excerpt(words, source))
    if parts:
        yield page.excerpts(parts)


def _probe(name: str, links: Links) -> Markup:
    return links.a(name, "probe", results.slug(name))


def _missing(site: Site, seen: Visits, there: set[str], links: Links) -> Iterator[Markup]:
    """What makes that which is not there."""
    steps = seen.step.tolist()
    if lacking := [kind for kind in KINDS if kind not in there] if steps else []:
        span = f"--start {steps[-1]} --stop {steps[-1] + 1}"
        run = shlex.quote(str(site.run.path))
        lines = "\n".join(f"python experiments/{SCRIPTS[kind]} {run} {span} --probe loss" for kind in lacking)
        told = f"No {', no '.join(lacking)} of these results covers a step that saw it. What makes one:"
        yield Markup('<p>{}</p><pre tabindex="0"><code>{}</code></pre>').format(told, lines)
    if steps and site.jobs is not None:
        asked = {"job": "ledger", "start": steps[-1], "stop": steps[-1] + 1}
        yield Markup("<p>{}</p>").format(links.a("Follow a probe through a step that saw it …", "jobs", **asked))
