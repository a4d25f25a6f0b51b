"""Runs whose optimizer remembers: recorded, resumed, replayed and verified with its state, bit for bit or refused."""

import errno
import os
import shutil
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from oracles import assert_equal, largest_of_each, masked
from run_builders import contents, recorded, same_bits

from devinterp_func import batches, graph, keys, models, optim, per_example, records, training, tree
from devinterp_func.batches import Data
from devinterp_func.models import Config
from devinterp_func.optim import Schedule
from devinterp_func.per_example import Outer, Scaled
from devinterp_func.records import RecordError, Recording, _sealed, _snapshot, _store
from devinterp_func.records._sealed import read_sealed, write_sealed
from devinterp_func.training import Recipe

MODEL = models.transformer(Config(11, d_model=4, n_heads=2, d_hidden=3, n_layers=1))
TOKENS = torch.from_numpy(keys.generator(0).integers(0, 11, (30, 6)))
DATA = Data(TOKENS[:, :-1], TOKENS[:, 1:])
RECIPE = Recipe(batch_size=4, lr=0.05, schedule=Schedule("cosine", warmup=2, end=0.1), max_norm=0.7, n_steps=9)
RECORDING = Recording(k=5, factors=True, snapshot_every=4)
OPTIMIZERS = {
    "momentum": optim.sgd(momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": optim.adamw(betas=(0.8, 0.95), weight_decay=0.1, matrices_only=True),
    "muon": optim.muon(but=("embedding.weight", "decoder.weight")),
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
W = "layers.0.linear1.weight"


class Case(NamedTuple):
    """A recorded run, and its training without any record."""

    run: records.Run
    made: list[training.Move]


def recipe_of(name):
    return replace(RECIPE, optimizer=OPTIMIZERS[name])


def go_on(run, name="adamw", stop=None, data=DATA):
    for now in records.record(run, data, MODEL, recipe_of(name), RECORDING):
        if now.done == stop:
            return


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    found = {}
    for name in OPTIMIZERS:
        run = recorded(tmp_path_factory.mktemp("runs") / name, recipe_of(name), RECORDING, DATA, MODEL)
        made = training.moves(run.graph, training.initial(MODEL, RECIPE), DATA, recipe_of(name))
        found[name] = Case(run, list(made))
    return found


@pytest.fixture
def copy(cases, tmp_path):
    return shutil.copytree(cases["adamw"].run.path, tmp_path / "copy")


def sealed(run, kind, step):
    return run / kind / f"{step:06d}.safetensors"


def reseal(file, change):
    """A file sealed as it should be, with other tensors."""
    header, tensors = read_sealed(file)
    changed = change({name: tensor.clone() for name, tensor in tensors.items()})
    file.unlink()
    write_sealed(file, header, changed)


def one_bit(tensors, key=f"{W}/exp_avg_sq"):
    tensors[key].view(torch.int32)[1, 2] ^= 1
    return tensors


# ---- replayed


@each_optimizer
def test_replayed_steps_are_those_that_were_made_with_their_states(cases, name):
    run, made = cases[name]
    for start in (0, 3, 4, 7):
        for move, expected in zip(run.moves(start), made[start:], strict=True):
            assert move.step == move.state_before.steps == move.state.steps - 1 == expected.step
            for unit, weight in expected.after.items():
                assert torch.equal(move.after[unit], weight) and torch.equal(move.before[unit], expected.before[unit])
                assert same_bits(move.state.buffers[unit], expected.state.buffers[unit])
                assert same_bits(move.state_before.buffers[unit], expected.state_before.buffers[unit])
    for step in (0, 2, 5, 8):
        replayed, recorded_ = records.replay(run, step), records.read(run, step)
        assert records.same_bits(replayed.record, recorded_) and replayed.worst < 1e-3


@each_optimizer
@pytest.mark.parametrize("step", range(10))
def test_the_state_at_any_step_is_that_of_the_training(cases, name, step):
    run, made = cases[name]
    expected = made[step].state_before if step < 9 else made[8].state
    found = run.state(step)
    assert found.steps == step and list(found.buffers) == list(run.graph.shapes)
    for unit, own in expected.buffers.items():
        assert same_bits(dict(sorted(found.buffers[unit].items())), dict(sorted(own.items())))
    assert_equal(run.params(step), made[step].before if step < 9 else made[8].after)
    if step == 9:
        assert run.state().steps == 9


@pytest.mark.parametrize("step", [-1, 10])
def test_states_of_no_step_are_refused(cases, step):
    with pytest.raises(RecordError, match=f"before step {step}; it has 9 recorded steps"):
        cases["adamw"].run.state(step)


def test_what_remembers_nothing_has_a_state_without_files(tmp_path):
    run = recorded(tmp_path / "run", replace(RECIPE, n_steps=5), RECORDING, DATA, MODEL)
    assert not (run.path / "state").exists() and records.verify(run).complete
    for step in range(6):
        found = run.state(step)
        assert found.steps == step and set(map(len, found.buffers.values())) == {0}


# ---- what is recorded


def oracle(move):
    """The step's three parts of each unit, in float64."""
    state = move.state_before._replace(buffers=tree.map(torch.Tensor.double, move.state_before.buffers))
    params, grads = (tree.map(torch.Tensor.double, x) for x in (move.before, move.split.grads))
    recipe = cases_recipe(move)
    _, _, split = recipe.optimizer.update(params, grads, state, float(move.split.lr), recipe.max_norm)
    return {unit: torch.stack([split.present(unit), split.past(unit), split.decay(unit)]) for unit in params}


def cases_recipe(move):
    kinds = {name for own in move.state.buffers.values() for name in own}
    if kinds == {"momentum_buffer"}:
        return recipe_of("momentum")
    return recipe_of("muon" if "momentum_buffer" in kinds else "adamw")


@each_optimizer
def test_sizes_of_present_past_and_decay_are_those_of_float64(cases, name):
    run, made = cases[name]
    assert run.manifest["parameters"] == list(run.graph.shapes)
    for step in (0, 1, 6):
        split = records.read(run, step).split
        assert split.size.dtype == split.along.dtype == torch.float32
        for i, (unit, parts) in enumerate(oracle(made[step]).items()):
            assert unit == run.manifest["parameters"][i]
            flat = parts.flatten(1)
            size, along, most = flat.norm(dim=1), flat @ flat.sum(0), float(flat.norm(dim=1).max())
            torch.testing.assert_close(split.size[i].double(), size, rtol=1e-3, atol=1e-5 * most)
            torch.testing.assert_close(split.along[i].double(), along, rtol=1e-3, atol=1e-4 * most**2)


@each_optimizer
def test_shards_hold_the_sizes_of_their_steps(cases, name):
    run = cases[name].run
    whole = [torch.cat([getattr(shard.split, part) for shard in run.shards()]) for part in ("size", "along")]
    assert whole[0].shape == whole[1].shape == (9, len(run.manifest["parameters"]), 3)
    for record in run.steps():
        assert torch.equal(record.split.size, whole[0][record.step])
        assert torch.equal(record.split.along, whole[1][record.step])


@each_optimizer
def test_outliers_are_the_largest_entries_of_the_present_deltas(cases, name):
    run, made = cases[name]
    move = made[6]
    masks = training.masks_of(run.graph, run.recipe, move.epoch, move.datum)
    each = per_example.grads(masked(MODEL.loss))(move.before, *batches.take(DATA, move.datum), masks)
    deltas = optim.deltas(each, move.split)
    flat = torch.cat([deltas[unit].flatten(1) for unit in run.shapes], dim=1)
    found = records.read(run, 6).outliers
    torch.testing.assert_close(flat.gather(1, found.parameter.long()), found.delta.clone(), rtol=1e-3, atol=1e-7)
    largest = flat.gather(1, largest_of_each(flat, RECORDING.k))
    torch.testing.assert_close(largest.abs(), found.delta.abs(), rtol=1e-3, atol=1e-7)


def test_recorded_factors_of_adamw_hold_inputs_signals_and_the_gain_of_each_entry(cases):
    run = cases["adamw"].run
    record, replayed = records.read(run, 5), records.replay(run, 5)
    assert record.factors.keys() == replayed.deltas.keys()
    for unit, parts in record.factors.items():
        assert parts.keys() == {"inputs", "signals", "gain"} and parts["gain"].shape == run.shapes[unit]
        own = {field: tensor.clone() for field, tensor in parts.items()}
        formed = per_example.form(Scaled(Outer(own["inputs"], own["signals"]), own["gain"]))
        assert torch.equal(formed, replayed.deltas[unit])


# ---- stopped anywhere


@each_optimizer
def test_stopped_at_any_step_it_resumes_to_the_same_bits(cases, tmp_path, name):
    for stop in (1, 4, 7, 9):
        go_on(tmp_path / "run", name, stop)
    assert contents(tmp_path / "run") == contents(cases[name].run.path)


class Death(BaseException):
    """The process is gone."""


def test_when_each_process_writes_one_file_the_run_comes_to_the_same_end(cases, tmp_path, monkeypatch):
    """So it is stopped between any two files, by death or a full disk: between a state and its weights, too."""
    run, whole, left, replace_file = tmp_path / "run", cases["adamw"].run.path, [0], os.replace

    def counted(source, target):
        if not left[0]:
            raise (Death(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))[len(parted) % 2]
        left[0] -= 1
        replace_file(source, target)

    monkeypatch.setattr(_sealed.os, "replace", counted)
    parted, files = [], len(list(whole.rglob("*.safetensors"))) + 1
    for _ in range(files + 1):
        left[0] = 1
        try:
            go_on(run)
        except (Death, RecordError) as stopped:
            assert isinstance(stopped, Death) or "No space left on device" in str(stopped)
            found = records.verify(run)
            parted.append(len(list((run / "state").glob("0*"))) - found.snapshots if (run / "state").exists() else 0)
            assert not found.complete
        else:
            break
    assert set(parted) == {0, 1} and parted.count(1) == 4  # a state without its weights, before steps 0, 4, 8 and 9
    assert records.verify(run).complete and contents(run) == contents(whole)


@pytest.mark.parametrize("name", ["momentum", "muon"])
def test_killed_between_a_state_and_its_weights_it_goes_on(cases, tmp_path, monkeypatch, name):
    write = _snapshot.write_params

    def dies(run, step, params):
        if step == 8:
            raise Death
        return write(run, step, params)

    with monkeypatch.context() as patched, pytest.raises(Death):
        patched.setattr(_snapshot, "write_params", dies)
        go_on(tmp_path / "run", name)
    assert records.snapshots(tmp_path / "run") == [0, 4] and sealed(tmp_path / "run", "state", 8).exists()
    assert records.verify(tmp_path / "run").steps == 8
    go_on(tmp_path / "run", name)
    assert contents(tmp_path / "run") == contents(cases[name].run.path)


def cut_back(run):
    """As a crash between the state and the weights before step 8 leaves it."""
    for kind, step in (("params", 8), ("params", 9), ("state", 9), ("steps", 8)):
        sealed(run, kind, step).unlink()


def test_a_state_that_a_crash_left_must_be_the_one_that_comes_out(cases, copy):
    cut_back(copy)
    assert records.verify(copy).steps == 8
    reseal(sealed(copy, "state", 8), one_bit)
    before = contents(copy)
    with pytest.raises(RecordError, match=rf"exp_avg_sq of {W} before step 8, replayed, .* Nothing was changed"):
        go_on(copy)
    assert contents(copy) == before
    sealed(copy, "state", 8).unlink()
    go_on(copy)
    assert contents(copy) == contents(cases["adamw"].run.path)


def test_a_run_whose_last_state_is_lost_does_not_go_on_without_it(copy):
    cut_back(copy)
    sealed(copy, "state", 4).unlink()
    before = contents(copy)
    with pytest.raises(RecordError, match=r"no state of the optimizer before step 4; it has those before \[0, 8\]"):
        go_on(copy)
    with pytest.raises(RecordError, match="no state of the optimizer before step 4"):
        records.open(copy).state(5)
    assert contents(copy) == before


# ---- states that are not the recorded ones are refused


@pytest.mark.parametrize(("tampered", "start", "stop"), [(4, 2, 6), (4, 3, 4), (8, 4, 9), (9, 8, 9)])
def test_replayed_states_that_miss_a_snapshot_stop_the_replay(copy, tampered, start, stop):
    reseal(sealed(copy, "state", tampered), one_bit)
    with pytest.raises(RecordError, match=rf"exp_avg_sq of {W} before step {tampered}, replayed, differs from"):
        list(records.open(copy).moves(start, stop))


def test_a_tampered_first_state_is_found_at_the_next_snapshot(copy):
    reseal(sealed(copy, "state", 0), lambda t: t | {f"{W}/exp_avg": torch.ones(3, 4)})
    with pytest.raises(RecordError, match="before step 4, replayed, differs"):
        list(records.open(copy).moves(0, 5))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {n: x for n, x in t.items() if n != f"{W}/exp_avg"},
        lambda t: t | {f"{W}/momentum_buffer": torch.zeros(3, 4)},
        lambda t: t | {"w/exp_avg": torch.zeros(3)},
        lambda t: t | {f"{W}/exp_avg": torch.zeros(4, 3)},
        lambda t: t | {f"{W}/exp_avg": torch.zeros(3, 4, dtype=torch.float64)},
    ],
    ids=["one fewer", "one more", "another unit's", "another shape", "another dtype"],
)
def test_a_state_of_something_else_is_refused(copy, change):
    reseal(sealed(copy, "state", 4), change)
    said = "state/000004.safetensors: not what the run's optimizer remembers of its parameters"
    for refused in (lambda run: run.state(4), lambda run: next(run.moves(5, 6)), lambda run: list(run.moves(2, 6))):
        with pytest.raises(RecordError, match=said):
            refused(records.open(copy))


# ---- verify


def refuses(run, file, fault):
    with pytest.raises(RecordError, match=fault) as error:
        records.verify(run)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("step", [0, 4, 9])
def test_a_missing_state_is_noticed(copy, step):
    sealed(copy, "state", step).unlink()
    refuses(copy, sealed(copy, "state", step), f"is missing: the state of the weights before step {step}")


@pytest.mark.parametrize("step", [0, 4, 8])
def test_missing_weights_of_a_state_are_noticed(copy, step):
    sealed(copy, "params", step).unlink()
    refuses(copy, sealed(copy, "params", step), f"is missing: the weights of the state before step {step}")


def test_exchanged_and_renamed_states_are_noticed(copy):
    first, last = sealed(copy, "state", 4), sealed(copy, "state", 8)
    first.rename(copy / "aside")
    last.rename(first)
    refuses(copy, first, "renamed or exchanged: it says that it starts at step 8")
    (copy / "aside").rename(last)
    refuses(copy, first, "renamed or exchanged")


def test_a_foreign_state_and_another_kind_of_file_are_noticed(cases, copy):
    shutil.copy(sealed(cases["momentum"].run.path, "state", 4), sealed(copy, "state", 4))
    refuses(copy, sealed(copy, "state", 4), "belongs to another run")
    shutil.copy(sealed(copy, "params", 4), sealed(copy, "state", 4))
    refuses(copy, sealed(copy, "state", 4), "holds 'params' where 'state' belongs")


def test_a_state_of_another_past_is_noticed(copy):
    file = sealed(copy, "state", 8)
    header, tensors = read_sealed(file)
    file.unlink()
    write_sealed(file, header._replace(previous=header.run), tensors)
    refuses(copy, file, "does not follow from the steps recorded before it")


def test_a_state_where_nothing_is_remembered_is_noticed(tmp_path):
    run = recorded(tmp_path / "run", replace(RECIPE, n_steps=5), RECORDING, DATA, MODEL)
    _store.write_state(run, 4, optim.adamw().init(run.params(4)))
    refuses(run, sealed(run.path, "state", 4), "not a file of this run, whose optimizer remembers nothing")


def test_every_flipped_bit_and_every_truncation_of_a_state_is_noticed(copy):
    file = sealed(copy, "state", 4)
    data, rng = file.read_bytes(), np.random.default_rng(0)
    for bit in [*range(64), *rng.choice(range(64, 8 * len(data)), 60, replace=False)]:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(damaged)
        refuses(copy, file, ".")
    for length in (0, 8, 9, *np.linspace(10, len(data) - 1, 8, dtype=int).tolist()):
        file.write_bytes(data[:length])
        refuses(copy, file, ".")


def test_strangers_among_the_states_are_noticed_and_leftovers_removed(cases, copy):
    (copy / "state" / ".000012.safetensors.tmp").write_bytes(b"half")
    assert records.verify(copy).unfinished == ("state/.000012.safetensors.tmp",)
    go_on(copy)
    assert records.verify(copy) == records.verify(cases["adamw"].run)
    (copy / "state" / "notes.txt").write_bytes(b"hello")
    refuses(copy, copy / "state" / "notes.txt", "not a file of a run")


def test_a_run_that_grows_while_it_is_verified_is_whole(cases, copy, monkeypatch):
    """The writer adds a snapshot between verify's looks into two folders."""
    from devinterp_func.records import _verify

    cut_back(copy)
    sealed(copy, "state", 8).unlink()
    whole, looked, listed = cases["adamw"].run.path, [], _verify.numbers

    def numbers(run, kind):
        found = listed(run, kind)
        looked.append(kind)
        if len(looked) == at:
            for folder in ("state", "params"):
                shutil.copy(sealed(whole, folder, 8), sealed(copy, folder, 8))
        return found

    monkeypatch.setattr(_verify, "numbers", numbers)
    for at in range(1, 5):  # noqa: B007  (numbers reads it)
        looked.clear()
        assert records.verify(copy).steps == 8
        for folder in ("state", "params"):
            sealed(copy, folder, 8).unlink()


# ---- weights that do not lie as they will


def test_weights_that_are_no_row_after_row_resume_and_replay_to_the_same_bits(tmp_path):
    def start(key):
        return {"w": torch.from_numpy(keys.generator(1).standard_normal((6, 40))).float().T}

    def loss(params, x, y):
        return (params["w"] @ x - y).square().sum()

    model = models.Model("turned", loss, start, {"w": (40, 6)}, {"kind": "module"})
    rng = keys.generator(2)
    data = tuple(torch.from_numpy(rng.standard_normal((12, size))).float() for size in (6, 40))
    traced = graph.of(loss, start(0), *batches.example(data, 0))
    for optimizer in (optim.sgd(), optim.muon()):
        recipe = Recipe(batch_size=4, lr=0.01, optimizer=optimizer, n_steps=9)
        kind = type(optimizer.groups[0].rule).__name__
        run = recorded(tmp_path / kind, recipe, Recording(k=3, snapshot_every=4), data, model)
        for move in run.moves():
            assert records.same_bits(records.to_record(move, run.recording), records.read(run, move.step))
        assert list(traced.shapes) == list(run.shapes)
        for stop in (5, 9):
            for now in records.record(tmp_path / f"{kind} stopped", data, model, recipe, run.recording):
                if now.done == stop:
                    break
        assert contents(tmp_path / f"{kind} stopped") == contents(run.path)
