"""Optimizer, schedule and rate as options of capture.py: the preset's if left out, refused if they mean nothing."""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from devinterp_func import models, optim, records, training
from devinterp_func.models import Config
from devinterp_func.optim import Schedule
from devinterp_func.records import Recording
from devinterp_func.training import Recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))  # where the scripts find each other

import capture  # noqa: E402
import presets  # noqa: E402
from presets import PRESETS, training_of  # noqa: E402

MODEL = models.transformer(Config(20, d_model=4, n_heads=1, d_hidden=4, n_layers=1))
COSINE = Schedule("cosine", warmup=20, end=0.1)
MODERN, POST = PRESETS["modern"][1], PRESETS["post"][1]
ADAMW = optim.adamw(weight_decay=0.1, matrices_only=True)


def trained(preset="post", n_steps=400, **given):
    return training_of(capture.Settings(**given), PRESETS[preset][1], MODEL, n_steps)


@pytest.mark.parametrize("preset", PRESETS)
def test_without_options_a_recipe_is_the_presets(preset):
    kind = presets.kind_of(PRESETS[preset][1].optimizer)
    assert trained(preset) == trained(preset, optimizer=kind) == PRESETS[preset][1]


@pytest.mark.parametrize(
    ("preset", "given", "optimizer", "schedule", "lr"),
    [
        ("post", {"optimizer": "adamw"}, ADAMW, COSINE, 1e-3),
        ("post", {"optimizer": "adamw", "lr": 0.5, "warmup": 7}, ADAMW, Schedule("cosine", 1.0, 7, 0.1), 0.5),
        ("post", {"optimizer": "adamw", "gamma": 0.5}, ADAMW, Schedule("step", 0.5), 1e-3),
        ("post", {"optimizer": "adamw", "schedule": "constant"}, ADAMW, Schedule(), 1e-3),
        ("post", {"optimizer": "adam", "betas": (0.5, 0.6), "eps": 1e-4}, optim.adam((0.5, 0.6), 1e-4), COSINE, 1e-3),
        ("post", {"momentum": 0.9, "nesterov": True}, optim.sgd(0.9, nesterov=True), POST.schedule, 0.5),
        ("post", {"momentum": 0.9, "lr": 2.0}, optim.sgd(0.9), POST.schedule, 2.0),
        ("post", {"weight_decay": 0.1}, optim.sgd(weight_decay=0.1, matrices_only=True), POST.schedule, 5.0),
        ("modern", {"weight_decay": 0.0}, optim.adamw(weight_decay=0.0), MODERN.schedule, MODERN.lr),
        ("modern", {"decay_all": True}, optim.adamw(weight_decay=0.1), MODERN.schedule, MODERN.lr),
        ("modern", {"optimizer": "sgd"}, optim.sgd(), MODERN.schedule, 5.0),
        ("modern", {"end": 0.0, "model": "gpt2"}, ADAMW, Schedule("cosine", 1.0, 500), MODERN.lr),
        ("post", {"model": "gpt2"}, optim.sgd(), POST.schedule, 1.0),
        ("post", {"model": "gpt2", "momentum": 0.5}, optim.sgd(0.5), POST.schedule, 0.5),
        (
            "post",
            {"optimizer": "adamw", "undecayed": ("embedding.*",)},
            optim.adamw(weight_decay=0.1, matrices_only=True, undecayed=("embedding.*",)),
            COSINE,
            1e-3,
        ),
        (
            "post",
            {"optimizer": "muon", "momentum": 0.9, "betas": (0.8, 0.95)},
            optim.muon(
                0.9,
                rest=optim.adamw((0.8, 0.95), weight_decay=0.1, matrices_only=True),
                but=("*embed*", "decoder.weight"),
            ),
            COSINE,
            1e-3,
        ),
    ],
)
def test_options_change_what_they_name(preset, given, optimizer, schedule, lr):
    found = trained(preset, **given)
    assert (found.optimizer, found.schedule) == (optimizer, schedule) and found.lr == pytest.approx(lr)
    same = {"optimizer": found.optimizer, "schedule": found.schedule, "lr": found.lr}
    assert found == dataclasses.replace(PRESETS[preset][1], **same)


def test_a_warm_up_is_a_twentieth_of_the_steps_and_at_most_500():
    assert [trained(optimizer="adamw", n_steps=n).schedule.warmup for n in (3, 100, 10_000, 99_999)] == [0, 5, 500, 500]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"optimizer": "adamw", "momentum": 0.9}, "--momentum means nothing to adamw, but to sgd, muon: leave it out"),
        ({"betas": (0.9, 0.99)}, "--betas means nothing to sgd, but to adam, adamw, muon: leave it out"),
        ({"preset": "modern", "nesterov": True}, "--nesterov means nothing to adamw"),
        ({"nesterov": True}, "nesterov takes a momentum"),
        ({"optimizer": "adamw", "betas": (0.9, 1.0)}, "betas are (0.9, 1.0)"),
        ({"optimizer": "adamw", "eps": 0.0}, "eps is 0.0; it must be positive"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must be at least 0"),
        ({"decay_all": True}, "--decay-all means nothing without weight decay: add --weight-decay, or leave it out"),
        ({"undecayed": ("*norm*",)}, "--undecayed means nothing without weight decay"),
        ({"optimizer": "adamw", "undecayed": ("nope*",)}, "no parameter is called 'nope*'"),
        ({"schedule": "cosine", "gamma": 0.5}, "gamma is 0.5, which means nothing to a cosine schedule"),
        ({"end": 0.5}, "end is 0.5, which means nothing to a step schedule"),
        ({"warmup": -1}, "warmup is -1; it must be at least 0"),
        ({"optimizer": "adamw", "lr": 0.0}, "lr is 0.0; it must be positive"),
    ],
)
def test_mistakes_end_before_any_work(tmp_path, monkeypatch, given, said):
    monkeypatch.setattr(training, "moves", lambda *_, **__: pytest.fail("a step was made"))
    with pytest.raises(ValueError, match=re.escape(said)):
        capture.main(capture.Settings(**({"corpus": "planted", "preset": "post", "out": tmp_path / "run"} | given)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_a_run_of_any_optimizer_is_recorded_checked_and_replayed(optimizer, tmp_path, monkeypatch, capsys):
    sizes = {"d_model": 8, "n_heads": 2, "d_hidden": 6, "n_layers": 1}
    recipe = Recipe(context=10, batch_size=4, epochs=1, lr=1.0)
    monkeypatch.setitem(presets.PRESETS, "demo", (sizes, recipe, Recording()))
    given: dict[str, Any] = {"momentum": 0.9} if optimizer == "sgd" else {}
    settings = capture.Settings(
        "planted", optimizer=optimizer, steps=5, k=5, snapshot_every=2, out=tmp_path / "run", check_law=True, **given
    )
    capture.main(settings)
    run, said = records.open(tmp_path / "run"), capsys.readouterr().out
    assert presets.kind_of(run.recipe.optimizer) == optimizer and run.recipe.optimizer.remembers
    assert records.same_bits(records.replay(run, 3).record, records.read(run, 3))
    missed, rounded = (float(number) for number in re.findall(r"(?:at most|is up to) ([\d.e+-]+) of it", said))
    assert 0 < missed < 10 * rounded < 0.1
    memory = sum(x.nbytes for own in run.state(5).buffers.values() for x in own.values())
    assert memory >= 4 * 0.9 * sum(weight.numel() for weight in run.params().values())
