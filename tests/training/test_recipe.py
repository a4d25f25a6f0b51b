"""What fixes a training: each value is checked by type and range, and by name."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from devinterp_func import batches, keys, optim, training
from devinterp_func.optim import Schedule
from devinterp_func.training import Recipe

COUNTS = ["context", "batch_size", "epochs", "n_steps"]


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1])
def test_counts_are_at_least_one(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be at least 1"):
        Recipe(**{name: value})


@pytest.mark.parametrize("name", [*COUNTS, "seed"])
@pytest.mark.parametrize("value", [8.0, "8", True, math.inf, np.float64(8), [8]])
def test_counts_and_seeds_are_integers(unchecked, name, value):
    with pytest.raises(TypeError, match=rf"{name} is .*; it must be an integer of at least"):
        Recipe(**{name: value})


@pytest.mark.parametrize("name", ["context", "batch_size", "epochs", "seed", "lr", "max_norm", "schedule", "optimizer"])
def test_only_the_number_of_steps_may_be_left_open(unchecked, name):
    assert Recipe(n_steps=None).n_steps is None
    with pytest.raises(TypeError, match=f"{name} is None; it must be"):
        Recipe(**{name: None})  # type: ignore[arg-type]


def test_seeds_start_at_zero():
    assert Recipe(seed=0).seed == 0 and Recipe(seed=2**70).seed == 2**70
    with pytest.raises(ValueError, match="seed is -1; it must be at least 0"):
        Recipe(seed=-1)


@pytest.mark.parametrize("name", ["lr", "max_norm"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, -math.inf])
def test_rates_are_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be positive"):
        Recipe(**{name: value})


@pytest.mark.parametrize("name", ["lr", "max_norm"])
@pytest.mark.parametrize("value", ["5", True, [5.0]])
def test_rates_are_numbers(unchecked, name, value):
    with pytest.raises(TypeError, match=f"{name} is .*; it must be a number"):
        Recipe(**{name: value})


def test_of_the_rates_only_the_largest_norm_may_be_infinite():
    assert Recipe(max_norm=math.inf).max_norm == math.inf
    with pytest.raises(ValueError, match="lr is inf; it must be positive and finite"):
        Recipe(lr=math.inf)


def test_numbers_of_other_libraries_become_pythons(unchecked):
    given = {"context": np.int64(9), "batch_size": torch.tensor(4), "seed": np.uint8(3), "lr": np.float32(0.5)}
    recipe = Recipe(**given, max_norm=1, n_steps=np.int32(7))  # type: ignore[arg-type]
    assert recipe == Recipe(context=9, batch_size=4, seed=3, lr=0.5, max_norm=1.0, n_steps=7)
    assert {type(getattr(recipe, name)) for name in ("context", "batch_size", "seed", "n_steps")} == {int}
    assert {type(recipe.lr), type(recipe.max_norm)} == {float}


@pytest.mark.parametrize("value", ["cosine", 0.9, {"kind": "cosine"}, Schedule, optim.sgd()])
def test_a_schedule_is_one_of_optim(unchecked, value):
    with pytest.raises(TypeError, match=r"schedule is .*; it must be a devinterp_func.optim.Schedule"):
        Recipe(schedule=value)


@pytest.mark.parametrize("value", ["adamw", torch.optim.SGD, optim.adamw, optim.Adam(), Schedule()])
def test_an_optimizer_is_one_of_optim(unchecked, value):
    with pytest.raises(TypeError, match=r"optimizer is .*; it must be a devinterp_func.optim.Optimizer"):
        Recipe(optimizer=value)


def test_recipes_are_equal_where_all_that_they_fix_is():
    assert Recipe(optimizer=optim.adamw()) == Recipe(optimizer=optim.adamw()) != Recipe(optimizer=optim.adam())
    assert len({Recipe(), Recipe(), Recipe(schedule=Schedule())}) == 2


kinds = st.sampled_from(["constant", "step", "linear", "cosine"])


@given(
    kind=kinds,
    lr=st.floats(1e-4, 10),
    epochs=st.integers(1, 4),
    n_data=st.integers(6, 30),
    n_steps=st.none() | st.integers(1, 40),
    warmup=st.integers(0, 9),
)
def test_the_learning_rate_of_a_step_is_the_schedules_at_its_place_in_the_whole_training(
    kind, lr, epochs, n_data, n_steps, warmup
):
    own = {"gamma": 0.7} if kind == "step" else {"end": 0.2} if kind in ("linear", "cosine") else {}
    schedule = Schedule(kind, warmup=warmup, **own)
    recipe = Recipe(batch_size=3, lr=lr, epochs=epochs, n_steps=n_steps, schedule=schedule)
    per_epoch, total = n_data // 3, min(epochs * (n_data // 3), n_steps or 10**9)
    for step, epoch, *_ in training.order(recipe, n_data, 0, total):
        assert epoch == step // per_epoch
        left = max(0, step - warmup) / max(1, total - warmup)
        shape = {
            "constant": 1.0,
            "step": 0.7**epoch,
            "linear": 1 - 0.8 * left,
            "cosine": 0.2 + 0.4 * (1 + math.cos(math.pi * left)),
        }[kind]
        rise = min(1.0, (step + 1) / (warmup + 1))
        assert training.learning_rate(recipe, n_data, step) == pytest.approx(lr * rise * shape, rel=1e-12)


def test_the_schedule_ends_with_the_epochs_or_with_n_steps():
    assert training.total_steps(Recipe(), 58_571) == 14_640
    assert training.total_steps(Recipe(n_steps=300), 58_571) == 300
    assert training.total_steps(Recipe(n_steps=10**9), 58_571) == 14_640
    assert training.steps_per_epoch(Recipe(), 58_571) == 2_928


@pytest.mark.parametrize(("start", "stop"), [(0, 9), (2, 7), (3, 3), (8, 9)])
def test_the_order_is_that_of_each_epochs_schedule(start, stop):
    recipe = Recipe(batch_size=2, epochs=3, seed=4)
    expected = [
        (3 * epoch + batch, epoch, batch, ids.tolist())
        for epoch in range(3)
        for batch, ids in enumerate(batches.schedule(7, 2, epoch=epoch, key=keys.Key(4)))
    ]
    made = [(*numbers, ids.tolist()) for *numbers, ids in training.order(recipe, 7, start, stop)]
    assert made == expected[start:stop]


def test_a_batch_larger_than_the_text_is_refused():
    with pytest.raises(ValueError, match="batch_size is 20; with 7 data it must be in 1 to 7"):
        training.total_steps(Recipe(), 7)
