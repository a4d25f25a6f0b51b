"""Courses and most credited texts of a ledger, against loops over its steps and data."""

import pytest
import torch
from ledgers import DATA, C, N, P, S, ledger

from devinterp_func import credit


@pytest.mark.parametrize("every", [1, 10, 100])
def test_courses_are_sums_over_the_windows_steps(every):
    entries, found = ledger(), None
    found = credit.probe_courses(entries, every)
    assert found.step.tolist() == list(range(5, 5 + S, every)) and int(found.steps.sum()) == S
    for w, start in enumerate(range(0, S, every)):
        steps = range(start, min(start + every, S))
        assert int(found.steps[w]) == len(steps)
        for i in range(P):
            by_datum = [[float(entries.credit[s, i, j].sum()) for j in range(N)] for s in steps]
            change = [float(entries.after[s, i] - entries.before[s, i]) for s in steps]
            past, decay = ([float(x[s, i]) for s in steps] for x in (entries.past, entries.decay))
            parts = zip(change, by_datum, past, decay, strict=True)
            missed = [delta - sum(row) - carried - decayed for delta, row, carried, decayed in parts]
            assert float(found.past[w, i]) == pytest.approx(sum(past))
            assert float(found.decay[w, i]) == pytest.approx(sum(decay))
            assert float(found.value[w, i]) == float(entries.before[start, i])
            assert float(found.raised[w, i]) == pytest.approx(sum(x for row in by_datum for x in row if x > 0))
            assert float(found.lowered[w, i]) == pytest.approx(sum(x for row in by_datum for x in row if x < 0))
            assert float(found.net_missed[w, i]) == pytest.approx(sum(missed))
            assert float(found.missed[w, i]) == pytest.approx(sum(map(abs, missed)))
            assert float(found.change[w, i]) == pytest.approx(sum(map(abs, change)))


def test_a_course_leads_from_each_value_to_the_next():
    entries = ledger()
    found = credit.probe_courses(entries, 7)
    leads = found.value + found.raised + found.lowered + found.past + found.decay + found.net_missed
    torch.testing.assert_close(leads[:-1], found.value[1:])
    torch.testing.assert_close(leads[-1], entries.after[-1])


def test_most_credited_are_the_largest_sums_over_a_datums_steps():
    entries = ledger()
    for i in range(P):
        by_datum: dict[int, tuple[int, list[float]]] = {}
        for s in range(S):
            for j in range(N):
                steps, credits = by_datum.get(int(entries.datum[s, j]), (0, [0.0] * C))
                row = entries.credit[s, i, j].tolist()
                by_datum[int(entries.datum[s, j])] = steps + 1, [a + b for a, b in zip(credits, row, strict=True)]
        order = sorted(by_datum, key=lambda datum: -sum(by_datum[datum][1]))
        raised = [datum for datum in order if sum(by_datum[datum][1]) > 0]
        lowered = [datum for datum in reversed(order) if sum(by_datum[datum][1]) < 0]
        assert len(raised) > 2 and len(lowered) > 2
        for most in (2, DATA):
            found = credit.most_credited(entries, i, most)
            assert [text.datum for text in found] == raised[:most] + lowered[:most]
            assert [text.effect for text in found] == ["raised"] * len(raised[:most]) + ["lowered"] * len(
                lowered[:most]
            )
            assert [text.rank for text in found[: len(raised[:most])]] == list(range(1, len(raised[:most]) + 1))
            for text in found:
                steps, credits = by_datum[text.datum]
                assert text.steps == steps and text.credit.tolist() == pytest.approx(credits)
                best = max(credits) if text.effect == "raised" else min(credits)
                assert credits[text.position] == pytest.approx(best)


def test_data_without_credit_neither_raised_nor_lowered():
    entries = ledger()
    assert credit.most_credited(entries._replace(credit=torch.zeros_like(entries.credit)), 0) == []


def test_a_window_has_a_step():
    with pytest.raises(ValueError, match="every is 0; it must be at least 1"):
        credit.probe_courses(ledger(), 0)
