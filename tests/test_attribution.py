"""Laws of attribution.py: every table is what loops over the record's outliers count."""

import inspect
import math
from collections import Counter, defaultdict
from functools import partial
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import few, seeds, some, weights

from devinterp_func import attribution, batches, keys, neurons, steprecord, training
from devinterp_func.attribution import Rows
from devinterp_func.batches import Data
from devinterp_func.frozen import freeze
from devinterp_func.outliers import locate
from devinterp_func.training import Recipe
from devinterp_func.transformer import Config

SHAPES = {"a": (2, 3), "bias": (2,), "b": (3, 2)}
P, V, C, PER_EPOCH = 14, 5, 3, 2
KINDS = ("datum", "step")


class World(NamedTuple):
    """A small record, the data it is of, and a grouping of its parameters."""

    shards: list
    data: Data
    groups: torch.Tensor
    n_groups: int

    def tally(self, weigh=None, shards=None, groups=None, n_groups=None):
        groups, n_groups = (self.groups, self.n_groups) if groups is None else (groups, n_groups)
        return attribution.tally(self.shards if shards is None else shards, self.data, groups, n_groups, V, weigh)


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
    return [freeze(steprecord.unstack(int(part["step"][0]), part)) for part in parts]


def tensors_of(shards):
    """What ``steprecord.unstack`` took, of all shards together."""
    records = [steprecord.take(shard, row) for shard in shards for row in range(shard.count)]
    return steprecord.stack(records)


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
        assert as_tuples(attribution.rows(shard)) == entries([shard])


@given(worlds)
@few
def test_rows_lead_back_to_the_shard(drawn):
    for shard in world(**drawn).shards:
        rows = attribution.rows(shard)
        for name in ("parameter", "delta", "position"):
            assert torch.equal(getattr(rows, name).view(shard.outliers.delta.shape), getattr(shard.outliers, name))
        assert torch.equal(rows.step.unique(), shard.step)
        assert all((shard.datum[rows.step - shard.first, rows.row] == rows.datum).tolist())


def test_rows_may_be_written_to_and_the_record_stays():
    (shard,) = world("datum", 0, 2).shards
    before = shard.outliers.delta.clone()
    for column in attribution.rows(shard):
        column.zero_()
    assert torch.equal(shard.outliers.delta, before)


@given(worlds, st.lists(st.integers(0, P + 3), max_size=6))
@few
def test_attributed_are_the_rows_of_the_parameters(drawn, parameters):
    shards = world(**drawn).shards
    found = attribution.attributed(iter(shards), parameters)
    assert as_tuples(found) == [entry for entry in entries(shards) if entry[5] in parameters]
    assert repr(found) == f"Rows of {len(found.step)} outliers"


@given(worlds)
@some
def test_counts_are_what_loops_count(drawn):
    shards = world(**drawn).shards
    found = attribution.counts(iter(shards), P)
    counted = Counter((epoch, parameter) for _, epoch, _, _, _, parameter, *_ in entries(shards))
    expected = [[counted[epoch, parameter] for parameter in range(P)] for epoch in range(len(found))]
    assert found.tolist() == expected and found.shape[1] == P
    assert len(found) == -(-drawn["n_steps"] // PER_EPOCH) and int(found.sum()) == len(entries(shards))


@given(worlds)
@few
def test_by_unit_sums_over_each_unit(drawn):
    counts = attribution.counts(world(**drawn).shards, P)
    expected = {unit: torch.zeros(len(counts), dtype=torch.int64) for unit in SHAPES}
    for parameter in range(P):
        expected[locate(SHAPES, parameter).unit] += counts[:, parameter]
    found = attribution.by_unit(counts, SHAPES)
    assert list(found) == list(expected) and same(found.values(), expected.values())


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(0, 10))
@some
def test_top_parameters_are_sorted_by_outliers_then_number(total, m):
    occurring = [p for p in range(len(total)) if total[p]]
    expected = sorted(occurring, key=lambda p: (-total[p], p))[:m]
    assert attribution.top_parameters(torch.tensor(total), m).tolist() == expected
    by_epoch = torch.stack([torch.tensor(total), torch.zeros(len(total), dtype=torch.int64)])
    assert attribution.top_parameters(by_epoch, m).tolist() == expected


@given(worlds, st.integers(1, 8), st.integers(0, 5))
@few
def test_over_training_is_what_loops_count(drawn, n_bins, more):
    shards, n_steps = world(**drawn).shards, drawn["n_steps"] + more
    found = attribution.over_training(shards, SHAPES, n_bins, n_steps)
    expected = torch.zeros(n_bins, len(SHAPES), dtype=torch.int64)
    for step, *_, parameter, _, _ in entries(shards):
        expected[step * n_bins // n_steps, list(SHAPES).index(locate(SHAPES, parameter).unit)] += 1
    assert torch.equal(found, expected)


@given(worlds)
@few
def test_over_training_and_counts_agree_on_the_units(drawn):
    shards = world(**drawn).shards
    over = attribution.over_training(shards, SHAPES, 3, max(drawn["n_steps"], 1)).sum(0)
    assert over.tolist() == [int(n.sum()) for n in attribution.by_unit(attribution.counts(shards, P), SHAPES).values()]


# ---- the tally


def tally_by_loops(the, weigh):
    """Weights of (parameter, delta) looped over; what ``tally`` gives, as dicts."""
    tables: list[defaultdict[Any, float]] = [defaultdict(float) for _ in range(5)]
    outliers, weight, target, input, events = tables
    moved = set()
    for step, _, _, _, datum, parameter, delta, position in entries(the.shards):
        group = int(the.groups[parameter])
        if group < 0:
            continue
        outliers[group] += 1
        weight[group] += weigh(parameter, delta)
        target[group, int(the.data.targets[datum, position])] += weigh(parameter, delta)
        input[group, int(the.data.tokens[datum, position])] += weigh(parameter, delta)
        moved.add((step, datum, group))
    for _, datum, group in moved:
        events[datum, group] += 1
    G, N = range(the.n_groups), range(len(the.data.tokens))
    tokens = [[[table[g, v] for v in range(V)] for g in G] for table in (target, input)]
    return [outliers[g] for g in G], [weight[g] for g in G], [[events[j, g] for g in G] for j in N], *tokens


@given(worlds)
@some
def test_tally_is_what_loops_count(drawn):
    the = world(**drawn)
    found = the.tally(shards=iter(the.shards))
    assert tuple(field.tolist() for field in found) == tally_by_loops(the, lambda parameter, delta: 1)
    kinds = (torch.int64, torch.float64, torch.int16, torch.int32, torch.int32)
    assert tuple(field.dtype for field in found) == kinds


@given(worlds)
@few
def test_tally_weighed_is_what_loops_sum(drawn):
    the, values = world(**drawn), torch.arange(P) - 6.0
    weighed = {
        attribution.by_delta(): lambda parameter, delta: abs(delta),
        attribution.by_value(values): lambda parameter, delta: abs(parameter - 6),
        (lambda parameter, delta: delta): lambda parameter, delta: delta,
    }
    for weigh, by_hand in weighed.items():
        found = the.tally(weigh)
        assert tuple(field.tolist() for field in found) == tally_by_loops(the, by_hand)
        assert found.target.dtype == found.input.dtype == torch.float32


@given(worlds)
@few
def test_weight_one_is_no_weight(drawn):
    the = world(**drawn)
    plain, weighed = the.tally(), the.tally(lambda parameter, delta: torch.ones_like(delta))
    assert all(torch.equal(a.double(), b.double()) for a, b in zip(plain, weighed, strict=True))


@given(worlds)
@few
def test_outliers_and_weights_are_the_sums_over_tokens(drawn):
    found = world(**drawn).tally()
    for table in (found.target, found.input):
        assert torch.equal(table.sum(1), found.outliers) and torch.equal(table.sum(1).double(), found.weight)


@pytest.mark.parametrize("axis", ["in", "out"])
@given(worlds)
@few
def test_a_neurons_events_are_the_union_of_its_parameters(axis, drawn):
    the = world(**drawn)
    everyone, groups = neurons.groups(SHAPES, axis)
    of_neurons = the.tally(groups=groups, n_groups=len(everyone))
    each = the.tally(groups=torch.arange(P), n_groups=P)
    for g in range(len(everyone)):
        own = each.events[:, groups == g]
        assert (of_neurons.events[:, g] >= own.amax(1)).all() and (of_neurons.events[:, g] <= own.sum(1)).all()
    inside = groups >= 0
    for name in ("outliers", "weight", "target", "input"):
        parts = getattr(each, name)[inside]
        expected = torch.zeros_like(getattr(of_neurons, name)).index_add_(0, groups[inside], parts)
        assert torch.equal(getattr(of_neurons, name), expected)


@given(worlds)
@few
def test_columns_and_rows_count_the_same_outliers(drawn):
    the, totals = world(**drawn), []
    for axis in ("in", "out"):
        everyone, groups = neurons.groups(SHAPES, axis)
        found = the.tally(groups=groups, n_groups=len(everyone))
        totals.append([sum(int(found.outliers[i]) for i, n in enumerate(everyone) if n.unit == u) for u in "ab"])
    counts = attribution.by_unit(attribution.counts(the.shards, P), SHAPES)
    assert totals[0] == totals[1] == [int(counts[unit].sum()) for unit in "ab"]


def test_an_event_is_a_step_however_many_outliers():
    the = world("datum", 0, 4, n=3, k=P, N=3)
    found = the.tally(groups=torch.zeros(P, dtype=torch.int64), n_groups=1)
    assert found.events.tolist() == [[4]] * 3 and found.outliers.tolist() == [4 * 3 * P]


def test_no_steps_no_groups_and_groups_without_outliers_give_zeros():
    the = world("datum", 0, 4)
    nothing = the.tally(shards=[])
    assert not any(field.any() for field in nothing) and nothing.target.shape == (3, V)
    assert repr(nothing) == f"Tally of 0 outliers in 3 groups by 5 data and {V} tokens"
    none = the.tally(groups=torch.full((P,), -1), n_groups=2)
    assert not any(field.any() for field in none) and none.events.shape == (5, 2)
    without = the.tally(groups=the.groups, n_groups=5)
    assert not any(field.any() for field in (without.outliers[3:], without.events[:, 3:], without.target[3:]))
    assert [len(field) for field in the.tally(groups=torch.full((P,), -1), n_groups=0)] == [0, 0, 5, 0, 0]
    assert attribution.counts([], P).shape == (0, P) and not attribution.squares([], P).any()
    assert attribution.attributed([], [1]).delta.shape == (0,)
    assert not attribution.over_training([], SHAPES, 2, 3).any()
    assert attribution.top_parameters(torch.zeros(4, dtype=torch.int64), 3).tolist() == []


# ---- the stream


def everything(the, shards):
    """All that is read off a stream, with real weights."""
    yield from the.tally(attribution.by_delta(), shards)
    yield from the.tally(shards=shards)
    yield attribution.counts(shards, P)
    yield attribution.squares(shards, P)
    yield attribution.over_training(shards, SHAPES, 3, 99)
    yield from attribution.attributed(shards, [1, 2, 5])


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
    monkeypatch.setattr(attribution, "BLOCK", block)
    monkeypatch.setattr(attribution, "COLUMNS", block)
    assert same(everything(the, the.shards), before)


@given(worlds, st.integers(0, 50))
@few
def test_only_where_steps_are_told_apart_does_their_number_matter(drawn, shift):
    the = world(**drawn)
    moved = [shard._replace(step=shard.step + shift, first=shard.first + shift) for shard in the.shards]
    assert same(the.tally(shards=moved), the.tally())
    assert torch.equal(attribution.counts(moved, P), attribution.counts(the.shards, P))
    n_steps = drawn["n_steps"] + shift + 1
    before, after = (attribution.over_training(shards, SHAPES, n_steps, n_steps) for shards in (the.shards, moved))
    assert torch.equal(after, before.roll(shift, 0))


@given(worlds)
@few
def test_the_order_of_steps_does_not_matter(drawn):
    the = world(**drawn)
    assert same(the.tally(shards=the.shards[::-1]), the.tally())
    assert torch.equal(attribution.counts(the.shards[::-1], P), attribution.counts(the.shards, P))


@pytest.mark.parametrize("per", KINDS)
def test_the_record_of_a_training_run_is_counted_to_the_last_outlier(per):
    config = Config(vocab_size=11, d_model=4, n_heads=2, d_hidden=6, n_layers=1, dropout=0.1)
    data = batches.chunk(torch.from_numpy(keys.generator(0).integers(0, 11, 41)), 5)
    recipe = Recipe(context=5, batch_size=2, epochs=2, k=9, per=per)
    records = [record for _, record in training.steps(weights(config, torch.float32), data, config, recipe)]
    shapes = {f"layers.0.{name}": tuple(weights(config)[f"layers.0.{name}"].shape) for name in UNITS}
    shard = freeze(steprecord.unstack(0, steprecord.stack(records)))
    total, size = len(records) * 9 * (2 if per == "datum" else 1), sum(math.prod(shape) for shape in shapes.values())
    counts = attribution.counts([shard], size)
    assert len(records) == 8 and counts.shape == (2, size) and int(counts.sum()) == total
    everyone, groups = neurons.groups(shapes)
    tally = attribution.tally([shard], data, groups, len(everyone), 11)
    assert int(tally.outliers.sum()) == int(tally.target.sum()) == int(tally.input.sum()) == total
    assert int(tally.events.max()) <= 2  # a datum is once in an epoch
    bags = attribution.distribution(tally, data, 11)
    assert torch.equal(bags.sum(1), 5 * tally.events.sum(0))


UNITS = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")

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
    assert same([attribution.bags(events, data, V)], [expected])


@given(worlds)
@few
def test_a_bag_is_the_whole_datum_for_every_event(drawn):
    the = world(**drawn)
    bag = the.tally()
    expected = torch.zeros(the.n_groups, V, dtype=torch.int64)
    for _, datum, group in {(e[0], e[4], int(the.groups[e[5]])) for e in entries(the.shards)}:
        if group >= 0:
            expected[group] += torch.bincount(the.data.tokens[datum], minlength=V)
    assert torch.equal(attribution.distribution(bag, the.data, V), expected)


def test_large_counts_stay_exact():
    N = 40
    data = Data(torch.zeros(N, 2**10, dtype=torch.int64), torch.zeros(N, 2**10, dtype=torch.int64))
    events = torch.full((N, 1), 2**40 + 1)
    assert attribution.bags(events, data, 1).item() == N * 2**10 * (2**40 + 1)


def test_distribution_is_one_of_three():
    the = world("datum", 0, 4)
    tally = the.tally()
    expected = {"bag": attribution.bags(tally.events, the.data, V), "target": tally.target, "input": tally.input}
    for over in get_args(attribution.Over):
        assert torch.equal(attribution.distribution(tally, the.data, V, over), expected[over])
    with pytest.raises(ValueError, match="over is 'all'; it must be 'bag', 'target' or 'input'"):
        inspect.unwrap(attribution.distribution)(tally, the.data, V, "all")


@given(st.lists(st.integers(0, V - 1), max_size=9))
@few
def test_reference_counts_every_token(stream):
    found = attribution.reference(torch.tensor(stream, dtype=torch.int64), V)
    assert found.tolist() == [stream.count(v) for v in range(V)]


# ---- other scales


@given(worlds)
@few
def test_squares_are_what_loops_sum(drawn):
    shards = world(**drawn).shards
    expected = torch.zeros(P, dtype=torch.float64)
    for *_, parameter, delta, _ in entries(shards):
        expected[parameter] += delta**2
    assert same([attribution.squares(shards, P)], [expected])


@given(worlds)
@few
def test_scales_are_root_mean_squares_over_the_group(drawn):
    the = world(**drawn)
    squares, counts = attribution.squares(the.shards, P), attribution.counts(the.shards, P).sum(0)
    deltas = defaultdict(list)
    for *_, parameter, delta, _ in entries(the.shards):
        deltas[parameter].append(delta)
    for groups in (None, the.groups, torch.zeros(P, dtype=torch.int64)):
        recorded, updates = attribution.scales(squares, counts, groups), attribution.scales(squares, 7, groups)
        for p in range(P):
            pool = [q for q in range(P) if (q == p if groups is None else groups[q] == groups[p])]
            pooled = [delta**2 for q in pool for delta in deltas[q]]
            if groups is not None and groups[p] < 0:
                assert recorded[p] == updates[p] == math.inf
                continue
            assert recorded[p].item() == pytest.approx(math.sqrt(sum(pooled) / max(len(pooled), 1)))
            assert updates[p].item() == pytest.approx(math.sqrt(sum(pooled) / (7 * len(pool))))


@given(worlds, st.data())
@few
def test_reselect_takes_the_largest_for_their_scale(drawn, data):
    the, scale = world(**drawn), torch.from_numpy(keys.generator(drawn["seed"]).integers(0, 4, P)).double()
    scale[0] = math.inf
    k = data.draw(st.integers(1, drawn["k"]))
    for shard in the.shards:
        found = attribution.reselect(shard, scale, k)
        assert found.outliers.delta.shape == (*shard.outliers.delta.shape[:-1], k)
        assert same(found[2:10], shard[2:10]) and found[:2] == shard[:2]
        by_series = defaultdict(list)
        for entry in entries([shard]):
            by_series[entry[0] if drawn["per"] == "step" else entry[0:4]].append(entry)
        expected = [
            entry
            for series in by_series.values()
            for entry in sorted(series, key=lambda entry: -ratio(abs(entry[6]), scale[entry[5]].item()))[:k]
        ]
        assert entries([found]) == expected


def ratio(delta, scale):
    return delta / scale if scale else (math.inf if delta else 0.0)


@given(worlds)
@few
def test_reselect_by_one_scale_keeps_the_largest(drawn):
    the = world(**drawn, real=True)
    for shard in the.shards:
        order = shard.outliers.delta.abs().sort(dim=-1, descending=True).indices
        ranked = shard._replace(outliers=type(shard.outliers)(*(field.gather(-1, order) for field in shard.outliers)))
        found = attribution.reselect(ranked, torch.full((P,), 0.3), drawn["k"])
        assert same(found.outliers, ranked.outliers)
        first = attribution.reselect(ranked, torch.full((P,), 0.3), 1)
        assert same(first.outliers, [field[..., :1] for field in ranked.outliers])


@given(worlds)
@few
def test_reselected_shards_compose(drawn):
    the = world(**drawn)
    scale = attribution.scales(attribution.squares(the.shards, P), 9)
    keep = partial(attribution.reselect, scale=scale, k=1)
    fewer, more = the.tally(shards=map(keep, the.shards)), the.tally()
    assert (fewer.outliers <= more.outliers).all() and (fewer.events <= more.events).all()
    counts = attribution.counts(map(keep, the.shards), P)
    assert int(counts.sum()) == drawn["n_steps"] * (drawn["n"] if drawn["per"] == "datum" else 1)


# ---- errors


def test_a_parameter_out_of_range_is_named():
    the = world("datum", 0, 4)
    largest = max(entry[5] for entry in entries(the.shards))
    named = f"parameter {largest} is out of range: "
    for call in (attribution.counts, attribution.squares):
        with pytest.raises(ValueError, match=f"{named}there are 2 parameters"):
            call(the.shards[1:] + the.shards, 2)
    with pytest.raises(ValueError, match=f"{named}the units have 6 parameters"):
        attribution.over_training(the.shards[1:] + the.shards, {"a": (2, 3)}, 1, 4)
    with pytest.raises(ValueError, match=f"parameter [0-9]+ is out of range: groups has {P - 9} entries, one for each"):
        the.tally(groups=torch.zeros(P - 9, dtype=torch.int64), n_groups=1)
    with pytest.raises(ValueError, match=r"parameter [0-9]+ is out of range: there are scales of 3 parameters"):
        attribution.reselect(the.shards[0], torch.ones(3), 1)
    with pytest.raises(ValueError, match="parameter -1 is out of range: parameters are numbered from 0"):
        attribution.attributed(the.shards, [3, -1])
    spoilt = the.shards[0].outliers._replace(parameter=the.shards[0].outliers.parameter - 99)
    with pytest.raises(ValueError, match=r"parameter -\d+ is out of range"):
        attribution.counts([the.shards[0]._replace(outliers=spoilt)], P)


@pytest.mark.parametrize("bad", [3, -2])
def test_a_group_out_of_range_is_named(bad):
    the = world("datum", 0, 4)
    groups = the.groups.clone()
    groups[7] = bad
    with pytest.raises(ValueError, match=f"group {bad} is out of range: there are 3 groups, and -1 stands for none"):
        the.tally(groups=groups, n_groups=3)


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
    tally, stream = the.tally(), torch.tensor([token])
    for spoilt in (0, 1):
        data = Data(*(x.clone() for x in the.data))
        data[spoilt][-1, -1] = token
        with pytest.raises(ValueError, match=message):
            the._replace(data=data).tally()
    data = Data(torch.full_like(the.data.tokens, token), the.data.targets)
    with pytest.raises(ValueError, match=message):
        attribution.bags(tally.events, data, V)
    with pytest.raises(ValueError, match=message):
        attribution.reference(stream, V)


def test_other_sizes_that_do_not_fit_are_named():
    the = world("datum", 0, 4, k=4)
    with pytest.raises(ValueError, match="events are of 2 data, but there are 5"):
        attribution.bags(torch.zeros(2, 3), the.data, V)
    with pytest.raises(ValueError, match="counts are of 3 parameters, but the units have 14"):
        attribution.by_unit(torch.zeros(3), SHAPES)
    with pytest.raises(ValueError, match="step [23] is out of range: n_steps is 2"):
        attribution.over_training(the.shards, SHAPES, 1, 2)
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k is {k}; it must be between 1 and the 4 outliers that are recorded"):
            attribution.reselect(the.shards[0], torch.ones(P), k)
    squares = torch.zeros(P, dtype=torch.float64)
    with pytest.raises(ValueError, match="groups has 3 entries; it must have one for each of the 14 parameters"):
        inspect.unwrap(attribution.scales)(squares, 1, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="n_events has 2 entries; it must have one for each of the 14 parameters"):
        inspect.unwrap(attribution.scales)(squares, torch.ones(2, dtype=torch.int64))


@pytest.mark.parametrize("n_steps", [2**15 - 1, 2**15])
def test_events_beyond_int16_are_refused_rather_than_wrapped(n_steps):
    the = world("step", 0, n_steps, n=1, k=1, N=1, cut=n_steps)
    one_group = torch.zeros(P, dtype=torch.int64)
    if n_steps < 2**15:
        assert the.tally(groups=one_group, n_groups=1).events.tolist() == [[n_steps]]
        return
    with pytest.raises(ValueError, match="datum 0 is in 32768 steps; events are counted up to 32767"):
        the.tally(groups=one_group, n_groups=1)


def test_storage_is_their_product():
    assert attribution.storage(3, 5) == 60 and attribution.storage(3, 5, bytes_each=2) == 30


def test_rows_are_a_named_tuple_of_columns():
    assert Rows._fields == ("step", "epoch", "batch", "row", "datum", "parameter", "delta", "position")
