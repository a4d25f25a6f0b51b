"""What moved a neuron, against brute force; the tokens it stands at are the tally's."""

from collections import defaultdict

import explorer_sites
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from devinterp_func import neurons, stats
from devinterp_func.records import Moved

C = 4


@st.composite
def moves(draw):
    """Outliers in order of step, each visit's beside each other; sizes with ties, of either sign."""
    visits = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), unique=True, max_size=12))
    rows = []
    for step, datum in sorted(visits, key=lambda visit: visit[0]):
        for parameter in draw(st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True)):
            position, size = draw(st.integers(0, C - 1)), draw(st.integers(-3, 3))
            rows.append((step, datum, parameter, position, size / 4))
    return rows


def as_moved(rows):
    values = torch.tensor(rows, dtype=torch.float64).view(-1, 5)
    step, datum, parameter, position = values[:, :4].long().T
    return Moved(step, datum, parameter, position, values[:, 4].float())


@given(moves())
def test_visits_are_the_sums_of_their_outliers_largest_first(rows):
    found = neurons.visits(as_moved(rows))
    amounts: defaultdict[tuple[int, int], float] = defaultdict(float)
    for step, datum, _, _, delta in rows:
        amounts[step, datum] += abs(delta)
    order = {visit: i for i, visit in reversed(list(enumerate((step, datum) for step, datum, *_ in rows)))}
    wanted = sorted(amounts, key=lambda visit: (-amounts[visit], order[visit]))
    assert list(zip(found.step.tolist(), found.datum.tolist(), strict=True)) == wanted
    assert found.amount.tolist() == [amounts[visit] for visit in wanted]
    times = [sum(row[:2] == visit for row in rows) for visit in wanted]
    assert found.outliers.tolist() == times
    first = neurons.largest_of_each_datum(found)
    assert first.datum.tolist() == list(dict.fromkeys(datum for _, datum in wanted))
    assert first.step.tolist() == [next(s for s, d in wanted if d == datum) for datum in first.datum.tolist()]


@given(moves())
def test_amounts_at_positions_are_the_visits_amounts(rows):
    moved = as_moved(rows)
    found = neurons.visits(moved)
    depth = neurons.amounts_at(moved, found, C)
    assert torch.equal(depth.sum(1), found.amount)  # quarters are exact
    for row, (step, datum) in enumerate(zip(found.step.tolist(), found.datum.tolist(), strict=True)):
        for position in range(C):
            own = [abs(delta) for s, d, _, p, delta in rows if (s, d, p) == (step, datum, position)]
            assert float(depth[row, position]) == sum(own)


@given(moves())
def test_each_entry_is_its_parameters_largest_outlier(rows):
    found = neurons.largest_entries(as_moved(rows))
    wanted = []
    for parameter in {row[2] for row in rows}:
        own = [(i, row) for i, row in enumerate(rows) if row[2] == parameter]
        i, (step, datum, _, position, delta) = min(own, key=lambda entry: (-abs(entry[1][4]), entry[0]))
        wanted.append((-abs(delta), i, (parameter, len(own), delta, datum, step, position)))
    assert list(zip(*(column.tolist() for column in found), strict=True)) == [row for *_, row in sorted(wanted)]


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=5), st.data())
def test_likeness_is_a_cosine(counts, data):
    row = data.draw(st.integers(0, len(counts) - 1))
    values = torch.tensor(counts)
    found = neurons.alike(values, row)
    wanted = torch.cosine_similarity(values.double(), values[row].double()[None], eps=1e-300)
    torch.testing.assert_close(found, wanted)


def test_tokens_are_the_tallys_for_every_neuron(tmp_path_factory):
    site = explorer_sites.site(tmp_path_factory.getbasetemp())
    data, n = site.run.data, len(explorer_sites.CORPUS.vocab)
    for axis, groups in site.groups.items():
        tally = neurons.tally(site.run.shards(), data, groups, n)
        assert torch.equal(site.index.totals(axis), tally.outliers)
        for row, neuron in enumerate(groups.members):
            assert isinstance(neuron, neurons.Neuron)
            moved = site.index.outliers(site.parameters(neuron))
            assert torch.equal(neurons.label_counts(moved, data.targets, n), tally.target[row].long())
            assert torch.equal(neurons.label_counts(moved, data.tokens, n), tally.input[row].long())
            seen = neurons.visits(moved)
            events = torch.bincount(seen.datum, minlength=len(data.tokens))
            assert torch.equal(events, tally.events[:, row].long())


@given(st.lists(st.integers(0, 30), min_size=3, max_size=8), st.integers(1, 9))
def test_typical_tokens_are_those_of_stats(counts, top):
    attributed, reference = torch.tensor(counts), torch.arange(1, len(counts) + 1) * 40
    found = neurons.typical(attributed, reference, top)
    chosen = stats.notable_tokens(attributed, reference, "log_likelihood", top)
    assert torch.equal(found.token, chosen) and len(chosen) <= top
    assert found.count.tolist() == [counts[id] for id in chosen.tolist()]
    assert bool((found.relative_frequency > 1).all())
    torch.testing.assert_close(found.frequency / found.reference_frequency, found.relative_frequency)


def test_positions_are_at_least_one():
    moved = as_moved([])
    with pytest.raises(ValueError, match="n_positions is 0"):
        neurons.amounts_at(moved, neurons.visits(moved), 0)
