"""Panels of a datum's visit: what it moved, and what of earlier data's work it undid."""

from collections.abc import Iterator
from typing import Any

import polars as pl
from markupsafe import Markup

from devinterp_func import credit, neurons
from devinterp_func.per_example import Outliers
from devinterp_func.records import StepRecord
from devinterp_func.show import page
from devinterp_func.show.explorer._lines import python
from devinterp_func.show.explorer._named import coloured, named
from devinterp_func.show.explorer._site import AXES, Site
from devinterp_func.show.explorer._types import Links, Panel
from devinterp_func.show.explorer._visits import shifts, touched
from devinterp_func.show.page import Excerpt
from devinterp_func.show.schema import Table, token
from devinterp_func.units import locate

NEURONS, ENTRIES = 10, 20  # shown
WORDS = Table("", "", {"token": token("read at the position"), "target": token("to be predicted there")})
AXIS = {"in": "Columns that it moved most.", "out": "Rows that it moved most."}
UNDONE = f"""Of the visit's {ENTRIES} largest shifts: before is the sum s of the recorded shifts of the same entry in
all earlier steps. Where the shift Δ has the opposite sign, it undid min(|Δ|, |s|) of it. The datum is the one whose own
earlier shifts of the entry go farthest in the direction of s; made is their sum. Shifts that were no outliers are not
recorded, and are not in s."""


def visit(site: Site, record: StepRecord, row: int, links: Links) -> Panel:
    """What a datum moved in a step: neurons of both axes, its largest shifts, and where they come from."""
    found = shifts(record, row)
    facts = {
        "loss": (float(record.loss[row]), "nats"),
        "recorded shifts": len(found.delta),
        "Σ|Δ|": float(found.delta.abs().double().sum()),
        "learning rate": record.lr,
    }
    lines = python(site, f"dif.show.explorer.shifts(dif.records.read(site.run, {record.step}), {row})")
    items = [page.facts(facts), *_words(site, record, row, found, links), *_neurons(site, found, links)]
    items.append(page.details("Its largest shifts", _entries(site, int(record.datum[row]), found, links)))
    lead = f"Epoch {record.epoch}, row {row} of the batch."
    return Panel(f"What it moved in step {record.step:,}", lead, items, lines, found)


def _words(site: Site, record: StepRecord, row: int, found: Outliers, links: Links) -> Iterator[Markup]:
    """The text, coloured by what was moved most where, in this step alone."""
    if site.vocab is None:
        return
    tokens = site.run.data.tokens[int(record.datum[row])].tolist()
    amounts = [0.0] * len(tokens)
    for position, delta in zip(found.position.tolist(), found.delta.abs().tolist(), strict=True):
        if position >= 0:
            amounts[position] += delta
    source = links.a(f"step {record.step:,}", "step", record.step)
    yield page.excerpts([Excerpt(coloured(site, tokens, amounts, links), source)])


def _neurons(site: Site, found: Outliers, links: Links) -> Iterator[Markup]:
    for axis in AXES:
        groups = site.groups[axis]
        sums = touched(found, groups.of, len(groups.members))
        top = sums.amount.argsort(descending=True, stable=True)[:NEURONS]
        rows = [(str(groups.members[i]), int(sums.outliers[i]), float(sums.amount[i])) for i in top if sums.outliers[i]]
        frame = pl.DataFrame(rows, {"neuron": pl.String, "outliers": pl.Int64, "Σ|Δ|": pl.Float64}, orient="row")
        yield page.table(frame, AXIS[axis], fold=None, links=named(links))


def _entries(site: Site, datum: int, found: Outliers, links: Links) -> Markup:
    """The largest shifts: which entry, by how much, and where."""
    top = Outliers(*(field[:ENTRIES] for field in found))
    frame = pl.DataFrame(entry_columns(site, top) | {"Δ": top.delta.tolist(), "position": top.position.tolist()})
    if site.vocab is not None:
        for name, ids in (("token", site.run.data.tokens), ("target", site.run.data.targets)):
            told = [int(ids[datum, at]) if at >= 0 else None for at in top.position.tolist()]
            frame = frame.with_columns(pl.Series(name, told, dtype=pl.Int64))
    return page.typed_table(frame, WORDS, site.vocab, fold=None, links=named(links))


def entry_columns(site: Site, found: Outliers) -> dict[str, list[Any]]:
    """Each entry's name and the column that it is in."""
    places = [locate(site.run.shapes, parameter) for parameter in found.parameter.tolist()]
    of = [neurons.Neuron(p.unit, p.coordinates[1]) if len(p.coordinates) > 1 else None for p in places]
    told = ["" if neuron is None else str(neuron) for neuron in of]
    return {"entry": [f"{p.unit}{list(p.coordinates)}" for p in places], "neuron": told}


def undone(site: Site, record: StepRecord, row: int, links: Links) -> Panel:
    """How much of what earlier data had made a datum took back in a step, and whose that was."""
    found = shifts(record, row, ENTRIES)
    moved = site.index.outliers(found.parameter)
    value = credit.undone(moved, record.step, found.parameter, found.delta)
    frame = pl.DataFrame(
        {
            **entry_columns(site, found),
            "Δ": found.delta.tolist(),
            "before": value.before.tolist(),
            "undone": value.undone.tolist(),
            "of before": (value.undone / value.before.abs()).nan_to_num().tolist(),
            "datum": [maker if maker >= 0 else None for maker in value.maker.tolist()],
            "made": value.made.tolist(),
        },
        strict=False,
    )
    frame = frame.sort("undone", descending=True, maintain_order=True)
    total = f"In all, {page.shown(float(value.undone.sum()))} of Σ|Δ| {page.shown(float(found.delta.abs().sum()))}."
    if site.index.most is not None:
        total += f" The index keeps of each neuron the {site.index.most:,} largest visits a part; only these count."
    lines = python(
        site,
        f"found = dif.show.explorer.shifts(dif.records.read(site.run, {record.step}), {row}, {ENTRIES})",
        "moved = site.index.outliers(found.parameter)",
        f"dif.credit.undone(moved, {record.step}, found.parameter, found.delta)",
    )
    formats: dict[str, page.Format] = {"of before": ".0%"}
    tips = {"datum": "the datum that had made most of what was before", "made": "the sum of its shifts of the entry"}
    table = page.table(frame, "", formats, tips, bars=["of before"], fold=8, links=named(links))
    return Panel(f"What it undid in step {record.step:,}", f"{UNDONE} {total}", [table], lines, value)
