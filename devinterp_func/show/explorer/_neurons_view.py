"""All neurons: those with the most outliers first, each with the beginning of the text that moved it most."""

from typing import NamedTuple

import polars as pl
from markupsafe import Markup

from devinterp_func import neurons, units
from devinterp_func.neurons import Axis, Neuron
from devinterp_func.show import page
from devinterp_func.show.explorer._lines import python
from devinterp_func.show.explorer._neuron_names import like, units_of
from devinterp_func.show.explorer._site import AXES, Site, label
from devinterp_func.show.explorer._types import Links, NotThere, Panel, Query, View
from devinterp_func.show.explorer._words import said

TOP = 15  # neurons that are shown with their data
ORDERS = {"outliers": "most outliers first", "index": "by number"}
LEAD = """Each with how many of the record's outliers lie in it, how many data made them, and the text that moved it
most in a single step. Open a neuron to see where in its texts it was moved, and when."""
CAPTION = "The neurons with the most outliers."
EVERY = "All of them with their outliers, {}. A column is all that one input feeds, a row all that feeds one output."


class Large(NamedTuple):
    """A neuron that was moved often, and the datum that moved it most in one step."""

    neuron: Neuron
    outliers: int
    data: int
    datum: int
    step: int
    amount: float  # Σ|Δ| of that datum in that step


def largest_neurons(site: Site, n: int, axis: Axis = "in", unit: str | None = None) -> list[Large]:
    """The neurons with the most outliers, most first.

    Args:
        site: of ``open``.
        n: at most so many; those without outliers are left out.
        axis: columns or rows.
        unit: of this one alone; by default of all.
    """
    totals = site.index.totals(axis)
    order = [i for i in totals.argsort(descending=True, stable=True).tolist() if totals[i]]
    members = [neuron for i in order if isinstance(neuron := site.groups[axis].members[i], Neuron)]
    chosen = [neuron for neuron in members if unit in (None, neuron.unit)][:n]
    return [_large(site, neuron, int(totals[site.number(neuron)])) for neuron in chosen]


def _large(site: Site, neuron: Neuron, outliers: int) -> Large:
    seen = neurons.visits(site.index.outliers(site.parameters(neuron)))
    first = int(seen.datum[0]), int(seen.step[0]), float(seen.amount[0])
    return Large(neuron, outliers, len(seen.datum.unique()), *first)


def large_table(site: Site, found: list[Large], links: Links) -> Markup:
    """Neurons of ``largest_neurons``, with links to them and to the texts that moved them most."""
    frame = pl.DataFrame(
        {
            "neuron": [str(one.neuron) for one in found],
            "outliers": [one.outliers for one in found],
            "data": [one.data for one in found],
            "moved most by": [said(site, one.datum) for one in found],
            "datum": [one.datum for one in found],
            "step": [one.step for one in found],
        },
        dict.fromkeys(("neuron", "moved most by"), pl.String)
        | dict.fromkeys(("outliers", "data", "datum", "step"), pl.Int64),
    )
    return page.table(frame, CAPTION, fold=None, links=links)


def view(site: Site, id: str, query: Query, links: Links) -> View:
    """All neurons, or those of a unit."""
    axis, unit, by = _asked(site, query, links)
    found = largest_neurons(site, TOP, axis, unit)
    given = f"dif.show.explorer.largest_neurons(site, {TOP}, {axis!r}, {unit!r})"
    lines = "Columns" if axis == "in" else "Rows"
    title = f"{lines} with the most outliers" + (f" of {units.label(unit)}" if unit else "")
    items = [_choices(site, axis, unit, links), large_table(site, found, links)]
    top = Panel(title, LEAD, items, python(site, given), found)
    return View("Neurons", [top, _every(site, axis, unit, by, links)])


def _asked(site: Site, query: Query, links: Links) -> tuple[Axis, str | None, str]:
    """Axis, unit and order that the address asks for.

    Raises:
        NotThere: there is no such.
    """
    everything = ("all neurons", "neurons", None)
    axis = next((known for known in AXES if known == query.get("axis", "in")), None)
    if axis is None:
        raise NotThere(f"there is no axis {query['axis']!r}; it is 'in' for columns or 'out' for rows", [everything])
    unit, by = query.get("unit") or None, query.get("by", "outliers")
    if unit is not None and unit not in units_of(site):
        near = [(f"{units.label(name)}:0", "neuron", Neuron(name, 0, axis)) for name in like(site, unit)]
        raise NotThere(f"{unit!r} has no neurons", [*near, everything])
    if by not in ORDERS:
        raise NotThere(f"there is no order {by!r}; it is one of {', '.join(ORDERS)}", [everything])
    return axis, unit, by


def _choices(site: Site, axis: Axis, unit: str | None, links: Links) -> Markup:
    """Links to the other units and to the other axis."""
    other: Axis = "out" if axis == "in" else "in"
    asked = {} if unit is None else {"unit": unit}
    found = [links.a("rows" if axis == "in" else "columns", "neurons", axis=other, **asked)]
    found += [] if unit is None else [links.a("all units", "neurons", axis=axis)]
    found += [links.a(units.label(name), "neurons", unit=name, axis=axis) for name in units_of(site) if name != unit]
    return Markup("<p>{}</p>").format(Markup(" · ").join(found))


def _every(site: Site, axis: Axis, unit: str | None, by: str, links: Links) -> Panel:
    """All neurons of the unit, or of all."""
    totals, members = site.index.totals(axis), site.groups[axis].members
    chosen = [(one, int(n)) for one, n in zip(members, totals, strict=True) if isinstance(one, Neuron)]
    chosen = [(neuron, n) for neuron, n in chosen if unit in (None, neuron.unit)]
    if by == "outliers":
        chosen.sort(key=lambda found: -found[1])
    asked = {"axis": axis} | ({} if unit is None else {"unit": unit})
    orders = [links.a(told, "neurons", by=name, **asked) for name, told in ORDERS.items() if name != by]
    by_unit: dict[str, list[tuple[Neuron, int]]] = {}
    for neuron, n in chosen:
        by_unit.setdefault(neuron.unit, []).append((neuron, n))
    lists = [_listed(name, own, links) for name, own in by_unit.items()]
    items = [Markup("<p>{}</p>").format(Markup(" · ").join(orders)), *lists]
    lines = python(site, f"site.index.totals({axis!r})")
    return Panel(f"All {len(chosen):,}", EVERY.format(ORDERS[by]), items, lines, totals)


def _listed(unit: str, found: list[tuple[Neuron, int]], links: Links) -> Markup:
    """A unit's neurons as short links with their outliers: thousands of them are a small page."""
    one = Markup('<a href="{}">{}</a> {}')
    listed = Markup(" · ").join(one.format(links("neuron", x), label(x), page.shown(n)) for x, n in found)
    told = f"{units.label(unit)}: {len(found):,} with {page.counted(sum(n for _, n in found), 'outlier')}"
    return page.details(told, Markup("<p>{}</p>").format(listed))
