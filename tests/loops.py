"""Per-example gradients the slow way: a loop over the examples, with dropout masks put in by hand."""

from collections.abc import Callable
from typing import Any

import torch
from oracles import dropout_of, examples
from torch import Tensor
from torch.func import grad_and_value

from devinterp_func.tree import Params

Loss = Callable[..., Tensor]
Masks = dict[str, Tensor]


def loop(loss: Loss, params: Params, batch: tuple[Any, ...], sites: Any, masks: Masks | None) -> tuple[Tensor, Params]:
    """Losses and gradients, each with a leading n, by a loop of ``torch.func.grad``."""
    rows, losses = [], []
    for j, example in enumerate(examples(batch)):
        kept = None if masks is None else [masks[name][j] for name, site in sites.items() if site.p > 0]
        with dropout_of(kept):
            gradient, value = grad_and_value(loss)(params, *example)
        rows.append(gradient)
        losses.append(value)
    return torch.stack(losses), {name: torch.stack([row[name] for row in rows]) for name in params}


def worst(found: Params, expected: Params) -> float:
    """Largest error of any parameter, relative to its own largest number.

    What is zero by algebra, such as a key bias's gradient, comes out as the rounding of what cancels; so nothing is
    measured by less than a thousandth of the largest number of all.
    """
    assert list(found) == list(expected)
    assert all(found[name].shape == w.shape for name, w in expected.items())
    largest = {name: float(w.abs().max()) for name, w in expected.items()}
    least = max(1e-6, 1e-3 * max(largest.values()))
    return max(float((found[name] - w).abs().max()) / max(largest[name], least) for name, w in expected.items())
