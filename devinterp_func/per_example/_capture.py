"""Gradients of each example apart: ``grads``, the definition, and ``capture``, the same numbers in one backward pass.

For a linear map with input a[j,k] and back-signal b[j,k] (datum j, position k), datum j's weight gradient is
Σ_k b[j,k] ⊗ a[j,k] and its bias gradient Σ_k b[j,k]. So (a, b) is a lossless factorisation of all per-example
gradients, and each term of the sum says which position moved the weight. ``capture`` adds a zero "probe" to the output
of every operation of the graph that uses a parameter and differentiates with respect to the probes alone: that gives
every b, the forward pass every a. A parameter with a use that has no such form is given to each datum as its own copy.
(Goodfellow 2015, *Efficient per-example gradient computations*; Dangel et al. 2020, *BackPACK*.)
"""

from collections.abc import Mapping
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx

from devinterp_func import checks, tree
from devinterp_func.graph import (
    Graph,
    Masks,
    Probed,
    Use,
    check_batch,
    check_masks,
    choose,
    head_rows,
    in_order,
    run_probed,
)
from devinterp_func.per_example._cross_entropy import head_factors, head_gradients
from devinterp_func.per_example._factors import (
    Bias,
    Dense,
    Factor,
    Gain,
    Lookup,
    Outer,
    join,
    size_of,
    some_values,
)
from devinterp_func.per_example._form import add_total, rounded_total, total
from devinterp_func.per_example._maps import scale
from devinterp_func.tree import Params, wide
from devinterp_func.units import Patterns


class Capture(NamedTuple):
    """What one batch says: each datum's loss, the batch gradient of ALL parameters, the captured units' factors."""

    losses: Float[Tensor, "n"]
    mean_grads: Params
    factors: dict[str, Factor]

    def __repr__(self) -> str:
        size = sum(gradient.numel() for gradient in self.mean_grads.values())
        return (
            f"Capture of {len(self.losses)} data: mean loss {self.losses.mean():.4f}, gradient norm "
            f"{tree.norm(self.mean_grads):.4g} over {size:,} parameters, factors of {len(self.factors)} units"
        )


@torch.no_grad()
def capture(
    graph: Graph,
    params: Params,
    *batch: Any,
    masks: Masks | None = None,
    units: Patterns = (),
    buffer: Float[Tensor, "V nC"] | None = None,
    weights: Float[Tensor, "n"] | None = None,
) -> Capture:
    """The numbers of ``vmap(grad(loss))`` in one ordinary backward pass.

    Args:
        graph: of the loss of one example, ``graph.of``.
        params: every parameter by name.
        batch: the data, each tensor with a leading n.
        masks: dropout masks of ``graph.draw_masks``, each with a leading n; none for no dropout.
        units: which parameters get factors, as name patterns (``graph.choose``).
        buffer: scratch for the logits, to spare an allocation of V·n·C numbers; its contents are overwritten.
        weights: how much each datum counts: its gradient is that of its loss times its weight; by default all 1.

    Raises:
        RuntimeError: within torch's inference mode.
        TypeError: float16 parameters, in which the softmax would underflow.
        ValueError: parameters or data do not fit the graph, an id is out of range, a pattern matches no parameter, or
            a buffer or the weights are of another shape.
    """
    checks.gradients_allowed()
    params, wanted = in_order(graph, params), choose(graph, units)
    leaves, head = check_batch(graph, batch), graph.head
    if len(leaves) != len(graph.example):
        raise ValueError(f"the batch has {len(leaves)} tensors; an example of this graph has {len(graph.example)}")
    if not len(leaves[0]):
        raise ValueError("the batch has no data; it must have at least one")
    check_masks(graph, masks, len(leaves[0]))
    if weights is not None and weights.shape != (len(leaves[0]),):
        raise ValueError(f"weights are {tuple(weights.shape)}; of these data they must be {(len(leaves[0]),)}")
    if buffer is not None and head is None:
        raise ValueError("a buffer is for logits, and this loss has no head; leave it out")
    if head is None:
        probed = run_probed(graph, params, leaves, masks, graph.trace.output, None)
        losses = probed.value
        signals, dense = probed.pull(torch.ones_like(losses) if weights is None else weights.to(losses))
        means, parts = Params(), dict[str, list[Factor]]()
    else:
        probed = run_probed(graph, params, leaves, masks, head.stream, head.targets)
        assert probed.targets is not None
        rows = head_rows(graph, probed.value)
        found = head_gradients(graph, params, leaves, rows, probed.targets, buffer, weights)
        losses, means = found.losses, found.mean_grads
        signals, dense = probed.pull(_to_stream(graph, found.stream_signals, probed.value))
        asked = {head.weight, head.bias} & set(wanted)
        parts = {name: [factor] for name, factor in head_factors(head, found).items()} if asked else {}
    uses: dict[str, list[Factor]] = {}
    for use in graph.uses:
        if use.node in signals:
            uses.setdefault(use.unit, []).append(_factor(use, probed, signals[use.node]))
    uses |= {name: [Dense(gradients)] for name, gradients in dense.items()}
    uses |= {name: [_nothing(params[name], len(losses))] for name in graph.unused}
    means = _add_up(params, means, uses, len(losses))
    return Capture(losses, means, {name: join((*uses.get(name, ()), *parts.get(name, ()))) for name in wanted})


def _to_stream(graph: Graph, signals: Float[Tensor, "n C d"], like: Tensor) -> Tensor:
    """Signals at the head's positions as signals at the node that its linear map reads."""
    head = graph.head
    assert head is not None
    if head.rows is None:
        return signals.reshape(like.shape).to(like.dtype)
    flat = signals.new_zeros(like.shape).reshape(len(like), -1, head.width)
    return flat.index_add_(1, head.rows.to(flat.device), signals).reshape(like.shape).to(like.dtype)


def _add_up(params: Params, head: Params, uses: Mapping[str, list[Factor]], n: int) -> Params:
    """The batch gradient of every parameter: the head's, and the mean over the data of what ``form`` would give."""
    means = {}
    for name in params:
        parts = list(uses.get(name, ()))
        mean = head[name] if name in head else _mean(parts.pop(), n)
        means[name] = reduce(lambda out, part: _mean(part, n, out), parts, mean).to(params[name].dtype)
    return means


def _mean(factor: Factor, n: int, out: Tensor | None = None) -> Tensor:
    """The mean of a factor's gradients over the data; added to ``out`` if given.

    What has fewer numbers is divided, so that of a table that is looked up no second one is made. Factors of 16 bits of
    a linear map or a convolution are multiplied as the backward pass of a batch does it, with one rounding.
    """
    if isinstance(factor, Outer) and max(x.dtype.itemsize for x in (factor.inputs, factor.signals)) < 4:
        mean = rounded_total(factor).div_(n)
        return mean if out is None else out.add_(mean)
    if some_values(factor).numel() < size_of(factor):
        factor = scale(factor, 1 / n)
        return total(factor) if out is None else add_total(out, factor)
    mean = total(factor).div_(n)
    return mean if out is None else out.add_(mean)


def _nothing(weight: Tensor, n: int) -> Dense:
    """The gradients of a parameter that the loss does not read."""
    return Dense(weight.new_zeros(()).expand(n, *weight.shape))


# ---- one use


def _factor(use: Use, probed: Probed, signal: Tensor) -> Factor:
    """What a use makes of its parameter's gradients."""
    signals = use.outputs(signal)
    signals = wide(signals) * use.scale if use.scale != 1 else signals
    match use.kind:
        case "lookup":
            return _lookup(use, probed, signal, signals)
        case "bias":
            return Bias(_padded(signals, use.rows), _shape(use, 1))
        case "gain":
            x = probed.standard[use.node] if use.x is None else probed.inputs[use.x]
            inputs = _read(use, x).expand_as(signals)
            return Gain(_padded(inputs, use.rows), _padded(signals, use.rows), _shape(use, 1))
    inputs = _read(use, _input(use, probed.inputs))
    inputs, signals = _padded(inputs, use.columns), _padded(signals, use.rows)
    sides = (signals, inputs) if use.transposed else (inputs, signals)
    return Outer(*sides, _shape(use, 2))


def _lookup(use: Use, probed: Probed, signal: Tensor, signals: Tensor) -> Lookup:
    ids = _read(use, signal if use.x is None else probed.inputs[use.x])
    if use.padding is not None:  # torch gives the row of the padding id no gradient
        signals = signals * (ids != use.padding)[..., None]
    return Lookup(ids, signals, use.shape[0])


def _read(use: Use, x: Tensor) -> Tensor:
    assert use.inputs is not None
    return use.inputs(x)


def _input(use: Use, inputs: Mapping[fx.Node, Tensor]) -> Tensor:
    assert use.x is not None
    return inputs[use.x]


def _padded(rows: Tensor, part: tuple[int, int]) -> Tensor:
    """Rows of a part of a unit as rows of the unit."""
    return F.pad(rows, part) if any(part) else rows


def _shape(use: Use, dims: int) -> tuple[int, ...] | None:
    """The unit's shape, where its factor's sides do not say it."""
    return None if len(use.shape) == dims and use.kind != "conv" else use.shape
