"""Neurons by what an address or a reader calls them, and those that may have been meant."""

import difflib
import re

from devinterp_func import neurons, units
from devinterp_func.neurons import Neuron
from devinterp_func.show.explorer._site import AXES, Site, label
from devinterp_func.show.explorer._types import NotThere

Near = tuple[str, str, object]  # text, kind and id of a page
NAME = re.compile(r"(.*?):?([0-9]{1,9})?(:in|:out)?", re.DOTALL)


def neuron_of(site: Site, id: str) -> Neuron:
    """The neuron of a page.

    Raises:
        NotThere: there is none of this name; the nearest are named.
    """
    try:
        found = neurons.require(site.run.shapes, neurons.parse(id))
    except ValueError as error:
        raise NotThere(str(error), near(site, id)) from None
    if str(found) != id:
        raise NotThere(f"{id!r} is written {str(found)!r}", [(label(found), "neuron", found)])
    return found


def units_of(site: Site) -> list[str]:
    """The units that have neurons, in order."""
    return list(dict.fromkeys(neuron.unit for neuron in neurons.every(site.run.shapes)))


def near(site: Site, text: str) -> list[Near]:
    """Neurons that a name may have meant: of the units most like it, the index that is nearest."""
    found = NAME.fullmatch(text)
    assert found is not None  # it matches anything
    unit, index, axis = found[1], int(found[2] or 0), "out" if found[3] == ":out" else "in"
    meant = []
    for name in like(site, unit):
        stop = neurons.width(site.run.shapes[name], "out" if axis == "out" else "in")
        neuron = Neuron(name, min(index, stop - 1), "out" if axis == "out" else "in")
        meant.append((label(neuron), "neuron", neuron))
    return [*meant, ("all neurons", "neurons", None)]


def like(site: Site, text: str, most: int = 3) -> list[str]:
    """The units whose name or label is most like a text, the most alike first."""
    there = units_of(site)

    def likeness(unit: str) -> float:
        return max(difflib.SequenceMatcher(None, text[:80], name).ratio() for name in (unit, units.label(unit)))

    return sorted(there, key=likeness, reverse=True)[:most]


def matching(site: Site, text: str) -> list[Neuron]:
    """Neurons that a reader's words name: a full name, a label such as 2.linear2:96, or a part of one with an index.

    Of both axes, columns first, where the words say none.
    """
    found = re.fullmatch(r"(.*\S)\s*[: ]\s*([0-9]{1,9})\s*(?::\s*(in|out))?", text.strip(), re.DOTALL)
    if found is None:
        return []
    part, index, said = found[1].strip(), int(found[2]), found[3]
    there = units_of(site)
    exact = [unit for unit in there if part in (unit, units.label(unit), units.operation(unit))]
    chosen = exact or [unit for unit in there if part.lower() in unit.lower() or part.lower() in units.label(unit)]
    axes = [axis for axis in AXES if said in (None, axis)]
    return [
        Neuron(unit, index, axis)
        for axis in axes
        for unit in chosen
        if index < neurons.width(site.run.shapes[unit], axis)
    ]
