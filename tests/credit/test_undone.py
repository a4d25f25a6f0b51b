"""Laws of what a shift undid, against a loop over every recorded shift."""

from collections import defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from devinterp_func import credit
from devinterp_func.records import Moved

AMOUNTS = st.integers(-4, 4).map(float)  # sums are exact, so that ties are
SHIFTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.integers(0, 5), AMOUNTS), max_size=40)


def moved_of(shifts):
    columns = list(zip(*sorted(shifts), strict=True)) or [()] * 4
    step, datum, parameter = (torch.tensor(column, dtype=torch.int64) for column in columns[:3])
    return Moved(step, datum, parameter, torch.zeros_like(step), torch.tensor(columns[3], dtype=torch.float32))


def brute_force(shifts, step, parameter, delta):
    before, own = 0.0, defaultdict[int, float](float)
    for when, datum, entry, amount in shifts:
        if when < step and entry == parameter:
            before += amount
            own[datum] += amount
    taken = min(abs(delta), abs(before)) if delta * before < 0 else 0.0
    if not before:
        return before, taken, -1, 0.0
    sign = 1 if before > 0 else -1
    maker = max(sorted(own), key=lambda datum: sign * own[datum])
    return before, taken, maker, own[maker]


@given(SHIFTS, st.integers(0, 7), st.lists(st.tuples(st.integers(0, 7), AMOUNTS), unique_by=lambda e: e[0], max_size=6))
def test_what_shifts_undid_is_what_a_loop_over_the_record_says(shifts, step, asked):
    parameter = torch.tensor([entry for entry, _ in asked], dtype=torch.int64)
    delta = torch.tensor([amount for _, amount in asked])
    found = credit.undone(moved_of(shifts), step, parameter, delta)
    rows = list(zip(*(column.tolist() for column in found), strict=True))
    assert rows == [brute_force(shifts, step, entry, amount) for entry, amount in asked]


def test_an_entry_twice_is_refused():
    with pytest.raises(ValueError, match="2 entries were given, 1 of them different"):
        credit.undone(moved_of([]), 1, torch.tensor([3, 3]), torch.tensor([1.0, 2.0]))


@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3, unique=True), min_size=1, max_size=6))
def test_a_datums_part_is_that_of_its_rows(batches):
    datum = torch.tensor(batches)
    amounts = torch.arange(datum.numel() * 2, dtype=torch.float64).view(*datum.shape, 2)
    for id in range(5):
        step, found = credit.of_datum(amounts, datum, id)
        rows = [(s, amounts[s, row.index(id)].tolist()) for s, row in enumerate(batches) if id in row]
        assert list(zip(step.tolist(), found.tolist(), strict=True)) == rows
