"""What a reader's words may mean: neurons, heads, tokens, texts, data, steps, probes, pages."""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxtyping import Int, Int64
from torch import Tensor, cat

from devinterp_func import graph, records, units
from devinterp_func.batches import Data
from devinterp_func.show import results, tables, words
from devinterp_func.show._written import literal
from devinterp_func.show.explorer._neuron_names import matching, near, units_of
from devinterp_func.show.explorer._site import Site, label
from devinterp_func.show.explorer._types import SINGLE, Links
from devinterp_func.show.explorer._words import said

LONGEST, AROUND = 200, 6  # characters of a question; tokens shown on either side of what was found
NUMBERED = re.compile(r"(?:(datum|data|text|step|token)\s*)?#?\s*([0-9][0-9,_]{0,17})", re.IGNORECASE)
HEAD = re.compile(r"(?:head\s*:?\s*)?([0-9]{1,4}\.[0-9]{1,4})", re.IGNORECASE)
MEANT = {"data": "datum", "text": "datum"}
GROUPS = {"datum": "Data", "step": "Steps", "token": "Tokens"}
PROBES = tables.LEDGER_TABLES | tables.LIFETIME_TABLES | tables.INFLUENCE_TABLES
NEAREST = "Nearest"


class Hit(NamedTuple):
    """A page that a reader's words may mean."""

    group: str  # what kind of thing it is
    text: str
    address: str  # relative to the front page
    rank: int = 0  # 0 for what is called so, 1 for what begins so, 2 for what has it in it


def search(site: Site, asked: str, most: int = 10) -> list[Hit]:
    """Everything that a reader's words may mean: the best kind first, in each the best first.

    Args:
        site: of ``open``.
        asked: the name of a neuron or a part of one with its number, a token, words of a text, "step 12", "12", "0.1".
        most: of each kind, at most.

    Returns:
        Hits, those of a kind beside each other; where there are none, what is called most like it.
    """
    asked = asked.strip()[:LONGEST]
    if not asked:
        return []
    kinds = (_neurons, _heads, _tokens, _numbered, _texts, _probes, _pages)
    found = sorted((hit for kind in kinds for hit in kind(site, asked)), key=lambda hit: hit.rank)
    by_group: dict[str, list[Hit]] = {}
    for hit in found:
        own = by_group.setdefault(hit.group, [])
        own += [hit] if len(own) < most and hit.address not in {other.address for other in own} else []
    return [hit for own in by_group.values() for hit in own] or list(_nearest(site, asked))


def _hit(group: str, text: str, rank: int, kind: str, id: object = None, **query: object) -> Hit:
    return Hit(group, literal(text), Links()(kind, id, **query), rank)


def _neurons(site: Site, asked: str) -> Iterator[Hit]:
    """Neurons by name, and units by a part of theirs."""
    for neuron in matching(site, asked):
        exact = asked in (str(neuron), label(neuron))
        yield _hit("Neurons", f"{label(neuron)} ({neuron})", 0 if exact else 1, "neuron", neuron)
    for unit in units_of(site):
        names = unit, units.label(unit)
        if any(asked.lower() in name.lower() for name in names):
            text = f"the neurons of {units.label(unit)}"
            yield _hit("Neurons", text, 0 if asked in names else 2, "neurons", unit=unit)


def _heads(site: Site, asked: str) -> Iterator[Hit]:
    found = HEAD.fullmatch(asked)
    if found and found[1] in heads(site):
        yield _hit("Heads", f"head {found[1]}", 0, "head", found[1])


def heads(site: Site) -> list[str]:
    """The model's attention heads by layer and number; none where it has no attention, or is not at hand."""
    try:
        example = tuple(leaf[:1] for leaf in site.run.data)
        shape = graph.attention_patterns(site.run.graph, site.params, example).shape
    except (ValueError, TypeError, records.RecordError):
        return []
    return [f"{layer}.{head}" for layer in range(shape[1]) for head in range(shape[2])]


def _tokens(site: Site, asked: str) -> Iterator[Hit]:
    """Tokens that are so, begin so, or have it in them."""
    if site.vocab is None:
        return
    wanted = asked.lower()
    for id, token in enumerate(site.vocab.tokens):
        if wanted in token.lower():
            rank = 0 if asked == token else 1 if token.lower().startswith(wanted) else 2
            yield _hit("Tokens", token, rank, "token", id)


def _numbered(site: Site, asked: str) -> Iterator[Hit]:
    """Data, steps and tokens by number."""
    found = NUMBERED.fullmatch(asked)
    if found is None:
        return
    said_kind, number = (found[1] or "").lower(), int(re.sub("[,_]", "", found[2]))
    wanted = MEANT.get(said_kind, said_kind)
    n_tokens = len(site.vocab) if site.vocab is not None else 0
    for kind, stop in {"step": site.n_steps, "datum": site.run.n_data, "token": n_tokens}.items():
        if number < stop and wanted in ("", kind):
            text = f"{kind} {number:,}"
            text += f": {said(site, number)}" if kind == "datum" else ""
            text += f": {site.vocab.tokens[number]}" if kind == "token" and site.vocab is not None else ""
            yield _hit(GROUPS[kind], text, 0 if wanted else 1, kind, number)


def _texts(site: Site, asked: str) -> Iterator[Hit]:
    """Data that have all the words, in this order beside each other."""
    if site.vocab is None:
        return
    ids = ids_of(site, asked)
    if len(ids) < 2:
        return
    for datum, position in with_run(site.run.data, ids)[:100].tolist():
        tokens = cat([site.run.data.tokens[datum], site.run.data.targets[datum, -1:]])
        start, stop = max(0, position - AROUND), position + len(ids) + AROUND
        around = words.words(tokens[start:stop], site.vocab)
        text = f"{'… ' if start else ''}{around}{' …' if stop < len(tokens) else ''}"
        yield _hit("Texts", f"datum {datum:,}: {text}", 0, "datum", datum)


def ids_of(site: Site, asked: str) -> list[int]:
    """The tokens of a reader's words: as they are between spaces, or as the tokenizer takes them; none if unknown."""
    assert site.vocab is not None
    parts = asked.split()
    known = {token: id for id, token in enumerate(site.vocab.tokens)}
    if all(part in known for part in parts):
        return [known[part] for part in parts]
    try:
        ids = site.vocab.encode(asked).tolist()
    except UnicodeError:
        return []
    return [] if any(site.vocab.tokens[id] == "<unk>" for id in ids) else ids


def with_run(data: Data, ids: Sequence[int]) -> Int64[Tensor, "m 2"]:
    """Where tokens stand beside each other in a datum or the token after it: datum and first position.

    >>> import torch
    >>> with_run(Data(torch.tensor([[5, 6], [6, 5]]), torch.tensor([[6, 6], [5, 6]])), [5, 6])
    tensor([[0, 0],
            [1, 1]])
    """
    text: Int[Tensor, "N D"] = cat([data.tokens, data.targets[:, -1:]], 1)
    n = text.shape[1] - len(ids) + 1
    found = (text[:, : max(n, 0)] == ids[0]).nonzero()
    for i, id in enumerate(ids[1:], 1):
        found = found[text[found[:, 0], found[:, 1] + i] == id]
    return found


def _probes(site: Site, asked: str) -> Iterator[Hit]:
    """Probes of the results by a part of their name."""
    names = (name for table in ("ledger_courses", "lifetimes", "influences") for name in _named(site, table))
    for name in dict.fromkeys(names):
        if asked.lower() in name.lower():
            rank = 0 if asked == name else 1 if name.lower().startswith(asked.lower()) else 2
            yield _hit("Probes", name, rank, "probe", results.slug(name))


def _named(site: Site, table: str) -> list[str]:
    found = site.table(table, PROBES[table])
    return [] if found is None else found["probe"].unique(maintain_order=True).to_list()


def _pages(site: Site, asked: str) -> Iterator[Hit]:
    for kind, name in SINGLE.items():
        if name.lower().startswith(asked.lower()):
            yield _hit("Pages", name, 0 if asked.lower() == name.lower() else 1, kind)


def _nearest(site: Site, asked: str) -> Iterator[Hit]:
    """What is called most like it."""
    if site.vocab is not None:
        known = {token: id for id, token in enumerate(site.vocab.tokens)}
        for token in difflib.get_close_matches(asked.lower()[:40], known, n=5):
            yield _hit(NEAREST, f"token {token}", 2, "token", known[token])
    for text, kind, id in near(site, asked)[:2]:
        yield _hit(NEAREST, text, 2, kind, id)
