"""The texts that made a neuron, and the tokens that stand where they moved it."""

import torch
from jaxtyping import Float64
from markupsafe import Markup
from torch import Tensor

from devinterp_func import neurons
from devinterp_func.neurons import Visits
from devinterp_func.records import Moved
from devinterp_func.show import page, schema
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._types import Links, Panel
from devinterp_func.show.explorer._words import said
from devinterp_func.show.page import Excerpt, Word
from devinterp_func.show.schema import Column

TEXTS, STEPS = 12, 12  # shown: data; the other steps of one
MADE = """The data that moved the neuron most, each by its largest visit. The deeper a word's background, the more
of Σ|Δ| over the neuron's outliers arose at its position, where the word was read and the next one was to be
predicted."""
ROWS = "The data that moved the neuron most, each by its largest visit: Σ|Δ| over the neuron's outliers."
KINDS = {"targets": "Tokens it was to predict", "tokens": "Tokens it read"}
WHERE = {"targets": "to be predicted", "tokens": "read"}
KEYNESS = """Tokens {} where data moved the neuron, beside all positions of the training data: those that are
over-represented, the largest G² first."""
TYPICAL = schema.Table(
    "Over-represented tokens.",
    "explore.py",
    {
        "token": schema.token(),
        "outliers": Column(schema.INT, "of the neuron where the token stands"),
        "share": Column(schema.FLOAT, "of the neuron's outliers", format=".2%"),
        "share of all": Column(schema.FLOAT, "of the positions of all training data", format=".3%"),
        "times": Column(schema.FLOAT, "the one share over the other", format=".3g"),
    },
)


def texts(site: Site, moved: Moved, visits: Visits, line: str, links: Links) -> Panel:
    """The data that moved it most.

    Args:
        site: what it is about.
        moved: the neuron's outliers.
        visits: of ``neurons.visits``.
        line: what gives them.
        links: from the page.
    """
    top = Visits(*(column[:TEXTS] for column in neurons.largest_of_each_datum(visits)))
    sources = [_source(site, visits, Visits(*row), links) for row in zip(*top, strict=True)]
    if site.vocab is None:
        return Panel("What made it", ROWS, [page.links(sources)], line, visits)
    depth = neurons.amounts_at(moved, top, site.run.data.tokens.shape[1])
    depth = depth / depth.max().clamp(min=torch.finfo(depth.dtype).tiny) if depth.numel() else depth
    quoted = [_excerpt(site, *row, links) for row in zip(top.datum.tolist(), depth, sources, strict=True)]
    return Panel("The texts that made it", MADE, [page.excerpts(quoted)], line, visits)


def _excerpt(site: Site, datum: int, depth: Float64[Tensor, "C"], source: Markup, links: Links) -> Excerpt:
    assert site.vocab is not None
    ids = site.run.data.tokens[datum].tolist()
    words = [links.a(word, "token", id) for word, id in zip(site.vocab.decode(ids), ids, strict=True)]
    return Excerpt([Word(*pair) for pair in zip(words, depth.tolist(), strict=True)], source)


def _source(site: Site, visits: Visits, one: Visits, links: Links) -> Markup:
    """A visit in words, with links, and the other steps in which its datum moved the neuron."""
    step, datum = int(one.step), int(one.datum)
    others = sorted(set(visits.step[visits.datum == datum].tolist()) - {step})
    also = Markup(", ").join(links.a(f"{other:,}", "step", other) for other in others[:STEPS])
    rest = f" and {len(others) - STEPS:,} more" if len(others) > STEPS else ""
    text = Markup("{} in {}: Σ|Δ| {} in {}").format(
        links.a(f"datum {datum:,}", "datum", datum),
        links.a(f"step {step:,}", "step", step),
        page.shown(float(one.amount)),
        page.counted(int(one.outliers), "outlier"),
    )
    if site.vocab is None:
        text += Markup(" ({})").format(said(site, datum))
    return text + Markup("; also in step {}{}").format(also, rest) if others else text


def tokens(site: Site, moved: Moved, kind: str, line: str, links: Links) -> Panel:
    """Over-represented tokens at the positions of the neuron's outliers.

    Args:
        site: what it is about; of text.
        moved: the neuron's outliers.
        kind: "targets" or "tokens".
        line: what gives them.
        links: from the page.
    """
    assert site.vocab is not None
    labels, n = getattr(site.run.data, kind), len(site.vocab)
    found = neurons.typical(neurons.label_counts(moved, labels, n), labels.flatten().bincount(minlength=n))
    columns = dict(zip(TYPICAL.columns, (column.tolist() for column in found), strict=True))
    table = page.typed_table(
        schema.frame(TYPICAL, columns), TYPICAL, site.vocab, f"{KINDS[kind]}.", fold=None, links=links
    )
    return Panel(KINDS[kind], KEYNESS.format(WHERE[kind]), [table], line, found)
