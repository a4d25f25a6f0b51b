"""The index holds what the record holds: against brute force over drawn records, killed, resumed, grown, damaged."""

import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_builders import contents, step_record

from devinterp_func import neurons, records
from devinterp_func.optim import Sizes
from devinterp_func.per_example import Outliers
from devinterp_func.records import RecordError, Recording, Run
from devinterp_func.training import Recipe

SHAPES = {"a.weight": (2, 3), "b": (2,), "c.weight": (3, 2)}
P, C, N = 14, 5, 9
DATA = records.Dataset((torch.zeros(N),))
GROUPS = {axis: neurons.groups(SHAPES, axis).of for axis in ("in", "out")}


def record(step, n, k, per, dtype, seed):
    """A record whose outliers are drawn: of each datum or of the step, each entry once; sizes with ties."""
    rng = np.random.default_rng([seed, step])
    if per == "datum":
        parameter = np.stack([rng.permutation(P)[:k] for _ in range(n)])
        row = np.arange(n)[:, None].repeat(k, 1)
    else:
        row, parameter = np.divmod(rng.permutation(n * P)[:k], P)
    delta = rng.integers(-3, 4, parameter.shape) / 4
    found = Outliers(
        torch.from_numpy(parameter).int(),
        torch.from_numpy(delta).to(dtype),
        torch.from_numpy(rng.integers(0, C, parameter.shape)).to(torch.uint8),
        torch.from_numpy(row).to(torch.int16),
    )
    return step_record(step, n)._replace(
        lr=float(rng.random()),
        clip=float(rng.random()),
        grad_norm=float(rng.random()),
        datum=torch.from_numpy(rng.permutation(N)[:n]),
        loss=torch.from_numpy(rng.random(n)).float(),
        split=Sizes(torch.from_numpy(rng.random((3, 3))).float(), torch.zeros(3, 3)),
        outliers=found,
    )


def run_of(folder, made, n, k, per):
    """An opened run of records."""
    path = Path(folder) / "run"
    records.create(path, {"n_steps": 99, "seed": 0})
    if made:
        records.write_shard(path, made)
    return Run(path, records.manifest(path), Recipe(batch_size=n), Recording(k=k, per=per), DATA, SHAPES, "cpu")


@st.composite
def runs(draw, least=1):
    """Records of a run, and how it was recorded."""
    n, per = draw(st.integers(1, 4)), draw(st.sampled_from(["datum", "step"]))
    k, steps = draw(st.integers(1, P if per == "datum" else n * P)), draw(st.integers(least, 7))
    dtype, seed = draw(st.sampled_from([torch.float32, torch.float64])), draw(st.integers(0, 2**32))
    return [record(step, n, k, per, dtype, seed) for step in range(steps)], (n, k, per)


def built(run, folder, **how):
    for _ in records.index(run, folder, GROUPS, **how):
        pass
    return records.read_index(folder)


def brute(made):
    """(step, row, parameter, datum, position, delta) of every outlier, in the order that is promised."""
    rows = []
    for one in made:
        fields = (
            getattr(one.outliers, name).flatten().tolist() for name in ("datum", "parameter", "position", "delta")
        )
        for row, parameter, position, delta in zip(*fields, strict=True):
            rows.append((one.step, row, parameter, int(one.datum[row]), position, delta))
    return sorted(rows)


def listed(moved):
    columns = (moved.step, moved.parameter, moved.datum, moved.position, moved.delta)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def without_row(rows):
    return [(step, parameter, datum, position, delta) for step, _, parameter, datum, position, delta in rows]


@given(runs(), st.integers(1, 80), st.lists(st.integers(0, P - 1), max_size=P))
@settings(max_examples=20)
def test_outliers_of_any_parameters_are_the_records_in_order(given_run, part, wanted):
    made, how = given_run
    with tempfile.TemporaryDirectory() as folder:
        index = built(run_of(folder, made, *how), Path(folder) / "index", part=part)
        found = listed(index.outliers(torch.tensor(wanted, dtype=torch.int64)))
        assert found == without_row(row for row in brute(made) if row[2] in wanted)
        assert index.n_steps == len(made) and index.most is None


@given(runs(), st.integers(1, 80), st.data())
@settings(max_examples=6)
def test_counts_totals_visits_and_courses_are_the_records(given_run, part, data):
    made, how = given_run
    with tempfile.TemporaryDirectory() as folder:
        index = built(run_of(folder, made, *how), Path(folder) / "index", part=part)
        for axis, of in GROUPS.items():
            n_groups = int(of.max()) + 1
            wanted = torch.zeros(n_groups, len(made), dtype=torch.int64)
            for step, _, parameter, *_ in brute(made):
                if of[parameter] >= 0:
                    wanted[of[parameter], step] += 1
            start = data.draw(st.integers(0, n_groups - 1))
            stop = data.draw(st.integers(start + 1, n_groups))
            assert torch.equal(index.counts(axis, start, stop), wanted[start:stop])
            assert torch.equal(index.totals(axis), wanted.sum(1))
        course = index.course
        assert torch.equal(course.datum, torch.stack([one.datum for one in made]))
        assert torch.equal(course.loss, torch.stack([one.loss for one in made]))
        for name in ("lr", "clip", "grad_norm"):
            assert getattr(course, name).tolist() == [getattr(one, name) for one in made]
        wanted = torch.stack([one.split.along.double().sum(0) for one in made])
        assert torch.equal(course.along, wanted)
        amount = torch.zeros(len(made), how[0], dtype=torch.float64)
        for step, row, _, _, _, delta in brute(made):
            amount[step, row] += abs(delta)
        assert torch.allclose(course.amount.double(), amount, atol=1e-5)
        datum = data.draw(st.integers(0, N - 1))
        seen = [[one.step, row] for one in made for row in range(how[0]) if int(one.datum[row]) == datum]
        assert index.visits(datum).tolist() == seen


@given(runs(), st.integers(1, 80), st.integers(1, 3))
@settings(max_examples=20)
def test_what_is_kept_are_the_largest_visits_of_each_group_and_part(given_run, part, most):
    made, how = given_run
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(folder, made, *how)
        index = built(run, Path(folder) / "index", part=part, most=most)
        rows, kept = brute(made), set()
        for header in index.parts:
            own = [row for row in rows if header.step <= row[0] < header.step + header.count]
            for of in GROUPS.values():
                amounts: defaultdict[tuple[int, int, int], float] = defaultdict(float)
                for step, row, parameter, *_, delta in own:
                    if of[parameter] >= 0:
                        amounts[int(of[parameter]), step, row] += abs(delta)
                for group in {group for group, *_ in amounts}:
                    visits = sorted((v for v in amounts if v[0] == group), key=lambda v: (-amounts[v], v))
                    kept |= {r for r in own if of[r[2]] == group and (group, r[0], r[1]) in visits[:most]}
        assert listed(index.outliers(torch.arange(P))) == without_row(sorted(kept))
        whole = built(run, Path(folder) / "whole", part=part)
        for axis in GROUPS:
            assert torch.equal(index.totals(axis), whole.totals(axis))
        assert torch.equal(index.course.amount, whole.course.amount)


@given(runs(), st.integers(1, 80), st.data())
@settings(max_examples=10)
def test_a_build_that_is_killed_goes_on_with_the_same_bits(given_run, part, data):
    made, how = given_run
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(folder, made, *how)
        whole = built(run, Path(folder) / "whole", part=part)
        building = records.index(run, Path(folder) / "index", GROUPS, part=part)
        steps = [next(building) for _ in range(data.draw(st.integers(0, len(made))))]
        del building  # what is not written yet is lost
        assert steps == list(range(1, len(steps) + 1))
        done = records.n_steps(Path(folder) / "index") if steps else 0
        assert list(records.index(run, Path(folder) / "index", GROUPS, part=part)) == [*range(done + 1, len(made) + 1)]
        assert contents(Path(folder) / "index") == contents(whole.path)
        assert records.verify(whole.path).steps == len(made)


@given(runs(least=2), st.integers(1, 80), st.data())
@settings(max_examples=10)
def test_a_run_that_has_grown_is_indexed_from_where_the_index_ends(given_run, part, data):
    made, how = given_run
    cut = data.draw(st.integers(1, len(made) - 1))
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(folder, made[:cut], *how)
        before = contents(built(run, Path(folder) / "index", part=part).path)
        records.write_shard(run.path, made[cut:])
        grown = built(run, Path(folder) / "index", part=part)
        assert listed(grown.outliers(torch.arange(P))) == without_row(brute(made))
        assert torch.equal(grown.course.datum, torch.stack([one.datum for one in made]))
        after = contents(grown.path)
        assert {name: after[name] for name in before} == before


@given(runs(), st.integers(1, 80))
@settings(max_examples=10)
def test_its_bytes_are_known_before(given_run, part):
    made, how = given_run
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(folder, made, *how)
        index = built(run, Path(folder) / "index", part=part)
        assert records.index_bytes(run, GROUPS, part=part) == sum(map(len, contents(index.path).values()))
        few = built(run, Path(folder) / "few", most=1, part=part)
        assert records.index_bytes(run, GROUPS, 1, part) >= sum(map(len, contents(few.path).values()))


def small(tmp_path):
    made = [record(step, 3, 4, "datum", torch.float32, 0) for step in range(4)]
    return run_of(tmp_path, made, 3, 4, "datum")


@given(st.floats(0, 1, exclude_max=True))
@settings(max_examples=6)
def test_a_flipped_bit_is_found(where):
    with tempfile.TemporaryDirectory() as folder:
        index = built(small(Path(folder)), Path(folder) / "index", part=24)
        file = sorted((index.path / "steps").iterdir())[-1]
        content = bytearray(file.read_bytes())
        begin = 8 + int.from_bytes(content[:8], "little")
        content[begin + int(where * (len(content) - begin))] ^= 4
        file.chmod(0o644)
        file.write_bytes(content)
        with pytest.raises(RecordError, match="damaged"):
            records.verify(index.path)


def test_what_is_not_right_is_refused(tmp_path):
    run = small(tmp_path)
    records.create(tmp_path / "empty", {"index": "outliers by parameter"})
    with pytest.raises(RecordError, match="no steps yet"):
        records.read_index(tmp_path / "empty")
    with pytest.raises(RecordError, match="no index of a run"):
        records.read_index(run.path)
    with pytest.raises(ValueError, match="grouping 'in' has shape \\[3\\]; the run has 14 parameters"):
        next(records.index(run, tmp_path / "other", {"in": torch.zeros(3, dtype=torch.int64)}))
    for name in ("part", "most"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            next(records.index(run, tmp_path / "other", GROUPS, **{name: 0}))
    index = built(run, tmp_path / "built")
    with pytest.raises(ValueError, match="no grouping 'both'; it has in, out"):
        index.counts("both", 0, 1)
    with pytest.raises(ValueError, match="no grouping 'both'"):
        index.totals("both")
    for start, stop in ((-1, 1), (0, 6), (2, 2)):
        with pytest.raises(ValueError, match=f"groups {start} to {stop} of 'in' were asked for; there are 5"):
            index.counts("in", start, stop)
    with pytest.raises(RecordError, match="most"):
        built(run, tmp_path / "built", most=2)
    assert "all outliers" in repr(index) and "12 outliers" in repr(index.outliers(torch.arange(P)))[:19].replace(
        "48", "12"
    )
