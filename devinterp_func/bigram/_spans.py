"""What a bigram walk found in each span of its steps: its largest shifts, and what they have in common.

What could be chance stands beside its control: the same measure after the pairs' tokens are shuffled.
"""

from collections import Counter
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from devinterp_func import keys, tree
from devinterp_func.bigram._corpus import PairCounts, Pairs, pair_counts, pair_log_odds, shuffled_pairs
from devinterp_func.bigram._follow import spaced
from devinterp_func.bigram._shifts import Shifts

EARLY = (10, 100, 1000)  # steps at which spans of the first epoch begin


class Span(NamedTuple):
    """The steps start to stop - 1."""

    start: int
    stop: int


class LargeShift(NamedTuple):
    """A pair's largest shift within a span."""

    output: int
    input: int
    shift: float
    step: int
    earliest: int  # first step of the span where the pair is among the k largest
    steps: int  # in how many of the span's steps it is
    embedding: float  # the part of the shift by which W_E moved
    unembedding: float  # ... and W_U
    present: float  # the part of the shift by the step's data
    past: float  # ... by earlier data, through the optimizer's memory
    decay: float  # ... and by weight decay
    datum: int  # of the step's, that moved the pair farthest in the direction of the shift
    amount: float  # its part


class SpanSummary(NamedTuple):
    """What the k largest shifts of all steps of a span have in common; ``shuffled_*`` with their tokens shuffled."""

    largest: float  # median over steps of the largest |shift|
    least: float  # ... of the k-th largest
    embedding_share: float  # of the first term in the sum of all three terms' absolute values
    seen: float  # share of pairs that the corpus has
    shuffled_seen: float
    towards: float  # share of shifts with the sign of the corpus' log-odds
    shuffled_towards: float
    outputs: list[int]  # the commonest output tokens
    shares: list[float]  # ... and their shares
    multiplied: float  # pairs multiplied in a step to find them, mean
    missed: float  # by the split over data, largest


class SpanCauses(NamedTuple):
    """Where the k largest shifts of all steps of a span come from: shares along them, which add up to 1."""

    steps: int  # searched
    present: float  # of the step's own data
    past: float  # of earlier data, through the optimizer's memory
    decay: float  # of weight decay
    cross: float  # of the third term, in which they meet


def spans(start: int, stop: int, per_epoch: int) -> list[Span]:
    """The steps start to stop - 1 cut at 10, 100 and 1,000 and wherever an epoch begins.

    >>> [tuple(span) for span in spans(0, 5000, 2928)]
    [(0, 10), (10, 100), (100, 1000), (1000, 2928), (2928, 5000)]
    """
    early = [step for step in EARLY if step < per_epoch]
    borders = sorted({start, stop, *early, *range(0, stop, per_epoch)})
    kept = [step for step in borders if start <= step <= stop]
    return [Span(*ends) for ends in zip(kept[:-1], kept[1:], strict=True)]


def largest_shifts(shifts: Shifts, span: Span, most: int = 15, each: int = 2) -> list[LargeShift]:
    """The largest shifts that single steps of a span made.

    A pair stands once, at its largest shift; a token at most ``each`` times as output and as input.

    Args:
        shifts: of a walk.
        span: steps of it.
        most: at most so many.
        each: of a token, since one step moves a frequent token's entries all together.
    """
    part = within(shifts, span)
    value, k = part.value(), part.output.shape[1]
    pairs, flat = _all_pairs(part), value.flatten()
    order = flat.abs().argsort(descending=True, stable=True)
    return [_large(part, pairs, flat, int(order[i]), k) for i in spaced(pairs.take(order), most, each)]


def span_summary(shifts: Shifts, span: Span, counts: PairCounts, *, key: keys.Key | int) -> SpanSummary:
    """What the k largest shifts of all steps of a span have in common, with their tokens shuffled for control.

    Args:
        shifts: of a walk.
        span: steps of it.
        counts: of the training text.
        key: of the shuffle.

    Raises:
        ValueError: none of the span's steps was searched.
    """
    part = within(shifts, span)
    if not len(part.step):
        raise ValueError(f"no step from {span.start} to {span.stop - 1} was searched for its largest shifts")
    value, pairs = part.value(), _all_pairs(part)
    shuffled = shuffled_pairs(pairs, key=keys.fold_in(key, *span))
    total = sum(float(term.abs().sum()) for term in (part.embedding, part.unembedding, part.cross))
    commonest = Counter(pairs.output.tolist()).most_common(5)
    return SpanSummary(
        largest=float(value[:, 0].abs().median()),
        least=float(value[:, -1].abs().median()),
        embedding_share=float(part.embedding.abs().sum()) / total if total else float("nan"),
        seen=_share(pair_counts(counts, pairs) > 0),
        shuffled_seen=_share(pair_counts(counts, shuffled) > 0),
        towards=_share(pair_log_odds(counts, pairs).sign() == value.flatten().sign()),
        shuffled_towards=_share(pair_log_odds(counts, shuffled).sign() == value.flatten().sign()),
        outputs=[output for output, _ in commonest],
        shares=[n / len(pairs.output) for _, n in commonest],
        multiplied=float(part.pairs.double().mean()),
        missed=float(part.missed.max()),
    )


def span_causes(shifts: Shifts, span: Span) -> SpanCauses:
    """Where the k largest shifts of all steps of a span come from; NaN where nothing moved or no step was searched.

    Args:
        shifts: of a walk.
        span: steps of it.
    """
    part = within(shifts, span)
    value = part.value()
    shares = [_along(getattr(part, name), value) for name in SpanCauses._fields[1:]]
    return SpanCauses(len(part.step), *shares)


def within(shifts: Shifts, span: Span) -> Shifts:
    """The steps of a walk that lie in a span and were searched."""
    first = int(shifts.step[0])
    return tree.map(lambda x: x[max(0, span.start - first) : span.stop - first], shifts).searched()


def _all_pairs(part: Shifts) -> Pairs:
    return Pairs(part.output.flatten().long(), part.input.flatten().long())


def _large(part: Shifts, pairs: Pairs, value: Float[Tensor, "m"], i: int, k: int) -> LargeShift:
    output, input = int(pairs.output[i]), int(pairs.input[i])
    steps = ((pairs.output == output) & (pairs.input == input)).nonzero()[:, 0] // k
    at = (i // k, i % k)
    return LargeShift(
        output=output,
        input=input,
        shift=float(value[i]),
        step=int(part.step[at[0]]),
        earliest=int(part.step[steps[0]]),
        steps=len(steps),
        embedding=float(part.embedding[at]),
        unembedding=float(part.unembedding[at]),
        present=float(part.present[at]),
        past=float(part.past[at]),
        decay=float(part.decay[at]),
        datum=int(part.datum[at]),
        amount=float(part.amount[at]),
    )


def _along(part: Float[Tensor, "S k"], value: Float[Tensor, "S k"]) -> float:
    """A part's share of all shifts together, each in its own direction; NaN where nothing moved."""
    return float((part * value.sign()).sum() / value.abs().sum())


def _share(true: Tensor) -> float:
    return float(true.double().mean())
