"""A small run, recorded once, and a walk over it that follows three pairs."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from run_builders import PLANTED, recorded

from devinterp_func import bigram, records
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
    run = recorded(tmp_path_factory.mktemp("runs") / "run", recipe, Recording(k=5, snapshot_every=20))
    folder, options = tmp_path_factory.mktemp("walks") / "walk", {"k": 7, **PAIRS._asdict()}
    steps = [step for step, _ in bigram.shifts(run, folder, **options)]
    assert steps == list(range(75))
    counts = bigram.count_pairs(PLANTED.train, len(PLANTED.vocab))
    return Walked(run, folder, options, PAIRS, counts, records.read_walk(folder, Shifts))
