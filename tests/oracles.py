"""Brute force: what the library computes, done again the slow and obvious way: loops, full sorts, torch's modules."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from small_transformers import TorchModel
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from devinterp_func import models, per_example
from devinterp_func.graph import Masks
from devinterp_func.models import Config
from devinterp_func.per_example import Bias, Dense, Factor, Gain, Lookup, Outer, Scaled, Sum
from devinterp_func.tree import Params, Tree

Entry = tuple[int, int]  # (datum, number of a parameter)

# ---- trees


def flat(tree: Tree) -> npt.NDArray[np.float64]:
    """All numbers of a tree in one vector."""
    return np.concatenate([leaf.detach().double().numpy().ravel() for leaf in tree_flatten(tree)[0]])


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference, relative to the largest absolute value expected, or to 1e-6 where all are less."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


def assert_equal(found: Tree, expected: Tree) -> None:
    """The same bits in two trees."""
    assert all(torch.equal(a, b) for a, b in zip(tensors(found), tensors(expected), strict=True))


def tensors(tree: Tree) -> list[Tensor]:
    """A tree's leaves that are tensors."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def assert_close(found: Params, expected: Params, tolerance: float) -> None:
    """The same names in the same order, and every unit within ``tolerance`` of its largest value."""
    assert list(found) == list(expected)
    errors = {name: relative_error(found[name], expected[name]) for name in expected}
    assert max(errors.values()) <= tolerance, errors


# ---- the model, composed of torch's modules


def torch_masks(model: TorchModel, tokens: Tensor) -> list[Tensor]:
    """The masks (True where kept) that the next call in training mode will draw, in the order of their sites."""
    state = torch.get_rng_state()
    with _recorded_masks() as drawn, torch.no_grad():
        model(tokens)
    torch.set_rng_state(state)
    return drawn


@contextmanager
def _recorded_masks() -> Iterator[list[Tensor]]:
    drawn: list[Tensor] = []
    dropout = F.dropout

    def draw(like: Tensor, p: float) -> Tensor:
        drawn.append(dropout(torch.ones_like(like), p) != 0)
        return drawn[-1]

    def recorded_dropout(x: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
        return x * draw(x, p) / (1 - p)

    def recorded_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, p: float, is_causal: bool) -> Tensor:
        # torch's own composite, which takes the dropout mask as an argument
        attend = torch.ops.aten._scaled_dot_product_attention_math
        return attend(q, k, v, mask, p, is_causal, draw(q @ k.mT, p))[0]

    with (
        mock.patch.object(F, "dropout", recorded_dropout),
        mock.patch.object(F, "scaled_dot_product_attention", recorded_attention),
    ):
        yield drawn


# ---- gradients


def loop_of_grads(loss: Callable[..., Tensor], params: Tree, *batch: Tree) -> Tree:
    """Per-example gradients by torch.autograd, one example after the other."""
    leaves, structure = tree_flatten(params)
    rows = []
    for example in examples(batch):
        own = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        value = loss(tree_unflatten(own, structure), *example)
        rows.append(torch.autograd.grad(value, own, materialize_grads=True))
    return tree_unflatten([torch.stack(column) for column in zip(*rows, strict=True)], structure)


def definition(
    params: Params, tokens: Tensor, targets: Tensor, config: Config, masks: Masks | None = None
) -> tuple[Tensor, Params]:
    """Losses and per-example gradients of the transformer in float64 by ``vmap(grad(loss))``."""
    loss, data = models.transformer(config).loss, (tokens, targets) if masks is None else (tokens, targets, masks)
    own = without_dropout(loss) if masks is None else masked(loss)
    params = {name: w.double() for name, w in params.items()}
    losses = torch.stack([own(params, *example) for example in examples(data)])
    return losses, per_example.grads(own)(params, *data)


def masked(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``f(params, *example, masks)``: a loss with dropout masks, in the order in which they are used."""

    def with_masks(params: Params, *given: Any) -> Tensor:
        *example, masks = given
        with dropout_of(list(masks.values())):
            return loss(params, *example)

    return with_masks


def without_dropout(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss that drops nothing."""

    def plain(params: Params, *example: Any) -> Tensor:
        with dropout_of(None):
            return loss(params, *example)

    return plain


@contextmanager
def dropout_of(kept: list[Tensor] | None) -> Iterator[None]:
    """Dropout keeps what these masks say, each used once and in this order; None: it keeps everything."""
    waiting, attend = list(kept or []), F.scaled_dot_product_attention

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return x if kept is None or not training or p == 0 else _keep(x, waiting.pop(0), p)

    def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if kept is None or dropout_p == 0:
            return attend(q, k, v, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) if enable_gqa else x for x in (k, v))
        scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None:
            scores = scores.where(attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        return _keep(scores.softmax(-1), waiting.pop(0), dropout_p) @ v

    with mock.patch.object(F, "dropout", dropout), mock.patch.object(F, "scaled_dot_product_attention", attention):
        yield
    assert not waiting, f"{len(waiting)} masks of {len(kept or [])} were not asked for"


def _keep(x: Tensor, mask: Tensor, p: float) -> Tensor:
    assert mask.shape == x.shape and mask.dtype == torch.bool
    return x * mask / (1 - p)


def examples(batch: Tree) -> list[Tree]:
    """A batch, every leaf with a leading n, as n examples."""
    leaves, structure = tree_flatten(batch)
    return [tree_unflatten([leaf[j] for leaf in leaves], structure) for j in range(len(leaves[0]))]


def token_parts(factor: Factor) -> Tensor:
    """(n, C, ...): each position's part of each datum's gradient, as the factors' definitions say it."""
    if isinstance(factor, Dense):
        return factor.gradients[:, None]
    if isinstance(factor, Scaled):
        return token_parts(factor.factor) * factor.gain
    if isinstance(factor, Sum):
        parts = [token_parts(part) for part in factor.parts]
        shared = all(part.shape == parts[0].shape for part in parts)
        return torch.stack(parts).sum(0) if shared else torch.cat(parts, dim=1)
    n, context = factor.signals.shape[:2]
    parts = [torch.stack([_part(factor, j, k) for k in range(context)]) for j in range(n)]
    return torch.stack(parts) if factor.shape is None else torch.stack(parts).reshape(n, context, *factor.shape)


def flat_parts(factor: Factor) -> Tensor:
    """``token_parts`` with the unit's entries in a row: (n, C, P)."""
    parts = token_parts(factor)
    return parts.reshape(*parts.shape[:2], -1)


def _part(factor: Outer | Bias | Gain | Lookup, j: int, k: int) -> Tensor:
    signal = factor.signals[j, k]
    if isinstance(factor, Outer):
        return torch.outer(signal, factor.inputs[j, k])
    if isinstance(factor, Gain):
        return signal * factor.inputs[j, k]
    if isinstance(factor, Lookup):
        return torch.stack([signal * (factor.tokens[j, k] == row) for row in range(factor.rows)])
    return signal


# ---- outliers


def sorted_entries(values: Tensor) -> list[Entry]:
    """(row, column) of all values by |value| descending, then row, then column: sort everything."""
    rows = values.tolist()
    entries = [(j, p) for j, row in enumerate(rows) for p in range(len(row))]
    return sorted(entries, key=lambda entry: (-abs(rows[entry[0]][entry[1]]), *entry))


def largest_of_each(values: Tensor, k: int) -> Tensor:
    """Column of the k largest |values| of each row, ties by column."""
    rows = [[column for _, column in sorted_entries(row[None])[:k]] for row in values]
    return torch.tensor(rows).reshape(len(values), k)


def strongest_position(token_gradients: Params, datum: int, parameter: int) -> int:
    """The position with the largest |contribution| to a parameter's delta of a datum."""
    columns = [
        column
        for part in token_gradients.values()
        for column in part[datum].reshape(part.shape[1], -1).T.abs().tolist()
    ]
    return columns[parameter].index(max(columns[parameter]))


def clip_and_step(params: Params, grads: Params, lr: float, max_norm: float) -> Params:
    """One step of torch.optim.SGD after torch's own gradient clipping."""
    own = {name: nn.Parameter(w.clone()) for name, w in params.items()}
    for name, parameter in own.items():
        parameter.grad = grads[name].clone()
    nn.utils.clip_grad_norm_(own.values(), max_norm)
    torch.optim.SGD(own.values(), lr=lr).step()
    return {name: parameter.detach() for name, parameter in own.items()}


def rates_of(scheduler: Callable[[Any], Any], lr: float, epochs: int) -> list[float]:
    """The learning rates that one of torch's schedulers gives in successive epochs."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule, rates = scheduler(optimizer), []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates
