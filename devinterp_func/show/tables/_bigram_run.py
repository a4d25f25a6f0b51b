"""A run's bigram tables: all that is read off a walk, and the correlations at every snapshot."""

from collections.abc import Iterator

import polars as pl

from devinterp_func import bigram, keys
from devinterp_func.bigram import Followed, PairCounts, Shifts
from devinterp_func.records import Run
from devinterp_func.show import terminal
from devinterp_func.show.tables._bigram import (
    bigram_course_frame,
    check_frame,
    correlation_frame,
    largest_frame,
    net_frame,
    size_frame,
    span_frame,
)
from devinterp_func.show.tables._bigram_causes import cause_frame, largest_cause_frame

LOGIT_TEXTS = 256  # of the validation part, whose mean logits are correlated


def bigram_walk_frames(
    run: Run, shifts: Shifts, followed: Followed, counts: PairCounts, every: int, least: int, *, key: keys.Key | int
) -> Iterator[tuple[str, pl.DataFrame]]:
    """The tables of a walk, by name; the net changes last, as they take weights from several steps.

    Args:
        run: the run.
        shifts: of a walk over it.
        followed: the pairs that the walk followed.
        counts: of the training text.
        every: steps from one row to the next in the time courses, and of a window of sizes.
        least: how often a pair must occur to be counted as the corpus'.
        key: of the shuffles.
    """
    start, stop = int(shifts.step[0]), int(shifts.step[-1]) + 1
    spans = bigram.spans(start, stop, run.steps_per_epoch)
    passed = ((step, run.params(step)) for step in run.snapshots if start < step <= stop)
    yield "largest", largest_frame(shifts, spans, run.data, counts)
    yield "spans", span_frame(shifts, spans, counts, key=key)
    yield "causes", cause_frame(shifts, spans)
    yield "largest_causes", largest_cause_frame(shifts, spans)
    yield "sizes", size_frame(shifts, every)
    yield "courses", bigram_course_frame(shifts, followed, every)
    yield "checks", check_frame(run.graph, shifts, passed, followed.pairs)
    nets, before = [], run.params(start)
    for span in terminal.watched(spans, len(spans), "net changes"):
        after = run.params(span.stop)
        nets.append(net_frame(run.graph, before, after, span, counts, least))
        before = after
    yield "net", pl.concat(nets)


def run_correlation_frame(
    run: Run, counts: PairCounts, least: int, unseen: int, *, key: keys.Key | int
) -> pl.DataFrame:
    """How the weights go with the corpus at every snapshot that there is.

    Args:
        run: the run.
        counts: of its training text.
        least, unseen: of ``bigram.pair_sets``.
        key: of the draw of unseen pairs and of the shuffles.
    """
    sets = bigram.pair_sets(counts, least, unseen, key=key)
    tokens = run.split("valid").tokens[:LOGIT_TEXTS]
    snapshots = run.snapshots
    found = [
        (step, correlation)
        for step in terminal.watched(snapshots, len(snapshots), "correlations")
        for correlation in bigram.correlations(run.graph, run.params(step), counts, sets, tokens, key=key)
    ]
    return correlation_frame(found)
