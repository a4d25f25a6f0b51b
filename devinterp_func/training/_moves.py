"""Training as a generator of moves: pure functions of the weights and (recipe, step); nothing is written here.

Everything about step t follows from the weights before it and (recipe, t): the data from ``batches.schedule``, the
dropout masks from (seed, epoch, datum). So a killed run resumes from its last snapshot with the same bits, and any
step's complete deltas are there again from the nearest snapshot (``records.replay``).
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devinterp_func import batches, keys, optim, per_example, tree
from devinterp_func.graph import Graph, Masks, check_batch, choose, draw_masks, in_order
from devinterp_func.optim import Split, State
from devinterp_func.per_example import Capture, Factor
from devinterp_func.training._logits import for_fewer, logits_buffer
from devinterp_func.training._recipe import Recipe, learning_rate, order, total_steps
from devinterp_func.tree import Params
from devinterp_func.units import Patterns


class Move(NamedTuple):
    """One step as it was made: weights and memory around it, and the factors of every datum's delta."""

    step: int  # from 0, over the whole training
    epoch: int  # from 0
    batch: int  # from 0 in each epoch
    datum: Int[Tensor, "n"]  # ids of the data: their rows in the training data
    losses: Float[Tensor, "n"]  # of each datum, mean over its positions, nats
    split: Split  # learning rate, clip coefficient, gradient norm; present, past and decay
    before: Params  # the weights that the step began with
    after: Params  # ... and led to
    state_before: State  # what the optimizer remembered
    state: State  # ... and remembers
    factors: dict[str, Factor]  # of the captured units' deltas: what each datum did, gain and clipping included
    gradients: dict[str, Factor]  # ... and of their gradients, which each datum's share of the memory is made of

    def __repr__(self) -> str:
        return f"Move(step={self.step}, loss={self.losses.mean():.4f}, {self.split})"


@runtime_checkable
class Starts(Protocol):
    """What has initial weights, such as ``models.Model``."""

    @property
    def init(self) -> Callable[[keys.Key | int], Params]: ...


def initial(model: Starts, recipe: Recipe) -> Params:
    """The weights before step 0."""
    return model.init(keys.fold_in(recipe.seed, "init"))


def masks_of(graph: Graph, recipe: Recipe, epoch: int, datum: Int[Tensor, "n"]) -> Masks | None:
    """Dropout masks of some data in an epoch, stacked: each a function of (seed, epoch, datum id) alone."""
    key = keys.fold_in(recipe.seed, "dropout", epoch)
    return draw_masks(graph, [keys.fold_in(key, j) for j in datum.tolist()])


def step_data(
    graph: Graph, recipe: Recipe, data: Any, epoch: int, datum: Int[Tensor, "n"], device: torch.device
) -> tuple[tuple[Any, ...], Masks | None]:
    """Some data and their dropout masks in an epoch, on a device."""
    masks = masks_of(graph, recipe, epoch, datum)
    masks = None if masks is None else {site: mask.to(device) for site, mask in masks.items()}
    return tree.map(lambda x: x[datum].to(device), tuple(data)), masks


def moves(
    graph: Graph,
    params: Params,
    data: Any,
    recipe: Recipe,
    *,
    state: State | None = None,
    captured: Patterns = (),
    start: int = 0,
    stop: int | None = None,
    removed: Bool[Tensor, "S n"] | None = None,
    weights: Float[Tensor, "S n"] | None = None,
) -> Iterator[Move]:
    """The steps start to stop − 1 from the weights before ``start``, each with the factors of its deltas.

    With ``removed``, the steps without some of their data: g = (1/n) Σ_j g_j is the sum over those that are left, its
    divisor still the batch size n, and what it is clipped by follows from it. So a step without any has the gradient 0.
    With ``weights``, each datum's gradient is multiplied by its own: g = (1/n) Σ_j weight_j g_j.

    Args:
        graph: of the loss of one example.
        params: weights before step ``start``, on the device to work on.
        data: the training data, tensors with a leading N; ``datum`` ids are their rows.
        recipe: how it is trained.
        state: what the optimizer remembers before step ``start``; by default nothing, which only step 0 begins with.
        captured: which units' factors the moves carry, as name patterns (``graph.choose``).
        start, stop: steps; ``stop`` defaults to the end of the schedule.
        removed: of each step from ``start`` on, which places of its batch are left out; none by default.
        weights: of each step from ``start`` on, how much each place of its batch counts; by default all 1.

    Raises:
        ValueError: params or data do not fit the graph, a pattern or a token is not there, ``removed`` or ``weights``
            are not of these steps, or the state is lacking, another step's, or not what this optimizer remembers of
            these parameters.
        FloatingPointError: if a gradient is NaN or infinite; step, unit and datum are named.
    """
    params = in_order(graph, params)
    choose(graph, captured)  # an error before the work
    check_batch(graph, tuple(data))
    n_data, buffer = batches.n_data(data), logits_buffer(graph, params, recipe.batch_size)
    device = next(iter(params.values())).device
    stop = total_steps(recipe, n_data) if stop is None else stop
    for name, given in (("removed", removed), ("weights", weights)):
        if given is not None and given.shape != (wanted := (stop - start, recipe.batch_size)):
            raise ValueError(f"{name} is {tuple(given.shape)}; of steps {start} to {stop} it must be {wanted}")
    state = _state(recipe, params, state, start)
    for step, epoch, batch, ids in order(recipe, n_data, start, stop):
        kept = slice(None) if removed is None else ~removed[step - start]
        datum = ids[kept]
        seen = datum if len(datum) else ids[:1]  # a step whose gradient is 0 is made like any other
        taken, masks = step_data(graph, recipe, data, epoch, seen, device)
        scratch = for_fewer(graph, buffer, len(seen))
        counted = None if weights is None or not len(datum) else weights[step - start][kept].to(device)
        capture = per_example.capture(
            graph, params, *taken, masks=masks, units=captured, buffer=scratch, weights=counted
        )
        if len(datum) < recipe.batch_size:
            capture = _of_fewer(capture, len(datum), recipe.batch_size)
        lr = learning_rate(recipe, n_data, step)
        after, new, split = recipe.optimizer.update(params, capture.mean_grads, state, lr, recipe.max_norm)
        if not math.isfinite(split.grad_norm):
            raise FloatingPointError(_blame(step, datum, capture))
        factors = optim.delta_factors(capture.factors, split, recipe.batch_size)  # the law: optim/_law.py
        made = (datum, capture.losses, split, params, after, state, new, factors, capture.factors)
        yield Move(step, epoch, batch, *made)
        params, state = after, new
        del made, capture, factors, split, after, new  # several times the weights, while the next step is made


def _state(recipe: Recipe, params: Params, state: State | None, start: int) -> State:
    """The memory to begin with."""
    own = recipe.optimizer.init(params)
    if state is None and start and recipe.optimizer.remembers:
        raise ValueError(f"step {start} goes on from what the optimizer remembers; give it as state=...")
    found = own._replace(steps=start) if state is None else state
    if found.steps != start:
        raise ValueError(f"the state is that before step {found.steps}; to begin with step {start} takes its own")
    here, wanted = _described(found), _described(own)
    for name in [*wanted, *here]:
        if (has := here.get(name, "missing")) != (right := wanted.get(name, "nothing at all")):
            raise ValueError(f"of the state, {name} is {has}; of this optimizer and these parameters it is {right}")
    return found


def _described(state: State) -> dict[str, str]:
    """What a state holds: each buffer's dtype, shape and device by its name and unit."""
    return {
        f"{name} of {unit!r}": f"{x.dtype} of shape {tuple(x.shape)} on {x.device}"
        for unit, own in state.buffers.items()
        for name, x in own.items()
    }


def _of_fewer(capture: Capture, left: int, n: int) -> Capture:
    """A capture of what is left of n data, as what they are of the step: none where none is left."""
    factors = {name: per_example.take_data(factor, slice(left)) for name, factor in capture.factors.items()}
    grads = tree.scale(capture.mean_grads, left / n) if left else tree.map(torch.zeros_like, capture.mean_grads)
    return Capture(capture.losses[:left], grads, factors)


def _blame(step: int, datum: Int[Tensor, "n"], capture: Capture) -> str:
    """Says which unit and datum made a step's gradient NaN or infinite."""
    unit = next((name for name, g in capture.mean_grads.items() if not torch.isfinite(g).all()), "their sum")
    bad = ~torch.isfinite(capture.losses)
    for factor in capture.factors.values():
        for part in tree.leaves(factor):
            if isinstance(part, Tensor) and part.is_floating_point():
                bad |= ~torch.isfinite(part.flatten(1)).all(1)
    culprits = datum[bad.cpu()].tolist() or datum.tolist()
    return (
        f"step {step}: the gradient of {unit} is NaN or infinite, through datum {', '.join(map(str, culprits))}. "
        "Nothing of this step is recorded and the last snapshot stands; a smaller learning rate may help"
    )
