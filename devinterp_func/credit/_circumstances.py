"""What stands beside the effective sample size of steps: rates, clipping, units, and one kind of data."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devinterp_func import batches, records
from devinterp_func.credit._coherence import Coherence
from devinterp_func.credit._effective import EffectiveShares, effective_shares, step_sums
from devinterp_func.records import Run
from devinterp_func.training import Move

NONE = -1  # in place of the id of a datum that was left out


class Circumstances(NamedTuple):
    """Of S steps of n data, what is no measure of their deltas."""

    rate: Float[Tensor, "S"]  # learning rate
    clip: Float[Tensor, "S"]  # coefficient, at most 1
    norm: Float[Tensor, "S"]  # of the gradient, unclipped, over all parameters
    datum: Int[Tensor, "S n"]  # ids; NONE for those that were left out, which come last
    loss: Float[Tensor, "S n"]  # in training, nats; NaN for those

    def __repr__(self) -> str:
        return f"Circumstances of {len(self.rate)} steps"


class KindWindows(NamedTuple):
    """One kind of data beside all others, in windows; a window without the kind, or without others, has NaN."""

    data: Float[np.ndarray, "W"]  # its share of the data
    square: Float[np.ndarray, "W"]  # ... and of Σ_j ‖Δ_j‖²
    rest: Float[np.ndarray, "W"]  # effective sample size of the others, as a share of their number
    loss: Float[np.ndarray, "W"]  # mean training loss of the kind, nats
    rest_loss: Float[np.ndarray, "W"]  # ... and of the others


class BesideWindows(NamedTuple):
    """What stands beside the effective sample size, in windows; means over their steps where no other is said."""

    shares: EffectiveShares
    rate: Float[np.ndarray, "W"]
    clip: Float[np.ndarray, "W"]
    norm: Float[np.ndarray, "W"]
    unit: Int[np.ndarray, "W"]  # the unit with the largest share of Σ_j ‖Δ_j‖²
    unit_share: Float[np.ndarray, "W"]
    kind: KindWindows


def run_circumstances(run: Run, start: int, stop: int) -> Circumstances:
    """Of recorded steps.

    Raises:
        RecordError: as ``records.scan``.
    """
    steps = [(r.lr, r.clip, r.grad_norm, r.datum, r.loss) for r in records.scan(run, start, stop)]
    rate, clip, norm, datum, loss = zip(*steps, strict=True)
    scalars = [torch.tensor(column, dtype=torch.float64) for column in (rate, clip, norm)]
    return Circumstances(scalars[0], scalars[1], scalars[2], torch.stack(datum), torch.stack(loss))


def move_circumstances(moves: Iterable[Move], n: int) -> Circumstances:
    """Of steps as they are made, some of whose data may be left out.

    Args:
        moves: at least one.
        n: data of a whole batch.
    """
    rates, datum, loss = [], list[Tensor](), list[Tensor]()
    for move in moves:
        rates.append([float(x) for x in (move.split.lr, move.split.clip, move.split.grad_norm)])
        datum.append(pad(move.datum.cpu(), n, NONE))
        loss.append(pad(move.losses.cpu(), n, torch.nan))
    rate, clip, norm = torch.tensor(rates, dtype=torch.float64).T
    return Circumstances(rate, clip, norm, torch.stack(datum), torch.stack(loss))


def pad(x: Tensor, n: int, by: float | int) -> Tensor:
    """The last axis lengthened to n.

    >>> pad(torch.tensor([3, 4]), 3, -1)
    tensor([ 3,  4, -1])
    """
    return torch.nn.functional.pad(x, (0, n - x.shape[-1]), value=by)


def contains_phrase(data: batches.Data, phrase: Sequence[int]) -> Bool[Tensor, "N"]:
    """The texts in which these tokens follow each other, the last target included.

    Raises:
        ValueError: there are no tokens, or more than a text has.

    >>> contains_phrase(batches.Data(torch.tensor([[1, 2], [2, 1]]), torch.tensor([[2, 1], [1, 3]])), [1, 3])
    tensor([False,  True])
    """
    text = torch.cat([data.tokens, data.targets[:, -1:]], 1)
    if not 0 < len(phrase) <= text.shape[1]:
        raise ValueError(f"the phrase has {len(phrase)} tokens; a text has {text.shape[1]}, and one is the fewest")
    return (text.unfold(1, len(phrase), 1) == torch.tensor(phrase)).all(2).any(1)


def beside_windows(steps: Coherence, beside: Circumstances, kind: Bool[Tensor, "N"], width: int) -> BesideWindows:
    """All of it in windows of steps; the last is left out if it is not full.

    Args:
        steps: of a replay, stacked.
        beside: the same steps' circumstances.
        kind: which of the training data are of the kind.
        width: steps of a window.

    Raises:
        ValueError: there are fewer steps than one window takes.
    """
    there = beside.datum != NONE
    of_kind = kind[beside.datum.clamp(min=0)] & there
    shares, rest = (effective_shares(step_sums(steps, chosen), width) for chosen in (there, there & ~of_kind))
    W = len(shares.step)

    def windows(x: Tensor) -> Tensor:
        return x[: W * width].double().reshape(W, width, *x.shape[1:])

    square = windows(steps.square)
    unit = square.sum((1, 3)) / square.sum((1, 2, 3))[:, None]
    whole, own, left = square.sum(2), windows(of_kind), windows(there)
    loss = windows(beside.loss)
    of = KindWindows(
        own.sum((1, 2)).div(left.sum((1, 2))).numpy(),
        (whole * own).sum((1, 2)).div(whole.sum((1, 2))).numpy(),
        rest.pooled,
        *(torch.where(chosen > 0, loss, torch.nan).flatten(1).nanmean(1).numpy() for chosen in (own, left - own)),
    )
    rate, clip, norm = (windows(x).mean(1).numpy() for x in beside[:3])
    return BesideWindows(shares, rate, clip, norm, unit.argmax(1).numpy(), unit.max(1).values.numpy(), of)
