"""A small run, recorded once, and a walk over it that follows three pairs."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from run_builders import PLANTED, recorded

from devinterp_func import bigram, optim, records
from devinterp_func.bigram import PairCounts, Pairs, Shifts
from devinterp_func.records import Recording, Run
from devinterp_func.training import Recipe

PAIRS = Pairs(torch.tensor([5, 9, 0]), torch.tensor([3, 9, 17]))


class Walked(NamedTuple):
    """A run, a walk over all of its 75 steps, and what it was asked for."""

    run: Run
    folder: Path
    options: dict[str, Any]  # of ``bigram.shifts``
    pairs: Pairs
    counts: PairCounts
    shifts: Shifts


@pytest.fixture(scope="session")
def walked(tmp_path_factory) -> Walked:
    recipe = Recipe(context=10, batch_size=6, epochs=2, n_steps=75)
    return walk(tmp_path_factory, recipe, 20, {"k": 7})


@pytest.fixture(scope="session")
def with_memory(tmp_path_factory) -> Walked:
    """A run with AdamW, in every fourth step of which the largest shifts were searched for."""
    recipe = Recipe(context=10, batch_size=6, lr=0.01, optimizer=optim.adamw(weight_decay=0.5), n_steps=14)
    return walk(tmp_path_factory, recipe, 7, {"k": 7, "every": 4})


def walk(tmp_path_factory, recipe: Recipe, snapshot_every: int, options: dict[str, Any]) -> Walked:
    run = recorded(tmp_path_factory.mktemp("runs") / "run", recipe, Recording(k=5, snapshot_every=snapshot_every))
    folder, options = tmp_path_factory.mktemp("walks") / "walk", options | PAIRS._asdict()
    steps = [step for step, _ in bigram.shifts(run, folder, **options)]
    assert steps == list(range(recipe.n_steps or 0))
    counts = bigram.count_pairs(PLANTED.train, len(PLANTED.vocab))
    return Walked(run, folder, options, PAIRS, counts, records.read_walk(folder, Shifts))
