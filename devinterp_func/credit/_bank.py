"""A bank of retrainings: what some steps lead to without some of their data, drawn at random, read at several horizons.

    effect[h] = f(w_{start+h} without) − f(w_{start+h})

A horizon h is a number of steps from a window's start to where a probe is read. One training gives all of a window's
horizons, as what is removed in later steps does not matter to earlier ones. The bank is what scores are judged by: it
knows of none. (Subsets as in Ilyas et al. 2022, *Datamodels*; single visits as in leave-one-out.)
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devinterp_func import batches, checks, keys, training
from devinterp_func.credit._removals import require_share, top_mask
from devinterp_func.credit._retrain import Window
from devinterp_func.credit.probes import Probe

RemovalKind = Literal["subset", "visit", "datum"]
REMOVAL_KINDS: tuple[RemovalKind, ...] = get_args(RemovalKind)


class Bank(NamedTuple):
    """What D removals did to P probes at H horizons."""

    horizons: tuple[int, ...]
    removed: Bool[Tensor, "D S n"]  # of the window's S steps
    intact: Float[Tensor, "H P"]  # the probes where nothing is removed
    effect: Float[Tensor, "D H P"]  # the probes without, less the intact ones

    def touched(self, horizon: int) -> Bool[Tensor, "D"]:
        """Which removals took something from the first ``horizon`` steps; the others did nothing to them."""
        return self.removed[:, :horizon].flatten(1).any(1)

    def of(self, probes: Sequence[int]) -> "Bank":
        """The same of some of its probes."""
        return self._replace(intact=self.intact[:, list(probes)], effect=self.effect[:, :, list(probes)])

    def __repr__(self) -> str:
        return f"Bank of {len(self.removed)} retrainings, horizons {', '.join(map(str, self.horizons))}"


def window_data(window: Window) -> Int[Tensor, "S n"]:
    """The ids of each step's data."""
    order = training.order(window.recipe, batches.n_data(window.data), window.start, window.stop)
    return torch.stack([ids for *_, ids in order])


def draw_removal(
    datum: Int[Tensor, "S n"], kind: RemovalKind, draw: int, *, share: float = 0.05, key: keys.Key | int
) -> Bool[Tensor, "S n"]:
    """Which places of some steps' batches a draw removes; it depends on nothing but the steps, the draw and the key.

    Args:
        datum: of ``window_data``.
        kind: "subset" a random share of all places; "visit" one place; "datum" all places of one datum.
        draw: from 0. Of visits and data no two draws are the same, so there are as many draws as places, or data.
        share: of a subset.
        key: of the draws.

    Raises:
        ValueError: the draw is out of range, or the share is not between 0 and 1.
    """
    checks.integer("draw", draw, 0)
    if kind == "subset":
        return top_mask(keys.uniform(tuple(datum.shape), 0.0, 1.0, key=keys.fold_in(key, kind, draw)), share)
    things = torch.arange(datum.numel()).view(datum.shape) if kind == "visit" else datum
    ids = things.unique()
    if draw >= len(ids):
        raise ValueError(f"draw {draw} of a {kind} was asked for; these steps have {len(ids)}, so draws are below that")
    return things == ids[keys.permutation(len(ids), key=keys.fold_in(key, kind))[draw]]


def require_draws(datum: Int[Tensor, "S n"], kind: RemovalKind, draws: int, share: float) -> int:
    """Refuses draws that ``draw_removal`` cannot give.

    Raises:
        ValueError: draws is below 1, there are not so many, or the share is not between 0 and 1.
    """
    require_share(share)
    draw_removal(datum, kind, checks.integer("draws", draws) - 1, share=share, key=0)
    return draws


def require_horizons(window: Window, horizons: Sequence[int]) -> tuple[int, ...]:
    """Horizons in order, each once.

    Raises:
        ValueError: there are none, or one is not within the window.
    """
    most = window.stop - window.start
    if not horizons:
        raise ValueError("there are no horizons; give at least one")
    for horizon in horizons:
        if checks.integer("horizon", horizon) > most:
            raise ValueError(f"horizon is {horizon}; the {window} has {most} steps")
    return tuple(sorted(set(horizons)))


@torch.no_grad()
def horizon_values(
    window: Window,
    probes: Sequence[Probe],
    horizons: Sequence[int],
    *,
    removed: Bool[Tensor, "S n"] | None = None,
    weights: Float[Tensor, "S n"] | None = None,
) -> Float[Tensor, "H P"]:
    """Probes after the first h steps of a window, for each horizon h: one training to the farthest.

    Args:
        window: of ``credit.window``, or made by hand.
        probes: any.
        horizons: in rising order.
        removed, weights: of ``training.moves``; of all the window's steps.

    Returns:
        float64.

    Raises:
        ValueError: a horizon is not within the window, horizons are not in rising order, or ``removed`` or
            ``weights`` are not of its steps.
    """
    if tuple(horizons) != (wanted := require_horizons(window, horizons)):
        raise ValueError(f"horizons are {list(horizons)}; in rising order they are {list(wanted)}")
    graph, params, state, data, recipe, start, stop = window
    by_step = {"removed": removed, "weights": weights}
    for name, given in by_step.items():
        if given is not None and given.shape != (shape := (stop - start, recipe.batch_size)):
            raise ValueError(f"{name} is {tuple(given.shape)}; of the {window} it must be {shape}")
    last, found = wanted[-1], []
    span: dict[str, Any] = {name: None if x is None else x[:last] for name, x in by_step.items()}
    span |= {"state": state, "start": start, "stop": start + last}
    for move in training.moves(graph, params, data, recipe, **span):
        if move.step + 1 - start in wanted:
            found.append([float(probe.value(move.after)) for probe in probes])
    return torch.tensor(found, dtype=torch.float64).view(len(wanted), len(probes))
