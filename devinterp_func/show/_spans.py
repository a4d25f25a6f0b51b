"""Tables of several spans of steps say of each row which it is of; where there is but one, a page says it once."""

from collections.abc import Sequence

import polars as pl

ENDS = ["from", "to"]  # columns: the first step, and the step that was not made any more


def one_span(frames: Sequence[pl.DataFrame]) -> tuple[list[pl.DataFrame], str]:
    """The tables without the columns ``from`` and ``to`` where all rows have the same, and a sentence of it.

    Args:
        frames: with both columns.

    >>> frame = pl.DataFrame({"from": [0, 0], "to": [1464, 1464], "unit": ["a", "b"]})
    >>> [found], sentence = one_span([frame])
    >>> found.columns, sentence
    (['unit'], 'Steps 0 to 1,464.')
    """
    spans = pl.concat([frame.select(ENDS) for frame in frames]).unique()
    if len(spans) != 1:
        return list(frames), ""
    start, stop = spans.row(0)
    return [frame.drop(ENDS) for frame in frames], f"Steps {start:,} to {stop:,}."
