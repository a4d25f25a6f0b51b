"""A datum's page: its text in its surroundings, what each visit moved and undid, and what it is credited with."""

import polars as pl
from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from devinterp_func import records, text
from devinterp_func.show import page
from devinterp_func.show.explorer._credit_panels import credits
from devinterp_func.show.explorer._lines import python
from devinterp_func.show.explorer._named import coloured, named
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._spans import number
from devinterp_func.show.explorer._types import Links, Panel, Query, View
from devinterp_func.show.explorer._visit_panels import undone, visit
from devinterp_func.show.explorer._visits import Visits, positions, visits
from devinterp_func.show.explorer._words import said
from devinterp_func.show.page import Excerpt, Word

AROUND = 2  # data before and after that are shown
TEXT = """Data are cut from one text in order. The deeper a token's colour, the more of the datum's recorded shifts, by
Σ|Δ| over all its visits, were moved most where it stands; a click leads to the token."""
OTHER = "Σ|Δ| of the recorded shifts that were moved most at each position, over all visits."
VISITS = """Each step that saw it. Σ|Δ| is over its recorded outliers, the weights that it moved most; the share is of
that of all data of the step."""


def view(site: Site, id: str, query: Query, links: Links) -> View:
    """What a datum is and what it did."""
    datum = number(site, id, "datum", site.run.n_data)
    seen = visits(site, datum)
    panels = [_text(site, datum, links), _visits(site, datum, seen, links)]
    panels += credits(site, datum, seen, query.get("probe") or None, links)
    for step, row in zip(seen.step.tolist(), seen.row.tolist(), strict=True):
        record = records.read(site.run, step)
        panels += [visit(site, record, row, links), undone(site, record, row, links)]
    before = links("datum", datum - 1) if datum else None
    after = links("datum", datum + 1) if datum + 1 < site.run.n_data else None
    many = f"Seen in {page.counted(len(seen.step), 'step')} of {site.n_steps:,}." if len(seen.step) else "Not seen yet."
    return View(f"Datum {datum:,}", panels, many + _source(site, datum), before, after)


def _source(site: Site, datum: int) -> Markup:
    """Which document it is from, where the text has several."""
    documents = site.run.corpus.documents if site.vocab is not None else None
    if documents is None or len(documents.names) < 2:
        return Markup("")
    which = int(text.document_of(documents, site.run.recipe.context, site.index.course.datum.new_tensor(datum)))
    return Markup(" From “{}”.").format(documents.names[which])


def _text(site: Site, datum: int, links: Links) -> Panel:
    """The text, the data before and after it, and where it moved the weights; of other data the positions."""
    amounts = positions(site, datum)
    lines = python(site, f"dif.show.explorer.positions(site, {datum})")
    if site.vocab is None:
        top = amounts.argsort(descending=True, stable=True)[:10]
        frame = pl.DataFrame({"position": top.tolist(), "Σ|Δ|": amounts[top].tolist()})
        return Panel(said(site, datum) or "Its tensors", OTHER, [page.table(frame)], lines, amounts)
    around = range(max(0, datum - AROUND), min(site.run.n_data, datum + AROUND + 1))
    parts = [_excerpt(site, near, amounts if near == datum else None, links) for near in around]
    return Panel("Its text", TEXT, [page.excerpts(parts), _removal(site, datum, around, links)], lines, amounts)


def _excerpt(site: Site, datum: int, amounts: Float[Tensor, "C"] | None, links: Links) -> Excerpt:
    """The datum's text in colours, or that of one beside it."""
    if amounts is None:
        return Excerpt([Word(said(site, datum, 1000))], links.a(f"datum {datum:,}", "datum", datum))
    return Excerpt(coloured(site, site.run.data.tokens[datum].tolist(), amounts.tolist(), links), f"datum {datum:,}")


def _removal(site: Site, datum: int, around: range, links: Links) -> Markup:
    """Boxes to tick: what to retrain without."""
    if site.jobs is None:
        return Markup("")
    boxes = Markup(" ").join(ticked(near, near == datum) for near in around)
    return removal_form(Markup("<p>{}</p>").format(boxes), links)


def ticked(datum: int, checked: bool = False) -> Markup:
    """A box that chooses a datum to be left out."""
    box = '<label><input type="checkbox" name="without" value="{}"{}> datum {}</label>'
    return Markup(box).format(datum, Markup(" checked") if checked else "", f"{datum:,}")


def removal_form(inside: Markup, links: Links) -> Markup:
    """A form around boxes of ``ticked``: it leads to the job's own form, which says what it costs."""
    return Markup(
        '<form class="ticks" method="get" action="{}"><input type="hidden" name="job" value="retrain">{}'
        "<p><button>Retrain without those ticked …</button></p></form>"
    ).format(links("jobs"), inside)


def _visits(site: Site, datum: int, seen: Visits, links: Links) -> Panel:
    """When it was seen, and how much it moved."""
    epoch = seen.step // site.run.steps_per_epoch
    columns = {"step": seen.step, "epoch": epoch, "row": seen.row, "loss": seen.loss, "Σ|Δ|": seen.amount}
    shown = pl.DataFrame({name: column.tolist() for name, column in (columns | {"share": seen.share}).items()})
    lines = python(site, f"dif.show.explorer.visits(site, {datum})")
    table = page.table(shown, formats={"share": ".1%"}, fold=None, links=named(links))
    return Panel("Its visits", VISITS, [table], lines, seen)
