"""From the record to counts: which data moved which parameters, how often, and which tokens stood where they did.

"Moved" is by present deltas: what a datum did in the step where it was seen, not what an optimizer's memory did with
its gradient later. A stream of shards (``run.shards()``, or any other iterable of them, of either kind, per datum or
per step) is read once and leaves tables; rows are never all in memory. A *group* is a set of parameters: a neuron, or a
single parameter. A tally knows which groups it is of.

Source: sections on attribution and token distributions of *Training Process Transparency through Gradient
Interpretability: Early Experiments on Toy Language Models* (Krzyzanowski and Hubinger 2023).
"""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int16, Int32, Int64, Num
from scipy import sparse
from torch import Tensor

from devinterp_func.batches import Data, n_data
from devinterp_func.neurons._neuron import Groups, Neuron
from devinterp_func.neurons._neuron import groups as columns_of
from devinterp_func.neurons._outlier_counts import _Block, _blocks, _require
from devinterp_func.records import Shard
from devinterp_func.units import Shapes

COLUMNS = 256  # groups whose bags are counted at once

Over = Literal["bag", "target", "input"]


class Tally(NamedTuple):
    """What the record says about G groups of parameters."""

    groups: tuple[Neuron | int, ...]  # which they are: neurons, or numbers of parameters
    outliers: Int64[Tensor, "G"]
    events: Int16[Tensor, "N G"]  # steps in which a datum had at least one outlier in the group
    target: Int32[Tensor, "G V"]  # outliers by the target token at their position, or by their datum's class
    input: Int32[Tensor, "G W"]  # the same by the input token there; W = V for text, else 0

    def row(self, group: Neuron | int) -> int:
        """A group's number.

        Raises:
            ValueError: it was not tallied; the units of those that were are named.
        """
        if group not in self.groups:
            names = (f"{g.unit} ({g.axis})" if isinstance(g, Neuron) else "parameters" for g in self.groups)
            there = ", ".join(dict.fromkeys(names)) or "nothing"
            raise ValueError(f"{group} was not tallied; what was: {there}")
        return self.groups.index(group)

    def __repr__(self) -> str:
        (N, G), V = self.events.shape, self.target.shape[1]
        labels = f"{V:,} tokens" if self.input.shape[1] or not V else f"{V:,} classes"
        return f"Tally of {int(self.outliers.sum()):,} outliers in {G:,} groups by {N:,} data" + (
            f" and {labels}" if V else ""
        )


# ---- groups and their tokens


def tally(
    shards: Iterable[Shard],
    data: Any,
    groups: Groups | Shapes,
    vocab_size: int = 0,
    classes: Int64[Tensor, "N"] | None = None,
) -> Tally:
    """Outliers, attributed data and tokens of every group, in one pass over the record.

    Args:
        shards: the record, such as ``run.shards()``.
        data: the run's training data, which the record's datum ids number; of any kind.
        groups: of ``neurons.groups``; the captured units stand for their columns.
        vocab_size: V, of tokens or classes; 0 where the data have neither.
        classes: of data that are no text: a class each, which stands at all their positions.

    Returns:
        The tally. A datum's event is one step, however many of the group's parameters it moved there. Only text has a
        table of inputs, and without text and classes there is no table of targets.

    Raises:
        ValueError: a parameter number or a group is beyond ``groups``, a token is beyond ``vocab_size``, or a datum id
            or token position is one that the data do not have, as they are not the run's.
    """
    groups = groups if isinstance(groups, Groups) else columns_of(groups)
    N, G = n_data(data), len(groups.members)
    _require("group", groups.of[groups.of != -1], G, f"there are {G} groups, and -1 stands for none")
    labels = _labels_of(data, classes, vocab_size)
    outliers = torch.zeros(G, dtype=torch.int64)
    events, seen = torch.zeros(N, G, dtype=torch.int16), torch.zeros(N, dtype=torch.int64)
    tables = [torch.zeros(G * vocab_size, dtype=torch.int32) for _ in labels]
    for block in _blocks(shards, flags=G):
        _require_ours(block, N, labels, len(groups.of))
        seen += torch.bincount(block.datum, minlength=N)
        block, group = _grouped(block, groups.of)
        outliers += torch.bincount(group, minlength=G)
        flags = torch.zeros(len(block.datum), G, dtype=torch.int16)
        flags.view(-1)[block.row * G + group] = 1
        events.index_add_(0, block.datum, flags)
        one = torch.ones_like(group, dtype=torch.int32)
        for table, label in zip(tables, labels, strict=True):
            C = label.shape[1]
            at = block.row * C + (block.position if C > 1 else 0)
            table.scatter_add_(0, group * vocab_size + label[block.datum].flatten()[at], one)
    _require_int16(seen)
    nothing = torch.zeros(G, 0, dtype=torch.int32)
    target, input = [*(table.view(G, vocab_size) for table in tables), nothing, nothing][:2]
    return Tally(groups.members, outliers, events, target, input)


def bags(events: Num[Tensor, "N G"], data: Data, vocab_size: int) -> Num[Tensor, "G V"]:
    """Tokens of each group's attributed data with multiplicity: every event brings its datum's whole input (the post).

        bags[g, v] = Σ_j events[j, g] · (how often v is among datum j's input tokens)

    Args:
        events: of a ``tally``; or any weights of data.
        data: the same data.
        vocab_size: V.

    Returns:
        Exact int64 for integers, float64 for weights.

    Raises:
        ValueError: events are of another number of data, or a token is beyond ``vocab_size``.

    >>> bags(torch.tensor([[1, 0], [2, 1]]), Data(torch.tensor([[0, 0], [1, 2]]), torch.zeros(2, 2).long()), 3)
    tensor([[2, 2, 2],
            [0, 1, 1]])
    """
    (N, C), G = data.tokens.shape, events.shape[1]
    if len(events) != N:
        raise ValueError(f"events are of {len(events)} data, but there are {N}")
    _require_tokens(data.tokens, vocab_size)
    place = data.tokens.flatten().numpy(), np.arange(N).repeat(C)
    occurrences = sparse.csr_matrix((np.ones(N * C), place), shape=(vocab_size, N))
    tokens = torch.empty(G, vocab_size, dtype=torch.float64 if events.is_floating_point() else torch.int64)
    for columns in torch.arange(G).split(COLUMNS):  # float64 holds integers exactly up to 2⁵³
        tokens[columns] = torch.from_numpy(occurrences @ events[:, columns].double().numpy()).T.to(tokens.dtype)
    return tokens


def distribution(tally: Tally, data: Data, over: Over = "bag") -> Num[Tensor, "G V"]:
    """Token counts of each group by one of three readings.

    Args:
        tally: of ``tally``.
        data: the data it was made with.
        over: "bag" for all input tokens of the attributed data (the post); "target" for the token to be predicted where
            the datum moved the parameter most; "input" for the token read there.

    Raises:
        ValueError: ``over`` is none of these, or as ``bags``.
    """
    if over not in ("bag", "target", "input"):
        raise ValueError(f"over is {over!r}; it must be 'bag', 'target' or 'input'")
    return bags(tally.events, data, tally.target.shape[1]) if over == "bag" else getattr(tally, over)


def _grouped(block: _Block, groups: Int[Tensor, "P"]) -> tuple[_Block, Int64[Tensor, "m"]]:
    """The block with only the outliers that are in a group, and their groups."""
    group = groups[block.parameter].long()
    if not len(group) or int(group.min()) >= 0:
        return block, group
    inside = (group >= 0).nonzero().squeeze(1)
    kept = {name: getattr(block, name)[inside] for name in ("row", "parameter", "delta", "position")}
    return block._replace(**kept), group[inside]


def _labels_of(data: Any, classes: Int64[Tensor, "N"] | None, vocab_size: int) -> list[Int64[Tensor, "N C"]]:
    """Target and input tokens of text; of other data their classes, if there are any, at one position each."""
    if isinstance(data, Data) and classes is None:
        labels = [data.targets, data.tokens]
    else:
        labels = [] if classes is None else [classes[:, None]]
    for own in labels:
        _require_tokens(own, vocab_size)
        if len(own) != n_data(data):
            raise ValueError(f"there are {len(own)} classes for {n_data(data)} data; there must be one for each")
    return labels


def _require_tokens(tokens: Int[Tensor, "*M"], vocab_size: int) -> None:
    _require("token", tokens, vocab_size, f"vocab_size is {vocab_size}")


def _require_ours(block: _Block, n: int, labels: list[Int64[Tensor, "N C"]], n_parameters: int) -> None:
    """The block's numbers are within the groups and the data."""
    _require("parameter", block.parameter, n_parameters, f"groups has {n_parameters} entries, one for each parameter")
    not_ours = "so these are not the data that the record was made with"
    _require("datum", block.datum, n, f"there are {n} data, {not_ours}")
    if len(labels) > 1:
        C = labels[0].shape[1]
        _require("token position", block.position, C, f"a datum has {C} tokens, {not_ours}")


def _require_int16(seen: Int64[Tensor, "N"]) -> None:
    if len(seen) and int(seen.max()) > torch.iinfo(torch.int16).max:
        raise ValueError(f"datum {int(seen.argmax())} is in {int(seen.max())} steps; events are counted up to 32767")
