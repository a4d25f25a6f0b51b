"""Runs in bfloat16: recorded, resumed and replayed bit for bit, and how far they miss the law is recorded."""

import json

import pytest
import torch
import torch.nn.functional as F
from rounded_models import drawn
from run_builders import PLANTED, contents
from torch import nn

from devinterp_func import graph, models, optim, records, training
from devinterp_func.models import Config
from devinterp_func.records import Recording
from devinterp_func.training import Recipe

PLAIN = models.transformer(Config(len(PLANTED.vocab), d_model=8, n_heads=2, d_hidden=6, n_layers=1))
MODEL = models.autocast(PLAIN)
RECORDING = Recording(k=4, snapshot_every=3, factors=True)
HOW = {
    "sgd": Recipe(batch_size=6, context=5, n_steps=8, lr=1.0),
    "adamw in parts": Recipe(
        batch_size=6, context=5, n_steps=8, lr=1e-2, optimizer=optim.adamw(), processes=2, micro_batch=2
    ),
}


def record(folder, recipe, steps=None, model=MODEL, recording=RECORDING):
    """Records a run, or its first steps as one that is killed then."""
    for now in records.record(folder, PLANTED, model, recipe, recording):
        if now.done == steps:
            break
    return folder


@pytest.fixture(scope="module", params=HOW)
def run(request, tmp_path_factory):
    return records.open(record(tmp_path_factory.mktemp("run") / "whole", HOW[request.param]))


def test_a_killed_run_goes_on_to_the_same_bits(run, tmp_path):
    record(tmp_path / "killed", run.recipe, steps=4)
    record(tmp_path / "killed", run.recipe)
    assert contents(run) == contents(tmp_path / "killed")


def test_steps_are_replayed_bit_for_bit(run):
    for step in (0, 3, 5):
        assert records.same_bits(records.replay(run, step).record, records.read(run, step))
    for move in run.moves():
        assert all(w.dtype == torch.float32 for w in (*move.after.values(), *move.split.grads.values()))


def test_the_model_is_built_again_from_the_manifest(run):
    assert json.loads((run.path / "manifest.json").read_text())["model"]["of"] == PLAIN.source
    assert run.model.name == "transformer in bfloat16" and run.graph.rounded
    with pytest.raises(records.RecordError, match="the model does not compute what the run's did"):
        _ = records.open(run.path, model=PLAIN).graph


def test_steps_that_begin_with_a_snapshot_say_what_they_miss_and_no_others(run):
    for move, made in zip(run.moves(), run.steps(), strict=True):
        if move.step % 3:
            assert made.missed.isnan().all() and made.missed_bound.isnan().all()
            continue
        missed = torch.tensor(list(optim.missed(move).values()))
        assert torch.allclose(made.missed, missed, rtol=1e-4) and made.missed.dtype == torch.float32
        assert (made.missed > 1e-5).all() and (made.missed <= made.missed_bound).all()
    curve = run.curve()
    assert (~curve.missed.isnan()).nonzero().flatten().tolist() == [0, 3, 6]
    assert curve.missed[3] == records.read(run, 3).missed.max()
    assert curve.missed_bound[3] == records.read(run, 3).missed_bound.max()


def test_recorded_factors_keep_their_16_bits(run):
    factors = records.read(run, 2).factors["layers.0.linear1.weight"]
    assert factors["inputs"].dtype == torch.bfloat16
    move = next(run.moves(2, 3))
    assert torch.equal(move.gradients["layers.0.linear1.weight"].inputs, factors["inputs"])


def test_a_run_in_float32_measures_nothing(tmp_path):
    run = records.open(record(tmp_path / "run", HOW["sgd"], model=PLAIN))
    assert run.curve().missed.isnan().all() and run.curve().missed_bound.isnan().all()


def classified(model, x, y):
    return F.cross_entropy(model(x), y)


def test_a_module_in_bfloat16_is_given_again_when_its_run_is_opened(tmp_path):
    module = models.module(drawn(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))), classified)
    x = torch.linspace(-1, 1, 60).view(20, 3)
    recipe, model = Recipe(batch_size=5, n_steps=4, lr=0.5), models.autocast(module)
    for _ in records.record(tmp_path / "run", (x, (x.sum(1) > 0).long()), model, recipe, Recording(k=2)):
        pass
    with pytest.raises(
        records.RecordError, match=r"give it: model=models.autocast\(models.module\(your_module, your_l"
    ):
        _ = records.open(tmp_path / "run").graph
    run = records.open(tmp_path / "run", model=model)
    assert records.same_bits(records.replay(run, 2).record, records.read(run, 2))


def test_what_vmap_makes_wrong_is_found_in_bfloat16_too(tmp_path, monkeypatch):
    """A gradient that is wrong by a twentieth is less than rounding may make it, and is found all the same."""
    real = records._recorder.per_example.capture_missed

    def wrong(own, params, *batch):
        return {name: miss + 0.05 for name, miss in real(own, params, *batch).items()}

    monkeypatch.setattr(records._recorder.per_example, "capture_missed", wrong)
    with pytest.raises(ValueError, match="capture misses the gradient of"):
        record(tmp_path / "run", HOW["sgd"])


def test_a_loss_that_casts_by_itself_is_measured_and_held_to_the_looser_check(tmp_path):
    def loss(params, tokens, targets):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return PLAIN.loss(params, tokens, targets)

    own = models.Model("own", loss, PLAIN.init, PLAIN.shapes, {"kind": "own"})
    run = records.open(record(tmp_path / "run", HOW["sgd"], model=own), model=own)
    assert (run.curve().missed[[0, 3, 6]] > 0).all()
    with pytest.raises(ValueError, match="computed in torch.bfloat16 by its own doing; models.autocast says so from"):
        graph.unrounded(run.graph)


def test_parts_that_are_captured_apart_count_a_rounding_each(run):
    (move,) = run.moves(3, 4)
    measured = training.shares(run.recipe)
    made = records.to_record(move, run.recording, measured=measured)
    whole = records.to_record(move, run.recording, measured=[[slice(0, 6)]])
    assert torch.equal(made.missed_bound, records.read(run, 3).missed_bound)
    assert (made.missed_bound > whole.missed_bound).all() or len(measured) == 1
