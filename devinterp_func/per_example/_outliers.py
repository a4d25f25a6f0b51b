"""Outliers: the entries of a step's per-datum deltas with the largest absolute values, exactly.

The order is that of a full sort: by |delta| descending, ties by parameter number ascending. Parameters are numbered
through the captured units in order, row-major within a unit.
"""

from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import tree
from devinterp_func.per_example._factors import (
    Factor,
    dtype_of,
    n_data,
    n_positions,
    shape_of,
    size_of,
    some_values,
)
from devinterp_func.per_example._form import form
from devinterp_func.per_example._maps import take_data
from devinterp_func.per_example._products import contributions
from devinterp_func.tree import Tree

Per = Literal["datum", "step"]
MOST = 2**32  # parameters whose numbers sort exactly
BLOCK = 64  # the shortest run of numbers whose maximum torch takes at the speed of memory
CONTRIBUTIONS = 2**24  # numbers that are held at once in search of the leading positions


class Outliers(NamedTuple):
    """The k largest |delta| of each datum, shapes (n, k), or of the whole step, shapes (k,); largest first."""

    parameter: Int[Tensor, "*n k"]  # number among the captured units
    delta: Float[Tensor, "*n k"]
    position: Int[Tensor, "*n k"]  # position that contributed most; −1 where unknown
    datum: Int[Tensor, "*n k"]  # row in the batch

    def __repr__(self) -> str:
        return f"Outliers{list(self.delta.shape)}: |delta| up to {self.delta.abs().max():.4g}"


def top_k(deltas: Tree, k: int, per: Per = "datum") -> Outliers:
    """The k entries of largest |delta| of each datum, or of the step, exactly.

    Args:
        deltas: per-datum deltas of some units, any tree, each leaf with a leading n; its order numbers the parameters.
        k: how many; at most the number of parameters.
        per: "datum" for k of each datum, "step" for k of all data together (post: about 0.13 % of the architecture).

    Raises:
        ValueError: if k is out of range.
        FloatingPointError: if a delta is NaN or infinite; unit and datum are named.

    >>> top_k({"w": torch.tensor([[0.0, -3.0, 2.0]])}, k=2).delta
    tensor([[-3.,  2.]])
    """
    units = tree.flat(deltas)
    _check(k, sum(delta[0].numel() for delta in units.values()), per)
    _require_finite(units)
    flat = torch.cat([delta.reshape(len(delta), -1) for delta in units.values()], dim=1)
    parameter, delta = select(flat, k)
    outliers = Outliers(parameter, delta, torch.full_like(parameter, -1), _rows(parameter))
    return outliers if per == "datum" else top_k_of_step(outliers, k)


def top_k_from_factors(
    factors: dict[str, Factor], k: int, per: Per = "datum", buffer: Float[Tensor, "n P"] | None = None
) -> Outliers:
    """``top_k`` of the deltas whose factors are given, each outlier with the position that contributed most.

    Args:
        factors: of deltas, not of gradients: ``optim.delta_factors(capture.factors, split, n)``.
        k, per: as in ``top_k``.
        buffer: ``workspace`` for the deltas; fewer rows than data form them a few data at a time.

    Raises:
        ValueError, FloatingPointError: as ``top_k``.
    """
    sizes = {name: size_of(factor) for name, factor in factors.items()}
    n = n_data(next(iter(factors.values())))
    _check(k, sum(sizes.values()), per)
    buffer = workspace(factors, n) if buffer is None else buffer
    parts = []
    for start in range(0, n, len(buffer)):
        some = {name: take_data(factor, slice(start, start + len(buffer))) for name, factor in factors.items()}
        try:
            parts.append(select(form_flat(some, buffer), k))
        except FloatingPointError:
            for name, factor in factors.items():
                _require_finite({name: form(factor)})
            raise
    parameter, delta = (torch.cat(part) for part in zip(*parts, strict=True))
    outliers = Outliers(parameter, delta, leading_positions(factors, sizes, parameter), _rows(parameter))
    return outliers if per == "datum" else top_k_of_step(outliers, k)


def workspace(factors: dict[str, Factor], n: int) -> Float[Tensor, "n P"]:
    """Scratch for the flat deltas of n data: a row a datum, padded with zeros to a whole number of blocks."""
    total = sum(size_of(factor) for factor in factors.values())
    some = next(iter(factors.values()))
    return some_values(some).new_zeros(n, -(-total // BLOCK) * BLOCK, dtype=dtype_of(some))


def form_flat(factors: dict[str, Factor], buffer: Float[Tensor, "m P"]) -> Float[Tensor, "n P"]:
    """The deltas of n ≤ m data, unit after unit, written into the buffer's first n rows."""
    start = 0
    for factor in factors.values():
        n, stop = n_data(factor), start + size_of(factor)
        form(factor, out=buffer[:n, start:stop].view(n, *shape_of(factor)))
        start = stop
    return buffer[:n]


def form_units(factors: dict[str, Factor]) -> dict[str, Float[Tensor, "n ..."]]:
    """The deltas of all data by unit: views of the numbers that ``top_k_from_factors`` selects from, bit for bit."""
    flat = form_flat(factors, workspace(factors, n_data(next(iter(factors.values())))))
    sizes = [size_of(factor) for factor in factors.values()]
    parts = flat[:, : sum(sizes)].split(sizes, dim=1)
    return {
        name: part.view(len(part), *shape_of(factor))
        for (name, factor), part in zip(factors.items(), parts, strict=True)
    }


def select(values: Float[Tensor, "n P"], k: int) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Index and value of the k largest |values| of each row, ties by index; the answer of ``select_by_sorting``.

    The k blocks with the largest maxima (ties by block) hold the k largest entries: before an entry outside them come k
    entries, one a block. And no entry below the least of those maxima is among the k. So one pass over the values finds
    the maxima, and little over k entries are sorted.

    Raises:
        FloatingPointError: if a value is NaN or infinite; its row is named.
    """
    if values.dtype != torch.float32 or values.shape[1] % BLOCK:
        return select_by_sorting(values, k)
    blocks = rearrange(values, "n (B b) -> n B b", b=BLOCK)
    maxima = torch.maximum(blocks.amax(-1), blocks.amin(-1).neg_()).add_(0.0)  # makes of a -0.0 a 0.0
    _require_finite_rows(maxima)
    chosen = _sort_key(maxima, torch.arange(maxima.shape[1], device=values.device))
    chosen = chosen.topk(min(k, maxima.shape[1]), sorted=False).indices
    least = maxima.gather(1, chosen).amin(1) if chosen.shape[1] == k else maxima.new_zeros(len(values))
    start = torch.arange(0, blocks.shape[0] * blocks.shape[1], blocks.shape[1], device=values.device)
    candidates = blocks.flatten(0, 1)[(chosen + start[:, None]).flatten()].abs_().unflatten(0, chosen.shape)
    row, block, offset = (candidates >= least[:, None, None]).nonzero(as_tuple=True)
    index = chosen[row, block] * BLOCK + offset
    first = torch.searchsorted(row, torch.arange(len(values), device=values.device))
    rank = torch.arange(len(row), device=values.device) - first[row]
    keys = row.new_full((len(values), int(rank.max()) + 1), -1)
    keys[row, rank] = _sort_key(candidates[row, block, offset], index)
    parameter = _index_of(keys.sort(dim=1, descending=True).values[:, :k])
    return parameter, values.gather(1, parameter)


def select_by_sorting(values: Float[Tensor, "n P"], k: int) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """``select`` by sorting everything: the definition."""
    _require_finite_rows(values)
    parameter = values.abs().sort(dim=1, descending=True, stable=True).indices[:, :k]
    return parameter, values.gather(1, parameter)


def top_k_of_step(outliers: Outliers, k: int) -> Outliers:
    """The k largest of all data together, ties by datum, then parameter; each datum needs its own k largest.

    Outliers that are of a step already are cut to the first k.
    """
    order = outliers.delta.flatten().abs().sort(descending=True, stable=True).indices[:k]
    # Rows are sorted by (|delta|, parameter) and follow each other by datum, so a stable sort breaks ties rightly.
    return Outliers(*(field.flatten()[order] for field in outliers))


def leading_positions(
    factors: dict[str, Factor], sizes: dict[str, int], parameter: Int[Tensor, "n k"]
) -> Int[Tensor, "n k"]:
    """The position with the largest absolute contribution to each entry of each datum."""
    found, start = torch.empty_like(parameter), 0
    for name, factor in factors.items():
        here = ((parameter >= start) & (parameter < start + sizes[name])).nonzero(as_tuple=True)
        at_once = max(1, CONTRIBUTIONS // n_positions(factor))
        for datum, rank in zip(*(x.split(at_once) for x in here), strict=True):
            parts = contributions(factor, datum, parameter[datum, rank] - start)
            found[datum, rank] = parts.abs().argmax(1)
        start += sizes[name]
    return found


def _sort_key(magnitude: Float[Tensor, "..."], index: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """(|value| descending, index ascending) as one integer to sort by: a non-negative float orders like its bits."""
    return (magnitude.view(torch.int32).long() << 32) | (2**32 - 1 - index)


def _index_of(key: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    return 2**32 - 1 - (key & (2**32 - 1))


def _rows(parameter: Int[Tensor, "n k"]) -> Int[Tensor, "n k"]:
    return torch.arange(len(parameter), device=parameter.device)[:, None].expand_as(parameter)


def _check(k: int, size: int, per: str) -> None:
    if not 1 <= k <= size:
        raise ValueError(f"k is {k}; it must be between 1 and the {size} captured parameters")
    if size > MOST:
        raise ValueError(f"{size} parameters are captured; at most {MOST} sort exactly: capture fewer units")
    if per not in ("datum", "step"):
        raise ValueError(f"per is {per!r}; it must be 'datum' or 'step'")


def _require_finite(deltas: dict[str, Float[Tensor, "n ..."]]) -> None:
    for name, delta in deltas.items():
        _require_finite_rows(delta.reshape(len(delta), -1), f"{name}: ")


def _require_finite_rows(values: Float[Tensor, "n P"], where: str = "") -> None:
    bad = (~torch.isfinite(values)).any(1)
    if bool(bad.any()):
        raise FloatingPointError(f"{where}datum {int(bad.nonzero()[0])} of the batch has a NaN or infinite delta")
