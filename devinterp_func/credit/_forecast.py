"""How far ahead a training can be forecast: what influences on a probe are worth, h steps before it is read.

Influences are derivatives; they foretell a removal as far as the end of training is smooth in the weights of its data.
Whether they do is tried: the last h steps are trained again without some random visits, and what that does to the probe
is held against the forecast, minus the influences of what is removed. Their correlation over the draws has an interval
by Fisher's z; a horizon can be forecast where the interval lies above ``FORETOLD``, and cannot where it lies below.

Two more measures say why: the metasmoothness of these steps, and how many times larger the probe's derivative by the
weights has grown on the way back. Neither decides where forecasts were tried: a training of AdamW with metasmoothness
0.6 can be foretold well, and one of SGD with 0.8 badly.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from devinterp_func import checks, keys, stats
from devinterp_func.credit._bank import draw_removal, horizon_values, window_data
from devinterp_func.credit._influence import Influences
from devinterp_func.credit._judge import predicted_effects
from devinterp_func.credit._metasmoothness import metasmoothness
from devinterp_func.credit._retrain import Window
from devinterp_func.credit.probes import Probe
from devinterp_func.records import Run

Verdict = Literal["forecast", "beyond", "unsure", "untested"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
FORETOLD = 0.5  # a correlation of forecasts and what retraining finds
MOST_GROWTH = 3.0  # of the derivative, where forecasts were not tried


class Trial(NamedTuple):
    """The last h steps of a span without some random visits: D draws' effects on P probes, and their forecasts."""

    horizon: int  # h
    forecast: Float[Tensor, "D P"]
    found: Float[Tensor, "D P"]
    metasmoothness: float

    def correlation(self, probe: int) -> stats.Estimate:
        """Pearson's, of what was found with what was foretold, and its 95 % interval by Fisher's z."""
        r, n = stats.correlation(self.forecast[:, probe], self.found[:, probe]), len(self.found)
        if math.isnan(r) or abs(r) >= 1:
            return stats.Estimate(r, r, r, n)
        z, half = math.atanh(r), 1.96 / math.sqrt(n - 3)
        return stats.Estimate(r, math.tanh(z - half), math.tanh(z + half), n)

    def slope(self, probe: int) -> float:
        """Of what was found on what was foretold: 1 where differences have the size that was foretold."""
        x, y = (z[:, probe] - z[:, probe].mean() for z in (self.forecast, self.found))
        return float((x @ y) / (x @ x))

    def __repr__(self) -> str:
        return f"Trial of {self.horizon} steps, {len(self.found)} draws"


class Horizon(NamedTuple):
    """What is known of influences on a probe that is read h steps later; None of what was not tried."""

    horizon: int  # h
    correlation: stats.Estimate | None
    slope: float | None
    metasmoothness: float | None
    growth: float  # of the derivative's norm, the largest over these steps, by that at the end
    verdict: Verdict


def usual_horizons(steps: int, most: int) -> list[int]:
    """10, 30, 100, 300, ... steps, as many as there are, and as are wanted at most; the last is the smaller of both."""
    last = min(steps, most)
    usual = {h for power in range(1, 9) for h in (10**power, 3 * 10**power) if h < last}
    return sorted(usual | {last}) if last else []


def last_steps(run: Run, stop: int, steps: int) -> Window:
    """The window of some steps before one; where it has no snapshot, from the weights that are replayed.

    Raises:
        ValueError: there are no such steps.
        RecordError: the run was made on another kind of machine.
    """
    start, _ = run.span(stop - checks.integer("steps", steps), stop)
    run.require_same_machine()
    return Window(run.graph, run.params(start), run.state(start), run.data, run.recipe, start, stop)


@torch.no_grad()
def try_forecast(
    window: Window,
    probes: Sequence[Probe],
    found: Influences,
    *,
    draws: int = 10,
    share: float = 0.05,
    key: keys.Key | int,
) -> Trial:
    """Trains a window again without random visits, a draw at a time, and holds the effects against the forecasts.

    Args:
        window: the last steps of the influences' span.
        probes: those of the influences.
        found: of ``influence`` or ``window_influences``.
        draws: at least four.
        share: of all places of the window's batches: what a draw removes.
        key: of the draws, and of the metasmoothness's.

    Raises:
        ValueError: draws or share out of range, or the window does not end the influences' span.
    """
    horizon, span = window.stop - window.start, (int(found.step[0]), int(found.step[-1]) + 1)
    if window.stop != span[1] or window.start < span[0]:
        raise ValueError(f"the {window} does not end the influences' span, steps {span[0]} to {span[1]}")
    checks.integer("draws", draws, 4)
    datum, scores = window_data(window), found.scores()[:, -horizon:]
    removed = torch.stack([draw_removal(datum, "subset", i, share=share, key=key) for i in range(draws)])
    effects = [horizon_values(window, probes, (horizon,), removed=one)[0] - found.value[-1] for one in removed]
    [smooth] = metasmoothness(window, (horizon,), share=share, key=key)
    return Trial(horizon, predicted_effects(scores, removed, horizon), torch.stack(effects), smooth)


def forecast(growth: Float[Tensor, "S"], trials: Sequence[Trial], probe: int) -> list[Horizon]:
    """How far ahead a probe can be forecast, at horizons in rising order, up to the whole span.

    Args:
        growth: of ``Influences``, the probe's.
        trials: of the horizons that were tried, any order.
        probe: its number among theirs.

    Returns:
        "forecast" where a trial's correlation is surely above ``FORETOLD``; "beyond" where it is surely not, or no
        number, or the derivative grew more than ``MOST_GROWTH`` times and nothing was tried; and at all longer
        horizons; "unsure" where there are too few draws to tell.
    """
    S, tried, found, broken = len(growth), {trial.horizon: trial for trial in trials}, list[Horizon](), False
    largest = growth.flip(0).nan_to_num(torch.inf).cummax(0).values
    for h in sorted({*usual_horizons(S, S), *tried}):
        trial, grown = tried.get(h), float(largest[h - 1])
        if trial is None:
            broken |= grown > MOST_GROWTH
            one = Horizon(h, None, None, None, grown, "untested")
        else:
            r = trial.correlation(probe)
            broken |= not r.high >= FORETOLD  # NaN is none of both
            verdict: Verdict = "forecast" if r.low > FORETOLD else "unsure"
            one = Horizon(h, r, trial.slope(probe), trial.metasmoothness, grown, verdict)
        found.append(one._replace(verdict="beyond") if broken else one)
    return found


def forecast_horizon(found: Sequence[Horizon]) -> int:
    """The farthest horizon that can be forecast; 0 for none."""
    return max((one.horizon for one in found if one.verdict == "forecast"), default=0)
