"""What a neuron's activity adds to the logits on the direct path from the stream, what lies between left out.

With W_U the head's weight and w what one unit of the activity writes to the stream:

    W_U w       or, through the last norm with gain γ,      W_U (γ ⊙ (w − mean w)),    without the mean for an rms norm

The first takes the stream as the head reads it. The second takes w through the norm as everything that enters the
stream before it: to first order and up to 1/σ, with the change of σ itself left out.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_leaves

from devinterp_func.graph import (
    Graph,
    final_norm,
    forward,
    has_operation,
    hidden_maps,
    operation,
    require_head,
    run,
    writes_stream,
)
from devinterp_func.neurons._neuron import Neuron, input_axis, weights
from devinterp_func.tree import Params


def logit_effect(graph: Graph, params: Params, neuron: Neuron, norm: bool = False) -> Float[Tensor, "V"]:
    """What one unit of a neuron's activity adds to the logits: W_U w.

    Args:
        graph, params: the model.
        neuron: an input of a unit that writes to the stream: of the output projections of MLP and attention.
        norm: go through the last norm, where there is one.

    Raises:
        ValueError: no such neuron, or what it writes is not in the stream; or the model has no head.
    """
    require_head(graph)
    written = weights(params, neuron)
    if not is_writer(graph, neuron):
        raise ValueError(f"{neuron} does not write to the stream; {_writers(graph)} do")
    return _direct_path(graph, params, written[:, None], norm)[0]


def logit_effects(graph: Graph, params: Params, batch: tuple[Any, ...], unit: str) -> Float[Tensor, "G V"]:
    """``logit_effect`` of each input of a unit that writes to the stream, or of an MLP, through the last norm.

    An input of the MLP's first projection feeds all hidden neurons: the mean slope of what is between the projections,
    such as the share of positions at which a ReLU is above 0, stands for each of these.

    Args:
        graph, params: the model.
        batch: some data.
        unit: an MLP's input or output projection, or attention's output projection, of any layer.

    Raises:
        ValueError: another unit.
    """
    maps = hidden_maps(graph)
    writers = [name for name in graph.shapes if has_operation(graph, name) and writes_stream(graph, name)]
    if unit not in (*maps, *writers):
        have = [name for name in graph.shapes if name in (*maps, *writers)]
        raise ValueError(
            f"{unit!r} neither writes to the stream nor feeds an MLP; units that do: {', '.join(have) or 'none'}"
        )
    written = _by_input(graph, params, maps.get(unit, unit)).T
    if unit in maps:
        slope = _slopes(graph, params, batch, unit, maps[unit])
        written = written @ (slope[:, None] * _by_input(graph, params, unit).T)
    return _direct_path(graph, params, written, norm=True)


def is_writer(graph: Graph, neuron: Neuron) -> bool:
    """Whether the neuron's weights are what its activity adds to the stream."""
    own = has_operation(graph, neuron.unit) and operation(graph, neuron.unit).side(neuron.axis) == "inputs"
    return own and writes_stream(graph, neuron.unit)


def _by_input(graph: Graph, params: Params, unit: str) -> Float[Tensor, "i o"]:
    return params[unit].T if input_axis(graph, unit) == "in" else params[unit]


def _slopes(graph: Graph, params: Params, batch: tuple[Any, ...], unit: str, output: str) -> Float[Tensor, "h"]:
    """Mean slope, over the positions of some data, of the functions between an MLP's projections."""
    start, end = operation(graph, unit), operation(graph, output).x.name
    leaves, slopes = tree_leaves(batch), []
    for part in forward(graph, params, batch, keep=[start.node.name]):
        given = part.values[start.node.name].detach().requires_grad_()
        rows = tuple(leaf[part.rows] for leaf in leaves)
        with torch.enable_grad():
            hidden = run(graph, params, rows, [end], given={start.node.name: given})[end]
            (slope,) = torch.autograd.grad(hidden.sum(), given)
        slopes.append(start.write(slope).mean(1))
    return torch.cat(slopes).mean(0)


def _direct_path(graph: Graph, params: Params, written: Float[Tensor, "d G"], norm: bool) -> Float[Tensor, "G V"]:
    """What is written to the stream, as logits."""
    last = final_norm(graph) if norm else None
    if last is not None:
        written = written - written.mean(0) if last.centred else written
        written = written if last.weight is None else params[last.weight][:, None] * written
    return (written.T @ params[require_head(graph).weight].T).contiguous()


def _writers(graph: Graph) -> str:
    """The units that write to the stream, and whether as columns or as rows."""
    units = [name for name in graph.shapes if has_operation(graph, name) and writes_stream(graph, name)]
    found = []
    for axis, lines in (("in", "columns (axis 'in') of "), ("out", "rows (axis 'out') of ")):
        own = [name for name in units if input_axis(graph, name) == axis]
        found += [lines + ", ".join(own)] if own else []
    return " and ".join(found) or "no neurons of this model"
