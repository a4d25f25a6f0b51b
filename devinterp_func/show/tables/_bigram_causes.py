"""What a bigram walk found as tables: whether the largest shifts are their step's own texts', or earlier ones'."""

from collections.abc import Sequence

import polars as pl

from devinterp_func import bigram
from devinterp_func.bigram import Shifts, Span
from devinterp_func.show.schema import FLOAT, INT, Column, Table, frame
from devinterp_func.show.tables._bigram import PAIR, SPAN

_CAUSES = {
    "present": "of the step's own texts",
    "past": "of texts of earlier steps, through the optimizer's memory",
    "decay": "of weight decay",
    "cross": "of the third term, in which these meet",
}

BIGRAM_CAUSES = Table(
    "Where the largest shifts come from: shares of them all, along them.",
    "bigram.py",
    {
        **SPAN,
        "steps": Column(INT, "of the span, searched for the largest shifts"),
        **{name: Column(FLOAT, f"share {what}", format=".1%") for name, what in _CAUSES.items()},
    },
    ("from step",),
)
BIGRAM_LARGEST_CAUSES = Table(
    "Where each of the largest shifts of single steps comes from.",
    "bigram.py",
    {
        **SPAN,
        **PAIR,
        "step": Column(INT, "the step that made it"),
        "shift": Column(FLOAT, "change of W_UE in one step: the sum of the four parts", format="+.4f"),
        **{name: Column(FLOAT, f"part {what}", format="+.4f") for name, what in _CAUSES.items()},
    },
    ("from step", "input", "output"),
)


def cause_frame(shifts: Shifts, spans: Sequence[Span]) -> pl.DataFrame:
    """Where the k largest shifts of all steps of each span come from; a span that was not searched has no row."""
    found = [(span, bigram.span_causes(shifts, span)) for span in spans]
    rows = [_span(span) | causes._asdict() for span, causes in found if causes.steps]
    return frame(BIGRAM_CAUSES, rows)


def largest_cause_frame(shifts: Shifts, spans: Sequence[Span], most: int = 15, each: int = 2) -> pl.DataFrame:
    """Where each of the largest shifts comes from; arguments as ``bigram.largest_shifts``, for each span."""
    rows = []
    for span in spans:
        for large in bigram.largest_shifts(shifts, span, most, each):
            parts = {name: getattr(large, name) for name in ("present", "past", "decay")}
            parts["cross"] = large.shift - large.embedding - large.unembedding
            pair = {"input": large.input, "output": large.output, "step": large.step, "shift": large.shift}
            rows.append(_span(span) | pair | parts)
    return frame(BIGRAM_LARGEST_CAUSES, rows)


def _span(span: Span) -> dict[str, int]:
    return {"from step": span.start, "to step": span.stop - 1}
