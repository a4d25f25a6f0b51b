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

from devinterp_func import batches, keys, optim, tree
from devinterp_func.graph import Graph, check_batch, choose, in_order
from devinterp_func.optim import Split, State
from devinterp_func.per_example import Capture, Factor
from devinterp_func.training._distributed import ALONE, World
from devinterp_func.training._logits import logits_buffer
from devinterp_func.training._parts import bucket, check_exchange, largest_part
from devinterp_func.training._recipe import Recipe, learning_rate, order, total_steps
from devinterp_func.training._seen import Seeing
from devinterp_func.tree import Params
from devinterp_func.units import Patterns


class Move(NamedTuple):
    """One step as it was made: weights and memory around it, and the factors of every datum's delta."""

    step: int  # from 0, over the whole training
    epoch: int  # from 0
    batch: int  # from 0 in each epoch
    datum: Int[Tensor, "n"]  # ids of the data: their rows in the training data; of a process's share, its own
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
    world: World = ALONE,
    hold: float = math.inf,
) -> Iterator[Move]:
    """The steps start to stop − 1 from the weights before ``start``, each with the factors of its deltas.

    With ``removed``, the steps without some of their data: g = (1/n) Σ_j g_j is the sum over those that are left, its
    divisor still the batch size n, and what it is clipped by follows from it. So a step without any has the gradient 0.
    With ``weights``, each datum's gradient is multiplied by its own: g = (1/n) Σ_j weight_j g_j.

    A batch is captured part by part where the recipe says so, and the parts' gradients are added in one order. So one
    process makes the steps of several with the same bits; with a ``world`` of several, each captures its share alone.

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
        world: of ``joined``: the processes that share each batch. A move then has this one's data and their factors.
        hold: bytes of factors at most that a move of several parts carries; where there would be more it carries none,
            and ``part_factors`` forms them part by part.

    Raises:
        ValueError: params or data do not fit the graph, a pattern or a token is not there, ``removed`` or ``weights``
            are not of these steps, the world is of another size than the recipe's processes, or the state is lacking,
            another step's, or not what this optimizer remembers of these parameters.
        FloatingPointError: if a gradient is NaN or infinite; step, unit and datum are named.
        LostRank: another process of the world died, hangs or stopped.
    """
    params = in_order(graph, params)
    choose(graph, captured)  # an error before the work
    check_batch(graph, tuple(data))
    if world.size not in (1, recipe.processes):
        raise ValueError(f"the world has {world.size} processes; the recipe's batches are of {recipe.processes}")
    if recipe.processes > 1:
        check_exchange(params)
    n_data = batches.n_data(data)
    stop = total_steps(recipe, n_data) if stop is None else stop
    for name, given in (("removed", removed), ("weights", weights)):
        if given is not None and given.shape != (wanted := (stop - start, recipe.batch_size)):
            raise ValueError(f"{name} is {tuple(given.shape)}; of steps {start} to {stop} it must be {wanted}")
    state = _state(recipe, params, state, start)
    buffer = logits_buffer(graph, params, largest_part(recipe))
    scratch = bucket(params, recipe.processes) if world.size > 1 else None
    seeing = Seeing(graph, data, recipe, captured, buffer, world, hold, scratch)
    for step, epoch, batch, ids in order(recipe, n_data, start, stop):
        kept = torch.ones(len(ids), dtype=torch.bool) if removed is None else ~removed[step - start].cpu()
        capture, datum = seeing.batch(params, epoch, ids, kept, None if weights is None else weights[step - start])
        lr = learning_rate(recipe, n_data, step)
        after, new, split = recipe.optimizer.update(params, capture.mean_grads, state, lr, recipe.max_norm)
        if not math.isfinite(split.grad_norm):
            raise FloatingPointError(_blame(step, datum, capture, world))
        factors = optim.delta_factors(capture.factors, split, recipe.batch_size)  # the law: optim/_law.py
        made = (datum, capture.losses, split, params, after, state, new, factors, capture.factors)
        yield Move(step, epoch, batch, *made)
        params, state = after, new
        del made, capture, factors, split, after, new  # several times the weights, while the next step is made


def part_factors(
    graph: Graph, move: Move, data: Any, recipe: Recipe, captured: Patterns = (), world: World = ALONE
) -> Iterator[tuple[slice, dict[str, Factor]]]:
    """The factors of a whole step's deltas, captured once more, part by part: for batches whose factors are too many.

    Args:
        graph, data, recipe, captured, world: of ``moves``.
        move: one of its moves, without removed data or weights.

    Yields:
        The rows of the batch that a part is, and its factors.
    """
    seeing = Seeing(graph, data, recipe, captured, logits_buffer(graph, move.before, largest_part(recipe)), world)
    first = seeing.own()[0][0].start
    for rows in (rows for share in seeing.own() for rows in share):
        datum = move.datum[rows.start - first : rows.stop - first]
        capture = seeing.part(move.before, move.epoch, datum, None)
        yield rows, optim.delta_factors(capture.factors, move.split, recipe.batch_size)


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


def _blame(step: int, datum: Int[Tensor, "n"], capture: Capture, world: World) -> str:
    """Says which unit and datum made a step's gradient NaN or infinite."""
    unit = next((name for name, g in capture.mean_grads.items() if not torch.isfinite(g).all()), "their sum")
    bad = ~torch.isfinite(capture.losses)
    for factor in capture.factors.values():
        for part in tree.leaves(factor):
            if isinstance(part, Tensor) and part.is_floating_point():
                bad |= ~torch.isfinite(part.flatten(1)).all(1)
    culprits = datum[bad.cpu()].tolist() or ([] if world.size > 1 else datum.tolist())
    through = f"datum {', '.join(map(str, culprits))}" if culprits else "data of another process"
    return (
        f"step {step}: the gradient of {unit} is NaN or infinite, through {through}. "
        "Nothing of this step is recorded and the last snapshot stands; a smaller learning rate may help"
    )
