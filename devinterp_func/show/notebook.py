"""What the library's objects look like in a notebook: the page's facts, tables, excerpts and cards, in a cell's output.

``html`` is a pure function of the value: self-contained, without scripts, its style scoped to itself and its colours
those of the notebook, light or dark. ``import devinterp_func`` registers it where IPython runs. Objects hold ids, no
words; ``in_words`` shows them with a vocabulary.
"""

from collections.abc import Callable
from functools import cache, singledispatch
from typing import Any, NamedTuple

import polars as pl
from markupsafe import Markup, escape
from torch import Tensor

from devinterp_func import credit, neurons, per_example, records, training, units
from devinterp_func.credit import patterns
from devinterp_func.graph import Graph
from devinterp_func.show import page, words
from devinterp_func.show._notebook_pieces import ROWS, by_probe, largest, line, most, names, parts, table
from devinterp_func.show._written import literal
from devinterp_func.show.page import Chip, Word
from devinterp_func.show.page._templates import FOLDER
from devinterp_func.text import Vocab

TOKENS, QUOTED = 12, 3  # of a list of tokens; of a neuron's data


class InWords(NamedTuple):
    """An object as it looks with the words of a vocabulary."""

    value: Any
    vocab: Vocab

    def __repr__(self) -> str:
        return repr(self.value)

    def _repr_html_(self) -> str:
        return html(self.value, self.vocab)


def in_words(value: Any, vocab: Vocab) -> InWords:
    """The same object, shown with words in place of token ids.

    Args:
        value: of a type that ``html`` knows.
        vocab: such as ``run.corpus.vocab``.
    """
    return InWords(value, vocab)


def html(value: Any, vocab: Vocab | None = None) -> str:
    """A value as HTML for a notebook's cell.

    Args:
        value: of a type in ``shown_types()``.
        vocab: the words of its token ids; without one ids are shown.

    Raises:
        TypeError: nothing is known of such values.

    >>> "<script>" in html(words.Excerpt(("<script>",), "a", "b", ()))
    False
    """
    blocks = _blocks(value, vocab)
    body = Markup('<div class="devinterp"><style>{}</style>{}</div>').format(_style(), Markup("").join(blocks))
    return literal(body).encode("utf-8", "replace").decode()  # half a surrogate pair cannot be sent


def shown_types() -> list[type]:
    """All types that ``html`` knows."""
    return [kind for kind in _blocks.registry if kind is not object]


@cache
def _style() -> Markup:
    return Markup((FOLDER / "notebook.css").read_text(encoding="utf-8"))


@singledispatch
def _blocks(value: Any, vocab: Vocab | None) -> list[Markup]:
    known = ", ".join(kind.__name__ for kind in shown_types())
    raise TypeError(f"a {type(value).__name__} is not shown in notebooks; what is: {known}")


# ---- a training and its steps


@_blocks.register
def _run(run: records.Run, vocab: Vocab | None) -> list[Markup]:
    facts = {
        "run": str(run),
        "steps": (run.n_steps, f"of {run.recipe.batch_size} data"),
        "data": (run.n_data, run.dataset.name),
        "model": run.manifest["model"]["name"],
        "captured": (units.n_parameters(run.shapes), f"parameters of {page.counted(len(run.shapes), 'unit')}"),
        "snapshots": len(run.snapshots),
    }
    return [page.facts(facts), page.note(words.training_words(run.manifest["recipe"]))]


@_blocks.register
def _curve(curve: records.Curve, vocab: Vocab | None) -> list[Markup]:
    facts = {"steps": len(curve.loss), "loss": (float(curve.loss[0]), f"to {curve.loss[-1]:.4g} nats")}
    clipped = f"in {(curve.clip < 1).double().mean():.0%} of the steps"
    return [page.facts(facts | {"clipped": clipped}), line(curve.loss, "the loss over training")]


@_blocks.register
def _move(move: training.Move, vocab: Vocab | None) -> list[Markup]:
    split = move.split
    measured = {"learning rate": float(split.lr), "clip": float(split.clip), "gradient norm": float(split.grad_norm)}
    facts = {"step": move.step, "epoch": move.epoch, "loss": (float(move.losses.mean()), "nats")} | measured
    data = pl.DataFrame({"datum": move.datum.tolist(), "loss": move.losses.tolist()}).sort("loss", descending=True)
    made_of = parts(split.sizes(), list(move.before))
    return [page.facts(facts), made_of, table(data, "The data with the highest losses")]


@_blocks.register
def _step(step: records.StepRecord, vocab: Vocab | None) -> list[Markup]:
    measured = {"learning rate": step.lr, "clip": step.clip, "gradient norm": step.grad_norm}
    facts = {"step": step.step, "epoch": step.epoch, "loss": (float(step.loss.mean()), "nats")} | measured
    found = step.outliers
    order = found.delta.flatten().abs().argsort(descending=True, stable=True)[:ROWS]
    columns = {"datum": step.datum[found.datum.flatten()[order].long()].tolist()}
    columns |= {name: getattr(found, name).flatten()[order].tolist() for name in ("parameter", "delta", "position")}
    return [page.facts(facts), table(pl.DataFrame(columns), "The largest shifts of weights by single data")]


@_blocks.register
def _graph(graph: Graph, vocab: Vocab | None) -> list[Markup]:
    used: dict[str, list[str]] = {unit: [] for unit in graph.shapes}
    for use in graph.uses:
        used[use.unit].append(use.kind)
    for unit in graph.dense:
        used[unit].append("dense")
    rows = [
        {"unit": unit, "shape": " × ".join(map(str, shape)), "use": " + ".join(used[unit]) or "none: its gradient is 0"}
        for unit, shape in graph.shapes.items()
    ]
    facts = {"operations": len(graph.trace.nodes), "parameters": units.n_parameters(graph.shapes)}
    facts |= {"dropout sites": len(graph.sites), "attentions": len(graph.attention)}
    head = [] if graph.head is None else [page.note(f"head: {graph.head!r}")]
    frame = pl.DataFrame(rows, [(name, pl.String) for name in ("unit", "shape", "use")])
    return [page.facts(facts), table(frame, "What each unit is used for", 2 * ROWS), *head]


# ---- what data did


@_blocks.register
def _entries(entries: credit.Entries, vocab: Vocab | None) -> list[Markup]:
    span = credit.Entries(*(x if entries.step.ndim else x[None] for x in entries))
    sums = {"credit": span.credit.sum((0, 2, 3)), "past": span.past.sum(0), "decay": span.decay.sum(0)}
    ends = {"before": span.before[0], "after": span.after[-1]}
    steps = page.facts({"steps": (len(span.step), f"from {int(span.step[0]):,}")})
    books = by_probe(ends | sums | {"missed": span.missed().sum(0)}, "The books of each probe")
    return [steps, books, *most(span.credit, span.step, span.datum, "credit")]


@_blocks.register
def _lifetimes(lives: credit.Lifetimes, vocab: Vocab | None) -> list[Markup]:
    return [*_blocks(lives.books(), vocab), *most(lives.lifetime, lives.step, lives.datum, "lifetime")]


@_blocks.register
def _influences(found: credit.Influences, vocab: Vocab | None) -> list[Markup]:
    steps = page.facts({"steps": (len(found.step), f"from {int(found.step[0]):,}")})
    return [steps, *most(found.influence, found.step, found.datum, "influence")]


@_blocks.register
def _books(books: credit.Books, vocab: Vocab | None) -> list[Markup]:
    return [by_probe(books._asdict() | {"unexplained": books.unexplained()}, "The books of each probe")]


@_blocks.register
def _attention(found: patterns.HeadAttention, vocab: Vocab | None) -> list[Markup]:
    heads = [f"{layer}.{head}" for layer in range(len(found.value)) for head in range(found.value.shape[1])]
    amounts = {"attention": found.value, "by distance": found.control, "above": found.above()}
    columns = {"head": heads} | {name: x.flatten().tolist() for name, x in amounts.items()}
    frame = pl.DataFrame(columns).sort("above", descending=True, maintain_order=True)
    controls = ("by distance",)
    return [table(frame, f"Attention to the marked keys, of {found.queries:,} queries", controls=controls)]


@_blocks.register
def _outliers(found: per_example.Outliers, vocab: Vocab | None) -> list[Markup]:
    order = found.delta.flatten().abs().argsort(descending=True, stable=True)[:ROWS]
    columns = {name: x.flatten()[order].tolist() for name, x in found._asdict().items()}
    return [table(pl.DataFrame(columns), f"The largest of {found.delta.numel():,} shifts")]


# ---- neurons and excerpts


@_blocks.register
def _tally(tally: neurons.Tally, vocab: Vocab | None) -> list[Markup]:
    order = tally.outliers.argsort(descending=True, stable=True)[:ROWS].tolist()
    columns = {
        "group": pl.Series([str(tally.groups[g]) for g in order], dtype=pl.String),
        "outliers": pl.Series(tally.outliers[order].tolist(), dtype=pl.Int64),
        "data": pl.Series((tally.events[:, order] > 0).sum(0).tolist(), dtype=pl.Int64),
        "targets": pl.Series(
            [names(largest(tally.target[g]), vocab) for g in order], dtype=pl.List(pl.String), strict=False
        ),
    }
    facts = {"outliers": int(tally.outliers.sum()), "groups": len(tally.groups), "data": len(tally.events)}
    return [page.facts(facts), table(pl.DataFrame(columns), "The groups with most outliers")]


@_blocks.register
def _card(card: neurons.Card, vocab: Vocab | None) -> list[Markup]:
    view = card.view
    facts: dict[str, object] = {"outliers": (card.outliers, f"by {len(card.data):,} data")}
    facts["mean activation"] = (view.mean_activation, f"above 0 at {view.share_active:.0%} of positions")
    lists: dict[str, Tensor | None] = {"targets": card.targets, "most active on": view.active_on}
    lists |= {"logits raised": view.promoted, "logits lowered": view.suppressed}
    facts |= {name: " ".join(names(ids[:TOKENS], vocab)) for name, ids in lists.items() if ids is not None and len(ids)}
    often = zip(card.data[:QUOTED].tolist(), card.times[:QUOTED].tolist(), strict=True)
    facts["data"] = ", ".join(f"{datum} ({page.times(n)})" for datum, n in often)
    chips = [Chip(name) for name in names(card.notable[:TOKENS], vocab)]
    own, control = (None, None) if card.trial is None else _flips(card.trial, vocab)
    formats: dict[str, page.Format] = {"flipped": ".0%"}
    return [page.cards([page.Card(str(card.neuron), facts, chips, flips=own, control=control)], formats=formats)]


def _flips(trial: neurons.Trial, vocab: Vocab | None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tokens that flip most often on attributed data, and the same tokens on random data."""
    ids = largest(trial.attributed.flips)
    tokens = pl.Series("token", names(ids, vocab), dtype=pl.String)

    def frame(counts: neurons.FlipCounts) -> pl.DataFrame:
        return pl.DataFrame([tokens]).with_columns(
            pl.Series("flipped", counts.proportion()[ids].tolist(), dtype=pl.Float64),
            pl.Series("of", counts.count[ids].tolist(), dtype=pl.Int64),
        )

    return frame(trial.attributed), frame(trial.random_data)


@_blocks.register
def _flip(flip: neurons.Excerpt, vocab: Vocab | None) -> list[Markup]:
    leading, following = (names(part, vocab) for part in (flip.leading, flip.following))
    before, after = names((flip.before, flip.after), vocab)
    told = words.Excerpt(leading, before, after, following, flip.cut, "|")
    return _quoted(told, f"datum {flip.datum:,}, position {flip.position}")


@_blocks.register
def _excerpt(text: words.Excerpt, vocab: Vocab | None) -> list[Markup]:
    return _quoted(text, "")


def _quoted(text: words.Excerpt, source: str) -> list[Markup]:
    leading, following = (["…"] * cut for cut in text.cut)
    parts = [Word(word) for word in (*leading, *text.before)], [Word(word) for word in (*text.following, *following)]
    quoted = page.excerpts([page.Excerpt([*parts[0], Word(text.marked, after=text.beside), *parts[1]], source)])
    return [quoted.replace("|</span>", escape(text.mark) + Markup("</span>"))]


# ---- other notebooks than IPython's


def register() -> None:
    """Gives the types their ``_repr_html_``, for notebooks other than IPython's."""
    for kind in shown_types():
        method: Callable[[Any], str] = html
        setattr(kind, "_repr_html_", method)  # noqa: B010


register()
