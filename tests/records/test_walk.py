"""A walk: what a function finds in each step of a run, sealed as it goes, and the same however often it is stopped."""

from typing import NamedTuple

import pytest
import torch
from oracles import assert_equal
from run_builders import contents, recorded
from torch import Tensor

from devinterp_func import records
from devinterp_func.records import Last, RecordError, Recording, _walk
from devinterp_func.training import Recipe


class Found(NamedTuple):
    """A count of the steps so far and a running sum, so that each step needs what the one before found."""

    number: Tensor
    total: Tensor


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe, recording = Recipe(context=10, batch_size=6, n_steps=25), Recording(k=5, snapshot_every=10)
    return recorded(tmp_path_factory.mktemp("runs") / "run", recipe, recording)


class Look:
    """Sums of the losses; remembers what it was given."""

    def __init__(self):
        self.seen = []

    def __call__(self, move, last):
        self.seen.append((move, last))
        if last is None:
            return Found(torch.tensor(1), move.losses.sum())
        return Found(last.found.number + 1, last.found.total + move.losses.sum())


def walk(run, folder, look=None, what=None, **steps):
    what = {"sums": "loss"} if what is None else what
    return records.walk(run, folder, what, (), look or Look(), Found, **steps)


def expected(run, start, stop):
    """By hand."""
    totals, total = [], None
    for record in run.steps(start, stop):
        total = record.loss.sum() if total is None else total + record.loss.sum()
        totals.append(total.clone())
    return Found(torch.arange(1, stop - start + 1), torch.stack(totals))


@pytest.mark.parametrize(("start", "stop"), [(0, 25), (7, 25), (10, 11), (3, 21)])
def test_a_walk_finds_what_the_loop_finds(run, tmp_path, start, stop):
    yielded = list(walk(run, tmp_path / "walk", start=start, stop=stop))
    assert [step for step, _ in yielded] == list(range(start, stop))
    found = records.read_walk(tmp_path / "walk", Found)
    assert isinstance(found, Found) and found.number.tolist() == list(range(1, stop - start + 1))
    assert_equal(found, expected(run, start, stop))
    assert_equal(found, Found(*(torch.stack(column) for column in zip(*(f for _, f in yielded), strict=True))))
    assert records.verify(tmp_path / "walk").steps == stop - start


@pytest.mark.parametrize("start", [0, 7, 10])
def test_the_first_step_has_none_before_it_and_each_other_has_the_one_before(run, tmp_path, start):
    look = Look()
    yielded = [found for _, found in walk(run, tmp_path / "walk", look, start=start, stop=start + 4)]
    assert look.seen[0][1] is None
    for i, (move, last) in enumerate(look.seen[1:], start=1):
        assert isinstance(last, Last) and last.move.step == move.step - 1
        assert_equal(last.move.after, move.before)
        assert_equal(last.found, yielded[i - 1])


@pytest.mark.parametrize("shard", [1, 4, 64])
@pytest.mark.parametrize("start", [0, 7])
def test_stopped_anywhere_a_walk_ends_with_the_same_bits(run, tmp_path, monkeypatch, shard, start):
    monkeypatch.setattr(_walk, "SHARD", shard)
    list(walk(run, tmp_path / "whole", start=start))
    for stops in (1, 2, 5, 3):
        for _ in zip(walk(run, tmp_path / "walk", start=start), range(stops), strict=False):
            pass
    list(walk(run, tmp_path / "walk", start=start))
    assert contents(tmp_path / "walk") == contents(tmp_path / "whole")
    assert_equal(records.read_walk(tmp_path / "walk", Found), expected(run, start, 25))


def test_shards_are_cut_by_absolute_steps(run, tmp_path, monkeypatch):
    monkeypatch.setattr(_walk, "SHARD", 4)
    list(walk(run, tmp_path / "walk", start=6, stop=15))
    assert records.shards(tmp_path / "walk") == [(0, 2), (2, 4), (6, 3)]  # steps 6-7, 8-11, 12-14


def test_a_resumed_walk_is_given_what_is_on_the_disk(run, tmp_path):
    list(walk(run, tmp_path / "walk", stop=12))
    stored, look = records.read_walk(tmp_path / "walk", Found), Look()
    yielded = list(walk(run, tmp_path / "walk", look))
    assert [step for step, _ in yielded] == list(range(12, 25))
    (first, last), *_ = look.seen
    assert (first.step, last.move.step) == (12, 11)
    assert_equal(last.found, Found(*(column[-1] for column in stored)))
    assert_equal(last.move.after, first.before)
    assert_equal(records.read_walk(tmp_path / "walk", Found), expected(run, 0, 25))


def test_a_walk_goes_farther_and_never_back(run, tmp_path):
    assert len(list(walk(run, tmp_path / "walk", stop=9))) == 9
    look = Look()
    for stop in (9, 4, 1):
        assert not list(walk(run, tmp_path / "walk", look, stop=stop))
    assert not look.seen and len(records.read_walk(tmp_path / "walk", Found).number) == 9
    assert [step for step, _ in walk(run, tmp_path / "walk", stop=11)] == [9, 10]


@pytest.mark.parametrize("other", [{"what": {"sums": "grad_norm"}}, {"start": 1}])
def test_another_walks_folder_is_refused(run, tmp_path, other):
    list(walk(run, tmp_path / "walk", stop=3))
    before = contents(tmp_path / "walk")
    with pytest.raises(RecordError, match="is another run:"):
        next(walk(run, tmp_path / "walk", **other))
    assert contents(tmp_path / "walk") == before


def test_the_runs_own_folder_is_refused(run):
    before = contents(run)
    with pytest.raises(RecordError, match="is another run:"):
        next(walk(run, run.path))
    assert contents(run) == before


@pytest.mark.parametrize(("start", "stop"), [(0, 26), (-1, 5), (5, 5)])
def test_steps_that_are_not_there_are_refused_before_anything_is_written(run, tmp_path, start, stop):
    with pytest.raises(ValueError, match=f"steps {start} to {stop} were asked for"):
        next(walk(run, tmp_path / "walk", start=start, stop=stop))
    assert not (tmp_path / "walk").exists()


def test_captured_patterns_reach_the_steps(run, tmp_path):
    def look(move, last):
        assert list(move.factors) == ["decoder.bias"]
        return Found(torch.tensor(move.step), torch.tensor(0.0))

    assert len(list(records.walk(run, tmp_path / "walk", {}, ("decoder.bias",), look, Found, stop=2))) == 2


def test_a_walk_begun_without_a_step_says_how_it_goes_on(run, tmp_path):
    with pytest.raises(ZeroDivisionError):
        next(walk(run, tmp_path / "walk", lambda move, last: 1 / 0))
    with pytest.raises(RecordError, match="holds no steps yet; the walk that was begun there goes on"):
        records.read_walk(tmp_path / "walk", Found)
    with pytest.raises(RecordError, match="is not a run"):
        records.read_walk(tmp_path / "nowhere", Found)
