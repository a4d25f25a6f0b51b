"""How a run was trained, in words: what a manifest holds, of every rule, schedule and format."""

import dataclasses
import math

import pytest

from devinterp_func import optim
from devinterp_func.optim import Schedule
from devinterp_func.show import words


@pytest.mark.parametrize(
    ("optimizer", "name", "said"),
    [
        (optim.sgd(), "SGD", "SGD"),
        (optim.sgd(0.9, nesterov=True), "SGD", "SGD (momentum 0.9, Nesterov's)"),
        (optim.sgd(0.9, 0.5, weight_decay=0.1), "SGD", "SGD (momentum 0.9, dampening 0.5, weight decay 0.1, coupled)"),
        (optim.adam((0.8, 0.9), 1e-6), "Adam", "Adam (betas 0.8 and 0.9, eps 1e-06)"),
        (
            optim.adamw(weight_decay=0.1, matrices_only=True, undecayed=("*embed*",)),
            "AdamW",
            "AdamW (betas 0.9 and 0.999, eps 1e-08, weight decay 0.1 on matrices but *embed*)",
        ),
        (
            optim.muon(but=("*embed*", "head")),
            "Muon and AdamW",
            "Muon (momentum 0.95, Nesterov's, weight decay 0.1) for matrices but *embed*, head; "
            "AdamW (betas 0.9 and 0.999, eps 1e-08, weight decay 0.01) for all others",
        ),
        (
            optim.grouped((("*.bias",), optim.sgd()), rest=optim.sgd(0.9), scales=[2.0]),
            "SGD",
            "SGD (2 times the rate) for *.bias; SGD (momentum 0.9) for all others",
        ),
    ],
)
def test_every_rule_says_its_settings(optimizer, name, said):
    groups = optim.to_dict(optimizer)
    assert (words.optimizer_name(groups), words.optimizer_words(groups)) == (name, said)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (Schedule(), "constant"),
        (Schedule("constant", warmup=1000), "1,000 steps of warm-up, then constant"),
        (Schedule("step", gamma=0.95), "times 0.95 after each epoch"),
        (Schedule("linear"), "a line down to 0 % of it"),
        (Schedule("cosine", warmup=5, end=0.25), "5 steps of warm-up, then a cosine down to 25 % of it"),
    ],
)
def test_every_schedule_says_how_it_goes_on(schedule, said):
    assert words.schedule_words(dataclasses.asdict(schedule)) == said


@pytest.mark.parametrize(("clip", "said"), [(0.5, "gradients clipped to a norm of 0.5"), (None, "no clipping")])
def test_older_manifests_know_sgd_and_a_factor_by_epoch(clip, said):
    recipe = {"lr": 5.0, "gamma": 0.9, "max_norm": clip}
    assert words.training_words(recipe) == f"SGD; learning rate 5, times 0.9 after each epoch; {said}"
    assert optim.from_dict(words.in_full(recipe)["optimizer"]) == optim.sgd()
    assert words.all_is_present(recipe) and "gamma" not in words.in_full(recipe)
    assert "no clipping" in words.training_words(recipe | {"max_norm": math.inf})


@pytest.mark.parametrize(
    "optimizer", [optim.sgd(0.5), optim.sgd(weight_decay=0.1), optim.adam(), optim.adamw(), optim.muon()]
)
def test_memory_or_decay_is_more_than_present(optimizer):
    recipe = {"lr": 1.0, "max_norm": None, "schedule": dataclasses.asdict(Schedule())}
    assert not words.all_is_present(recipe | {"optimizer": optim.to_dict(optimizer)})
