"""What fixes a training: each value is checked by type and range, and by name."""

import math

import numpy as np
import pytest
import torch

from devinterp_func import batches, keys, training
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


@pytest.mark.parametrize("name", ["context", "batch_size", "epochs", "seed", "lr", "gamma", "max_norm"])
def test_only_the_number_of_steps_may_be_left_open(unchecked, name):
    assert Recipe(n_steps=None).n_steps is None
    with pytest.raises(TypeError, match=f"{name} is None; it must be"):
        Recipe(**{name: None})  # type: ignore[arg-type]


def test_seeds_start_at_zero():
    assert Recipe(seed=0).seed == 0 and Recipe(seed=2**70).seed == 2**70
    with pytest.raises(ValueError, match="seed is -1; it must be at least 0"):
        Recipe(seed=-1)


@pytest.mark.parametrize("name", ["lr", "gamma", "max_norm"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, -math.inf])
def test_rates_are_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be positive"):
        Recipe(**{name: value})


@pytest.mark.parametrize("name", ["lr", "gamma", "max_norm"])
@pytest.mark.parametrize("value", ["5", True, [5.0]])
def test_rates_are_numbers(unchecked, name, value):
    with pytest.raises(TypeError, match=f"{name} is .*; it must be a number"):
        Recipe(**{name: value})


def test_of_the_rates_only_the_largest_norm_may_be_infinite():
    assert Recipe(max_norm=math.inf).max_norm == math.inf
    for name in ("lr", "gamma"):
        with pytest.raises(ValueError, match=f"{name} is inf; it must be positive and finite"):
            Recipe(**{name: math.inf})  # type: ignore[arg-type]


def test_numbers_of_other_libraries_become_pythons(unchecked):
    given = {"context": np.int64(9), "batch_size": torch.tensor(4), "seed": np.uint8(3), "lr": np.float32(0.5)}
    recipe = Recipe(**given, gamma=1, n_steps=np.int32(7))  # type: ignore[arg-type]
    assert recipe == Recipe(context=9, batch_size=4, seed=3, lr=0.5, gamma=1.0, n_steps=7)
    assert {type(getattr(recipe, name)) for name in ("context", "batch_size", "seed", "n_steps")} == {int}
    assert {type(recipe.lr), type(recipe.gamma)} == {float}


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
