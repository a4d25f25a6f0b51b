"""A step's page: its data, the law with its numbers, and which neurons it moved."""

import shlex

import polars as pl
import torch
from jaxtyping import Float, Int64
from markupsafe import Markup
from torch import Tensor

from devinterp_func import per_example, records
from devinterp_func.optim import PARTS
from devinterp_func.records import StepRecord
from devinterp_func.show import page, words
from devinterp_func.show._written import literal
from devinterp_func.show.explorer._lines import python
from devinterp_func.show.explorer._named import named
from devinterp_func.show.explorer._site import AXES, Site
from devinterp_func.show.explorer._spans import number
from devinterp_func.show.explorer._types import Links, Panel, Query, View
from devinterp_func.show.explorer._visit_panels import entry_columns
from devinterp_func.show.explorer._words import said

NEURONS, SHIFTS = 20, 20  # shown: those with the most outliers; the largest
SYMBOLS = ("Σ_j Δ_j", "past", "decay")
WHICH = {"in": "Columns.", "out": "Rows."}
LAW = """A step's change of the weights is what its data did, what data of earlier steps did through the optimizer's
memory, and weight decay. Norms need not add up; the shares along the change do, to 1. Below, unit by unit."""


def view(site: Site, id: str, query: Query, links: Links) -> View:
    """What one step did, and through which data."""
    step = number(site, id, "step", site.n_steps)
    record = records.read(site.run, step)
    panels = [_law(site, record), _data(site, record, links), _largest(site, record, links)]
    panels += [_moved(site, record, links), _replay(site, step, links)]
    before = links("step", step - 1) if step else None
    after = links("step", step + 1) if step + 1 < site.n_steps else None
    told = f"Epoch {record.epoch}, batch {record.batch}: {page.counted(len(record.datum), 'datum', 'data')}."
    return View(f"Step {step:,}", panels, told, before, after)


def law(record: StepRecord) -> dict[str, float]:
    """How large a step's change of all units was, and its parts: norms, and shares of its square along it."""
    size, along = record.split.size.double(), record.split.along.double().sum(0).tolist()
    whole = max(0.0, sum(along))
    norms = dict(zip(PARTS, (size**2).sum(0).sqrt().tolist(), strict=True))
    shares = {f"share of {name}": x / whole if whole else 0.0 for name, x in zip(PARTS, along, strict=True)}
    return {"change": whole**0.5} | norms | shares


def _law(site: Site, record: StepRecord) -> Panel:
    """The step as an equation with its numbers, and unit by unit."""
    n, value = len(record.datum), law(record)
    facts = {
        "learning rate": record.lr,
        "clip coefficient": record.clip,
        "norm of the gradient": (record.grad_norm, "before clipping"),
        "mean loss": (float(record.loss.mean()), "nats"),
    }
    said_so = f"u = {record.clip:.4g} · (1/{n}) Σ_j g_j with learning rate {record.lr:.4g}."
    names, split = site.run.manifest["parameters"], record.split
    shares = split.shares()
    columns = {"unit": names, "size of the change": split.along.double().sum(1).clamp(min=0).sqrt().tolist()}
    columns |= {part: shares[:, i].tolist() for i, part in enumerate(PARTS)}
    frame = pl.DataFrame(columns).filter(pl.col("size of the change") > 0)
    table = page.table(frame.sort("size of the change", descending=True), formats=dict.fromkeys(PARTS, ".1%"), fold=8)
    lines = python(site, f"dif.show.explorer.law(dif.records.read(site.run, {record.step}))")
    return Panel("The law", f"{LAW} {said_so}", [_equation(value), page.facts(facts), table], lines, value)


def _equation(value: dict[str, float]) -> Markup:
    """w′ − w = Σ Δ + past + decay with the norm of each, and its share of the squared change."""
    terms = [_term("w′ − w", value["change"], "the change")]
    for part, name in zip(PARTS, SYMBOLS, strict=True):
        sign = Markup('<div class="sign">{}</div>').format("=" if part == PARTS[0] else "+")
        terms += [sign, _term(name, value[part], f"{value[f'share of {part}']:.1%} of the change")]
    told = "w′ − w = Σ Δ + past + decay, with the norm of each"
    return Markup('<div class="law" role="group" aria-label="{}">{}</div>').format(told, Markup("").join(terms))


def _term(name: str, norm: float, below: str) -> Markup:
    drawn = '<div class="term"><var>{}</var><b>‖·‖ {}</b><small>{}</small></div>'
    return Markup(drawn).format(name, page.shown(norm), below)


def amounts(record: StepRecord) -> Float[Tensor, "n"]:
    """Σ|Δ| over the recorded outliers of each datum of a step."""
    found, rows = torch.zeros(len(record.datum)), record.outliers.datum.long().flatten()
    return found.index_add_(0, rows, record.outliers.delta.abs().float().flatten())


def _data(site: Site, record: StepRecord, links: Links) -> Panel:
    """The step's data, those that moved the weights most first."""
    amount = amounts(record)
    order = amount.argsort(descending=True, stable=True)
    frame = pl.DataFrame(
        {
            "datum": record.datum[order].tolist(),
            "loss": record.loss[order].tolist(),
            "Σ|Δ|": amount[order].tolist(),
            "text": [said(site, int(datum)) for datum in record.datum[order]],
        }
    )
    lines = python(site, f"dif.show.explorer.amounts(dif.records.read(site.run, {record.step}))")
    lead = "Σ|Δ| is over a datum's recorded outliers: how far it moved the weights that it moved most."
    return Panel("Its data", lead, [page.table(frame, fold=None, links=named(links))], lines, amount)


def _largest(site: Site, record: StepRecord, links: Links) -> Panel:
    """The largest shifts of all data of the step, with their text."""
    value = per_example.top_k_of_step(record.outliers, SHIFTS)
    datum = [int(record.datum[row]) for row in value.datum.tolist()]
    columns = entry_columns(site, value)
    columns |= {"Δ": value.delta.tolist(), "datum": datum, "position": value.position.tolist()}
    frame = pl.DataFrame(columns)
    if site.vocab is not None:
        told = [_around(site, id, at) for id, at in zip(datum, value.position.tolist(), strict=True)]
        frame = frame.with_columns(pl.Series("text: (input → target)", told, dtype=pl.String))
    lines = python(site, f"dif.per_example.top_k_of_step(dif.records.read(site.run, {record.step}).outliers, {SHIFTS})")
    table = page.table(frame, fold=None, links=named(links))
    lead = "Of all its data, with the text at the position that moved most."
    return Panel("Its largest shifts", lead, [table], lines, value)


def _around(site: Site, datum: int, position: int) -> str | None:
    """The text around a position; None where none is known."""
    if site.vocab is None or position < 0:
        return None
    tokens, targets = (ids[datum] for ids in site.run.data)
    return literal(words.excerpt(tokens, targets, position, site.vocab, 5))


def _replay(site: Site, step: int, links: Links) -> Panel:
    """How the step is made again."""
    line = f"python experiments/replay.py {shlex.quote(str(site.run.path))} --step {step}"
    items = [Markup('<pre tabindex="0"><code>{}</code></pre>').format(line)]
    if site.jobs is not None and "replay" in site.jobs.commands:
        items.append(Markup("<p>{}</p>").format(links.a("Replay it here …", "jobs", job="replay", step=step)))
    return Panel("Make it again", "Bit for bit, with every entry of every delta, not only the recorded ones.", items)


def moved(site: Site, step: int, axis: str) -> Int64[Tensor, "G"]:
    """How many outliers each neuron of an axis had in a step."""
    return site.index.counts(axis, 0, len(site.groups[axis].members))[:, step]


def _moved(site: Site, record: StepRecord, links: Links) -> Panel:
    """The neurons with the most outliers of the step, of both axes."""
    value, items = {}, []
    for axis in AXES:
        counts = value[axis] = moved(site, record.step, axis)
        members, top = site.groups[axis].members, counts.argsort(descending=True, stable=True)[:NEURONS]
        rows = [(str(members[i]), int(counts[i])) for i in top.tolist() if counts[i]]
        frame = pl.DataFrame(rows, {"neuron": pl.String, "outliers": pl.Int64}, orient="row")
        items.append(page.table(frame, WHICH[axis], fold=10, links=named(links)))
    lines = python(site, f"{{axis: dif.show.explorer.moved(site, {record.step}, axis) for axis in ('in', 'out')}}")
    lead = f"Neurons of the captured weights by how many of the step's {int(value['in'].sum()):,} outliers lie in them."
    return Panel("Who moved", lead, items, lines, value)
