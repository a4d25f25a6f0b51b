"""What a job will cost: steps in plain training steps, their time as it was measured here, and bytes."""

import time
from collections.abc import Mapping
from typing import NamedTuple

from devinterp_func.records import Run
from devinterp_func.show.explorer._site import Site

A_PROBE = 2.5  # plain steps of following a probe through a step, besides replaying it: with it 3 to 4, as README says
DRAWS = 10  # of retrain.py, beside the removal asked for and the intact training: 5 random, 5 of equal norm


class Cost(NamedTuple):
    """What a job takes."""

    steps: float  # plain training steps, about
    n_bytes: int | None = None  # that it leaves on the disk, about


def cost(site: Site, kind: str, values: Mapping[str, object]) -> Cost:
    """What a job takes.

    Args:
        site: of the run.
        kind: of the forms.
        values: checked.
    """
    run, number = site.run, {name: value for name, value in values.items() if isinstance(value, int)}
    first = number["step" if kind == "replay" else "start"]
    before = first - max((step for step in run.snapshots if step <= first), default=0)
    if kind == "replay":
        return Cost(before + 2)
    probes = values["probe"]
    assert isinstance(probes, tuple)
    steps = number["steps"] if kind == "retrain" else number["stop"] - first
    followed, n = steps * (1 + A_PROBE * len(probes)), run.recipe.batch_size
    if kind == "retrain":
        return Cost(followed + steps * (2 + DRAWS), steps * 8 * n * (3 * len(probes) + 2))
    return Cost(before + followed, steps * 8 * (3 * len(probes) * n * run.recipe.context + n))


def step_seconds(run: Run) -> float:
    """How long a step takes on this machine: the second of two that are replayed from a snapshot.

    Raises:
        RecordError: this process would not make the same bits.
    """
    at = max(step for step in run.snapshots if step <= max(0, run.n_steps - 2))
    began = time.perf_counter()
    for _ in run.moves(at, min(run.n_steps, at + 2)):
        taken, began = time.perf_counter() - began, time.perf_counter()
    return taken


def said(seconds: float) -> str:
    """A time to wait.

    >>> said(0.2), said(90.0), said(5400.0), said(86400.0)
    ('a second', '90 seconds', '90 minutes', '24 hours')
    """
    if seconds < 1.5:
        return "a second"
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.0f} hours"
