"""All heads: how far above its control each attends to each pattern over training."""

import polars as pl
from markupsafe import Markup

from devinterp_func.show import page, results
from devinterp_func.show.explorer._attention import heads
from devinterp_func.show.explorer._head_courses import head_course, heads_in_order
from devinterp_func.show.explorer._lines import python
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._spark import spark
from devinterp_func.show.explorer._types import Links, NotThere, Panel, Query, View

LEAD = """Attention to the keys that a pattern marks, less what the same head gives, from other queries, to keys at the
same distances, at every snapshot; the number is the highest on the way. Heads that come farthest above their control
stand first. Every query has a token before it, so that the pattern previous has no control; it does not count in the
order."""


def view(site: Site, id: str, query: Query, links: Links) -> View:
    """All heads and patterns."""
    try:
        n_layers, n_heads = heads(site)
    except NotThere as error:
        return View("Heads", [Panel("None here", f"{error}.")])
    told = f"{n_layers * n_heads:,} heads: {n_layers:,} layers of {n_heads:,}."
    table = heads_in_order(site)
    panel = _unmeasured(site, links) if table is None else _courses(site, table, links)
    return View("Heads", [panel], told)


def _unmeasured(site: Site, links: Links) -> Panel:
    """Links to all heads, and what would measure them."""
    n_layers, n_heads = heads(site)
    names = [f"{layer}.{head}" for layer in range(n_layers) for head in range(n_heads)]
    lead = f"What they attend to over training was not measured: `{results.command('heads', site.run)}` does it."
    return Panel("All heads", lead, [page.links([links.a(f"head {name}", "head", name) for name in names])])


def _courses(site: Site, table: pl.DataFrame, links: Links) -> Panel:
    """A row a head, a column a pattern, each a small course."""
    whole = head_course(site)
    assert whole is not None
    names = table["pattern"].unique().sort().to_list()
    order = table["head"].unique(maintain_order=True).to_list()
    above = [value for value in whole["above"].to_list() if value == value]
    low, high = min([0.0, *above]), max([0.0, *above])
    courses = {key: rows.sort("step") for key, rows in whole.group_by("head", "pattern")}
    body = Markup("")
    for head in order:
        cells = Markup("").join(_cell(courses.get((head, name)), head, name, low, high) for name in names)
        body += Markup('<tr><th scope="row">{}</th>{}</tr>').format(links.a(head, "head", head), cells)
    top = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in names)
    drawn = Markup(
        '<figure class="table"><div class="scroll" role="group" tabindex="0" aria-label="heads and patterns"><table>'
        '<thead><tr><th scope="col">head</th>{}</tr></thead><tbody>{}</tbody></table></div></figure>'
    ).format(top, body)
    return Panel("What they attend to", LEAD, [drawn], python(site, "dif.show.explorer.heads_in_order(site)"), table)


def _cell(rows: pl.DataFrame | None, head: str, pattern: str, low: float, high: float) -> Markup:
    if rows is None or not len(rows):
        return Markup('<td class="course">–</td>')
    above = rows["above"].to_list()
    drawn = spark(rows["step"].to_list(), above, (), low, high, f"head {head}, {pattern}, over training")
    best = max(range(len(above)), key=above.__getitem__)
    return Markup('<td class="course" title="{}"><span>{} <span class="number">{}</span></span></td>').format(
        f"highest before step {rows['step'][best]:,}", drawn, f"{above[best]:+.3f}".replace("-", "−")
    )
