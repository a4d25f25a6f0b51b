"""Ids become words here, and only here: token ids in tables, excerpts of texts, cards, names of sublayers."""

from collections.abc import Iterable
from typing import NamedTuple

import polars as pl
from jaxtyping import Int
from torch import Tensor

from devinterp_func import neurons, units
from devinterp_func.batches import Data
from devinterp_func.records import Run
from devinterp_func.show._training_words import all_is_present as all_is_present
from devinterp_func.show._training_words import in_full as in_full
from devinterp_func.show._training_words import optimizer_name as optimizer_name
from devinterp_func.show._training_words import optimizer_words as optimizer_words
from devinterp_func.show._training_words import schedule_words as schedule_words
from devinterp_func.show._training_words import training_words as training_words
from devinterp_func.show._written import literal
from devinterp_func.show.schema import Table
from devinterp_func.text import Vocab


class Excerpt(NamedTuple):
    """A part of a text with one token marked, beside what it is held against: ``… a b (c → d) e f …``."""

    before: tuple[str, ...]
    marked: str
    beside: str  # the target, or the prediction after an ablation
    following: tuple[str, ...]
    cut: tuple[bool, bool] = (False, False)  # whether the text goes on, on the left and on the right
    mark: str = "→"  # between the two

    def __str__(self) -> str:
        words = [*self.before, f"({self.marked} {self.mark} {self.beside})", *self.following]
        return literal(" ".join(["…"] * self.cut[0] + words + ["…"] * self.cut[1]))


def excerpt(
    tokens: Int[Tensor, "C"], targets: Int[Tensor, "C"], position: int, vocab: Vocab, width: int = 7
) -> Excerpt:
    """A datum's text around a position, the token there beside its target.

    Args:
        tokens, targets: of the datum.
        position: which token is marked.
        vocab: the vocabulary.
        width: tokens on either side, as far as the datum has them.
    """
    words, (target,) = vocab.decode(tokens), vocab.decode(targets[position : position + 1])
    start, stop = max(0, position - width), position + 1 + width
    parts = tuple(words[start:position]), tuple(words[position + 1 : stop])
    return Excerpt(parts[0], words[position], target, parts[1], (start > 0, stop < len(words)))


def flip_excerpt(flip: neurons.Excerpt, vocab: Vocab) -> Excerpt:
    """A flipped prediction in its text: ``… leading (before | after) following …``.

    Args:
        flip: of ``neurons.excerpts``, in ids.
        vocab: the vocabulary.
    """
    before, after = vocab.decode([flip.before, flip.after])
    leading, following = (tuple(vocab.decode(part)) for part in (flip.leading, flip.following))
    return Excerpt(leading, before, after, following, flip.cut, "|")


def vocab_of(run: Run) -> Vocab | None:
    """The words of a run's text; None if its data are none."""
    return run.corpus.vocab if run.is_text else None


def is_posts(run: Run) -> bool:
    """Whether the run's model is the post's, beside whose numbers the post's can stand."""
    return bool(run.manifest["model"]["kind"] == "transformer")


def spell(frame: pl.DataFrame, table: Table, vocab: Vocab | None) -> pl.DataFrame:
    """The same frame with words in place of token ids; a list of ids becomes a list of words.

    Args:
        frame: of ``tables.frame``, or columns of it.
        table: which says what columns hold ids of tokens.
        vocab: the vocabulary; without one ids stay.

    Raises:
        ValueError: an id is none of the vocabulary's.
    """
    if vocab is None:
        return frame
    names = [name for name in frame.columns if name in table.columns and table.columns[name].token]
    known = {id for name in names for id in frame[name].explode().drop_nulls().unique().to_list()}
    for name in names:
        own = frame[name].explode().drop_nulls()
        if unknown := own.filter(~own.is_between(0, len(vocab) - 1)).to_list():
            raise ValueError(f"{name!r} holds the token id {unknown[0]}; the vocabulary has {len(vocab)} tokens")
    ids = pl.Series(sorted(known), dtype=pl.Int64)
    words = pl.Series([literal(vocab.tokens[id]) for id in sorted(known)], dtype=pl.String)

    def spelled(name: str) -> pl.Expr:
        listed = isinstance(table.columns[name].dtype, pl.List)
        one = pl.element() if listed else pl.col(name)
        said = one.replace_strict(ids, words, default=None, return_dtype=pl.String)
        return (pl.col(name).list.eval(said) if listed else said).alias(name)

    return frame.with_columns(spelled(name) for name in names)


def pair(output: int, input: int, vocab: Vocab) -> str:
    """A pair of tokens: what comes first, and what follows."""
    return f"{vocab.tokens[input]} → {vocab.tokens[output]}"


def words(ids: Int[Tensor, "m"] | Iterable[int], vocab: Vocab) -> str:
    """Tokens in a row, for the eye."""
    return " ".join(vocab.decode([int(i) for i in ids]))


def sublayer(unit: str) -> str:
    """A unit's layer, from 0, and kind, and the post's name for it.

    >>> sublayer("layers.2.linear2.weight"), sublayer("layers.0.self_attn.in_proj_weight")
    ("2.linear2 (post's 3.2)", '0.in_proj')
    """
    post = units.post_label(unit)
    return units.label(unit) + (f" (post's {post})" if post else "")


def card_text(card: neurons.Card, data: Data, vocab: Vocab, n_data: int = 3) -> str:
    """A neuron's card as lines for a terminal.

    Args:
        card: of ``neurons.card``.
        data: the training data.
        vocab: the vocabulary.
        n_data: attributed data quoted.
    """
    view = card.view
    lines = {
        str(card.neuron): f"{card.outliers:,} outliers by {len(card.data):,} data",
        "notable tokens": _listed(card.notable, vocab),
        "notable targets": _listed(card.targets, vocab),
        "logits raised": _listed(view.promoted, vocab),
        "logits lowered": _listed(view.suppressed, vocab),
        "activation": f"mean {view.mean_activation:.3g}, above 0 at {view.share_active:.0%} of positions",
        "most active on": _listed(view.active_on, vocab),
    }
    if card.trial is not None:
        lines |= _trial_lines(card.trial, vocab)
    for datum, times in zip(card.data[:n_data].tolist(), card.times[:n_data].tolist(), strict=True):
        lines[f"datum {datum}, {times}×"] = " ".join(vocab.decode(data.tokens[datum]))
    return "\n".join(f"{name:20} {value}" for name, value in lines.items())


def _trial_lines(trial: neurons.Trial, vocab: Vocab) -> dict[str, str]:
    own, chance = trial.attributed, trial.random_data
    flipped = (own.flips.double() * own.flipped()).argsort(descending=True, stable=True)
    flipped = flipped[: int(own.flipped().sum())][:10]
    flips = [f"{vocab.tokens[v]} {own.proportion()[v]:.0%} of {own.count[v]}" for v in flipped.tolist()]
    elsewhere = [f"{vocab.tokens[v]} {chance.proportion()[v]:.0%}" for v in flipped.tolist()]
    return {"ablated, flip": ", ".join(flips) or "none", "... on random data": ", ".join(elsewhere) or "–"}


def _listed(ids: Int[Tensor, "m"] | None, vocab: Vocab) -> str:
    return "–" if ids is None or not len(ids) else words(ids.tolist(), vocab)
