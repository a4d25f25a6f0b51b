"""Influence: what the end of training would have been without a datum, to first order, through every later step.

The influence of a datum's visit on a probe is the probe's derivative, after the last step of a span, by the weight of
the datum's loss in that visit's step. So, to first order, the probe without the visit is less by its influence; the
influences of a datum's visits add up to that of the datum. A credit says what was applied; an influence, what would
have been: it goes through every change that the visit made to later gradients, to clipping and to the optimizer's
memory. It forecasts as far as training is smooth in the weights of its data: ``metasmoothness``, and the growth of the
derivative by the weights, going back, say how far that is.
"""

from collections.abc import Generator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import checks, records, tree
from devinterp_func.credit._adjoint import Curvature, Point, ending, point_of, pull_step, require_curvature
from devinterp_func.credit._carried import numbers
from devinterp_func.credit._removals import datum_totals
from devinterp_func.credit._retrain import Window
from devinterp_func.credit._window_walk import window_backwards
from devinterp_func.credit.probes import Probe
from devinterp_func.graph import Graph
from devinterp_func.optim import Covector, State
from devinterp_func.records import Run, RunPath
from devinterp_func.training import Move, Recipe
from devinterp_func.tree import Params

BLOCK = 4  # steps of which weights, memory and gradient are held at once


class Influences(NamedTuple):
    """Of S consecutive steps, the influences of their data on P probes after the last; float64."""

    step: Int[Tensor, "S"]
    datum: Int[Tensor, "S n"]  # ids of each step's data
    influence: Float[Tensor, "S P n C"]  # by position: by the weight of its part of the loss; C = 1 without a head
    norm: Float[Tensor, "S P"]  # of the probe's derivative by the weights before the step
    value: Float[Tensor, "S P"]  # the probe after the last step; NaN of any other
    end_norm: Float[Tensor, "S P"]  # of the probe's gradient there; NaN of any other

    def growth(self) -> Float[Tensor, "S P"]:
        """How many times larger the derivative by the weights is before each step than at the end."""
        return self.norm / self.end_norm[-1]

    def by_datum(self, probe: int) -> tuple[Int[Tensor, "N"], Float[Tensor, "N C"]]:
        """The different data, by id, and each one's influence on a probe over all its visits, by position."""
        return datum_totals(self.influence[:, probe], self.datum)

    def scores(self) -> Float[Tensor, "P S n"]:
        """By visit: the influence of the whole datum."""
        return self.influence.sum(-1).movedim(1, 0)

    def __repr__(self) -> str:
        return f"Influences of steps {int(self.step[0]):,} to {int(self.step[-1]) + 1:,} on {self.norm.shape[1]} probes"


class _Seen(NamedTuple):
    point: Point
    end: tuple[Params, State] | None  # of the span's last step: what it led to


def influence(
    run: Run,
    folder: RunPath,
    probes: Sequence[Probe],
    *,
    start: int = 0,
    stop: int | None = None,
    curvature: Curvature = "hessian",
    block: int = BLOCK,
    kept: int = 64,
    scratch: RunPath | None = None,
    about: Mapping[str, Any] | None = None,
) -> Generator[int, None, None]:
    """Goes back over a span of a run and seals the influences of its data in a folder, as ``records.walk_back`` does.

    Of a block of steps it holds weights, memory and gradient, and for each probe as much as the weights and the memory:
    of the post's model with AdamW 0.2 GB a step and 0.15 GB a probe.

    Args:
        run: the run; only read.
        folder: new, or this very walk's; not the run's own.
        probes: at least one, with names of their own.
        start, stop: the span; the probes are those after its last step. A later call may go back farther.
        curvature: of ``pull_step``: "fisher" for the empirical Fisher in place of the Hessian.
        block, kept, scratch: of ``records.backwards``.
        about: names and values that, beside the probes' names, say which probes these are.

    Yields:
        Each step that is new to the folder, the last first. ``records.read_walk_back(folder, Influences)`` gives all.

    Raises:
        ValueError: start, stop, block or kept out of range, no probes, or no such curvature.
        RecordError: as ``records.walk_back``.
    """
    _check(probes, curvature)
    start, stop = run.span(start, stop)
    names = [probe.name for probe in probes]
    what = {**(about or {}), "walk": "influence", "probes": names, "curvature": curvature}
    training_of = run.graph, run.data, run.recipe

    def carry(seen: _Seen, carried: Params | None) -> tuple[Influences, Params]:
        back = None if carried is None else _unpack(carried, seen.point, len(probes))
        found, back = _back(training_of, probes, seen, back, curvature)
        return found, _pack(back)

    span: dict[str, Any] = {"start": start, "stop": stop, "block": block, "kept": kept, "scratch": scratch}
    for step, _ in records.walk_back(run, folder, what, (), partial(_look, stop), carry, Influences, **span):
        yield step


def window_influences(
    window: Window, probes: Sequence[Probe], *, curvature: Curvature = "hessian", kept: int = 32
) -> Influences:
    """The influences of the data of a window's steps on probes at its end, in memory.

    Args:
        window: of ``credit.window``, or made by hand.
        probes: at least one.
        curvature: of ``pull_step``.
        kept: so many steps lie between two weights and states that are held at once; of one such stretch, all are.

    Raises:
        ValueError: no probes, no steps, no such curvature, or kept is below 1.
    """
    _check(probes, curvature)
    if window.stop <= window.start:
        raise ValueError(f"the window is of steps {window.start} to {window.stop}; it must have at least one")
    training_of, rows, back = (window.graph, window.data, window.recipe), list[Influences](), None
    for seen in window_backwards(window, partial(_look, window.stop), checks.integer("kept", kept)):
        row, back = _back(training_of, probes, seen, back, curvature)
        rows.append(row)
    return tree.stack(rows[::-1])


def _look(stop: int, move: Move) -> _Seen:
    """What going back over a step of a span takes."""
    return _Seen(point_of(move), (move.after, move.state) if move.step + 1 == stop else None)


def _check(probes: Sequence[Probe], curvature: Curvature) -> None:
    if not probes:
        raise ValueError("there are no probes; give at least one")
    require_curvature(curvature)


def _back(
    training_of: tuple[Graph, Any, Recipe],
    probes: Sequence[Probe],
    seen: _Seen,
    back: list[Covector] | None,
    curvature: Curvature,
) -> tuple[Influences, list[Covector]]:
    """What a step's data did to the probes, and the derivatives by what it began with."""
    n = len(probes)
    value = end_norm = torch.full((n,), torch.nan, dtype=torch.float64)
    if back is None:
        assert seen.end is not None
        params, state = seen.end
        pairs = [probe.value_and_grad(params) for probe in probes]
        value = numbers([value for value, _ in pairs])
        end_norm = numbers([tree.norm(gradient) for _, gradient in pairs])
        back = [ending(gradient, state) for _, gradient in pairs]
    pulled = pull_step(*training_of, seen.point, back, curvature)
    found = Influences(
        step=torch.tensor(seen.point.step),
        datum=seen.point.datum.cpu(),
        influence=torch.stack([one.influence for one in pulled]).double().cpu(),
        norm=numbers([tree.norm(one.covector.weights) for one in pulled]),
        value=value,
        end_norm=end_norm,
    )
    return found, [one.covector for one in pulled]


# ---- derivatives as tensors by name


def _pack(back: Sequence[Covector]) -> Params:
    flat = Params()
    for i, own in enumerate(back):
        flat |= {f"{i}/weight/{unit}": x for unit, x in own.weights.items()}
        flat |= {f"{i}/{name}/{unit}": x for unit, buffers in own.memory.items() for name, x in buffers.items()}
    return flat


def _unpack(flat: Params, point: Point, n: int) -> list[Covector]:
    units = {unit: tuple(buffers) for unit, buffers in point.state.buffers.items()}
    return [
        Covector(
            {unit: flat[f"{i}/weight/{unit}"] for unit in point.params},
            {unit: {name: flat[f"{i}/{name}/{unit}"] for name in names} for unit, names in units.items()},
        )
        for i in range(n)
    ]
