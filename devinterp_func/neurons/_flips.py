"""How flipped predictions are counted, token by token, and where in the text they stand.

A prediction flips where ablation changes the likeliest next token. A token counts wherever it is the prediction before
or after; it truly flips where it does so at five positions or more, and at a tenth of them.

Source: the flip tables of *Training Process Transparency through Gradient Interpretability: Early Experiments on Toy
Language Models* (Krzyzanowski and Hubinger 2023).
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LEAST_COUNT, LEAST_PROPORTION = 5, 0.1  # of a token's positions, and of flips among them, for it to be relevant


def truly_flips(
    count: Int[Tensor, "*G V"],
    flips: Int[Tensor, "*G V"],
    least_count: int = LEAST_COUNT,
    least_proportion: float = LEAST_PROPORTION,
) -> Bool[Tensor, "*G V"]:
    """Whether ablating the neuron truly affects the token.

    Args:
        count: positions at which the token is the prediction before or after.
        flips: those of them at which the prediction changed.
        least_count: of positions, for the proportion to mean something.
        least_proportion: of positions that flipped.

    >>> truly_flips(torch.tensor([50, 50, 4]), torch.tensor([5, 4, 4]))
    tensor([ True, False, False])
    """
    return (count >= least_count) & (flips.double() / count.clamp(min=1) >= least_proportion)


class Flips(NamedTuple):
    """A row for each token that is a prediction before or after, most flips first, ties by token id."""

    token: Int[Tensor, "m"]
    proportion: Float[Tensor, "m"]  # flips / count
    count: Int[Tensor, "m"]  # type: ignore[assignment]  # positions where the token is the prediction before or after
    flips: Int[Tensor, "m"]  # those of them where before and after differ
    notable: Bool[Tensor, "m"]

    def __repr__(self) -> str:
        return f"Flips({int((self.flips > 0).sum())} of {len(self.token)} predicted tokens flip)"


class Excerpt(NamedTuple):
    """A flipped prediction in its datum; token ids."""

    datum: int  # row of the data
    position: int
    leading: tuple[int, ...]  # the tokens up to the position, from which the next is predicted
    before: int
    after: int
    following: tuple[int, ...]  # the datum's own tokens after the position; the first is the true next one
    cut: tuple[bool, bool] = (False, False)  # whether the datum goes on, on the left and on the right


def flips(before: Int[Tensor, "*p"], after: Int[Tensor, "*p"], vocab_size: int, notable: Iterable[int] = ()) -> Flips:
    """Counts predictions and those that flipped, token by token.

    A position counts once for its prediction, or, where it flipped, once for that before and once for that after: the
    counts add up to the positions and the flipped positions, the flips to twice the latter.

    Args:
        before, after: predictions of the intact and of the ablated model.
        vocab_size: V.
        notable: ids of notable tokens, which are marked.

    >>> flips(torch.tensor([1, 1, 2]), torch.tensor([1, 2, 2]), vocab_size=3)
    Flips(2 of 2 predicted tokens flip)
    """
    flipped = before != after
    count = torch.bincount(before.flatten(), minlength=vocab_size)
    count += torch.bincount(after[flipped], minlength=vocab_size)
    flip = torch.bincount(torch.cat([before[flipped], after[flipped]]), minlength=vocab_size)
    token = flip.argsort(descending=True, stable=True)
    token = token[count[token] > 0]
    marked = torch.zeros(vocab_size, dtype=torch.bool, device=before.device)
    marked[torch.tensor(list(notable), dtype=torch.int64, device=before.device)] = True
    return Flips(token, flip[token].double() / count[token], count[token], flip[token], marked[token])


def excerpts(
    tokens: Int[Tensor, "n C"],
    before: Int[Tensor, "n C"],
    after: Int[Tensor, "n C"],
    width: int = 7,
    of: Iterable[int] | None = None,
) -> Iterator[Excerpt]:
    """The flipped predictions in context, by datum and position; never across a datum's border.

    Args:
        tokens: input tokens.
        before, after: predictions of the intact and of the ablated model.
        width: tokens on either side, as far as the datum has them.
        of: only flips from or to one of these tokens.
    """
    flipped = before != after
    if of is not None:
        wanted = torch.tensor(list(of), dtype=torch.int64, device=tokens.device)
        flipped = flipped & (torch.isin(before, wanted) | torch.isin(after, wanted))
    for datum, position in flipped.nonzero().tolist():
        pair = int(before[datum, position]), int(after[datum, position])
        yield excerpt_at(tokens[datum], datum, position, *pair, width)


def excerpt_at(tokens: Int[Tensor, "C"], datum: int, position: int, before: int, after: int, width: int = 7) -> Excerpt:
    """A flipped prediction in context.

    Args:
        tokens: of the datum.
        datum, position: where it is.
        before, after: the predictions.
        width: tokens on either side, as far as the datum has them.
    """
    start, middle, stop = max(0, position + 1 - width), position + 1, position + 1 + width
    row = tokens.tolist()
    cut = (start > 0, stop < len(row))
    return Excerpt(datum, position, tuple(row[start:middle]), before, after, tuple(row[middle:stop]), cut)
