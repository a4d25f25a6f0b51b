"""Outlier counts and tallies: every table is what loops over the record's outliers count."""

import inspect
import math
import re
from collections import Counter
from itertools import pairwise
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_builders import recorded
from strategies import few, seeds, some

from devinterp_func import keys, neurons, records
from devinterp_func.batches import Data
from devinterp_func.neurons import Groups, _outlier_counts, _tally
from devinterp_func.records._readonly import freeze
from devinterp_func.records._step import stack, take_row, unstack
from devinterp_func.training import Recipe
from devinterp_func.units import locate, n_parameters, split

SHAPES = {"a": (2, 3), "bias": (2,), "b": (3, 2)}
P, V, C, PER_EPOCH = 14, 5, 3, 2
KINDS = ("datum", "step")


class World(NamedTuple):
    """A small record, the data it is of, and a grouping of its parameters."""

    shards: list
    data: Data
    groups: torch.Tensor
    n_groups: int

    def tally(self, shards=None, groups=None):
        groups = self.grouping if groups is None else groups
        return neurons.tally(self.shards if shards is None else shards, self.data, groups, V)

    @property
    def grouping(self):
        return Groups(tuple(range(self.n_groups)), self.groups)


def world(per, seed, n_steps, n=2, k=4, N=5, n_groups=3, real=False, cut=2):
    """Shards of ``cut`` steps; a datum is once in a batch, a parameter once in a datum's outliers.

    Deltas are of few integers, so that sums are exact and ties abound; or real.
    """
    rng = keys.generator(seed)
    data = Data(*(torch.from_numpy(rng.integers(0, V, (N, C))) for _ in range(2)))
    groups = torch.from_numpy(rng.integers(-1, n_groups, P))
    tensors = {
        "step": torch.arange(n_steps),
        "epoch": torch.arange(n_steps) // PER_EPOCH,
        "batch": torch.arange(n_steps) % PER_EPOCH,
        **{name: torch.zeros(n_steps, dtype=torch.float64) for name in ("lr", "clip", "grad_norm")},
        "datum": draws(rng, N, (n_steps, n)),
        "loss": torch.zeros(n_steps, n),
        **{f"split/{name}": torch.zeros(n_steps, 2, 3) for name in ("size", "along")},
        **{name: torch.full((n_steps, 1), torch.nan) for name in ("missed", "missed_bound")},
    }
    shape = (n_steps, n, k) if per == "datum" else (n_steps, k)
    entry = draws(rng, P if per == "datum" else n * P, shape)
    delta = rng.standard_normal(shape) if real else rng.integers(-2, 3, shape)
    tensors |= {
        "outliers/parameter": (entry % P).int(),
        "outliers/delta": torch.from_numpy(delta).float(),
        "outliers/position": torch.from_numpy(rng.integers(0, C, shape)).to(torch.uint8),
    }
    if per == "step":
        tensors["outliers/datum"] = (entry // P).short()
    return World(shards_of(tensors, cut), data, groups, n_groups)


def draws(rng, high, shape):
    """Along the last dimension, different numbers below ``high``."""
    flat = [rng.permutation(high)[: shape[-1]] for _ in range(math.prod(shape[:-1]))]
    return torch.from_numpy(np.array(flat, dtype=np.int64).reshape(shape))


def shards_of(tensors, cut):
    total = len(tensors["step"])
    parts = [{name: tensor[i : i + cut] for name, tensor in tensors.items()} for i in range(0, total, cut)]
    return [freeze(unstack(int(part["step"][0]), part)) for part in parts]


def tensors_of(shards):
    """What ``unstack`` took, of all shards together."""
    records = [take_row(shard, row) for shard in shards for row in range(shard.count)]
    return stack(records)


def entries(shards):
    """A tuple for each outlier, in order."""
    found = []
    for shard in shards:
        for s in range(shard.count):
            of, ids = shard.outliers, shard.datum[s].tolist()
            columns = (field[s].flatten().tolist() for field in (of.datum, of.parameter, of.delta, of.position))
            when = [int(field[s]) for field in (shard.step, shard.epoch, shard.batch)]
            found += [(*when, row, ids[row], *rest) for row, *rest in zip(*columns, strict=True)]
    return found


def as_tuples(rows):
    return list(zip(*(column.tolist() for column in rows), strict=True))


def same(a, b):
    """Equal in every field, dtype and bit."""
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


worlds: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    per=st.sampled_from(KINDS),
    seed=seeds,
    n_steps=st.integers(0, 6),
    n=st.integers(1, 3),
    k=st.integers(1, 9),
    n_groups=st.integers(1, 4),
    cut=st.integers(1, 4),
)

# ---- rows and counts


@given(worlds)
@some
def test_rows_are_the_outliers_in_order(drawn):
    for shard in world(**drawn).shards:
        assert as_tuples(neurons.outlier_rows(shard)) == entries([shard])


@given(worlds)
@few
def test_rows_lead_back_to_the_shard(drawn):
    for shard in world(**drawn).shards:
        rows = neurons.outlier_rows(shard)
        for name in ("parameter", "delta", "position"):
            assert torch.equal(getattr(rows, name).view(shard.outliers.delta.shape), getattr(shard.outliers, name))
        assert torch.equal(rows.step.unique(), shard.step)
        assert all((shard.datum[rows.step - shard.first, rows.row] == rows.datum).tolist())


def test_rows_may_be_written_to_and_the_record_stays():
    (shard,) = world("datum", 0, 2).shards
    before = shard.outliers.delta.clone()
    for column in neurons.outlier_rows(shard):
        column.zero_()
    assert torch.equal(shard.outliers.delta, before)


@given(worlds)
@some
def test_counts_are_what_loops_count(drawn):
    shards = world(**drawn).shards
    found = neurons.outlier_counts(iter(shards), P)
    counted = Counter((epoch, parameter) for _, epoch, _, _, _, parameter, *_ in entries(shards))
    expected = [[counted[epoch, parameter] for parameter in range(P)] for epoch in range(len(found))]
    assert found.tolist() == expected and found.shape[1] == P
    assert len(found) == -(-drawn["n_steps"] // PER_EPOCH) and int(found.sum()) == len(entries(shards))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(0, 10))
@some
def test_top_parameters_are_sorted_by_outliers_then_number(total, m):
    occurring = [p for p in range(len(total)) if total[p]]
    expected = sorted(occurring, key=lambda p: (-total[p], p))[:m]
    assert neurons.top_parameters(torch.tensor(total), m).tolist() == expected
    by_epoch = torch.stack([torch.tensor(total), torch.zeros(len(total), dtype=torch.int64)])
    assert neurons.top_parameters(by_epoch, m).tolist() == expected


@given(worlds, st.integers(1, 8), st.integers(0, 5))
@few
def test_over_training_is_what_loops_count(drawn, n_bins, more):
    shards, n_steps = world(**drawn).shards, drawn["n_steps"] + more
    if not n_steps:
        return
    found = neurons.outliers_over_training(shards, SHAPES, n_bins, n_steps)
    bins = min(n_bins, n_steps)
    expected = torch.zeros(bins, len(SHAPES), dtype=torch.int64)
    for step, *_, parameter, _, _ in entries(shards):
        expected[step * bins // n_steps, list(SHAPES).index(locate(SHAPES, parameter).unit)] += 1
    assert torch.equal(found.counts, expected)
    steps_of = [[s for s in range(n_steps) if s * bins // n_steps == b] for b in range(bins)]
    edges = found.edges.tolist()
    assert [list(range(a, b)) for a, b in pairwise(edges)] == steps_of and edges[-1] == n_steps


def test_bins_end_where_the_steps_do_and_none_is_empty():
    assert neurons.outliers_over_training([], SHAPES, 60, 100).edges.tolist()[::20] == [0, 34, 67, 100]
    assert neurons.outliers_over_training([], SHAPES, 60, 40).edges.tolist() == list(range(41))
    for bins, steps, message in ((0, 5, "n_bins is 0"), (5, 0, "n_steps is 0")):
        with pytest.raises(ValueError, match=f"{message}; it must be at least 1"):
            neurons.outliers_over_training([], SHAPES, bins, steps)


@given(worlds)
@few
def test_over_training_and_counts_agree_on_the_units(drawn):
    shards = world(**drawn).shards
    over = neurons.outliers_over_training(shards, SHAPES, 3, max(drawn["n_steps"], 1)).counts.sum(0)
    assert over.tolist() == [int(n.sum()) for n in split(neurons.outlier_counts(shards, P), SHAPES).values()]


# ---- the tally


def tally_by_loops(the):
    """What ``tally`` gives, counted by loops."""
    tables: list[Counter] = [Counter() for _ in range(4)]
    outliers, target, input, events = tables
    moved = set()
    for step, _, _, _, datum, parameter, _, position in entries(the.shards):
        group = int(the.groups[parameter])
        if group < 0:
            continue
        outliers[group] += 1
        target[group, int(the.data.targets[datum, position])] += 1
        input[group, int(the.data.tokens[datum, position])] += 1
        moved.add((step, datum, group))
    for _, datum, group in moved:
        events[datum, group] += 1
    G, N = range(the.n_groups), range(len(the.data.tokens))
    tokens = [[[table[g, v] for v in range(V)] for g in G] for table in (target, input)]
    return [outliers[g] for g in G], [[events[j, g] for g in G] for j in N], *tokens


@given(worlds)
@some
def test_tally_is_what_loops_count(drawn):
    the = world(**drawn)
    found = the.tally(shards=iter(the.shards))
    assert found.groups == tuple(range(the.n_groups))
    assert tuple(field.tolist() for field in found[1:]) == tally_by_loops(the)
    assert tuple(field.dtype for field in found[1:]) == (torch.int64, torch.int16, torch.int32, torch.int32)


@given(worlds)
@few
def test_outliers_are_the_sums_over_tokens(drawn):
    found = world(**drawn).tally()
    for table in (found.target, found.input):
        assert torch.equal(table.sum(1), found.outliers)


@pytest.mark.parametrize("axis", ["in", "out"])
@given(worlds)
@few
def test_a_neurons_events_are_the_union_of_its_parameters(axis, drawn):
    the = world(**drawn)
    groups = neurons.groups(SHAPES, axis)
    of_neurons = the.tally(groups=groups)
    of_parameters = the.tally(groups=neurons.parameter_groups(torch.arange(P), P))
    assert of_neurons.groups == groups.members and of_parameters.groups == tuple(range(P))
    for g in range(len(groups.members)):
        events = of_parameters.events[:, groups.of == g]
        assert (of_neurons.events[:, g] >= events.amax(1)).all() and (of_neurons.events[:, g] <= events.sum(1)).all()
    inside = groups.of >= 0
    for name in ("outliers", "target", "input"):
        parts = getattr(of_parameters, name)[inside]
        expected = torch.zeros_like(getattr(of_neurons, name)).index_add_(0, groups.of[inside], parts)
        assert torch.equal(getattr(of_neurons, name), expected)


@given(worlds)
@few
def test_columns_and_rows_count_the_same_outliers(drawn):
    the, totals = world(**drawn), []
    for axis in ("in", "out"):
        found = the.tally(groups=neurons.groups(SHAPES, axis))
        totals.append([sum(int(found.outliers[i]) for i, n in enumerate(found.groups) if n.unit == u) for u in "ab"])
    counts = split(neurons.outlier_counts(the.shards, P), SHAPES)
    assert totals[0] == totals[1] == [int(counts[unit].sum()) for unit in "ab"]


@given(worlds)
@few
def test_of_other_data_only_classes_are_counted(drawn):
    the = world(**drawn)
    classes = the.data.targets[:, 0]
    images = torch.zeros(len(classes), 1, 2, 2), classes
    text = the._replace(data=Data(the.data.tokens, classes[:, None].expand(-1, C))).tally()
    found = neurons.tally(the.shards, images, the.grouping, V, classes)
    assert same(found[1:4], text[1:4]) and found.input.shape == (the.n_groups, 0)
    assert f"{V} classes" in repr(found)
    bare = neurons.tally(the.shards, images, the.grouping)
    assert same(bare[1:3], text[1:3]) and bare.target.shape == bare.input.shape == (the.n_groups, 0)


def test_classes_that_are_not_the_datas_are_refused():
    the = world("datum", 0, 2)
    images = (torch.zeros(5, 2),)
    with pytest.raises(ValueError, match="there are 4 classes for 5 data; there must be one for each"):
        inspect.unwrap(neurons.tally)(the.shards, images, the.grouping, V, torch.zeros(4).long())
    with pytest.raises(ValueError, match=f"token {V} is out of range: vocab_size is {V}"):
        neurons.tally(the.shards, images, the.grouping, V, torch.full((5,), V))


def test_an_event_is_a_step_however_many_outliers():
    the = world("datum", 0, 4, n=3, k=P, N=3)
    found = the.tally(groups=Groups((0,), torch.zeros(P, dtype=torch.int64)))
    assert found.events.tolist() == [[4]] * 3 and found.outliers.tolist() == [4 * 3 * P]


def test_no_steps_no_groups_and_groups_without_outliers_give_zeros():
    the = world("datum", 0, 4)
    nothing = the.tally(shards=[])
    assert not any(field.any() for field in nothing[1:]) and nothing.target.shape == (3, V)
    assert repr(nothing) == f"Tally of 0 outliers in 3 groups by 5 data and {V} tokens"
    none = the.tally(groups=Groups((0, 1), torch.full((P,), -1)))
    assert not any(field.any() for field in none[1:]) and none.events.shape == (5, 2)
    without = the.tally(groups=Groups(tuple(range(5)), the.groups))
    assert not any(field.any() for field in (without.outliers[3:], without.events[:, 3:], without.target[3:]))
    assert [len(field) for field in the.tally(groups=Groups((), torch.full((P,), -1)))] == [0, 0, 5, 0, 0]
    assert neurons.outlier_counts([], P).shape == (0, P)
    assert not neurons.outliers_over_training([], SHAPES, 2, 3).counts.any()
    assert neurons.top_parameters(torch.zeros(4, dtype=torch.int64), 3).tolist() == []


def test_shapes_stand_for_their_columns():
    the = world("step", 1, 4)
    short, long = the.tally(groups=SHAPES), the.tally(groups=neurons.groups(SHAPES))
    assert short.groups == long.groups and same(short[1:], long[1:])


def test_a_tally_knows_the_row_of_its_groups():
    groups = neurons.groups(SHAPES)
    tally = world("datum", 0, 4).tally(groups=groups)
    assert [tally.row(neuron) for neuron in groups.members] == list(range(len(groups.members)))
    assert tally.row(neurons.Neuron("b", 1)) == 4
    with pytest.raises(ValueError, match=re.escape("b:1:out was not tallied; what was: a (in), b (in)")):
        tally.row(neurons.Neuron("b", 1, "out"))
    parameters = world("datum", 0, 4).tally(groups=neurons.parameter_groups(torch.tensor([7, 2]), P))
    assert parameters.row(2) == 1
    with pytest.raises(ValueError, match="3 was not tallied; what was: parameters"):
        parameters.row(3)


# ---- the stream


def everything(the, shards):
    """All that is read off a stream."""
    yield from the.tally(shards=shards)[1:]
    yield neurons.outlier_counts(shards, P)
    yield from neurons.outliers_over_training(shards, SHAPES, 3, 99)


@given(worlds, st.integers(1, 7))
@few
def test_shards_of_another_size_change_no_bit(drawn, cut):
    the = world(**(drawn | {"n_steps": max(drawn["n_steps"], 1)}), real=True)
    again = shards_of(tensors_of(the.shards), cut)
    assert same(everything(the, the.shards), everything(the, again))


@pytest.mark.parametrize("block", [1, 20, 2**40])
@pytest.mark.parametrize("per", KINDS)
def test_blocks_of_another_size_change_no_bit(per, block, monkeypatch):
    the = world(per, 1, 9, n=3, k=7, real=True, cut=9)
    before = list(everything(the, the.shards))
    monkeypatch.setattr(_outlier_counts, "BLOCK", block)
    monkeypatch.setattr(_tally, "COLUMNS", block)
    assert same(everything(the, the.shards), before)


@given(worlds, st.integers(0, 50))
@few
def test_only_where_steps_are_told_apart_does_their_number_matter(drawn, shift):
    the = world(**drawn)
    moved = [shard._replace(step=shard.step + shift, first=shard.first + shift) for shard in the.shards]
    assert same(the.tally(shards=moved)[1:], the.tally()[1:])
    assert torch.equal(neurons.outlier_counts(moved, P), neurons.outlier_counts(the.shards, P))
    n_steps = drawn["n_steps"] + shift + 1
    before, after = (
        neurons.outliers_over_training(shards, SHAPES, n_steps, n_steps).counts for shards in (the.shards, moved)
    )
    assert torch.equal(after, before.roll(shift, 0))


@given(worlds)
@few
def test_the_order_of_steps_does_not_matter(drawn):
    the = world(**drawn)
    assert same(the.tally(shards=the.shards[::-1])[1:], the.tally()[1:])
    assert torch.equal(neurons.outlier_counts(the.shards[::-1], P), neurons.outlier_counts(the.shards, P))


@pytest.mark.parametrize("per", KINDS)
def test_the_record_of_a_training_run_is_counted_to_the_last_outlier(per, tmp_path):
    recipe = Recipe(context=10, batch_size=60, n_steps=8, epochs=2)
    run = recorded(tmp_path / "run", recipe, records.Recording(k=9, per=per))
    total, P = 8 * 9 * (60 if per == "datum" else 1), n_parameters(run.shapes)
    counts = neurons.outlier_counts(run.shards(), P)
    assert counts.shape == (2, P) and int(counts.sum()) == total
    tally = neurons.tally(run.shards(), run.data, neurons.groups(run.shapes), run.graph.vocab_size)
    assert int(tally.outliers.sum()) == int(tally.target.sum()) == int(tally.input.sum()) == total
    assert int(tally.events.max()) <= 2  # a datum is once in an epoch
    assert torch.equal(neurons.distribution(tally, run.data).sum(1), 10 * tally.events.sum(0))


# ---- distributions of tokens


@given(seeds, st.integers(1, 4), st.integers(0, 5), st.booleans())
@few
def test_bags_are_what_loops_count(seed, N, G, weighed):
    rng = keys.generator(seed)
    data = Data(*(torch.from_numpy(rng.integers(0, V, (N, C))) for _ in range(2)))
    events = torch.from_numpy(rng.integers(0, 4, (N, G))).to(torch.float32 if weighed else torch.int16)
    expected = torch.zeros(G, V, dtype=torch.float64 if weighed else torch.int64)
    for j in range(N):
        for token in data.tokens[j].tolist():
            expected[:, token] += events[j]
    assert same([neurons.bags(events, data, V)], [expected])


@given(worlds)
@few
def test_a_bag_is_the_whole_datum_for_every_event(drawn):
    the = world(**drawn)
    bag = the.tally()
    expected = torch.zeros(the.n_groups, V, dtype=torch.int64)
    for _, datum, group in {(e[0], e[4], int(the.groups[e[5]])) for e in entries(the.shards)}:
        if group >= 0:
            expected[group] += torch.bincount(the.data.tokens[datum], minlength=V)
    assert torch.equal(neurons.distribution(bag, the.data), expected)


def test_large_counts_stay_exact():
    N = 40
    data = Data(torch.zeros(N, 2**10, dtype=torch.int64), torch.zeros(N, 2**10, dtype=torch.int64))
    events = torch.full((N, 1), 2**40 + 1)
    assert neurons.bags(events, data, 1).item() == N * 2**10 * (2**40 + 1)


def test_distribution_is_one_of_three():
    the = world("datum", 0, 4)
    tally = the.tally()
    expected = {"bag": neurons.bags(tally.events, the.data, V), "target": tally.target, "input": tally.input}
    for over in get_args(neurons.Over):
        assert torch.equal(neurons.distribution(tally, the.data, over), expected[over])
    with pytest.raises(ValueError, match="over is 'all'; it must be 'bag', 'target' or 'input'"):
        inspect.unwrap(neurons.distribution)(tally, the.data, "all")


# ---- errors


def test_a_parameter_out_of_range_is_named():
    the = world("datum", 0, 4)
    largest = max(entry[5] for entry in entries(the.shards))
    named = f"parameter {largest} is out of range: "
    with pytest.raises(ValueError, match=f"{named}there are 2 parameters"):
        neurons.outlier_counts(the.shards[1:] + the.shards, 2)
    with pytest.raises(ValueError, match=f"{named}the units have 6 parameters"):
        neurons.outliers_over_training(the.shards[1:] + the.shards, {"a": (2, 3)}, 1, 4)
    with pytest.raises(ValueError, match=f"parameter [0-9]+ is out of range: groups has {P - 9} entries, one for each"):
        the.tally(groups=Groups((0,), torch.zeros(P - 9, dtype=torch.int64)))
    spoilt = the.shards[0].outliers._replace(parameter=the.shards[0].outliers.parameter - 99)
    with pytest.raises(ValueError, match=r"parameter -\d+ is out of range"):
        neurons.outlier_counts([the.shards[0]._replace(outliers=spoilt)], P)


@pytest.mark.parametrize("bad", [3, -2])
def test_a_group_out_of_range_is_named(bad):
    the = world("datum", 0, 4)
    groups = the.groups.clone()
    groups[7] = bad
    with pytest.raises(ValueError, match=f"group {bad} is out of range: there are 3 groups, and -1 stands for none"):
        the.tally(groups=Groups((0, 1, 2), groups))


def test_data_that_are_not_the_runs_are_refused():
    the = world("step", 0, 4, N=5)
    few_data = the._replace(data=Data(*(x[:2] for x in the.data)))
    with pytest.raises(ValueError, match="datum [234] is out of range: there are 2 data, so these are not the"):
        few_data.tally()
    short = the._replace(data=Data(*(x[:, :1] for x in the.data)))
    with pytest.raises(ValueError, match="token position [12] is out of range: a datum has 1 tokens, so these are not"):
        short.tally()


def test_unknown_positions_are_refused():
    the = world("datum", 0, 2)
    (shard,) = the.shards
    unknown = shard.outliers._replace(position=torch.full(shard.outliers.delta.shape, -1))
    with pytest.raises(ValueError, match="token position -1 is out of range"):
        the.tally(shards=[shard._replace(outliers=unknown)])


@pytest.mark.parametrize("token", [V, -1])
def test_a_token_out_of_range_is_named(token):
    the = world("datum", 0, 2)
    message = f"token {token} is out of range: vocab_size is {V}"
    tally = the.tally()
    for spoilt in (0, 1):
        data = Data(*(x.clone() for x in the.data))
        data[spoilt][-1, -1] = token
        with pytest.raises(ValueError, match=message):
            the._replace(data=data).tally()
    data = Data(torch.full_like(the.data.tokens, token), the.data.targets)
    with pytest.raises(ValueError, match=message):
        neurons.bags(tally.events, data, V)


def test_other_sizes_that_do_not_fit_are_named():
    the = world("datum", 0, 4, k=4)
    with pytest.raises(ValueError, match="events are of 2 data, but there are 5"):
        neurons.bags(torch.zeros(2, 3), the.data, V)
    with pytest.raises(ValueError, match="step [23] is out of range: n_steps is 2"):
        neurons.outliers_over_training(the.shards, SHAPES, 1, 2)


@pytest.mark.parametrize("n_steps", [2**15 - 1, 2**15])
def test_events_beyond_int16_are_refused_rather_than_wrapped(n_steps):
    the = world("step", 0, n_steps, n=1, k=1, N=1, cut=n_steps)
    one_group = Groups((0,), torch.zeros(P, dtype=torch.int64))
    if n_steps < 2**15:
        assert the.tally(groups=one_group).events.tolist() == [[n_steps]]
        return
    with pytest.raises(ValueError, match="datum 0 is in 32768 steps; events are counted up to 32767"):
        the.tally(groups=one_group)
