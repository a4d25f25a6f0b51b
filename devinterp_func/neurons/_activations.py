"""The activations-only baseline: what neurons do on which tokens, read off the finished model alone.

A neuron's activation at a position is what meets its weights there: for ``axis="in"`` the number that enters its
column (a hidden neuron of the MLP for linear2, a coordinate of the stream for linear1), for ``axis="out"`` the number
that its row gives, bias included; where the weight is stored (in, out), it is the other way round. So "neuron
96" of the post's MLP layer 3.2 (``layers.2.linear2.weight``) is the hidden neuron 96 or the output coordinate 96. A
convolution's positions are the places of what it reads or gives. Dropout is off. Each position has a label, by which
activations are gathered: the input token there, or whatever else the caller gives, such as the target, the prediction,
or a class.

Source: the activations baseline of *Training Process Transparency through Gradient Interpretability: Early Experiments
on Toy Language Models* (Krzyzanowski and Hubinger 2023), its table of ranks and Figures 1-3; it read outputs.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func.graph import Graph, check_batch, forward
from devinterp_func.neurons._neuron import Axis, Neuron, operation_of, require, width
from devinterp_func.tree import Params

Labels = Int[Tensor, "n _"]  # a label a position, or one for all of them


class ActivationMeans(NamedTuple):
    """Activations of all neurons of a unit by the label of the position; float64."""

    count: Int[Tensor, "V"]  # type: ignore[assignment]  # positions with the label
    mean: Float[Tensor, "V w"]  # 0 where there are none
    variance: Float[Tensor, "V w"]  # over the positions, not estimated from a sample

    def __repr__(self) -> str:
        seen = int((self.count > 0).sum())
        return f"ActivationMeans({self.mean.shape[1]} neurons, {seen:,} tokens at {int(self.count.sum()):,} positions)"


class Extremes(NamedTuple):
    """Neurons by their mean activation on a token: the n least active, least first, and the n most, most first."""

    least: Int[Tensor, "n"]
    least_mean: Float[Tensor, "n"]
    most: Int[Tensor, "n"]
    most_mean: Float[Tensor, "n"]


def activations(
    graph: Graph, params: Params, batch: tuple[Any, ...], unit: str, axis: Axis = "in"
) -> Float[Tensor, "n C w"]:
    """Every activation of every neuron of a unit; large, see ``activations_by_token`` for a summary.

    Args:
        graph, params: the model.
        batch: data; may be cut short, such as ``(tokens,)``.
        unit: the weight of one linear map or convolution, such as layers.2.linear2.weight.
        axis: "in" for its columns, "out" for its rows; w is how many there are.

    Raises:
        ValueError: the unit is no such weight, or the axis is neither; what would be right is named.
    """
    return torch.cat([part for _, part in _parts(graph, params, batch, unit, axis)])


def activations_by_token(
    graph: Graph,
    params: Params,
    batch: tuple[Any, ...],
    unit: str,
    axis: Axis = "in",
    labels: Labels | None = None,
) -> ActivationMeans:
    """Count, mean and variance of the activations on each token, for all neurons of a unit in one pass.

    Args:
        graph, params, batch, unit, axis: as in ``activations``.
        labels: of the positions, or (n, 1) for one of each datum, such as a class: by default the batch's first tensor
            where that is tokens; targets or predictions by choice.

    Returns:
        V labels: the model's classes, or more where labels are beyond them.

    Raises:
        ValueError: as ``activations``, or there are no labels of the unit's positions.
    """
    labels, n_labels = _labels(graph, batch, labels)
    count = torch.zeros(n_labels, dtype=torch.int64)
    total = squares = torch.zeros(())
    for rows, part in _parts(graph, params, batch, unit, axis):
        if rows.start == 0:
            total, squares = torch.zeros(2, n_labels, part.shape[-1], dtype=torch.float64)
        flat, where = part.flatten(0, 1).double().cpu(), _at_positions(labels[rows], part).flatten().cpu()
        count += torch.bincount(where, minlength=n_labels)
        total.index_add_(0, where, flat)
        squares.index_add_(0, where, flat.square_())
    mean = total / count.clamp(min=1)[:, None]
    return ActivationMeans(count, mean, (squares / count.clamp(min=1)[:, None] - mean.square()).clamp_(min=0))


def extreme_neurons(means: ActivationMeans, token: int, n: int = 10) -> Extremes:
    """The neurons least and most active on a token (the post's table of ranks).

    >>> means = ActivationMeans(torch.tensor([1]), torch.tensor([[0.5, 2.0, -1.0]]), torch.zeros(1, 3))
    >>> extreme_neurons(means, token=0, n=1)
    Extremes(least=tensor([2]), least_mean=tensor([-1.]), most=tensor([1]), most_mean=tensor([2.]))
    """
    mean, order = means.mean[token].sort(stable=True)
    return Extremes(order[:n], mean[:n], order.flip(0)[:n], mean.flip(0)[:n])


def percentile(means: ActivationMeans, token: int, least_count: int = 20) -> Float[Tensor, "w"]:
    """Where a token's mean activation lies among those of frequent tokens, for each neuron.

    Args:
        means: of ``activations_by_token``.
        token: whose place is asked.
        least_count: of the tokens it is compared with.

    Returns:
        The percentage of frequent tokens, other than this one, with a lower mean; ties count half.

    Raises:
        ValueError: no other token is frequent.
    """
    others = means.count >= least_count
    others[token] = False
    if not bool(others.any()):
        most = int(means.count.max())
        raise ValueError(f"no token but {token} occurs {least_count} times, as least_count asks; at most {most} do")
    here, there = means.mean[token], means.mean[others]
    return 100 * ((there < here).double() + (there == here).double() / 2).mean(0)


def selectivity(means: ActivationMeans) -> Float[Tensor, "w V"]:
    """How much more active a neuron is on a token than elsewhere; a score for ``skill``.

        z[v] = (mean on v − mean) / √(s² / n_v · (N − n_v) / (N − 1))

    the standard score of the token's mean if its label lay at n_v of the N positions by chance, s² being the variance
    over all of them (the "test value" of Lebart, Morineau and Piron 1995). 0 where that is undefined.

    Args:
        means: of ``activations_by_token``.
    """
    here, n = means.count[:, None].double(), int(means.count.sum())
    mean = (here * means.mean).sum(0) / n
    variance = (here * (means.variance + (means.mean - mean).square())).sum(0) / n
    error = (variance / here.clamp(min=1) * (n - here) / max(n - 1, 1)).sqrt()
    return torch.where((here > 0) & (error > 0), (means.mean - mean) / error, 0).T


def activations_on(
    graph: Graph,
    params: Params,
    batch: tuple[Any, ...],
    neuron: Neuron,
    of: Sequence[int],
    labels: Labels | None = None,
) -> dict[int, Float[Tensor, "m"]]:
    """A neuron's activations on some tokens, to see one against the others (the post's Figures 1 and 2).

    Args:
        graph, params, batch, labels: as in ``activations_by_token``.
        neuron: whose activations.
        of: the tokens.

    Returns:
        Token -> the activation at each position with it, in order.
    """
    here, where = _on_tokens(graph, params, batch, neuron, of, labels)
    return {token: here[where == token, neuron.index] for token in of}


def activations_of_neighbours(
    graph: Graph,
    params: Params,
    batch: tuple[Any, ...],
    neuron: Neuron,
    token: int,
    reach: int = 5,
    labels: Labels | None = None,
) -> dict[int, Float[Tensor, "m"]]:
    """A neuron's activations on a token, and those of the neurons numbered next to it (the post's Figure 3).

    Args:
        graph, params, batch, neuron, labels: as in ``activations_on``.
        token: the token.
        reach: neighbours on either side, as far as there are any.

    Returns:
        Index -> activations; the same positions for every index.
    """
    here, _ = _on_tokens(graph, params, batch, neuron, [token], labels)
    around = range(max(0, neuron.index - reach), min(here.shape[1], neuron.index + reach + 1))
    return {index: here[:, index] for index in around}


def _on_tokens(
    graph: Graph,
    params: Params,
    batch: tuple[Any, ...],
    neuron: Neuron,
    of: Sequence[int],
    labels: Labels | None,
) -> tuple[Float[Tensor, "m w"], Int[Tensor, "m"]]:
    """The unit's activations at positions labelled with one of the tokens, and the labels there."""
    labels, _ = _labels(graph, batch, labels)
    wanted = torch.tensor(list(of), device=labels.device)
    data = torch.isin(labels, wanted).any(1)
    require(graph.shapes, neuron)
    here = [params[neuron.unit].new_zeros(0, width(graph.shapes[neuron.unit], neuron.axis))]
    where = [labels.new_zeros(0)]
    some = tuple(x[data] for x in check_batch(graph, batch))
    for rows, part in _parts(graph, params, some, neuron.unit, neuron.axis) if bool(data.any()) else ():
        own = _at_positions(labels[data][rows], part)
        inside = torch.isin(own, wanted)
        here.append(part[inside])
        where.append(own[inside])
    return torch.cat(here), torch.cat(where)


def _labels(graph: Graph, batch: tuple[Any, ...], labels: Labels | None) -> tuple[Labels, int]:
    """The labels, and how many different ones there may be."""
    if labels is None:
        labels = check_batch(graph, batch)[0]
        if labels.ndim != 2 or labels.is_floating_point():
            raise ValueError(
                f"the data's first tensor, {labels.dtype} of shape {tuple(labels.shape)}, is no tokens; "
                "give labels: (n, C), or (n, 1) for one of each datum"
            )
    classes = 0 if graph.head is None else graph.vocab_size
    return labels, max(classes, int(labels.max()) + 1 if labels.numel() else 0)


def _at_positions(labels: Labels, part: Float[Tensor, "n C w"]) -> Labels:
    """The labels of a unit's positions."""
    n, positions = part.shape[:2]
    if labels.shape[1] not in (1, positions):
        raise ValueError(f"there are {labels.shape[1]} labels a datum; the unit has {positions} positions")
    return labels.expand(n, positions)


@torch.no_grad()
def _parts(
    graph: Graph, params: Params, batch: tuple[Any, ...], unit: str, axis: Axis
) -> Iterator[tuple[slice, Float[Tensor, "b C w"]]]:
    """The activations of a few data at a time, and which data these are; once with none where there are no data."""
    side = operation_of(graph, Neuron(unit, 0, axis)).side(axis)
    for part in forward(graph, params, batch, watch=[unit]):
        inputs, outputs = part.seen[unit]
        yield part.rows, inputs if side == "inputs" else outputs
