"""Neurons: the columns or the rows of a weight, and which parameters belong to which.

For a weight of shape (out, in), neuron i of ``axis="in"`` is column i, all that one input feeds; neuron i of
``axis="out"`` is row i, all that feeds one output. For ``linear2.weight`` a column is a hidden neuron of the MLP; for
``linear1.weight`` a column is a coordinate of the stream and a row is a hidden neuron. Of a convolution a column is an
input channel and a row a filter. Rows and columns are those of the weight as it is stored: where that is (in, out), a
column is an output; ``axes`` says which they are of each unit. A neuron carries its axis, so that the two are never
mixed. Units of fewer than two dimensions have no neurons.

Source: *Training Process Transparency through Gradient Interpretability: Early Experiments on Toy Language Models*
(Krzyzanowski and Hubinger 2023), whose neurons are columns.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from devinterp_func import units
from devinterp_func.graph import Graph, Operation, Side, has_operation, operation
from devinterp_func.tree import Params

Axis = Literal["in", "out"]
Axes = Axis | Mapping[str, Axis]
"""One axis for all units, or each unit's own."""


class Neuron(NamedTuple):
    """Column ``index`` of a unit, or with ``axis="out"`` its row ``index``.

    >>> str(Neuron("layers.2.linear2.weight", 96)), str(Neuron("layers.2.linear2.weight", 96, "out"))
    ('layers.2.linear2.weight:96', 'layers.2.linear2.weight:96:out')
    """

    unit: str
    index: int  # type: ignore[assignment]  # a tuple's own method
    axis: Axis = "in"

    def __str__(self) -> str:
        return f"{self.unit}:{self.index}" + (":out" if self.axis == "out" else "")


class Groups(NamedTuple):
    """Sets of parameters, each a neuron or a single parameter."""

    members: tuple[Neuron | int, ...]  # neurons, or numbers of parameters
    of: Int64[Tensor, "P"]  # each parameter's group, an index into the members; −1 for none

    def __repr__(self) -> str:
        return f"Groups({len(self.members):,} groups of {int((self.of >= 0).sum()):,} of {len(self.of):,} parameters)"


def parse(text: str) -> Neuron:
    """The neuron that ``str`` wrote.

    Raises:
        ValueError: the text is not of the form UNIT:INDEX or UNIT:INDEX:out.

    >>> parse("layers.2.linear2.weight:96")
    Neuron(unit='layers.2.linear2.weight', index=96, axis='in')
    """
    match = re.fullmatch(r"(.+):([0-9]+)(:in|:out)?", text, re.DOTALL)
    if match is None:
        example = "layers.2.linear2.weight:96 or, for a row, layers.2.linear2.weight:96:out"
        raise ValueError(f"{text!r} is not a neuron; write UNIT:INDEX, such as {example}")
    return Neuron(match[1], int(match[2]), "out" if match[3] == ":out" else "in")


def require(shapes: units.Shapes, neuron: Neuron) -> Neuron:
    """The neuron itself, if the units have it.

    Args:
        shapes: units by name, such as an opened run's ``shapes``.
        neuron: which.

    Raises:
        ValueError: no such unit, axis or index; what there is is named.
    """
    _require_axis(neuron.axis)
    if neuron.unit not in (units := _with_neurons(shapes)):
        raise ValueError(f"{neuron.unit!r} has no neurons; units that have are {', '.join(units) or 'none'}")
    size = width(shapes[neuron.unit], neuron.axis)
    if not 0 <= neuron.index < size:
        line = "column" if neuron.axis == "in" else "row"
        raise ValueError(f"{neuron.unit} has no {line} {neuron.index}; its {line}s are 0 to {size - 1}")
    return neuron


def width(shape: tuple[int, ...], axis: Axis) -> int:
    """How many neurons a unit of this shape has: columns, or rows."""
    return shape[dimension(axis)]


def dimension(axis: Axis) -> int:
    """The dimension of a weight that numbers the neurons of an axis."""
    return 1 if axis == "in" else 0


def input_axis(graph: Graph, unit: str) -> Axis:
    """The axis of a unit's inputs: columns, or rows where the unit is stored (in, out).

    Raises:
        ValueError: the unit has no single operation.
    """
    return "in" if operation(graph, unit).side("in") == "inputs" else "out"


def axes(graph: Graph, shapes: units.Shapes, side: Side) -> dict[str, Axis]:
    """Which axis of each unit numbers the inputs, or the outputs, of its linear map or convolution.

    Args:
        graph: the model.
        shapes: some of its units; one that is the weight of no or of several operations is taken to be (out, in).
        side: "inputs", as the post's neurons are, or "outputs".
    """
    found: dict[str, Axis] = {}
    for unit in shapes:
        of_inputs = input_axis(graph, unit) if has_operation(graph, unit) else "in"
        found[unit] = "in" if (of_inputs == "in") == (side == "inputs") else "out"
    return found


def every(shapes: units.Shapes, axis: Axes = "in", units: Iterable[str] | None = None) -> list[Neuron]:
    """All neurons in order: unit after unit, by index.

    Args:
        shapes: units by name; those of fewer than two dimensions have none.
        axis: columns or rows, or of each unit which, such as ``axes`` says.
        units: only of these; in the order of ``shapes`` all the same.

    Raises:
        ValueError: an unknown axis, or one of ``units`` has no neurons.

    >>> [str(neuron) for neuron in every({"a": (1, 2), "bias": (3,)})]
    ['a:0', 'a:1']
    """
    own = _of_each(shapes, axis)
    chosen = _with_neurons(shapes) if units is None else {require(shapes, Neuron(name, 0)).unit for name in units}
    return [
        Neuron(name, i, own[name]) for name in shapes if name in chosen for i in range(width(shapes[name], own[name]))
    ]


def groups(shapes: units.Shapes, axis: Axes = "in") -> Groups:
    """All neurons, and which of them each parameter belongs to.

    Args:
        shapes: the captured units, in the order that numbers their P parameters.
        axis: as of ``every``.

    Returns:
        ``every(shapes, axis)``, and for each parameter number an index into it, −1 for those of units without neurons.

    >>> groups({"a": (2, 3)}).of, groups({"a": (2, 3)}, "out").of
    (tensor([0, 1, 2, 0, 1, 2]), tensor([0, 0, 0, 1, 1, 1]))
    """
    parts, start, own = [torch.zeros(0, dtype=torch.int64)], 0, _of_each(shapes, axis)
    for name, shape in shapes.items():
        if len(shape) < 2:
            parts.append(torch.full((torch.Size(shape).numel(),), -1))
            continue
        numbers = torch.arange(start, start + width(shape, own[name]))
        along = [-1 if i == dimension(own[name]) else 1 for i in range(len(shape))]
        parts.append(numbers.view(along).expand(shape).flatten())
        start += len(numbers)
    return Groups(tuple(every(shapes, axis)), torch.cat(parts))


def parameter_groups(parameters: Int[Tensor, "G"], n_parameters: int) -> Groups:
    """Groups of a single parameter each.

    Args:
        parameters: their numbers, each once.
        n_parameters: P.

    >>> parameter_groups(torch.tensor([3, 1]), 4).of
    tensor([-1,  1, -1,  0])
    """
    of = torch.full((n_parameters,), -1, dtype=torch.int64)
    of[parameters] = torch.arange(len(parameters))
    return Groups(tuple(parameters.tolist()), of)


def of_parameters(shapes: units.Shapes, parameters: Sequence[int], axis: Axes = "in") -> dict[Neuron, list[int]]:
    """The neurons of some parameters, in order of first appearance, each with its own of them.

    Args:
        shapes: the captured units, in order.
        parameters: parameter numbers, such as the most frequent outliers, most frequent first (the post's order).
        axis: as of ``every``.

    Returns:
        Neuron -> its parameters in the given order. Parameters of units without neurons are left out.

    Raises:
        ValueError: a number is out of range.

    >>> {str(neuron): of for neuron, of in of_parameters({"a": (2, 3)}, [4, 0, 1]).items()}
    {'a:1': [4, 1], 'a:0': [0]}
    """
    neurons, group_of = every(shapes, axis), groups(shapes, axis).of
    members: dict[Neuron, list[int]] = {}
    for parameter in parameters:
        if not 0 <= parameter < len(group_of):
            raise ValueError(f"parameter {parameter} is out of range: the units have {len(group_of)} parameters")
        if (group := int(group_of[parameter])) >= 0:
            members.setdefault(neurons[group], []).append(int(parameter))
    return members


def weights(params: Params, neuron: Neuron) -> Float[Tensor, "w *kernel"]:
    """The neuron's weights, a view: column or row ``index`` of its unit.

    Raises:
        ValueError: the parameters have no such neuron.
    """
    require({name: tuple(weight.shape) for name, weight in params.items()}, neuron)
    return params[neuron.unit].select(dimension(neuron.axis), neuron.index)


def operation_of(graph: Graph, neuron: Neuron) -> Operation:
    """The operation that a neuron's unit is the weight of.

    Raises:
        ValueError: there is no such neuron, or its unit is the weight of no or of several linear maps and convolutions.
    """
    return operation(graph, require(graph.shapes, neuron).unit)


def _with_neurons(shapes: units.Shapes) -> list[str]:
    return [name for name, shape in shapes.items() if len(shape) > 1]


def _of_each(shapes: units.Shapes, axis: Any) -> dict[str, Axis]:
    """Every unit's axis.

    Raises:
        ValueError: one is no axis, or a unit is given none.
    """
    if not isinstance(axis, Mapping):
        _require_axis(axis)
        return dict.fromkeys(shapes, axis)
    for name in _with_neurons(shapes):
        if name not in axis:
            raise ValueError(f"{name!r} is given no axis; those that are: {', '.join(axis) or 'none'}")
        _require_axis(axis[name])
    return {name: axis.get(name, "in") for name in shapes}


def _require_axis(axis: str) -> None:
    if axis not in ("in", "out"):
        raise ValueError(f"axis is {axis!r}; it must be 'in' or 'out'")
