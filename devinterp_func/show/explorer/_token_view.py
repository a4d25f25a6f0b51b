"""A token's page: how frequent it is, its neighbours in the text, the texts with it, and which neurons it moved."""

from collections.abc import Iterator
from typing import NamedTuple

import polars as pl
import torch
from jaxtyping import Float64, Int, Int64
from markupsafe import Markup
from torch import Tensor

from devinterp_func import records
from devinterp_func.show import _bigram_sections, page, schema, tables
from devinterp_func.show.explorer._lines import python
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._spans import number
from devinterp_func.show.explorer._types import Links, NotThere, Panel, Query, View
from devinterp_func.show.page import Excerpt, Word
from devinterp_func.show.schema import Column

VISITS, NEURONS, BESIDE, SHIFTS = 12, 12, 15, 12  # visits that are read; rows shown
MOVED = """Which neurons were moved where the token stood. Counted are the outliers at its positions in {} visits of
data that have it: those in which the datum moved the weights most, by Σ|Δ|."""
CAPTION = {
    "Moved as it was predicted": "Columns by their outliers where it was to be predicted.",
    "Moved as it was read": "Columns by their outliers where it was read.",
}
BESIDE_IT = "What stands next to it in the training text, the most frequent first."
PAIRS = schema.Table(
    "Neighbours.",
    "explore.py",
    {
        "token": schema.token(),
        "times": Column(schema.INT, "how often the training text has the pair"),
        "share": Column(schema.FLOAT, "of the token's own occurrences", format=".1%"),
    },
)


class AtToken(NamedTuple):
    """Outliers of each neuron at a token's positions in some visits."""

    step: Int64[Tensor, "v"]  # the visits, those of the largest amount first
    datum: Int64[Tensor, "v"]
    amount: Float64[Tensor, "v"]  # Σ|Δ| over all of the visit's outliers
    visits: int  # of which these are the largest
    target: Int64[Tensor, "G"]  # outliers where the token was to be predicted, by column
    input: Int64[Tensor, "G"]  # where it was read

    def __repr__(self) -> str:
        counts = f"{int(self.target.sum()):,} outliers at the target, {int(self.input.sum()):,} at the input"
        return f"AtToken({counts}, in {len(self.step)} of {self.visits:,} visits)"


def view(site: Site, id: str, query: Query, links: Links) -> View:
    """What there is to know about a token."""
    if site.vocab is None:
        raise NotThere("the run's data are no text, so there are no tokens", [("the run", "run", None)])
    token = number(site, id, "token", len(site.vocab))
    found = at_token(site, token)
    panels = [_about(site, token), *_moved(site, token, found, links), _texts(site, token, found, links)]
    panels += [_beside(site, token, after, links) for after in (True, False)]
    panels += _shifts(site, token, links)
    before = links("token", token - 1) if token else None
    after = links("token", token + 1) if token + 1 < len(site.vocab) else None
    return View(f"“{site.vocab.tokens[token]}”", panels, f"Token {token:,} of {len(site.vocab):,}.", before, after)


def occurrences(tokens: Int[Tensor, "N C"], token: int) -> Int64[Tensor, "m 2"]:
    """Where a token stands: datum and position.

    >>> occurrences(torch.tensor([[5, 6], [6, 6]]), 5)
    tensor([[0, 0]])
    """
    return (tokens == token).nonzero()


def next_to(stream: Int[Tensor, "L"], token: int, n_tokens: int, after: bool = True) -> Int64[Tensor, "V"]:
    """How often each token follows a token in a text, or comes before it.

    Args:
        stream: token ids.
        token: which.
        n_tokens: V.
        after: whether what follows is counted.

    >>> next_to(torch.tensor([1, 2, 1, 0]), 1, 3), next_to(torch.tensor([1, 2, 1, 0]), 1, 3, after=False)
    (tensor([1, 0, 1]), tensor([0, 0, 1]))
    """
    first, second = stream[:-1], stream[1:]
    found = second[first == token] if after else first[second == token]
    return torch.bincount(found, minlength=n_tokens)


def at_token(site: Site, token: int, most: int = VISITS) -> AtToken:
    """The neurons that moved where a token stood, by the visits of its data that moved the weights most.

    Args:
        site: of ``open``; of text.
        token: id.
        most: visits that are read, at most; of equal ones the earliest.
    """
    data, seen = site.run.data, site.index.course
    has = ((data.tokens == token) | (data.targets == token)).any(1)
    step, row = has[seen.datum].nonzero().T
    amount = seen.amount[step, row].double()
    top = amount.argsort(descending=True, stable=True)[:most]
    groups = site.groups["in"]
    counts = torch.zeros(2, len(groups.members), dtype=torch.int64)
    for at, own in zip(step[top].tolist(), row[top].tolist(), strict=True):
        found = records.read(site.run, at).outliers
        mine = (found.datum == own).flatten()
        group, position = groups.of[found.parameter.flatten()[mine].long()], found.position.flatten()[mine].long()
        for i, labels in enumerate((data.targets, data.tokens)):
            there = group[(labels[seen.datum[at, own], position] == token) & (group >= 0)]
            counts[i] += torch.bincount(there, minlength=len(groups.members))
    return AtToken(step[top], seen.datum[step[top], row[top]], amount[top], len(step), counts[0], counts[1])


def _about(site: Site, token: int) -> Panel:
    """How frequent it is."""
    assert site.vocab is not None
    stream = site.run.corpus.train
    counts = torch.bincount(stream, minlength=len(site.vocab))
    times, rank = int(counts[token]), int((counts > counts[token]).sum())
    facts: dict[str, object] = {"in the training text": (times, page.times(times) if times < 3 else "times")}
    facts |= {"share": f"{times / len(stream):.3%}", "more frequent tokens": rank}
    line = f"dif.show.explorer.occurrences(site.run.data.tokens, {token})"
    found = occurrences(site.run.data.tokens, token)
    facts["data with it"] = (len(found[:, 0].unique()), f"of {site.run.n_data:,}")
    return Panel("The token", "", [page.facts(facts)], python(site, line), found)


def _moved(site: Site, token: int, found: AtToken, links: Links) -> Iterator[Panel]:
    """Neurons by their outliers at the token's positions."""
    members, lead = site.groups["in"].members, MOVED.format(f"{len(found.step)} of {found.visits:,}")
    line = python(site, f"dif.show.explorer.at_token(site, {token})")
    for title, counts in zip(CAPTION, (found.target, found.input), strict=True):
        top = counts.argsort(descending=True, stable=True)[:NEURONS]
        rows = [(str(members[i]), int(counts[i])) for i in top.tolist() if counts[i]]
        frame = pl.DataFrame(rows, {"neuron": pl.String, "outliers": pl.Int64}, orient="row")
        yield Panel(title, lead, [page.table(frame, CAPTION[title], fold=None, links=links)], line, found)


def _texts(site: Site, token: int, found: AtToken, links: Links) -> Panel:
    """The visits that were read."""
    assert site.vocab is not None
    quoted = []
    for step, datum, amount in zip(found.step.tolist(), found.datum.tolist(), found.amount.tolist(), strict=True):
        tokens, targets = site.run.data.tokens[datum].tolist(), site.run.data.targets[datum].tolist()
        ids = [*tokens, targets[-1]]
        words = [Word(links.a(site.vocab.tokens[id], "token", id), float(id == token)) for id in ids]
        source = Markup("{} in {}: Σ|Δ| {}").format(
            links.a(f"datum {datum:,}", "datum", datum), links.a(f"step {step:,}", "step", step), page.shown(amount)
        )
        quoted.append(Excerpt(words, source))
    line = python(site, f"dif.show.explorer.at_token(site, {token})")
    lead = "The texts with it that moved the weights most, all of a text's outliers taken together."
    return Panel("Texts with it", lead, [page.excerpts(quoted)], line, found)


def _beside(site: Site, token: int, after: bool, links: Links) -> Panel:
    """What follows it, or comes before it."""
    assert site.vocab is not None
    counts = next_to(site.run.corpus.train, token, len(site.vocab), after)
    top = counts.argsort(descending=True, stable=True)[:BESIDE]
    top = top[counts[top] > 0]
    share = (counts[top].double() / counts.sum().clamp(min=1)).tolist()
    frame = schema.frame(PAIRS, {"token": top.tolist(), "times": counts[top].tolist(), "share": share})
    caption = f"Tokens {'after' if after else 'before'} it."
    table = page.typed_table(frame, PAIRS, site.vocab, caption, fold=None, links=links)
    asked = f"dif.show.explorer.next_to(site.run.corpus.train, {token}, {len(site.vocab)}, after={after})"
    return Panel(
        "What follows it" if after else "What comes before it", BESIDE_IT, [table], python(site, asked), counts
    )


def _shifts(site: Site, token: int, links: Links) -> Iterator[Panel]:
    """How the bigram decoder's entries of the token changed, where a script has found out."""
    for walk in _bigram_sections.walks(site.folder):
        net = site.table(f"{walk}_net", tables.BIGRAM_NET)
        if net is None:
            continue
        own = net.filter((pl.col("input") == token) | (pl.col("output") == token))
        asked = f"table.filter((table['input'] == {token}) | (table['output'] == {token})).to_dict(as_series=False)"
        line = python(site, f"table = site.table('{walk}_net', dif.show.tables.BIGRAM_NET)", asked)
        table = page.typed_table(own, tables.BIGRAM_NET, site.vocab, f"Pairs of `{walk}`.", fold=SHIFTS, links=links)
        lead = "Pairs with it among those whose entry of the bigram decoder a span of training changed most."
        yield Panel("Bigrams that it learned", lead, [table], line, own.to_dict(as_series=False))
