"""What a graph is given, held against it: data, dropout masks, examples of other shapes."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from devinterp_func import checks, keys
from devinterp_func.graph._graph import Graph, leaf_of, of
from devinterp_func.graph._interpret import Step
from devinterp_func.graph._trace import Loss
from devinterp_func.tree import Params

Masks = dict[str, Bool[Tensor, "..."]]


def check_batch(graph: Graph, batch: tuple[Any, ...]) -> list[Tensor]:
    """The batch's tensors, if they fit the example that the graph was traced with.

    Raises:
        ValueError: another number of tensors, shapes or dtypes; no data or unequal numbers of them; an id that a table
            lacks. What would be right is named.
    """
    leaves = tree_leaves(batch)
    if not leaves or len(leaves) > len(graph.example):
        raise ValueError(f"the batch has {len(leaves)} tensors; an example of this graph has {len(graph.example)}")
    sizes = {len(leaf) if leaf.ndim else 0 for leaf in leaves}
    if len(sizes) != 1:
        raise ValueError(f"the batch's tensors have {sorted(sizes)} data; all must have the same number")
    for i, (leaf, (shape, dtype)) in enumerate(zip(leaves, graph.example, strict=False)):
        if tuple(leaf.shape[1:]) != shape or leaf.dtype != dtype:
            raise ValueError(
                f"tensor {i} of the batch holds data of shape {tuple(leaf.shape[1:])}, {leaf.dtype}; the graph was "
                f"traced with {shape}, {dtype}: graph.at gives it for other shapes"
            )
    ids: list[tuple[fx.Node | None, int, str, int | None]]
    ids = [(use.x, use.shape[0], "tokens", None) for use in graph.uses if use.kind == "lookup"]
    if graph.head is not None:
        ids.append((graph.head.targets, graph.head.n_classes, "targets", graph.head.ignored))
    for node, size, name, ignored in ids:
        if (source := leaf_of(node)) in graph.trace.leaves[: len(leaves)]:
            place = graph.trace.leaves.index(source)
            own = leaves[place] if ignored is None else leaves[place][leaves[place] != ignored]
            checks.token_ids(_leaf_name(batch, place, name), own, size)
    return leaves


def device_of(params: Params) -> torch.device:
    """Where the parameters are, and so where data go before anything is done with them."""
    return next(iter(params.values())).device


def _leaf_name(batch: tuple[Any, ...], i: int, name: str) -> str:
    fields = getattr(batch, "_fields", ())
    return fields[i] if len(fields) == len(tree_leaves(batch)) else name


def require_leaves(graph: Graph, steps: Sequence[Step], wanted: Sequence[fx.Node], n: int) -> None:
    missing = set(graph.trace.leaves[n:])
    for node in (*(x for step in steps for x in step.node.all_input_nodes), *wanted):
        if node in missing:
            place = graph.trace.leaves.index(node)
            raise ValueError(f"what was asked for depends on tensor {place} of the example, which the batch lacks")


def check_masks(graph: Graph, masks: Masks | None, n: int) -> None:
    """Refuses masks that are not those of the graph's dropout sites for n data.

    Raises:
        ValueError: a site is missing or unknown, or a mask has another shape.
    """
    if masks is None:
        return
    if unknown := masks.keys() ^ graph.sites.keys():
        raise ValueError(f"the masks and the graph's dropout sites differ in {', '.join(map(repr, sorted(unknown)))}")
    for name, site in graph.sites.items():
        if masks[name].shape != (n, *site.shape):
            raise ValueError(
                f"the mask of {name!r} has shape {tuple(masks[name].shape)}; it must be {(n, *site.shape)}"
            )


def draw_masks(graph: Graph, each: Sequence[keys.Key | int]) -> Masks | None:
    """Dropout masks of several examples, one key each, stacked: True where kept; None where there is no dropout.

    A value is kept with probability 1 − p, rounded to a multiple of 2⁻¹⁶. The sites share one stream of the key, in the
    order in which they are met, so that a datum costs one generator.
    """
    if not graph.sites:
        return None
    sizes = [torch.Size(site.shape).numel() for site in graph.sites.values()]
    masks: dict[str, list[Tensor]] = {name: [] for name in graph.sites}
    for key in each:
        bits, start = keys.random_bits(sum(sizes), key=key), 0
        for (name, site), size in zip(graph.sites.items(), sizes, strict=True):
            kept = bits[start : start + size] >= round(site.p * 2**16)
            masks[name].append(torch.from_numpy(kept).view(site.shape))
            start += size
    return {name: torch.stack(each) for name, each in masks.items()}


@lru_cache(maxsize=32)
def _traced(graph: Graph, loss: Loss, example: tuple[tuple[tuple[int, ...], torch.dtype], ...]) -> Graph:
    device = next(iter(graph.trace.params)).meta["val"].device
    params = {name: torch.zeros(shape, dtype=graph.dtypes[name], device=device) for name, shape in graph.shapes.items()}
    return of(loss, params, *(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in example))


def at(graph: Graph, *example: Tensor) -> Graph:
    """The graph for examples of other shapes, such as a shorter text; the same graph where they are its own.

    Args:
        graph: the model; its example is a flat tuple of tensors.
        example: one training example.
    """
    kinds = tuple((tuple(leaf.shape), leaf.dtype) for leaf in example)
    return graph if kinds == graph.example else _traced(graph, graph.loss, kinds)


def unrounded(graph: Graph) -> Graph:
    """The graph of the same loss in its parameters' precision; the same graph where it is in that already.

    Args:
        graph: of the loss of a model of ``models.autocast``; its example is a flat tuple of tensors.

    Raises:
        ValueError: the loss rounds, and does not say what it rounds.
    """
    if not graph.rounded:
        return graph
    loss = getattr(graph.loss, "unrounded", None)
    if loss is None:
        raise ValueError(
            f"this loss is computed in {', '.join(sorted({str(x) for x in graph.rounded.values()}))} by its own doing; "
            "models.autocast says so from outside, and can be undone: make the model with it"
        )
    return _traced(graph, loss, graph.example)
