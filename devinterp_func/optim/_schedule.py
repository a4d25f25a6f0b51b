"""Learning-rate schedules: a factor of the rate as a pure function of step and epoch."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from devinterp_func import checks

Kind = Literal["constant", "step", "linear", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes on; ``Schedule("cosine", warmup=500, end=0.1)``.

    "constant"; "step": times ``gamma`` after each epoch; "linear" and "cosine": after the warm-up down to ``end`` of
    the rate, which it would reach in the step after the last and keeps from there on.

    Raises:
        TypeError, ValueError: a value of another type, out of range, or of no meaning to the kind; it is named.
    """

    kind: Kind = "constant"
    gamma: float = 1.0  # of "step"
    warmup: int = 0  # steps of a linear rise: the rate of the first is 1 / (warmup + 1) of what it would be
    end: float = 0.0  # of "linear" and "cosine"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"schedule is {self.kind!r}; it must be one of {', '.join(get_args(Kind))}")
        object.__setattr__(self, "gamma", checks.positive("gamma", self.gamma))
        object.__setattr__(self, "warmup", checks.integer("warmup", self.warmup, least=0))
        object.__setattr__(self, "end", checks.non_negative("end", self.end))
        if self.gamma != 1 and self.kind != "step":
            raise ValueError(f"gamma is {self.gamma}, which means nothing to a {self.kind} schedule: leave it out")
        if self.end and self.kind not in ("linear", "cosine"):
            raise ValueError(f"end is {self.end}, which means nothing to a {self.kind} schedule: leave it out")

    def factor(self, step: int, epoch: int, n_steps: int) -> float:
        """What the learning rate is multiplied by.

        Args:
            step: from 0, over the whole training.
            epoch: from 0.
            n_steps: of the whole training.

        >>> [round(Schedule("cosine", warmup=1, end=0.5).factor(step, 0, 5), 3) for step in range(5)]
        [0.5, 1.0, 0.927, 0.75, 0.573]
        """
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        done = min(1.0, max(0, step - self.warmup) / max(1, n_steps - self.warmup))
        match self.kind:
            case "constant":
                return rise
            case "step":
                return rise * self.gamma**epoch
            case "linear":
                return rise * (1 - (1 - self.end) * done)
            case "cosine":
                return rise * (self.end + (1 - self.end) * (1 + math.cos(math.pi * done)) / 2)
