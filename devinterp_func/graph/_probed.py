"""A batch run with a zero probe at every use of a parameter: what capture differentiates."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.func import vjp, vmap

from devinterp_func.graph._given import Masks
from devinterp_func.graph._graph import Graph
from devinterp_func.graph._interpret import inputs_of, run_one, steps_to
from devinterp_func.tree import Params


class Probed(NamedTuple):
    """A batch run with a zero probe at every use of a parameter."""

    value: Tensor  # (n, ...), of the node that was asked for
    targets: Tensor | None  # (n, ...), of the other node that was asked for
    inputs: dict[fx.Node, Tensor]  # what the uses read
    standard: dict[fx.Node, Tensor]  # of norms the input standardised, by the norm
    pull: Callable[[Tensor], tuple[dict[fx.Node, Tensor], Params]]
    """Signals at the value -> signals at every probed operation's output, and every datum's dense gradients."""


def run_probed(
    graph: Graph, params: Params, leaves: Sequence[Tensor], masks: Masks | None, node: fx.Node, beside: fx.Node | None
) -> Probed:
    """Runs a batch up to a node; differentiable in the outputs of all uses, and in each datum's copy of dense units."""
    wanted = (node,) if beside is None else (node, beside)
    steps = steps_to(graph, wanted, frozenset())
    made = {step.node for step in steps}
    uses = [use for use in graph.uses if use.node in made]
    probed = list(dict.fromkeys(use.node for use in uses))
    reads = {use.x for use in uses if use.x is not None}
    n, some = len(leaves[0]), next(iter(params.values()))
    zero = some.new_zeros(())  # expanded: probes take no memory
    probes = {x: zero.to(_dtype(x)).expand(n, *x.meta["val"].shape) for x in probed}
    copies = {name: params[name].expand(n, *params[name].shape) for name in graph.dense}
    sources = {name: x for x, name in graph.trace.params.items()}

    def one(leaves: Any, masks: Any, probes: Any, copies: Any) -> tuple[Tensor, Any, Any]:
        seen: dict[fx.Node, Tensor] = {}
        standard: dict[fx.Node, Tensor] = {}

        def tap(x: fx.Node, value: Callable[[fx.Node], Any], y: Any) -> Any:
            if x in probes:
                y = y + probes[x]
            if x in reads:
                seen[x] = y
            return y

        values = inputs_of(graph, params, leaves) | {sources[name]: copy for name, copy in copies.items()}
        seen |= {x: values[x] for x in reads if x in values}
        done = run_one(graph, steps, values, masks, tap, standard.__setitem__)
        return done[node], {x: done[x] for x in wanted[1:]}, (seen, standard)

    run = vmap(one, (0, None if masks is None else 0, 0, 0))

    def outer(probes: Any, copies: Any) -> tuple[Tensor, Any]:
        value, other, seen = run(list(leaves), masks, probes, copies)
        return value, (other, *seen)

    # torch's annotation leaves has_aux out
    value, pull, (other, inputs, standard) = vjp(outer, probes, copies, has_aux=True)  # type: ignore[misc]
    return Probed(value, None if beside is None else other[beside], inputs, standard, pull)


def _dtype(node: fx.Node) -> torch.dtype:
    return node.meta["val"].dtype


def run_tail(graph: Graph, params: Params, leaves: Sequence[Tensor], entropy: Tensor) -> Tensor:
    """Each datum's loss from the value of its head's cross entropy."""
    assert graph.head is not None
    if graph.head.loss is graph.trace.output:
        return entropy
    steps = steps_to(graph, (graph.trace.output,), frozenset([graph.head.loss]))

    def one(leaves: Any, entropy: Tensor) -> Tensor:
        values = inputs_of(graph, params, leaves) | {graph.head.loss: entropy}  # type: ignore[union-attr]
        return run_one(graph, steps, values, None)[graph.trace.output]

    return vmap(one)(list(leaves), entropy)
