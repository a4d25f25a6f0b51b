"""A batch in parts: each process's share, and a share's micro-batches; their gradients are added in one order."""

import torch
from torch import Tensor

from devinterp_func.training._recipe import Recipe
from devinterp_func.tree import Params

ALIGNED = 16  # numbers: 64 bytes of float32, so that units lie in a bucket as they do on their own


def shares(recipe: Recipe) -> list[list[slice]]:
    """Which rows of a batch each process captures, micro-batch by micro-batch; the first processes take one more.

    >>> shares(Recipe(batch_size=5, processes=2, micro_batch=2))
    [[slice(0, 2, None), slice(2, 3, None)], [slice(3, 5, None)]]
    """
    least, more = divmod(recipe.batch_size, recipe.processes)
    found, start = [], 0
    for rank in range(recipe.processes):
        stop = start + least + (rank < more)
        step = stop - start if recipe.micro_batch is None else recipe.micro_batch
        found.append([slice(i, min(i + step, stop)) for i in range(start, stop, step)])
        start = stop
    return found


def largest_part(recipe: Recipe) -> int:
    """Data that are captured at once, at most."""
    return max(part.stop - part.start for share in shares(recipe) for part in share)


def bucket(params: Params, processes: int) -> Tensor:
    """Room for the numbers of all units in one flat tensor, which divides among the processes; zeros between units."""
    size = sum(_room(weight) for weight in params.values())
    flat = next(iter(params.values())).new_empty(-(-size // (ALIGNED * processes)) * ALIGNED * processes)
    stop = 0
    for weight in params.values():
        flat[stop + weight.numel() : (stop := stop + _room(weight))] = 0
    flat[stop:] = 0
    return flat


def check_exchange(params: Params) -> None:
    """Refuses units whose gradients do not go into one bucket.

    Raises:
        ValueError: they are of several dtypes.
    """
    if len(dtypes := {weight.dtype for weight in params.values()}) > 1:
        found = ", ".join(sorted(map(str, dtypes)))
        raise ValueError(f"the parameters are {found}; processes exchange gradients of one dtype: cast them all to it")


def units_of(flat: Tensor, params: Params) -> Params:
    """A bucket's numbers by unit: views of it."""
    found, start = Params(), 0
    for name, weight in params.items():
        found[name] = flat[start : start + weight.numel()].view(weight.shape)
        start += _room(weight)
    return found


def _room(weight: Tensor) -> int:
    return -(-weight.numel() // ALIGNED) * ALIGNED


def add_part(total: Params | None, grads: Params, part: float, into: Params | None = None) -> Params:
    """Adds a part's mean gradients, times the part of the batch that it is.

    Args:
        total: of the parts before; None for the first.
        grads: mean over the part's data; not needed afterwards.
        part: its number of data over the batch's.
        into: where the first part's are put; by default where they are.
    """
    if total is None:
        if into is None:
            return grads if part == 1 else {name: g.mul_(part) for name, g in grads.items()}
        return {name: torch.mul(g, part, out=into[name]) for name, g in grads.items()}
    for name, g in grads.items():
        total[name].add_(g, alpha=part)
    return total
