"""A neuron's page: its life, the texts that made it, its tokens, what it flips, its neighbours, its largest changes."""

from collections.abc import Iterator
from typing import NamedTuple

import polars as pl
from jaxtyping import Float64, Int64
from markupsafe import Markup
from torch import Tensor

from devinterp_func import neurons, units
from devinterp_func.neurons import Neuron, Visits
from devinterp_func.records import Moved
from devinterp_func.show import page
from devinterp_func.show.explorer import _neuron_model, _neuron_texts
from devinterp_func.show.explorer._charts import course
from devinterp_func.show.explorer._lines import python
from devinterp_func.show.explorer._neuron_names import neuron_of
from devinterp_func.show.explorer._site import Site, label
from devinterp_func.show.explorer._spans import binned
from devinterp_func.show.explorer._types import Links, Panel, Query, View

NEIGHBOURS, ENTRIES = 10, 15  # shown
LIFE = "Outliers of the neuron in each step: weights of it that were among those that a datum moved most."
CAPTION = "Means over as many bins of steps as can be told apart. A click opens a step."
ALIKE = """Neurons of the same unit that were moved in the same steps: the cosine of their outliers by step with this
one's, 1 where they rise and fall together."""
LARGEST = "Each of its weights by its largest single outlier: what one datum did to it in one step."


class Found(NamedTuple):
    """What a neuron's page is about."""

    site: Site
    neuron: Neuron
    links: Links
    moved: Moved
    visits: Visits

    def python(self, last: str, *before: str) -> str:
        """Lines that give a number of this neuron's."""
        return python(self.site, f"neuron = dif.neurons.parse({str(self.neuron)!r})", *before, last)


MOVED = "moved = site.index.outliers(site.parameters(neuron))"


def view(site: Site, id: str, query: Query, links: Links) -> View:
    """What moved a neuron, and what it does."""
    neuron = neuron_of(site, id)
    moved = site.index.outliers(site.parameters(neuron))
    found = Found(site, neuron, links, moved, neurons.visits(moved))
    panels = [_about(found), _life(found), *_texts(found), *_model(found), _neighbours(found), _entries(found)]
    return View(label(neuron), panels, _told(found), _beside(found, -1), _beside(found, 1))


def _told(found: Found) -> Markup:
    """What the neuron is, in a sentence."""
    unit, index, axis = found.neuron
    shape = found.site.run.shapes[unit]
    what = f"column {index}" if axis == "in" else f"row {index}"
    met = "what meets one of its inputs" if axis == "in" else "what gives one of its outputs"
    text = f"`{found.neuron}`: {what} of a weight of {' × '.join(map(str, shape))}, {met}."
    other = Neuron(unit, index, "out" if axis == "in" else "in")
    link = Markup("")
    if index < neurons.width(shape, other.axis):
        link = found.links.a(f"the {'row' if axis == 'in' else 'column'} of the same number", "neuron", other)
    everything = found.links.a("all of this unit", "neurons", unit=unit, axis=axis)
    return page.prose(text) + Markup("<p>{} {}</p>").format(everything, Markup("· ") + link if link else "")


def _beside(found: Found, by: int) -> str | None:
    """The address of the neuron before or after."""
    unit, index, axis = found.neuron
    there = 0 <= index + by < neurons.width(found.site.run.shapes[unit], axis)
    return found.links("neuron", Neuron(unit, index + by, axis)) if there else None


def about(site: Site, neuron: Neuron) -> dict[str, int | float]:
    """A neuron in numbers: outliers in all, the share of all outliers, steps in which it was moved, visits and data.

    Args:
        site: of ``open``.
        neuron: one of its neurons.
    """
    return _in_numbers(site, neuron, neurons.visits(site.index.outliers(site.parameters(neuron))))


def _in_numbers(site: Site, neuron: Neuron, seen: Visits) -> dict[str, int | float]:
    """``about`` a neuron whose visits are at hand."""
    number = site.number(neuron)
    counts = site.index.counts(neuron.axis, number, number + 1)[0]
    total, every = int(counts.sum()), int(site.index.totals(neuron.axis).sum())
    return {
        "outliers": total,
        "share of all outliers": total / max(every, 1),
        "steps": int((counts > 0).sum()),
        "visits": len(seen.step),
        "data": len(seen.datum.unique()),
        "Σ|Δ|": float(seen.amount.sum()),
    }


def _about(found: Found) -> Panel:
    values = _in_numbers(found.site, found.neuron, found.visits)
    number = neurons.width(found.site.run.shapes[found.neuron.unit], found.neuron.axis)
    shown: dict[str, object] = {
        "unit": (units.label(found.neuron.unit), f"{found.neuron.index} of {number}"),
        "outliers": (values["outliers"], f"{values['share of all outliers']:.2%} of all"),
        "moved by": (values["data"], f"data, in {page.counted(int(values['steps']), 'step')}"),
        "Σ|Δ|": (values["Σ|Δ|"], "over its outliers"),
    }
    line = found.python("dif.show.explorer.about(site, neuron)")
    most = found.site.index.most
    kept = (
        "" if most is None else f"Of each part the index keeps the {most:,} largest visits; outliers are all counted."
    )
    return Panel("The neuron", kept, [page.facts(shown)], line, values)


def _life(found: Found) -> Panel:
    """Its outliers over steps."""
    site, axis, number = found.site, found.neuron.axis, found.site.number(found.neuron)
    counts = site.index.counts(axis, number, number + 1)[0]
    line = found.python(f"site.index.counts({axis!r}, number, number + 1)[0]", "number = site.number(neuron)")
    to = found.links("step", 0).replace("0.html", "{}.html")
    series = {"outliers": binned(counts.double())}
    drawn = course(series, "outliers a step", CAPTION, per_epoch=site.run.steps_per_epoch, to=to)
    return Panel("Its life", LIFE, [drawn], line, counts)


def _texts(found: Found) -> Iterator[Panel]:
    """What made it."""
    line = found.python("dif.neurons.visits(moved)", MOVED)
    yield _neuron_texts.texts(found.site, found.moved, found.visits, line, found.links)
    if found.site.vocab is not None:
        for kind in ("targets", "tokens"):
            labels = f"site.run.data.{kind}"
            counted = f"counts = dif.neurons.label_counts(moved, {labels}, len(site.vocab))"
            reference = f"reference = {labels}.flatten().bincount(minlength=len(site.vocab))"
            line = found.python("dif.neurons.typical(counts, reference)", MOVED, counted, reference)
            yield _neuron_texts.tokens(found.site, found.moved, kind, line, found.links)


def _model(found: Found) -> Iterator[Panel]:
    """What the model does with it."""
    if found.site.vocab is not None:
        line = found.python(f"dif.show.explorer.flips(site, {str(found.neuron)!r})")
        yield _neuron_model.flipped(found.site, found.neuron, line, found.links)
    line = found.python("dif.neurons.logit_effect(site.run.graph, site.params, neuron, norm=True)")
    yield from _neuron_model.logits(found.site, found.neuron, line, found.links)


def companions(site: Site, neuron: Neuron) -> Float64[Tensor, "G"]:
    """How much the neurons of a neuron's unit and axis were moved in the same steps as it: ``neurons.alike``.

    Args:
        site: of ``open``.
        neuron: one of its neurons.
    """
    first = site.number(Neuron(neuron.unit, 0, neuron.axis))
    stop = first + neurons.width(site.run.shapes[neuron.unit], neuron.axis)
    return neurons.alike(site.index.counts(neuron.axis, first, stop), neuron.index)


def _neighbours(found: Found) -> Panel:
    cosine = companions(found.site, found.neuron)
    others = cosine.clone()
    others[found.neuron.index] = -1
    top = _first(others)
    names = [str(found.neuron._replace(index=i)) for i in top.tolist()]
    frame = pl.DataFrame({"neuron": names, "cosine": cosine[top].tolist()}, {"neuron": pl.String, "cosine": pl.Float64})
    table = page.table(frame, "Moved in the same steps.", formats={"cosine": ".3f"}, fold=None, links=found.links)
    return Panel("Moved together", ALIKE, [table], found.python("dif.show.explorer.companions(site, neuron)"), cosine)


def _first(cosine: Float64[Tensor, "G"]) -> Int64[Tensor, "n"]:
    top = cosine.argsort(descending=True, stable=True)[:NEIGHBOURS]
    return top[cosine[top] > 0]


def _entries(found: Found) -> Panel:
    """Its weights by their largest outliers."""
    largest, shapes = neurons.largest_entries(found.moved), found.site.run.shapes
    n = ENTRIES
    across = 0 if found.neuron.axis == "in" else 1
    where = [units.locate(shapes, number).coordinates[across] for number in largest.parameter[:n].tolist()]
    frame = pl.DataFrame(
        {
            "row" if found.neuron.axis == "in" else "column": where,
            "Δ": largest.delta[:n].double().tolist(),
            "datum": largest.datum[:n].tolist(),
            "step": largest.step[:n].tolist(),
            "position": largest.position[:n].tolist(),
            "outliers": largest.outliers[:n].tolist(),
        },
        schema_overrides={"Δ": pl.Float64},
    )
    tips = {"Δ": "its largest outlier", "outliers": "how often the weight was one"}
    table = page.table(frame, "Its weights.", tips=tips, fold=None, links=found.links)
    told = f"{LARGEST} {page.counted(len(largest.parameter), 'weight')} of it ever was an outlier."
    return Panel(
        "Its largest changes", told, [table], found.python("dif.neurons.largest_entries(moved)", MOVED), largest
    )
