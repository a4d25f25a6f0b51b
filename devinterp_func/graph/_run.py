"""Running a graph over a batch: one example lifted by ``vmap``, from whatever is given to whatever is wanted."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_leaves

from devinterp_func import tree
from devinterp_func.graph._given import Masks, check_batch, check_masks, device_of, require_leaves
from devinterp_func.graph._graph import Graph, names
from devinterp_func.graph._interpret import inputs_of, run_one, steps_to
from devinterp_func.tree import Params


def run(
    graph: Graph,
    params: Params,
    batch: tuple[Any, ...],
    wanted: Sequence[str],
    *,
    masks: Masks | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Values of some nodes for every datum of a batch.

    Args:
        graph, params: the model.
        batch: data, each tensor with a leading n; may be cut short where the nodes do not depend on the rest.
        wanted: names of nodes.
        masks: dropout masks of ``draw_masks``; none for no dropout.
        given: values of some nodes, each with a leading n: what depends on them goes on from these.

    Returns:
        Each node's value, with a leading n.

    Raises:
        ValueError: there is no such node, or the batch does not fit the graph.
    """
    every, given = names(graph), given or {}
    if batch and not len(tree_leaves(batch)[0]):  # which vmap refuses: what some datum gives, cut to none
        some = tree.map(lambda x: x.new_zeros(1, *x.shape[1:]), (tuple(tree_leaves(batch)), dict(given)))
        return {name: value[:0] for name, value in run(graph, params, some[0], wanted, given=some[1]).items()}
    if unknown := [name for name in (*wanted, *given) if name not in every]:
        raise ValueError(f"the graph has no node {unknown[0]!r}; its last is {graph.trace.output.name!r}")
    leaves = [leaf.to(device_of(params)) for leaf in check_batch(graph, batch)]
    check_masks(graph, masks, len(leaves[0]))
    nodes, set_ = tuple(every[name] for name in wanted), {every[name]: value for name, value in given.items()}
    steps = steps_to(graph, nodes, frozenset(set_))
    require_leaves(graph, steps, nodes, len(leaves))

    def one(leaves: list[Tensor], masks: Masks | None, own: list[Tensor]) -> list[Tensor]:
        values = inputs_of(graph, params, leaves) | dict(zip(set_, own, strict=True))
        done = run_one(graph, steps, values, masks)
        return [done[node] for node in nodes]

    found = vmap(one, (0, None if masks is None else 0, 0))(leaves, masks, list(set_.values()))
    return dict(zip(wanted, found, strict=True))
