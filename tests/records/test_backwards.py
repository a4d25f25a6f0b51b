"""A run walked backwards: its very steps, the last first, however they are cut; little is held, nothing is left."""

import gc
import itertools
import weakref
from collections import Counter
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_equal
from run_builders import PLANTED, contents, recorded
from torch import Tensor

from devinterp_func import models, optim, records, training, units
from devinterp_func.models import Config
from devinterp_func.records import RecordError, Recording, _backwards
from devinterp_func.training import Recipe

N = 41


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    optimizer = optim.grouped((("*.weight",), optim.adamw(betas=(0.8, 0.9))), rest=optim.sgd(momentum=0.9))
    recipe = Recipe(context=3, batch_size=1, n_steps=N, lr=0.01, optimizer=optimizer)
    model = models.transformer(Config(len(PLANTED.vocab), d_model=4, n_heads=1, d_hidden=3, n_layers=1))
    return recorded(tmp_path_factory.mktemp("runs") / "run", recipe, Recording(k=5, snapshot_every=30), model=model)


@pytest.fixture(scope="module")
def whole(run):
    """Every step, forwards."""
    return [found(move) for move in run.moves()]


def found(move):
    return move.step, move.losses, move.before["decoder.bias"], move.after, move.state


@given(start=st.integers(0, N - 1), n=st.integers(1, N), block=st.integers(1, 9), kept=st.integers(2, 9))
@settings(max_examples=5, deadline=None)
def test_it_is_the_run_the_last_step_first_to_the_bit(run, whole, tmp_path_factory, start, n, block, kept):
    stop, scratch = min(start + n, N), tmp_path_factory.mktemp("scratch")
    seen = list(records.backwards(run, found, (), start=start, stop=stop, block=block, kept=kept, scratch=scratch))
    assert [one[0] for one in seen] == list(range(start, stop))[::-1]
    for one, other in zip(seen, whole[start:stop][::-1], strict=True):
        assert one[4].steps == other[4].steps
        assert_equal(one[1:4], other[1:4])
        assert_equal(one[4].buffers, other[4].buffers)
    assert not list(scratch.iterdir())


def replayed(run, monkeypatch, **asked):
    """How often each step is replayed with factors and without, and how many findings are held at most."""
    counts: dict[bool, Counter] = {True: Counter(), False: Counter()}
    made = training.moves

    def counted(*given, **named):
        for move in made(*given, **named):
            counts[bool(named["captured"])][move.step] += 1
            yield move

    class Held:
        alive = most = 0

        def __init__(self):
            Held.alive += 1
            Held.most = max(Held.most, Held.alive)
            weakref.finalize(self, Held.gone)

        @staticmethod
        def gone():
            Held.alive -= 1

    monkeypatch.setattr(training, "moves", counted)
    gc.collect()
    for one in records.backwards(run, lambda move: Held(), ("decoder.bias",), **asked):
        del one
    return counts[True], counts[False], Held.most


def test_of_as_many_blocks_as_are_kept_no_step_is_replayed_more_than_twice_else_three_times(run, monkeypatch):
    seen, more, held = replayed(run, monkeypatch, block=4, kept=8)  # steps 0 to 29 and 30 to 40
    assert seen == Counter(range(N)) and held == 4 and max(more.values()) == 1
    assert more.keys() == set(range(26)) | set(range(30, 37))  # all but the last blocks
    seen, more, held = replayed(run, monkeypatch, block=2, kept=4)  # pieces of 8, the first of 6 and of 3
    assert seen == Counter(range(N)) and held == 2 and max(more.values()) == 2
    assert [more[step] for step in range(30)] == [2] * 4 + [1] * 2 + ([2] * 6 + [1] * 2) * 2 + [1] * 6 + [0] * 2
    assert [more[step] for step in range(30, N)] == [2, 1, 1] + [1] * 6 + [0] * 2
    seen, more, held = replayed(run, monkeypatch, start=33, stop=39, block=2)
    assert seen == Counter(range(33, 39)) and held == 2
    assert more == Counter(range(30, 37))  # 30 to 32 lead in


@given(start=st.integers(0, 50), n=st.integers(1, 2000), block=st.integers(1, 9), kept=st.integers(2, 9))
def test_pieces_are_few_whole_blocks_but_the_first_and_as_long_as_can_be_at_the_end(start, n, block, kept):
    firsts = _backwards._cut(start, start + n, block, kept)
    lengths = [b - a for a, b in itertools.pairwise([*firsts, start + n])]
    assert firsts[0] == start and min(lengths) >= 1 and len(firsts) <= kept
    assert len(set(lengths[1:])) <= 1 and lengths[0] <= lengths[-1]
    assert n <= block or max(lengths) < n and all(length % block == 0 for length in lengths[1:])


def test_the_scratch_folder_holds_few_and_goes_however_the_walk_ends(run, tmp_path):
    counts = []

    def look(move):
        counts.append(len(list(tmp_path.rglob("*.safetensors"))))
        if move.step == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(records.backwards(run, look, (), stop=30, block=2, kept=4, scratch=tmp_path))
    assert max(counts) == 6 and not list(tmp_path.iterdir())
    walk = records.backwards(run, found, (), scratch=tmp_path)
    next(walk)
    walk.close()
    assert not list(tmp_path.iterdir())


def test_it_writes_nothing_to_the_run_and_keeps_to_its_own_patterns(run, tmp_path):
    before = contents(run)
    names = list(records.backwards(run, lambda m: list(m.factors), ("decoder.bias",), stop=3, scratch=tmp_path))
    assert names == [["decoder.bias"]] * 3 and contents(run) == before
    (own,) = records.backwards(run, lambda m: list(m.factors), start=2, stop=3)
    assert own == list(run.shapes)


def test_steps_that_are_not_the_runs_are_found_out(run, tmp_path, monkeypatch):
    """Weights kept on the way that have changed: the next snapshot shows it."""
    read = _backwards._read

    def changed(path, step, device):
        params, state = read(path, step, device)
        return {name: w + 1e-3 for name, w in params.items()}, state

    monkeypatch.setattr(_backwards, "_read", changed)
    with pytest.raises(RecordError, match="before step 30, replayed, differs from the snapshot's"):
        list(records.backwards(run, found, (), start=10, stop=30, block=3, scratch=tmp_path))
    assert not list(tmp_path.iterdir())


def test_bad_input_is_named(run):
    for asked, said in (
        ({"start": 5, "stop": 5}, "steps 5 to 5 were asked for"),
        ({"stop": N + 1}, f"steps 0 to {N + 1}"),
        ({"block": 0}, "block is 0; it must be at least 1"),
        ({"kept": 1}, "kept is 1; it must be at least 2"),
        ({"captured": ("nothing",)}, "nothing"),
    ):
        with pytest.raises(ValueError, match=said):
            next(records.backwards(run, found, **asked))


def test_a_runs_moves_from_known_weights_are_its_moves(run, whole):
    origin = whole[6][3], whole[6][4]
    (move,) = run.moves(7, 8, units.EVERY, origin)
    assert_equal(move.after, whole[7][3])
    with pytest.raises(ValueError, match="the state is that before step 7"):
        next(run.moves(8, 9, (), origin))


# ---- found as a whole


class Found(NamedTuple):
    losses: Tensor
    last: Tensor


def find(run, start, stop):
    def walk():
        losses = []
        for move in run.moves(start, stop, ()):
            losses.append(move.losses)
            yield move.step
        return Found(torch.stack(losses), losses[-1])

    return walk


def test_what_is_found_of_a_span_is_sealed_as_a_whole_and_only_once(run, tmp_path):
    def once(start, stop, what="losses"):
        asked = {"of": what}
        return list(records.find_whole(run, tmp_path / "found", asked, find(run, start, stop), start=start, stop=stop))

    assert once(3, 9) == list(range(3, 9)) and once(3, 9) == []
    stored = records.read_walk(tmp_path / "found", Found)
    assert torch.equal(stored.losses, torch.stack([record.loss for record in run.steps(3, 9)]))
    assert torch.equal(stored.last, stored.losses[-1]) and records.verify(tmp_path / "found").steps == 6
    for other in ((3, 10), (2, 9), (3, 9, "gains")):
        with pytest.raises(RecordError, match="is another run"):
            once(*other)


def test_what_was_not_found_to_its_end_is_not_there(run, tmp_path):
    walk = records.find_whole(run, tmp_path / "found", {}, find(run, 0, 4), stop=4)
    assert next(walk) == 0
    walk.close()
    with pytest.raises(RecordError, match="holds no steps yet"):
        records.read_walk(tmp_path / "found", Found)
    assert list(records.find_whole(run, tmp_path / "found", {}, find(run, 0, 4), stop=4)) == [0, 1, 2, 3]
