"""Laws of what is read off a walk: spans, the largest shifts, what they have in common, net changes; by loops."""

import math
from collections import Counter
from statistics import median_low

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import some

from devinterp_func import bigram, keys
from devinterp_func.bigram import RANKED, Pairs, Span


@some
@given(st.integers(0, 400), st.integers(1, 4000), st.sampled_from([5, 50, 300, 2928]))
def test_spans_are_the_walk_in_pieces_cut_where_epochs_begin(start, length, per_epoch):
    stop = start + length
    spans = bigram.spans(start, stop, per_epoch)
    assert [step for span in spans for step in range(*span)] == list(range(start, stop))
    cuts = {step for step in range(start + 1, stop) if step % per_epoch == 0}
    cuts |= {step for step in (10, 100, 1000) if start < step < stop and step < per_epoch}
    assert {span.start for span in spans[1:]} == cuts


def every_shift(walked, span):
    """All kept shifts of a span: (output, input) -> [(value, step, place among the k)]."""
    found: dict[tuple[int, int], list[tuple[float, int, int]]] = {}
    for step in range(*span):
        value = walked.shifts.value()[step].tolist()
        pairs = zip(walked.shifts.output[step].tolist(), walked.shifts.input[step].tolist(), strict=True)
        for place, (pair, one) in enumerate(zip(pairs, value, strict=True)):
            found.setdefault(pair, []).append((one, step, place))
    return found


@pytest.mark.parametrize("span", [Span(0, 10), Span(10, 75)])
def test_the_largest_shifts_stand_once_at_their_largest(walked, span):
    kept = every_shift(walked, span)
    rows = bigram.largest_shifts(walked.shifts, span, most=6, each=2)
    sizes = [abs(row.shift) for row in rows]
    assert 1 <= len(rows) <= 6 and sizes == sorted(sizes, reverse=True)
    assert sizes[0] == max(abs(one) for values in kept.values() for one, *_ in values)
    for side in ("output", "input"):
        assert max(Counter(getattr(row, side) for row in rows).values()) <= 2
    assert len({(row.output, row.input) for row in rows}) == len(rows)
    for row in rows:
        values = kept[row.output, row.input]
        shift, step, place = max(values, key=lambda one: (abs(one[0]), -one[1]))
        assert (row.shift, row.step, row.steps) == (shift, step, len(values))
        assert row.earliest == min(step for _, step, _ in values)
        for name in ("embedding", "unembedding", "present", "past", "decay", "datum", "amount"):
            assert getattr(row, name) == getattr(walked.shifts, name)[step][place].item()


@pytest.mark.parametrize("span", [Span(0, 20), Span(20, 75)])
def test_a_summary_is_what_loops_say(walked, span):
    shifts, counts = walked.shifts, walked.counts
    found = bigram.span_summary(shifts, span, counts, key=3)
    pairs = [(o, i) for step in range(*span) for o, i in zip(shifts.output[step].tolist(), shifts.input[step].tolist())]  # noqa: B905
    value = [one for step in range(*span) for one in shifts.value()[step].tolist()]
    stacked = Pairs(*(torch.tensor(column) for column in zip(*pairs, strict=True)))
    shuffled = bigram.shuffled_pairs(stacked, key=keys.fold_in(3, *span))

    def shares(pairs):
        n = bigram.pair_counts(counts, pairs).tolist()
        odds = bigram.pair_log_odds(counts, pairs).tolist()
        right = [(a > 0) == (b > 0) for a, b in zip(odds, value, strict=True)]
        return sum(x > 0 for x in n) / len(n), sum(right) / len(right)

    assert (found.seen, found.towards) == pytest.approx(shares(stacked))
    assert (found.shuffled_seen, found.shuffled_towards) == pytest.approx(shares(shuffled))
    assert 0.02 < abs(found.towards - 0.5)  # so that the opposite sign would be another number
    size = [sorted(map(abs, shifts.value()[step].tolist())) for step in range(*span)]
    assert found.largest == pytest.approx(median_low(one[-1] for one in size))
    assert found.least == pytest.approx(median_low(one[0] for one in size))
    terms = [sum(float(term[step].abs().sum()) for step in range(*span)) for term in shifts[3:6]]
    assert found.embedding_share == pytest.approx(terms[0] / sum(terms))
    commonest = Counter(o for o, _ in pairs).most_common(5)
    assert found.outputs == [o for o, _ in commonest]
    assert found.shares == pytest.approx([n / len(pairs) for _, n in commonest])
    assert found.multiplied == pytest.approx(sum(shifts.pairs[slice(*span)].tolist()) / (span.stop - span.start))
    assert found.missed == max(shifts.missed[slice(*span)].tolist())


def test_a_span_of_a_later_walk_is_counted_from_its_start(walked):
    later = type(walked.shifts)(*(field[30:50] for field in walked.shifts))
    for span in (Span(30, 41), Span(41, 50)):
        assert bigram.largest_shifts(later, span) == bigram.largest_shifts(walked.shifts, span)
        assert bigram.span_summary(later, span, walked.counts, key=0) == bigram.span_summary(
            walked.shifts, span, walked.counts, key=0
        )


def test_a_step_that_moves_nothing_has_no_share(walked):
    still = type(walked.shifts)(*(0 * field[:3] for field in walked.shifts))._replace(evaluated=torch.ones(3))
    found = bigram.span_summary(still, Span(0, 3), walked.counts, key=0)
    assert math.isnan(found.embedding_share) and found.largest == 0


@pytest.mark.parametrize("span", [Span(0, 10), Span(9, 13)])
def test_causes_are_shares_along_the_shifts(with_memory, span):
    shifts = with_memory.shifts
    found = bigram.span_causes(shifts, span)
    steps = [step for step in range(*span) if step % 4 == 0]
    assert found.steps == len(steps)
    whole = sum(abs(one) for step in steps for one in shifts.value()[step].tolist())
    for name in ("present", "past", "decay", "cross"):
        pairs = [
            zip(getattr(shifts, name)[step].tolist(), shifts.value()[step].tolist(), strict=True) for step in steps
        ]
        along = sum(part * math.copysign(1, one) for column in pairs for part, one in column)
        assert getattr(found, name) == pytest.approx(along / whole)
    assert sum(found[1:]) == pytest.approx(1, abs=1e-4)
    assert found.present > 0 and abs(found.past) > 0.01


def test_steps_that_were_not_searched_are_left_out(with_memory):
    shifts, counts = with_memory.shifts, with_memory.counts
    every = bigram.largest_shifts(shifts, Span(0, 14), most=30, each=30)
    assert {row.step for row in every} <= {0, 4, 8, 12} and min(row.output for row in every) >= 0
    assert bigram.largest_shifts(shifts, Span(1, 4)) == [] and bigram.span_causes(shifts, Span(1, 4)).steps == 0
    with pytest.raises(ValueError, match="no step from 1 to 3 was searched for its largest shifts"):
        bigram.span_summary(shifts, Span(1, 4), counts, key=0)
    assert bigram.span_summary(shifts, Span(1, 6), counts, key=0).largest == float(shifts.value()[4, 0].abs())


def less_mean(x, n):
    return x - sum(int(times) * row for times, row in zip(n, x, strict=True)) / int(n.sum())


def test_net_changes_are_those_of_the_dense_decoder(walked):
    V, least = len(walked.counts.first), 2
    before, after = (walked.run.params(step) for step in (20, 60))
    rows = list(bigram.net_changes(walked.run.graph, before, after, walked.counts, least, most=5, each=2))
    for ranked in RANKED:
        part = [row for row in rows if row.ranked == ranked]
        dense = []
        for params in (before, after):
            U, E = params["decoder.weight"].double(), params["embedding.weight"].double()
            if "centred" in ranked:
                U = (
                    U
                    - sum(int(n) * u for n, u in zip(walked.counts.second, U, strict=True)) / walked.counts.second.sum()
                )
                E = E - sum(int(n) * e for n, e in zip(walked.counts.first, E, strict=True)) / walked.counts.first.sum()
            dense.append(U @ E.T)
        change = dense[1] - dense[0]
        every = Pairs(torch.arange(V * V) // V, torch.arange(V * V) % V)
        candidates = bigram.pair_counts(walked.counts, every) >= (least if ranked == RANKED[-1] else 0)
        order = [(o, i) for o, i in zip(*(x[candidates].tolist() for x in every), strict=True)]
        order.sort(key=lambda pair: -abs(float(change[pair])))
        expected: list[tuple[int, int]] = []
        for o, i in order:
            if [p for p, _ in expected].count(o) < 2 and [q for _, q in expected].count(i) < 2 and len(expected) < 5:
                expected.append((o, i))
        assert [(row.output, row.input) for row in part] == expected
        for row in part:
            assert row.before == pytest.approx(float(dense[0][row.output, row.input]), abs=1e-5)
            assert row.after == pytest.approx(float(dense[1][row.output, row.input]), abs=1e-5)
