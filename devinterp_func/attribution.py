"""From the record to counts: which data moved which parameters, how often, and which tokens stood where they did.

A stream of shards (``records.scan_shards(run)``, or any other iterable of them, of either kind, per datum or per step)
is read once and leaves tables; rows are never all in memory. A *group* is a set of parameters: a neuron, a unit, a
single parameter. ``groups``, as ``neurons.groups`` gives them, say the group of every parameter number, −1 for none.

The functions compose: a record re-ranked by ``reselect`` is a stream of shards as any other.

Source: sections on attribution and token distributions of *Training Process Transparency through Gradient
Interpretability: Early Experiments on Toy Language Models* (Krzyzanowski and Hubinger 2023).
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int16, Int64, Num
from scipy import sparse
from torch import Tensor

from devinterp_func import tree
from devinterp_func.batches import Data
from devinterp_func.outliers import Outliers
from devinterp_func.steprecord import Shard

BLOCK = 2**19  # outliers, or flags of (row, group), worked on at once: what stays in the cache
COLUMNS = 256  # groups whose bags are counted at once

Over = Literal["bag", "target", "input"]
Shapes = Mapping[str, tuple[int, ...]]
Weigh = Callable[[Int[Tensor, "M"], Float[Tensor, "M"]], Num[Tensor, "M"]]
"""(parameter numbers, deltas) of some outliers -> their weights."""


class Rows(NamedTuple):
    """Outliers as flat columns (the post's Table 1), in the order of the record."""

    step: Int64[Tensor, "M"]
    epoch: Int64[Tensor, "M"]
    batch: Int64[Tensor, "M"]
    row: Int64[Tensor, "M"]  # of the datum in its batch
    datum: Int64[Tensor, "M"]  # id: row of the training data
    parameter: Int64[Tensor, "M"]
    delta: Float[Tensor, "M"]
    position: Int64[Tensor, "M"]  # token position that contributed most

    def __repr__(self) -> str:
        return f"Rows of {len(self.step):,} outliers"


class Tally(NamedTuple):
    """What the record says about G groups of parameters."""

    outliers: Int64[Tensor, "G"]
    weight: Float64[Tensor, "G"]  # sum of the outliers' weights
    events: Int16[Tensor, "N G"]  # steps in which a datum had at least one outlier in the group
    target: Num[
        Tensor, "G V"
    ]  # sum of weights by the target token at the outlier's position; int32, float32 if weighed
    input: Num[Tensor, "G V"]  # the same by the input token there

    def __repr__(self) -> str:
        (N, G), V = self.events.shape, self.target.shape[1]
        return f"Tally of {int(self.outliers.sum()):,} outliers in {G:,} groups by {N:,} data and {V:,} tokens"


def rows(shard: Shard) -> Rows:
    """All outliers of a shard as flat columns."""
    return _columns(_block(shard))


def attributed(shards: Iterable[Shard], parameters: Iterable[int]) -> Rows:
    """All outliers of some parameters, in the order of the record.

    Args:
        shards: the record.
        parameters: parameter numbers; those without outliers have no rows.

    Raises:
        ValueError: a number is negative.
    """
    chosen = np.fromiter((int(parameter) for parameter in parameters), np.int64)
    _require("parameter", torch.from_numpy(chosen), sys.maxsize, "parameters are numbered from 0")
    parts = [Rows(*(torch.zeros(0, dtype=dtype) for dtype in [torch.int64] * 6 + [torch.float32, torch.int64]))]
    for block in _blocks(shards):
        inside = torch.from_numpy(np.isin(block.parameter.numpy(), chosen))
        parts.append(_columns(block, inside.nonzero().squeeze(1)))
    return Rows(*(torch.cat(column) for column in zip(*parts, strict=True)))


def counts(shards: Iterable[Shard], n_parameters: int) -> Int64[Tensor, "E P"]:
    """Outliers by epoch and parameter; E is one more than the last epoch recorded, 0 for an empty stream.

    Raises:
        ValueError: a parameter number is not below ``n_parameters``.
    """
    found = torch.zeros(0, n_parameters, dtype=torch.int64)
    for block in _blocks(shards):
        _require("parameter", block.parameter, n_parameters, f"there are {n_parameters} parameters")
        if (missing := int(block.epoch.max()) + 1 - len(found)) > 0:
            found = torch.cat([found, found.new_zeros(missing, n_parameters)])
        flat = _per_outlier(block.epoch, block) * n_parameters + block.parameter
        found.view(-1).scatter_add_(0, flat, torch.ones_like(flat))
    return found


def by_unit(counts: Num[Tensor, "*E P"], shapes: Shapes) -> dict[str, Num[Tensor, "*E"]]:
    """Outliers of each unit.

    Args:
        counts: by parameter, and by whatever comes before.
        shapes: the captured units, in order.

    Raises:
        ValueError: the units have another number of parameters.

    >>> by_unit(torch.tensor([1, 2, 3]), {"a": (1, 2), "b": (1,)})
    {'a': tensor(3), 'b': tensor(3)}
    """
    sizes = [math.prod(shape) for shape in shapes.values()]
    if counts.shape[-1] != sum(sizes):
        raise ValueError(f"counts are of {counts.shape[-1]} parameters, but the units have {sum(sizes)}")
    return {name: part.sum(-1) for name, part in zip(shapes, counts.split(sizes, dim=-1), strict=True)}


def top_parameters(counts: Int[Tensor, "*E P"], m: int) -> Int64[Tensor, "n"]:
    """Numbers of the m parameters with the most outliers, ties by number; fewer where fewer have any.

    >>> top_parameters(torch.tensor([[1, 0, 5, 0], [4, 0, 0, 2]]), m=9)
    tensor([0, 2, 3])
    """
    total = counts.reshape(-1, counts.shape[-1]).sum(0)
    order = total.sort(descending=True, stable=True).indices[:m]
    return order[total[order] > 0]


def over_training(shards: Iterable[Shard], shapes: Shapes, n_bins: int, n_steps: int) -> Int64[Tensor, "bins units"]:
    """Outliers by bins of steps and by unit.

    Args:
        shards: the record.
        shapes: the captured units, in order.
        n_bins: step s falls into bin ⌊s · n_bins / n_steps⌋.
        n_steps: all steps lie in 0 to n_steps − 1.

    Raises:
        ValueError: a step or a parameter number is out of range.
    """
    sizes = torch.tensor([math.prod(shape) for shape in shapes.values()], dtype=torch.int64)
    unit_of = torch.arange(len(sizes)).repeat_interleave(sizes)
    found = torch.zeros(n_bins * len(sizes), dtype=torch.int64)
    for block in _blocks(shards):
        _require("step", block.step, n_steps, f"n_steps is {n_steps}")
        _require("parameter", block.parameter, len(unit_of), f"the units have {len(unit_of)} parameters")
        bin_of = _per_outlier(block.step * n_bins // n_steps, block)
        found += torch.bincount(bin_of * len(sizes) + unit_of[block.parameter], minlength=len(found))
    return found.view(n_bins, len(sizes))


# ---- groups and their tokens


def tally(
    shards: Iterable[Shard],
    data: Data,
    groups: Int[Tensor, "P"],
    n_groups: int,
    vocab_size: int,
    weigh: Weigh | None = None,
) -> Tally:
    """Outliers, attributed data and tokens of every group, in one pass over the record.

    Args:
        shards: the record.
        data: the run's training data, which the record's datum ids number.
        groups: the group of each parameter, −1 for none.
        n_groups: G.
        vocab_size: V.
        weigh: weights of outliers, such as ``by_delta()``; 1 by default. They count in ``weight``, ``target`` and
            ``input``.

    Returns:
        The tally. A datum's event is one step, however many of the group's parameters it moved there.

    Raises:
        ValueError: a parameter number beyond ``groups``, a group beyond ``n_groups``, a token beyond ``vocab_size``, or
            a datum id or token position that the data do not have, as they are not the run's.
    """
    (N, C), G, V = data.tokens.shape, n_groups, vocab_size
    _require("group", groups[groups != -1], G, f"there are {G} groups, and -1 stands for none")
    for tokens in data:
        _require_tokens(tokens, V)
    outliers, weight = torch.zeros(G, dtype=torch.int64), torch.zeros(G, dtype=torch.float64)
    events, seen = torch.zeros(N, G, dtype=torch.int16), torch.zeros(N, dtype=torch.int64)
    tables = [torch.zeros(G * V, dtype=torch.int32 if weigh is None else torch.float32) for _ in range(2)]
    for block in _blocks(shards, flags=G):
        _require_ours(block, data, len(groups))
        seen += torch.bincount(block.datum, minlength=N)
        block, group = _grouped(block, groups)
        outliers += torch.bincount(group, minlength=G)
        flags = torch.zeros(len(block.datum), G, dtype=torch.int16)
        flags.view(-1)[block.row * G + group] = 1
        events.index_add_(0, block.datum, flags)
        each = torch.ones_like(group) if weigh is None else weigh(block.parameter.long(), block.delta)
        weight.scatter_add_(0, group, each.double())
        for table, tokens in zip(tables, (data.targets, data.tokens), strict=True):
            token = tokens[block.datum].flatten()[block.row * C + block.position]
            table.scatter_add_(0, group * V + token, each.to(table.dtype))
    _require_int16(seen)
    return Tally(outliers, weight, events, *(table.view(G, V) for table in tables))


def by_delta() -> Weigh:
    """Weighs an outlier by |delta|, for ``tally``."""
    return lambda parameter, delta: delta.abs()


def by_value(values: Float[Tensor, "P"]) -> Weigh:
    """Weighs an outlier by its parameter's |value|, for ``tally``.

    Args:
        values: of all parameters by number: ``torch.cat([params[unit].flatten() for unit in shapes])``.
    """
    sizes = values.abs()
    return lambda parameter, delta: sizes[parameter]


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
    found = torch.empty(G, vocab_size, dtype=torch.float64 if events.is_floating_point() else torch.int64)
    for some in torch.arange(G).split(COLUMNS):  # float64 holds integers exactly up to 2⁵³
        found[some] = torch.from_numpy(occurrences @ events[:, some].double().numpy()).T.to(found.dtype)
    return found


def distribution(tally: Tally, data: Data, vocab_size: int, over: Over = "bag") -> Num[Tensor, "G V"]:
    """Token counts of each group by one of three readings.

    Args:
        tally: of ``tally``.
        data: the data it was made with.
        vocab_size: V.
        over: "bag" for all input tokens of the attributed data (the post); "target" for the token to be predicted where
            the datum moved the parameter most; "input" for the token read there.

    Raises:
        ValueError: ``over`` is none of these, or as ``bags``.
    """
    if over not in ("bag", "target", "input"):
        raise ValueError(f"over is {over!r}; it must be 'bag', 'target' or 'input'")
    return bags(tally.events, data, vocab_size) if over == "bag" else getattr(tally, over)


def reference(stream: Int[Tensor, "L"], vocab_size: int) -> Int64[Tensor, "V"]:
    """How often each token occurs in a stream; of the training stream, what attributed tokens are compared with.

    Raises:
        ValueError: a token is beyond ``vocab_size``.

    >>> reference(torch.tensor([2, 0, 2]), 4)
    tensor([1, 0, 2, 0])
    """
    _require_tokens(stream, vocab_size)
    return torch.bincount(stream, minlength=vocab_size)


# ---- outliers of another scale


def squares(shards: Iterable[Shard], n_parameters: int) -> Float64[Tensor, "P"]:
    """Σ delta² of every parameter over its recorded outliers.

    Raises:
        ValueError: a parameter number is not below ``n_parameters``.
    """
    found = torch.zeros(n_parameters, dtype=torch.float64)
    for block in _blocks(shards):
        _require("parameter", block.parameter, n_parameters, f"there are {n_parameters} parameters")
        found.scatter_add_(0, block.parameter.long(), block.delta.double().square())
    return found


def scales(
    squares: Float64[Tensor, "P"], n_events: int | Int[Tensor, "P"], groups: Int[Tensor, "P"] | None = None
) -> Float64[Tensor, "P"]:
    """The root mean square delta of each parameter, of its own or pooled over its group.

    Args:
        squares: of ``squares``.
        n_events: over how many deltas of a parameter to take the mean. The number of updates, steps · n, counts deltas
            that were not recorded as 0; ``counts(...).sum(0)`` takes the recorded ones alone.
        groups: the group of each parameter: its unit or neuron. A parameter in none (−1) gets ∞, so that ``reselect``
            puts it last.

    Returns:
        The scale of each parameter; 0 where there are no events.

    Raises:
        ValueError: ``groups`` or ``n_events`` is of another number of parameters.

    >>> scales(torch.tensor([8.0, 0.0, 36.0]).double(), 2, torch.tensor([0, 0, 1]))
    tensor([1.4142, 1.4142, 4.2426], dtype=torch.float64)
    """
    P, total, number = len(squares), squares, torch.as_tensor(n_events).double()
    for name, given in {"groups": groups, "n_events": number if number.ndim else None}.items():
        if given is not None and len(given) != P:
            raise ValueError(f"{name} has {len(given)} entries; it must have one for each of the {P} parameters")
    number = number.expand(P)
    if groups is not None:
        pool = torch.where(groups < 0, groups.max() + 1, groups).long()
        total, number = (torch.bincount(pool, weights=part)[pool] for part in (total, number))
    scale = (total / number.clamp(min=1)).sqrt()
    return scale if groups is None else scale.masked_fill(groups < 0, math.inf)


def reselect(shard: Shard, scale: Float[Tensor, "P"], k: int) -> Shard:
    """The shard with the k outliers of each datum, or step, that are largest relative to a scale: by |delta| / scale.

    With ``scales(squares(...), ...)`` this takes outliers relative to the parameter's own series, or normalised by unit
    or neuron (the post's footnotes 1 and 2). The record is censored at its own k: it holds only the largest |delta| of
    each datum, so an entry that is large for its scale but was not recorded cannot come back. Use a k well below the
    recorded one, and ``training.replay`` where a step's complete deltas matter. To re-rank a run::

        tally(map(partial(reselect, scale=scale, k=100), records.scan_shards(run)), ...)

    Args:
        shard: of either kind.
        scale: of each parameter, positive; 0/0 ranks last.
        k: at most the number recorded.

    Returns:
        The same steps, outliers by descending |delta| / scale, ties in the order of the record.

    Raises:
        ValueError: k or a parameter number is out of range.
    """
    found: Outliers = tree.map(_plain, shard.outliers)
    if not 1 <= k <= found.delta.shape[-1]:
        raise ValueError(f"k is {k}; it must be between 1 and the {found.delta.shape[-1]} outliers that are recorded")
    _require("parameter", found.parameter, len(scale), f"there are scales of {len(scale)} parameters")
    size = found.delta.double().abs() / scale[found.parameter.long()]
    order = size.masked_fill_(size.isnan(), 0).sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return shard._replace(outliers=Outliers(*(field.gather(-1, order) for field in found)))


def storage(n_parameters: int, n_updates: int | float, bytes_each: int = 4) -> int:
    """Bytes that it takes to log every update of every parameter: P · updates · bytes.

    For its model the post says 882 GB, for GPT-3 490 EB, without a derivation. The weights that it watches and its
    292,800 per-datum updates make 843 GB of float32 (785 GiB); with biases and norms 850 GB; 882 GB is what 306,250
    updates make. GPT-3's 300 billion tokens in sequences of 2,048 make 103 EB; 490 EB is 700 million updates.

    >>> storage(720_000, 292_800) / 1e9, storage(726_000, 292_800) / 1e9, storage(720_000, 306_250) / 1e9
    (843.264, 850.2912, 882.0)
    >>> storage(175_000_000_000, 300e9 / 2048) / 1e18, storage(175_000_000_000, 700e6) / 1e18
    (102.5390625, 490.0)
    """
    return int(n_parameters * n_updates * bytes_each)


# ---- the stream in blocks


class _Block(NamedTuple):
    """Some steps: their rows, each a datum of a step, and their outliers as flat columns; not to be written to."""

    step: Int[Tensor, "S"]
    epoch: Int[Tensor, "S"]
    batch: Int[Tensor, "S"]
    datum: Int[Tensor, "R"]
    row: Int64[Tensor, "M"]  # the outlier's among the R = S · n rows
    parameter: Int[Tensor, "M"]
    delta: Float[Tensor, "M"]
    position: Num[Tensor, "M"]


def _blocks(shards: Iterable[Shard], flags: int = 0) -> Iterator[_Block]:
    """The stream, a few steps at a time; ``flags`` is how many numbers the caller needs for each row."""
    for shard in shards:
        n, outliers = shard.datum.shape[1], shard.outliers.parameter.flatten(1).shape[1]
        for steps in torch.arange(len(shard.step)).split(max(1, BLOCK // max(1, n * flags, outliers))):
            yield _block(shard, slice(int(steps[0]), int(steps[-1]) + 1))


def _block(shard: Shard, steps: slice = slice(None)) -> _Block:
    fields = shard.step, shard.epoch, shard.batch, shard.datum, shard.outliers
    step, epoch, batch, datum, found = tree.map(lambda x: _plain(x)[steps], fields)
    first = torch.arange(len(step)).view(-1, *[1] * (found.datum.ndim - 1)) * datum.shape[1]
    columns = (first + found.datum, found.parameter, found.delta, found.position)
    return _Block(step, epoch, batch, datum.flatten(), *(column.flatten() for column in columns))


def _plain(x: Tensor) -> Tensor:
    """Without the guard of a frozen tensor, which costs time at every operation."""
    return x.as_subclass(Tensor)


def _per_outlier(values: Int[Tensor, "S"], block: _Block) -> Int64[Tensor, "M"]:
    """A number of each step, repeated for its outliers."""
    return values.long().repeat_interleave(len(block.row) // len(values))


def _columns(block: _Block, which: Int64[Tensor, "m"] | slice = slice(None)) -> Rows:
    step, epoch, batch = (_per_outlier(values, block)[which] for values in (block.step, block.epoch, block.batch))
    row, n = block.row[which], max(1, len(block.datum) // max(1, len(block.step)))
    parameter, position = (column[which].long() for column in (block.parameter, block.position))
    return Rows(step, epoch, batch, row % n, block.datum[row], parameter, block.delta[which].clone(), position)


def _grouped(block: _Block, groups: Int[Tensor, "P"]) -> tuple[_Block, Int64[Tensor, "m"]]:
    """The block with only the outliers that are in a group, and their groups."""
    group = groups[block.parameter].long()
    if not len(group) or int(group.min()) >= 0:
        return block, group
    inside = (group >= 0).nonzero().squeeze(1)
    kept = {name: getattr(block, name)[inside] for name in ("row", "parameter", "delta", "position")}
    return block._replace(**kept), group[inside]


# ---- errors at the boundary


def _require(what: str, values: Num[Tensor, "*M"], stop: int, why: str) -> None:
    """All values in 0 to stop − 1."""
    if values.numel():
        low, high = (int(value) for value in values.aminmax())
        if low < 0 or high >= stop:
            raise ValueError(f"{what} {low if low < 0 else high} is out of range: {why}")


def _require_tokens(tokens: Int[Tensor, "*M"], vocab_size: int) -> None:
    _require("token", tokens, vocab_size, f"vocab_size is {vocab_size}")


def _require_ours(block: _Block, data: Data, n_parameters: int) -> None:
    """The block's numbers are within the groups and the data."""
    N, C = data.tokens.shape
    _require("parameter", block.parameter, n_parameters, f"groups has {n_parameters} entries, one for each parameter")
    not_ours = "so these are not the data that the record was made with"
    _require("datum", block.datum, N, f"there are {N} data, {not_ours}")
    _require("token position", block.position, C, f"a datum has {C} tokens, {not_ours}")


def _require_int16(seen: Int64[Tensor, "N"]) -> None:
    if len(seen) and int(seen.max()) > torch.iinfo(torch.int16).max:
        raise ValueError(f"datum {int(seen.argmax())} is in {int(seen.max())} steps; events are counted up to 32767")
