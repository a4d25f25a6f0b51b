"""A probe's page: its course with its credits, the data and tokens for and against it, its books."""

from collections.abc import Iterator
from typing import Any

import polars as pl
from markupsafe import Markup

from devinterp_func.show import _credit_sections, page, results, tables
from devinterp_func.show.drawing import NARROW, WIDE
from devinterp_func.show.explorer._charts import POINTS, hovering
from devinterp_func.show.explorer._datum_view import removal_form, ticked
from devinterp_func.show.explorer._lines import python
from devinterp_func.show.explorer._named import coloured, named
from devinterp_func.show.explorer._probe_rows import TABLES, ledger_frame, probe_frame, probes
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._types import Links, NotThere, Panel, Query, View
from devinterp_func.show.page import Excerpt, Word

DRAWN = 2  # ledgers in full; the others have their row on the page of all probes
TEXTS = 6
BOOKED = {"lifetimes": "Lifetimes", "influences": "Influences", "influence_horizons": "How far ahead"}
PLACED = {"lifetime_texts": "lifetimes", "influence_texts": "influence"}
SPLIT = {"ledger_tokens": "Tokens that were to be predicted", "ledger_inputs": "Tokens that were read"}
CAPTION = "Above, the probe; below, the credits of each window: data that raised it, and data that lowered it."
COLOURS = "Blue raised the probe, orange lowered it; a word's colour is the credit of predicting it."
BOOKS = """Raised, lowered, past and decay add up to the change, but for what the quadrature misses. Past is earlier
data's, through the optimizer's memory; decay is weight decay's."""


def view(site: Site, id: str, query: Query, links: Links) -> View:
    """All that the results hold of a probe."""
    known = probes(site)
    if id not in known:
        near = [(name, "probe", slug) for slug, names in known.items() for name in names]
        raise NotThere(f"no ledger, lifetime or influence of these results is of a probe {id!r}", near)
    panels = [panel for name in known[id] for panel in _of(site, name, links)]
    order = list(known)
    at = order.index(id)
    before = links("probe", order[at - 1]) if at else None
    after = links("probe", order[at + 1]) if at + 1 < len(order) else None
    return View(" and ".join(known[id]), panels, "A number that was followed through training.", before, after)


def _of(site: Site, probe: str, links: Links) -> Iterator[Panel]:
    ledgers = ledger_frame(site).filter(pl.col("probe") == probe)
    longest = ledgers.sort(pl.col("stop") - pl.col("start"), descending=True, maintain_order=True)
    for row in longest.head(DRAWN).iter_rows(named=True):
        key = {name: row[name] for name in tables.LEDGER_KEY}
        yield _course(site, row, key, links)
        yield from _texts(site, key, links)
        yield from _tokens(site, key, links)
    for name, title in BOOKED.items():
        found = probe_frame(site, name, probe=probe)
        if len(found):
            table = page.typed_table(found, TABLES[name], site.vocab, None, links=named(links))
            yield Panel(f"{title}: {probe}", "", [table], _line(site, name, {"probe": probe}), _plain(found))
    for name, title in PLACED.items():
        found = probe_frame(site, name, probe=probe)
        if len(found):
            yield _listed(site, name, f"Texts by {title}: {probe}", found, links)


def _course(site: Site, row: dict[str, Any], key: dict[str, Any], links: Links) -> Panel:
    """The ledger's books and its figure."""
    courses = probe_frame(site, "ledger_courses", **key)
    start, stop = row["start"], row["stop"]
    facts: dict[str, object] = {
        "at the start": (row["at the start"], f"before step {start:,}"),
        "at the end": (row["at the end"], f"before step {stop:,}"),
        "raised": (row["raised"], "sum of the positive credits"),
        "lowered": (row["lowered"], "sum of the negative credits"),
        "missed": (f"{row['missed']:.2%}", "of Σ|Δf|"),
    }
    facts |= {name: row[name] for name in ("past", "decay") if row[name]}
    per_epoch = site.run.steps_per_epoch
    figures = [_credit_sections.course_figure(courses, per_epoch, width) for width in (WIDE, NARROW)]
    told = courses.gather_every(max(1, -(-len(courses) // POINTS)))
    columns = ("value", "raised", "lowered")
    series = {name: (told["step"].to_torch(), told[name].to_torch()) for name in columns}
    to = links("step", 0).replace("0.html", "{}.html")
    drawn = hovering(figures[0], figures[1], series, CAPTION, f"{row['probe']} and its credits over training", to=to)
    span = f"Steps {start:,} to {stop:,}; {row['nodes']} nodes of the quadrature; seed {row['seed']}."
    items = [page.facts(facts), drawn]
    if site.jobs is not None:
        asked = {"job": "ledger", "probe": row["probe"], "start": start, "stop": min(site.n_steps, 2 * stop - start)}
        items.append(Markup("<p>{}</p>").format(links.a("Follow it farther …", "jobs", **asked)))
    lines = _line(site, "ledger_courses", key)
    return Panel(f"Its course: {row['probe']}", f"{span} {BOOKS}", items, lines, _plain(courses))


def _texts(site: Site, key: dict[str, Any], links: Links) -> Iterator[Panel]:
    """The most credited texts of either effect."""
    found = probe_frame(site, "ledger_texts", **key)
    if not len(found):
        return
    items = []
    for effect in ("raised", "lowered"):
        rows = found.filter((pl.col("effect") == effect) & (pl.col("rank") <= TEXTS)).sort("rank")
        if len(rows):
            parts = [_excerpt(site, row, links) for row in rows.iter_rows(named=True)]
            items.append(page.excerpts(parts, f"The texts that {effect} it most."))
    inside = Markup("").join(items)
    whole = inside if site.jobs is None else removal_form(inside, links)
    yield Panel("Texts for and against", COLOURS, [whole], _line(site, "ledger_texts", key), _plain(found))


def _excerpt(site: Site, row: dict[str, Any], links: Links) -> Excerpt:
    datum = row["datum"]
    tokens, targets = (ids[datum].tolist() for ids in site.run.data)
    assert site.vocab is not None
    (first,) = site.vocab.decode(tokens[:1])
    shown = [Word(links.a(first, "token", tokens[0])), *coloured(site, targets, row["credits"], links)]
    asked = {} if site.jobs is None else {"probe": results.slug(row["probe"])}
    named_so = links.a(f"datum {datum:,}", "datum", datum, **asked)
    steps = page.counted(row["steps"], "step")
    source = Markup("{}, in {}: credit {}").format(named_so, steps, page.shown(row["credit"]))
    return Excerpt(shown, source if site.jobs is None else source + Markup(" ") + ticked(datum))


def _tokens(site: Site, key: dict[str, Any], links: Links) -> Iterator[Panel]:
    """Targets of either effect, and inputs, with their credits."""
    for name, title in SPLIT.items():
        found = probe_frame(site, name, **key)
        if len(found):
            columns = [column for column in found.columns if column not in tables.LEDGER_KEY]
            table = page.typed_table(found, TABLES[name], site.vocab, None, columns, fold=12, links=named(links))
            yield Panel(title, "", [table], _line(site, name, key), _plain(found))


def _listed(site: Site, name: str, title: str, found: pl.DataFrame, links: Links) -> Panel:
    """Texts of lifetimes or influences as a table."""
    kinds = [column for column in found.columns if column not in (*tables.LEDGER_KEY, *tables.INFLUENCE_KEY)]
    columns = [column for column in kinds if found[column].dtype != pl.List]
    table = page.typed_table(found, TABLES[name], site.vocab, None, columns, fold=12, links=named(links))
    return Panel(title, "", [table], _line(site, name, {"probe": found["probe"][0]}), _plain(found))


def _line(site: Site, table: str, key: dict[str, Any]) -> str:
    told = ", ".join(f"{name}={value!r}" for name, value in key.items())
    return python(site, f"dif.show.explorer.probe_rows(site, {table!r}, {told})")


def _plain(found: pl.DataFrame) -> dict[str, list[object]]:
    return found.to_dict(as_series=False)
