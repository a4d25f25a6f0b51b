"""A head's page: its attention on a text over training, its course on each pattern, its jumps and what made them."""

import re
from collections.abc import Iterator
from typing import Any

import polars as pl
from markupsafe import Markup

from devinterp_func.show import page, results
from devinterp_func.show.explorer._attention import Example, Part, attention, batch, example, heads, marked, parts
from devinterp_func.show.explorer._attention_block import POSITIONS, block
from devinterp_func.show.explorer._head_courses import JUMPS, head_course, head_jumps
from devinterp_func.show.explorer._ledgers import CreditedVisits, credited_visits
from devinterp_func.show.explorer._lines import python
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._spans import number
from devinterp_func.show.explorer._spark import spark
from devinterp_func.show.explorer._types import Links, NotThere, Panel, Query, View
from devinterp_func.show.page import Excerpt, Word

SHOWN = 3  # jumps whose causes are looked for
ATTENTION = """The deeper a word's colour, the more the head attends to it from the framed word; depth is the square
root of the weight, the same scale at every snapshot. A click on a word attends from there."""
COURSES = """Attention to the keys that a pattern marks, at every snapshot; dashed, its control: what the same head
gives, from other queries, to keys at the same distances."""
MADE = """Credits of the ledger's steps in this span, of a datum each time it was seen: they add up to the change, but
for past, decay and what the quadrature misses. Each word in the colour of the credit of predicting it where it stands:
blue raised the probe, orange lowered it, the deepest colour the text's largest credit."""


def view(site: Site, id: str, query: Query, links: Links) -> View:
    """One head."""
    layer, head = _which(site, id)
    n_layers, n_heads = heads(site)
    rows, at = head_course(site, id), layer * n_heads + head
    panels = [_attention(site, id, query, links)]
    if rows is None:
        how = f"Its course over training was not measured: `{results.command('heads', site.run)}` does it."
        panels.append(Panel("Over training", how))
    elif len(rows):
        panels += [_courses(site, id, rows), *_jumps(site, id, links)]
    around = [f"{i // n_heads}.{i % n_heads}" for i in (at - 1, at + 1)]
    before = links("head", around[0]) if at else None
    after = links("head", around[1]) if at + 1 < n_layers * n_heads else None
    told = Markup("Layer {} of {}, head {} of {}, both from 0. {}").format(
        layer, n_layers, head, n_heads, links.a("All heads", "heads")
    )
    return View(f"Head {id}", panels, told, before, after)


def _which(site: Site, id: str) -> tuple[int, int]:
    """Layer and head.

    Raises:
        NotThere: there is no such head; the nearest is named.
    """
    n_layers, n_heads = heads(site)
    found = re.fullmatch(r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})", id)
    layer, head = (int(found[1]), int(found[2])) if found else (0, 0)
    if found and layer < n_layers and head < n_heads:
        return layer, head
    near = f"{min(layer, n_layers - 1)}.{min(head, n_heads - 1)}"
    last = f"{n_layers - 1}.{n_heads - 1}"
    raise NotThere(f"there is no head {id!r}; they are 0.0 to {last}", [(f"head {near}", "head", near)])


# ---- on a text


def _text(site: Site, head: str, query: Query) -> Example:
    """The text, as the address asks, else the head's best; and what is to be seen in it."""
    asked: dict[str, Part] = {"datum": "train", "valid": "valid"}
    for name, part in asked.items():
        if query.get(name):
            n = site.run.n_data if part == "train" else _n_valid(site)
            return Example(part, number(site, query[name], "datum", n), None, max(site.run.snapshots))
    return example(site, head)


def _n_valid(site: Site) -> int:
    if "valid" not in parts(site):
        raise NotThere("this run has no validation data", [("the run", "run", None)])
    return len(batch(site, "valid", 0, 10**9)[0])


def _attention(site: Site, head: str, query: Query, links: Links) -> Panel:
    """The head's attention on a text, at any snapshot."""
    part, datum, pattern, best = _text(site, head, query)
    weights, steps = attention(site, head, part, datum), list(site.run.snapshots)
    words = _words(site, part, datum, weights.shape[-1])
    at = _place(steps, query.get("snapshot") or str(best), head)
    C = min(len(words), POSITIONS)
    asked: dict[str, object] = {"datum" if part == "train" else "valid": datum}
    chosen = number(site, query["query"], "step", C) if query.get("query") else _query(site, part, datum, pattern, C)
    drawn = block(weights, steps, words, at, chosen, head, links, asked)
    name = links.a(f"datum {datum:,}", "datum", datum) if part == "train" else f"validation text {datum:,}"
    why = f", where it attends most to what the pattern {pattern} marks, before step {best:,}" if pattern else ""
    told = Markup("<p>On {}{}.</p>").format(name, why)
    lines = python(site, f"dif.show.explorer.attention(site, {head!r}, {part!r}, {datum})")
    return Panel("On a text", ATTENTION, [told, drawn, _form(head, part, datum, links)], lines, weights)


def _words(site: Site, part: Part, datum: int, C: int) -> list[str]:
    """The words of a text; of data that are none, their positions."""
    if site.vocab is None:
        return [str(i) for i in range(C)]
    return site.vocab.decode(batch(site, part, datum, datum + 1)[0][0].tolist())


def _place(steps: list[int], asked: str, head: str) -> int:
    """The snapshot that is asked for, by its place.

    Raises:
        NotThere: there is no such snapshot.
    """
    if asked not in map(str, steps):
        there = ", ".join(f"{step:,}" for step in steps[:40])
        raise NotThere(
            f"there is no snapshot before step {asked!r}; there are {there}", [(f"head {head}", "head", head)]
        )
    return steps.index(int(asked))


def _query(site: Site, part: Part, datum: int, pattern: str | None, C: int) -> int:
    """The last word from which the pattern marks another; else the last word."""
    found = marked(site, part, datum, datum + 1)
    queries = found[pattern][0, :C].any(-1).nonzero()[:, 0].tolist() if pattern in found else []
    return queries[-1] if queries else C - 1


def _form(head: str, part: Part, datum: int, links: Links) -> Markup:
    """Another text."""
    fields = {"datum": "training datum", "valid": "or validation text"}
    inputs = Markup(" ").join(
        Markup('<label>{} <input name="{}" inputmode="numeric" value="{}"></label>').format(
            said, name, datum if (name == "datum") == (part == "train") else ""
        )
        for name, said in fields.items()
    )
    form = Markup('<form class="span" method="get" action="{}">{} <button>Show</button></form>')
    return form.format(links("head", head), inputs)


# ---- over training


def _courses(site: Site, head: str, rows: pl.DataFrame) -> Panel:
    """Its attention on each pattern beside its control."""
    top = max([*rows["attention"].to_list(), *rows["by distance"].drop_nulls().to_list()], default=1.0)
    drawn = Markup("")
    for (name,), part in rows.sort("step").group_by("pattern", maintain_order=True):
        values, beside = part["attention"].to_list(), part["by distance"].to_list()
        picture = spark(part["step"].to_list(), values, beside, 0.0, top, f"attention on {name} over training")
        ends = f"{values[0]:.3f} before step {part['step'][0]:,}, {values[-1]:.3f} before step {part['step'][-1]:,}"
        control = "no control" if beside[-1] is None else f"control {beside[-1]:.3f}"
        caption = Markup("<figcaption><b>{}</b> {}; {}</figcaption>").format(name, ends, control)
        drawn += Markup("<figure>{}{}</figure>").format(picture, caption)
    lines = python(site, f"dif.show.explorer.head_course(site, {head!r})")
    lead = f"{COURSES} All of one height: {top:.3f}."
    return Panel("Over training", lead, [Markup('<div class="sparks">{}</div>').format(drawn)], lines, rows)


def _jumps(site: Site, head: str, links: Links) -> Iterator[Panel]:
    """Where it changed most, and the texts that made the largest changes."""
    jumps = head_jumps(site, head)
    if not len(jumps):
        return
    table = page.typed_table(jumps, JUMPS, site.vocab, "", fold=8)
    lines = python(site, f"dif.show.explorer.head_jumps(site, {head!r})")
    known = _known(site, head, jumps)
    lead = "Between which snapshots its attention above control changed most."
    absent = [row for row in jumps.head(SHOWN).iter_rows(named=True) if _key(row) not in known]
    notes = [_absent(site, head, row, links) for row in absent]
    yield Panel("Jumps", lead, [table, *notes], lines, jumps)
    for found, row in known.values():
        yield _made(site, head, row, found, links)


def _key(row: dict[str, Any]) -> tuple[str, int]:
    return row["pattern"], row["from"]


def _known(site: Site, head: str, jumps: pl.DataFrame) -> dict[tuple[str, int], tuple[CreditedVisits, dict[str, Any]]]:
    """The largest jumps of which a ledger has steps."""
    known: dict[tuple[str, int], tuple[CreditedVisits, dict[str, Any]]] = {}
    for row in jumps.iter_rows(named=True):
        found = credited_visits(site, f"head:{head} {row['pattern']}", row["from"], row["to"])
        if found is not None and len(known) < SHOWN:
            known[_key(row)] = found, row
    return known


def _absent(site: Site, head: str, row: dict[str, Any], links: Links) -> Markup:
    """What would find the texts that made a jump."""
    probe, span = f"head:{head} {row['pattern']}", {"start": row["from"], "stop": row["to"]}
    command = f'{results.command("ledger", site.run)} --probe "{probe}" --start {row["from"]} --stop {row["to"]}'
    start = Markup(" ({})").format(links.a("start it here", "jobs", None, job="ledger", probe=probe, **span))
    told = "<p>Which texts made {} {} from step {:,} to {:,}: <code>{}</code>{}.</p>"
    rose, start = "rise" if row["change"] > 0 else "fall", start if site.jobs is not None else Markup("")
    return Markup(told).format(row["pattern"], rose, row["from"], row["to"], command, start)


def _made(site: Site, head: str, row: dict[str, Any], found: CreditedVisits, links: Links) -> Panel:
    """The texts that made a jump."""
    probe, span = f"head:{head} {row['pattern']}", f"{row['from']}, {row['to']}"
    rose = "rise" if row["change"] > 0 else "fall"
    facts = {
        "change of the probe": (found.change, f"steps {found.start:,} to {found.stop:,} of the ledger"),
        "raised by": (found.raised, "sum of the positive credits"),
        "lowered by": (found.lowered, "sum of the negative credits"),
    }
    texts = [_excerpt(site, found, i, links) for i in range(len(found.step))]
    to = Markup("<p>{}, {}</p>").format(
        links.a(f"the probe {probe}", "probe", results.slug(probe)),
        links.a("the run in these steps", "run", None, start=row["from"], stop=row["to"]),
    )
    lines = python(site, f"dif.show.explorer.credited_visits(site, {probe!r}, {span})")
    title = f"What made {row['pattern']} {rose}, steps {row['from']:,} to {row['to']:,}"
    return Panel(title, MADE, [page.facts(facts), page.excerpts(texts), to], lines, found)


def _excerpt(site: Site, found: CreditedVisits, i: int, links: Links) -> Excerpt:
    """A credited text, each word a link to its token."""
    assert site.vocab is not None
    datum, step, credits = int(found.datum[i]), int(found.step[i]), found.credit[i].tolist()
    (first, *_), targets = (leaf[datum].tolist() for leaf in site.run.data)
    largest = max(map(abs, credits)) or 1.0
    spelled = site.vocab.decode([first, *targets])
    words = [Word(links.a(spelled[0], "token", first))]
    for token, word, credit in zip(targets, spelled[1:], credits, strict=True):
        words.append(Word(links.a(word, "token", token), credit / largest))
    told = Markup("{}, in {}: credit {}").format(
        links.a(f"datum {datum:,}", "datum", datum),
        links.a(f"step {step:,}", "step", step),
        page.shown(float(found.credit[i].sum())),
    )
    return Excerpt(words, told)
