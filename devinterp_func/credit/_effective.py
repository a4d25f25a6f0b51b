"""How many data make the steps of a window, and whether it is few steps or few data of each step that do.

With A_t = Σ_j ‖Δ_tj‖² and B_t = Σ_j ‖Δ_tj‖⁴ of each of S steps, and N data in all,

    effective share   (ΣA_t)² / (N ΣB_t)  =  between · within
    between           (ΣA_t)² / (S ΣA_t²)        1 where all steps' data moved the weights as much
    within            S ΣA_t² / (N ΣB_t)         1 where the data of every step did

and of a single step of n data A_t² / (n B_t). A fall of the first alone may be a few large steps.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devinterp_func import checks, keys, stats
from devinterp_func.credit._coherence import Coherence
from devinterp_func.stats import Dip, Points

SHUFFLED, NOISE, NOISE_OUTSIDE = "steps shuffled", "smooth, noise of all windows", "smooth, noise outside the dip"


class StepSums(NamedTuple):
    """Of S steps: how many data, and sums over them, all units together."""

    step: Int[np.ndarray, "S"]
    number: Int[np.ndarray, "S"]
    square: Float[np.ndarray, "S"]  # Σ_j ‖Δ_j‖²
    fourth: Float[np.ndarray, "S"]  # Σ_j ‖Δ_j‖⁴

    def take(self, rows: Int[np.ndarray, "R"]) -> "StepSums":
        """These steps' sums at the places of the first of all: the steps' own numbers stay in order."""
        return StepSums(self.step[: len(rows)], self.number[rows], self.square[rows], self.fourth[rows])

    def __repr__(self) -> str:
        return f"StepSums of {len(self.step)} steps"


class EffectiveShares(NamedTuple):
    """Effective sample sizes of windows of steps, as shares of the number of data."""

    step: Int[np.ndarray, "W"]  # first of each window
    pooled: Float[np.ndarray, "W"]  # of all the window's data
    between: Float[np.ndarray, "W"]  # what the steps have to do with it
    within: Float[np.ndarray, "W"]  # what the data of each step have
    single: Float[np.ndarray, "W"]  # of a single step, median

    def __repr__(self) -> str:
        return f"EffectiveShares of {len(self.step)} windows"


SERIES: Mapping[str, Callable[[EffectiveShares], Points]] = MappingProxyType(
    {"of a window": lambda shares: shares.pooled, "of a step, median": lambda shares: shares.single}
)


class DipFound(NamedTuple):
    """The deepest dip of a course of effective sample sizes, in logarithms, and the depths that chance finds."""

    step: Int[np.ndarray, "W"]
    dip: Dip
    chance: dict[str, Points]  # depths by null hypothesis

    def p(self, null: str) -> float:
        """Share of draws with as deep a dip."""
        depths = self.chance[null]
        return float(1 + (depths >= self.dip.depth - 1e-12).sum()) / (1 + len(depths))

    def __repr__(self) -> str:
        return f"DipFound: {self.dip}"


def step_sums(steps: Coherence, chosen: Bool[Tensor, "S n"] | None = None) -> StepSums:
    """Sums over the data of each step, all units together.

    Args:
        steps: of a replay, stacked.
        chosen: the data that count; all by default.
    """
    square = steps.square.double().sum(-2)
    chosen = torch.ones_like(square, dtype=torch.bool) if chosen is None else chosen
    kept = square * chosen
    sums = (kept.sum(-1).numpy(), kept.square().sum(-1).numpy())
    return StepSums(steps.step.numpy(), chosen.sum(-1).numpy(), *sums)


def effective_shares(sums: StepSums, width: int) -> EffectiveShares:
    """Effective sample sizes of windows of steps; the last window is left out if it is not full.

    A step or window without any length has NaN.

    Args:
        sums: of ``step_sums``.
        width: steps of a window.

    Raises:
        ValueError: there are fewer steps than one window takes.
    """
    width, W = checks.integer("width", width), len(sums.step) // checks.integer("width", width)
    if not W:
        raise ValueError(f"the window is {width} steps; there are {len(sums.step)}")
    number, square, fourth = (x[: W * width].reshape(W, width) for x in sums[1:])
    with np.errstate(invalid="ignore", divide="ignore"):
        each = np.ma.masked_invalid(square**2 / (number * fourth))
        single = np.ma.filled(np.ma.median(each, 1), np.nan)
        total, lengths = square.sum(1) ** 2, (square**2).sum(1)
        between, within = total / (width * lengths), width * lengths / (number.sum(1) * fourth.sum(1))
    return EffectiveShares(sums.step[: W * width : width], between * within, between, within, single)


def effective_dip(sums: StepSums, width: int, series: str, *, key: keys.Key | int, draws: int = 199) -> DipFound:
    """The deepest dip of a course of effective sample sizes, and those of courses in which there is none.

    The first window is left out of all: a dip cannot begin there, and AdamW divides its first step by that step's own
    gradient, so that entries where the data cancel have deltas beyond all that follow.

    The controls: the same steps in any order, and smooth courses with noise like its own (``stats.noise_courses``).

    Args:
        sums: of ``step_sums``.
        width: steps of a window.
        series: of ``SERIES``.
        key: of the draws.
        draws: of each control.

    Raises:
        ValueError: too few windows, as ``stats.cut``, or a window has no effective sample size.
    """
    sums = StepSums(*(column[width:] for column in sums))
    step, x = _logged(sums, width, series)
    at, rng = step.astype(np.float64), keys.generator(keys.fold_in(key, "shuffled"))
    dip = stats.find_dip(x, at)
    shuffled = (_logged(sums.take(rng.permutation(len(sums.step))), width, series)[1] for _ in range(draws))
    chance = {SHUFFLED: np.array([stats.find_dip(drawn, at).depth for drawn in shuffled])}
    kinds: dict[str, stats.Noise] = {NOISE: "all", NOISE_OUTSIDE: "outside"}
    for name, noise in kinds.items():
        courses = stats.noise_courses(x, at, dip, noise, draws, key=keys.fold_in(key, noise))
        chance[name] = np.array([stats.find_dip(drawn, at).depth for drawn in courses])
    return DipFound(step, dip, chance)


def _logged(sums: StepSums, width: int, series: str) -> tuple[Int[np.ndarray, "W"], Points]:
    shares = effective_shares(sums, width)
    x = SERIES[series](shares)
    if not (np.isfinite(x) & (x > 0)).all():
        lost = int(shares.step[~(np.isfinite(x) & (x > 0))][0])
        raise ValueError(f"in the window from step {lost} on no datum moved the weights, so it has no sample size")
    return shares.step, np.log(x)
