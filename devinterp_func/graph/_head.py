"""The head of a loss: the linear map of a parameter whose output cross entropy reads."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor, fx

from devinterp_func.graph._trace import Trace, ancestors, call
from devinterp_func.graph._use import Use

A = torch.ops.aten
THROUGH = (  # between logits and cross entropy: what only chooses or rearranges rows
    *(A.alias.default, A.select.int, A.slice.Tensor, A.view.default, A.reshape.default, A._unsafe_view.default),
    *(A.squeeze.dim, A.squeeze.default, A.squeeze.dims, A.unsqueeze.default, A.flatten.using_ints, A.clone.default),
    *(A.contiguous.default, A.index_select.default, A.transpose.int, A.permute.default),
)
CASTS = (A._to_copy.default, A.to.dtype)
REDUCTIONS: dict[int, Literal["none", "mean", "sum"]] = {0: "none", 1: "mean", 2: "sum"}


class Head(NamedTuple):
    """Cross entropy of logits W h + b at some positions of one example."""

    weight: str
    bias: str | None
    uses: tuple[Use, ...]  # of weight and bias
    stream: fx.Node  # what the linear map reads, before it is cast to ``dtype``
    map: fx.Node  # the linear map
    loss: fx.Node  # the cross entropy
    targets: fx.Node
    rows: Int64[Tensor, "C"] | None  # which of the map's rows the positions are; None for all in order
    reduction: Literal["none", "mean", "sum"]
    ignored: int  # the target that counts for nothing
    n_classes: int
    width: int
    dtype: torch.dtype  # in which the linear map works; what follows it is in no shorter one

    def __repr__(self) -> str:
        return f"cross entropy of {self.weight} ({self.n_classes:,} classes of {self.width} numbers) in {self.map.name}"


def find_head(trace: Trace, uses: tuple[Use, ...]) -> Head | None:
    """The head, where the loss depends on parameters through one cross entropy of a linear map alone."""
    entropies = [node for node in trace.nodes if node.target is A.cross_entropy_loss.default]
    if len(entropies) != 1 or not _plain(entropies[0]):
        return None
    (entropy,) = entropies
    node, chain = entropy.args[0], list[fx.Node]()
    while isinstance(node, fx.Node) and (node.target in THROUGH or _widens(node)) and len(node.users) == 1:
        chain.append(node)
        node = node.args[0]
    own = [use for use in uses if use.node is node]
    weight = next((use for use in own if use.kind == "linear" and len(use.shape) == 2 and not use.transposed), None)
    if weight is None or not isinstance(node, fx.Node) or len(node.users) != 1 or weight.x is None:
        return None
    biases = [use for use in own if use.kind == "bias"]
    complete = all(use.rows == (0, 0) == use.columns and use.scale == 1 for use in own)
    if not complete or len(own) != 1 + len(biases) or not _alone(trace, entropy, node):
        return None
    classes, width = weight.shape
    try:
        rows = _rows(node, chain, classes)
    except ValueError:
        return None
    n_rows = node.meta["val"].numel() // classes
    every = torch.arange(n_rows)
    targets: Any = entropy.args[1]
    return Head(
        weight.unit,
        biases[0].unit if biases else None,
        tuple(own),
        _uncast(weight.x),
        node,
        entropy,
        targets,
        None if torch.equal(rows, every) else rows,
        REDUCTIONS[int(entropy.args[3]) if len(entropy.args) > 3 else 1],  # type: ignore[arg-type]
        int(entropy.args[4]) if len(entropy.args) > 4 else -100,  # type: ignore[arg-type]
        classes,
        width,
        weight.dtype,
    )


def _widens(node: fx.Node) -> bool:
    """Whether a node casts to a dtype that holds all of what it reads."""
    if node.target not in CASTS:
        return False
    source: Any = node.args[0]
    to: torch.dtype = node.meta["val"].dtype
    return to.is_floating_point and torch.promote_types(source.meta["val"].dtype, to) == to


def _uncast(node: fx.Node) -> fx.Node:
    """What a node is a rounding of; itself, if of nothing."""
    while node.target in CASTS and not _widens(node):
        source: Any = node.args[0]
        if not source.meta["val"].is_floating_point():
            break
        node = source
    return node


def _plain(node: fx.Node) -> bool:
    """Whether a cross entropy has neither class weights nor label smoothing, and its targets are classes."""
    weight = node.args[2] if len(node.args) > 2 else None
    smoothing = node.args[5] if len(node.args) > 5 else 0.0
    targets: Any = node.args[1]
    whole = isinstance(targets, fx.Node) and not targets.meta["val"].is_floating_point()
    return whole and weight is None and not smoothing and not node.kwargs


def _alone(trace: Trace, entropy: fx.Node, linear: fx.Node) -> bool:
    """Whether the loss depends on parameters through the cross entropy alone, and its targets on none."""
    after = [node for node in trace.nodes if entropy in ancestors([node])]
    beside = {x for node in after if node is not entropy for x in node.all_input_nodes if x not in after}
    targets: Any = entropy.args[1]
    return not any(node in trace.params for node in ancestors([targets, *(x for x in beside if x is not entropy)]))


def _rows(linear: fx.Node, chain: list[fx.Node], classes: int) -> Int64[Tensor, "C"]:
    """The linear map's row that each position of the cross entropy reads: what is done to the logits, done to numbers.

    Raises:
        ValueError: a position reads no whole row.
    """
    shape = linear.meta["val"].shape
    n = linear.meta["val"].numel() // classes
    numbers = torch.arange(n * classes).view(shape)
    values: Mapping[fx.Node, Any] = {linear: numbers}
    for node in reversed(chain):
        if any(x not in values for x in node.all_input_nodes):
            raise ValueError
        made = values[node.args[0]] if node.target in CASTS else call(node, values)  # type: ignore[index]
        values = {**values, node: made}
    last = values[chain[0]] if chain else numbers
    last = last if last.ndim > 1 else last[None]
    if last.ndim > 2:
        raise ValueError
    rows = last[:, 0] // classes
    if last.shape[1] != classes or not torch.equal(last, rows[:, None] * classes + torch.arange(classes)):
        raise ValueError
    return rows
