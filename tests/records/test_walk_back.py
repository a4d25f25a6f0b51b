"""A walk back: what is found in each step and what is carried on, sealed as it goes, the same however it is stopped."""

from typing import NamedTuple

import pytest
import torch
from oracles import assert_equal
from run_builders import PLANTED, contents, recorded
from torch import Tensor

from devinterp_func import models, records
from devinterp_func.models import Config
from devinterp_func.records import RecordError, Recording, _walk_back
from devinterp_func.training import Recipe

N = 17


class Found(NamedTuple):
    """A step's number, and the sum of all losses from it on: each step needs what the one after it carried."""

    step: Tensor
    total: Tensor


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe, recording = Recipe(context=4, batch_size=2, n_steps=N), Recording(k=5, snapshot_every=7)
    model = models.transformer(Config(len(PLANTED.vocab), d_model=4, n_heads=1, d_hidden=3, n_layers=1))
    return recorded(tmp_path_factory.mktemp("runs") / "run", recipe, recording, model=model)


def look(move):
    return move.step, move.losses.double().sum()


def carry(seen, carried):
    step, loss = seen
    total = loss if carried is None else carried["total"] + loss
    return Found(torch.tensor(step), total), {"total": total}


def walk(run, folder, what=None, carried=carry, **asked):
    what = {"sums": "loss"} if what is None else what
    return records.walk_back(run, folder, what, (), look, carried, Found, **asked)


def expected(run, start, stop):
    """By hand, in the order of the steps."""
    totals, total = [], None
    for record in reversed(list(run.steps(start, stop))):
        total = record.loss.double().sum() if total is None else total + record.loss.double().sum()
        totals.append(total)
    return Found(torch.arange(start, stop), torch.stack(totals[::-1]))


def read(folder):
    return records.read_walk_back(folder, Found)


@pytest.mark.parametrize(("start", "stop", "shard"), [(0, N, 64), (3, 12, 4), (7, 8, 1), (0, 14, 5)])
def test_it_finds_what_the_loop_finds_the_last_step_first(run, tmp_path, monkeypatch, start, stop, shard):
    monkeypatch.setattr(_walk_back, "SHARD", shard)
    yielded = list(walk(run, tmp_path / "walk", start=start, stop=stop, block=3))
    assert [step for step, _ in yielded] == list(range(start, stop))[::-1]
    found = read(tmp_path / "walk")
    assert isinstance(found, Found)
    assert_equal(found, expected(run, start, stop))
    assert_equal([one for _, one in yielded], [Found(*(x[i] for x in found)) for i in reversed(range(stop - start))])
    assert records.verify(tmp_path / "walk").steps == stop - start


def test_by_default_it_goes_back_over_the_whole_run(run, tmp_path):
    list(walk(run, tmp_path / "walk"))
    assert_equal(read(tmp_path / "walk"), expected(run, 0, N))


@pytest.mark.parametrize("shard", [1, 4, 64])
def test_stopped_anywhere_it_ends_with_the_same_bits(run, tmp_path, monkeypatch, shard):
    monkeypatch.setattr(_walk_back, "SHARD", shard)
    list(walk(run, tmp_path / "whole", start=2))
    for stops in (1, 5, 2, 9):
        for _ in zip(walk(run, tmp_path / "walk", start=2), range(stops), strict=False):
            pass
    list(walk(run, tmp_path / "walk", start=2))
    assert contents(tmp_path / "walk") == contents(tmp_path / "whole")
    assert not list(walk(run, tmp_path / "walk", start=2))


def test_it_goes_on_from_what_is_on_the_disk_and_looks_at_no_step_again(run, tmp_path):
    list(walk(run, tmp_path / "walk", start=10))
    seen = []

    def watched(found, carried):
        seen.append((found[0], None if carried is None else dict(carried)))
        return carry(found, carried)

    assert [step for step, _ in walk(run, tmp_path / "walk", carried=watched, start=6)] == [9, 8, 7, 6]
    assert [step for step, _ in seen] == [9, 8, 7, 6]
    first = seen[0][1]
    assert first is not None and torch.equal(first["total"], expected(run, 10, N).total[0])
    assert_equal(read(tmp_path / "walk"), expected(run, 6, N))
    for start in (6, 9, 16):  # what is there already
        assert not list(walk(run, tmp_path / "walk", carried=watched, start=start))
    assert len(seen) == 4


@pytest.mark.parametrize("first", [True, False], ids=["first shard", "later shard"])
def test_killed_between_a_shard_and_what_it_carries_on_it_ends_with_the_same_bits(run, tmp_path, monkeypatch, first):
    monkeypatch.setattr(_walk_back, "SHARD", 4)
    list(walk(run, tmp_path / "whole"))
    write, written = _walk_back.write_params, list[int]()

    def killed(folder, step, params):
        if len(written) == (0 if first else 2):
            raise KeyboardInterrupt
        written.append(step)
        write(folder, step, params)

    monkeypatch.setattr(_walk_back, "write_params", killed)
    with pytest.raises(KeyboardInterrupt):
        list(walk(run, tmp_path / "walk"))
    assert len(read(tmp_path / "walk").step) == (4 if first else 12)
    monkeypatch.setattr(_walk_back, "write_params", write)
    again = [step for step, _ in walk(run, tmp_path / "walk")]
    assert again == list(range(N - (4 if first else 12)))[::-1]  # each new one once
    assert contents(tmp_path / "walk") == contents(tmp_path / "whole")


def test_killed_before_older_carried_files_are_gone_it_goes_on_from_the_newest(run, tmp_path, monkeypatch):
    monkeypatch.setattr(_walk_back, "SHARD", 4)
    list(walk(run, tmp_path / "whole"))
    monkeypatch.setattr(_walk_back, "snapshots", lambda folder: [])  # so that none goes
    list(walk(run, tmp_path / "walk", start=5))
    monkeypatch.undo()
    monkeypatch.setattr(_walk_back, "SHARD", 4)
    assert len(list((tmp_path / "walk" / "params").iterdir())) >= 3
    list(walk(run, tmp_path / "walk"))
    assert contents(tmp_path / "walk") == contents(tmp_path / "whole")


def test_little_lies_beside_the_shards(run, tmp_path, monkeypatch):
    monkeypatch.setattr(_walk_back, "SHARD", 2)
    list(walk(run, tmp_path / "walk"))
    names = {name.split(":")[1] for name in contents(tmp_path / "walk") if "params" in name}
    assert names == {"total"} and records.verify(tmp_path / "walk").snapshots == 1


@pytest.mark.parametrize("other", [{"what": {"sums": "grad_norm"}}, {"stop": 12}])
def test_another_walks_folder_is_refused(run, tmp_path, other):
    list(walk(run, tmp_path / "walk", start=14))
    before = contents(tmp_path / "walk")
    with pytest.raises(RecordError, match="is another run:"):
        next(walk(run, tmp_path / "walk", **other))
    assert contents(tmp_path / "walk") == before


def test_a_forward_walks_folder_and_the_runs_own_are_refused(run, tmp_path):
    def ahead(move, last):
        return Found(torch.tensor(move.step), torch.tensor(0.0))

    list(records.walk(run, tmp_path / "walk", {"sums": "loss"}, (), ahead, Found, stop=2))
    for folder in (tmp_path / "walk", run.path):
        before = contents(folder)
        with pytest.raises(RecordError, match="is another run:"):
            next(walk(run, folder))
        assert contents(folder) == before


@pytest.mark.parametrize("kind", ["params", "steps"])
def test_damage_is_found(run, tmp_path, kind):
    list(walk(run, tmp_path / "walk", start=9))
    (path,) = (tmp_path / "walk" / kind).iterdir()
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(RecordError, match="damaged"):
        records.verify(tmp_path / "walk")
    with pytest.raises(RecordError, match="damaged"):
        list(walk(run, tmp_path / "walk")) if kind == "params" else read(tmp_path / "walk")


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"start": 0, "stop": N + 1}, f"steps 0 to {N + 1} were asked for"), ({"start": 5, "stop": 5}, "steps 5 to 5"),
     ({"block": 0}, "block is 0"), ({"kept": 1}, "kept is 1; it must be at least 2")],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_written(run, tmp_path, asked, said):
    with pytest.raises(ValueError, match=said):
        next(walk(run, tmp_path / "walk", **asked))
    assert not (tmp_path / "walk").exists()


def test_a_walk_begun_without_a_step_says_how_it_goes_on(run, tmp_path):
    with pytest.raises(ZeroDivisionError):
        next(walk(run, tmp_path / "walk", carried=lambda seen, carried: 1 / 0))
    with pytest.raises(RecordError, match="holds no steps yet; the walk that was begun there goes on"):
        read(tmp_path / "walk")
