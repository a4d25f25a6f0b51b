"""One recorded step replayed: every entry of every delta, and its record as it would be written."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from devinterp_func import optim, per_example, training
from devinterp_func.records._manifest import RunPath
from devinterp_func.records._open import open
from devinterp_func.records._record_step import measures, to_record
from devinterp_func.records._step import StepRecord
from devinterp_func.records._store import read
from devinterp_func.tree import Params
from devinterp_func.units import Patterns


class Replay(NamedTuple):
    """A replayed step: its record as it would be written, the weights around it, and every entry of its deltas."""

    record: StepRecord
    before: Params
    after: Params
    deltas: dict[str, Float[Tensor, "n ..."]]
    missed: dict[str, float]  # how far each unit misses the law

    def __repr__(self) -> str:
        return f"Replay of {self.record}: deltas of {len(self.deltas)} units miss the law by {self.worst:.1e} at most"

    @property
    def worst(self) -> float:
        """The largest miss of the law."""
        return max(self.missed.values())


@torch.no_grad()
def replay(run: RunPath, step: int, captured: Patterns | None = None) -> Replay:
    """A recorded step replayed from the nearest snapshot before it: every entry of every captured delta.

    On the machine, versions and thread count of the manifest the outliers come out bit for bit as recorded.

    Args:
        run: a run directory, or an opened run.
        step: a recorded step.
        captured: patterns of other units than the run's; the record is then taken from these.

    Raises:
        RecordError: the step is not recorded, a file is damaged, or as ``Run.moves``.
    """
    read(run, step)  # a clear error before the work
    opened = open(run)
    (move,) = opened.moves(step, step + 1, captured)
    deltas = per_example.form_units(move.factors)
    measured = training.shares(opened.recipe) if measures(opened.graph, opened.recording, step) else None
    made = to_record(move, opened.recording, measured=measured)
    return Replay(made, move.before, move.after, deltas, optim.missed(move))
