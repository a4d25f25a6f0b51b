"""Many retrainings at once: the same steps without different data, as one batched computation.

A small model's step costs mostly what it takes to call its operations. Retrainings of the same steps share data, order
and masks and differ in which data count, so ``vmap`` over them makes each operation once for all: several times faster
for small models, and of no use for large ones. What is left out has the weight 0: like ``retrain``, up to rounding.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import grad, vmap

from devinterp_func import batches, checks, training, tree
from devinterp_func import graph as graphs
from devinterp_func.credit._bank import require_horizons
from devinterp_func.credit._retrain import Window
from devinterp_func.credit.probes import Probe
from devinterp_func.optim import Buffers, State
from devinterp_func.tree import Params


def together_values(
    window: Window, probes: Sequence[Probe], horizons: Sequence[int], removed: Bool[Tensor, "D S n"]
) -> Float[Tensor, "D H P"]:
    """Probes after the first h steps of a window, for each horizon h, each time without other data.

    Takes D times the memory of a training.

    Args:
        window: of ``credit.window``, or made by hand.
        probes: any.
        horizons: in rising order.
        removed: what is left out of each of the window's steps in each of the D retrainings.

    Returns:
        float64.

    Raises:
        ValueError: a horizon is not within the window, horizons are not in rising order, ``removed`` is not of the
            window's steps, or the training rounds to bfloat16.
    """
    graph, start, recipe = window.graph, window.start, window.recipe
    if tuple(horizons) != (wanted := require_horizons(window, horizons)):
        raise ValueError(f"horizons are {list(horizons)}; in rising order they are {list(wanted)}")
    if removed.shape[1:] != (shape := (window.stop - start, recipe.batch_size)):
        raise ValueError(f"removed is {tuple(removed.shape)}; of the {window} it must be (D, {shape[0]}, {shape[1]})")
    checks.gradients_allowed()
    if graph.rounded:
        raise ValueError(
            "the window's training rounds to bfloat16, and differently where retrainings go together; credit.retrain "
            "makes one after the other, with the training's own roundings"
        )
    n, n_data, output = len(removed), batches.n_data(window.data), graph.trace.output.name
    params, memory = _repeated((dict(window.params), window.state.buffers), n)
    device, found = next(iter(window.params.values())).device, list[list[list[float]]]()
    for step, epoch, _, ids in training.order(recipe, n_data, start, start + wanted[-1]):
        batch, masks = training.step_data(graph, recipe, window.data, epoch, ids, device)
        lr, steps = training.learning_rate(recipe, n_data, step), window.state.steps + step - start

        def mean(params: Params, weights: Tensor, batch=batch, masks=masks) -> Tensor:  # type: ignore[no-untyped-def]
            losses = graphs.run(graph, params, batch, [output], masks=masks)[output]
            return (losses * weights).sum() / recipe.batch_size

        def one(params: Params, memory: dict[str, Buffers], weights: Tensor, lr=lr, steps=steps, mean=mean):  # type: ignore[no-untyped-def]
            gradient = grad(mean)(params, weights)
            after, state = recipe.optimizer.apply(params, gradient, State(steps, memory), lr, recipe.max_norm)
            return after, state.buffers

        weights = (~removed[:, step - start]).to(next(iter(params.values())))
        params, memory = vmap(one)(params, memory, weights)
        if step + 1 - start in wanted:
            found.append(_values(probes, params, n))
    return torch.tensor(found, dtype=torch.float64).view(len(wanted), n, len(probes)).movedim(0, 1)


def _repeated(stem, n: int):  # type: ignore[no-untyped-def]
    return tree.map(lambda x: x.expand(n, *x.shape).clone(), stem)


@torch.no_grad()
def _values(probes: Sequence[Probe], params: Params, n: int) -> list[list[float]]:
    each = [{name: x[i] for name, x in params.items()} for i in range(n)]
    return [[float(probe.value(own)) for probe in probes] for own in each]
