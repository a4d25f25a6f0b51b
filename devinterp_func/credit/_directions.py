"""Virtual parameters: the shift of uᵀ W v for any directions u, v of a unit, split over the tokens that caused it.

A single weight is uᵀ W v with axes for u and v, and nothing but the ReLU makes a layer keep to its axes: a residual
stream has none. So the leading singular directions of what a unit gained are looked at beside the weights that gained
most, and beside random rotations of the unit's input and output, which are the null: what is seen there too belongs to
the unit and not to the direction.

The amount of a token position is exact, as uᵀ W v is linear in W: (u · b)(v · a) with the factors a, b of its delta;
bᵀ (u vᵀ ⊙ gain) a where an optimizer such as AdamW gives each entry a gain. It is the position's present share of the
step: where the optimizer remembers or decays, the shares of all positions are not all that a step did to uᵀ W v.
"""

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from devinterp_func import checks, keys, per_example
from devinterp_func.credit._by_token import TokenAmounts, add_by_token
from devinterp_func.credit._matrices import Products, outers, plain
from devinterp_func.per_example import Factor, Scaled
from devinterp_func.records import Run
from devinterp_func.tree import Params
from devinterp_func.units import Shapes

Side = Literal["target", "input"]
DIRECTION_KINDS = ("singular", "largest weights", "rotated")  # the last is the control


class Directions(NamedTuple):
    """Pairs of directions of a unit, rows of norm 1."""

    output: Float[Tensor, "r o"]
    input: Float[Tensor, "r i"]


class DirectionName(NamedTuple):
    """Which pair of directions of all."""

    unit: str
    kind: str  # of DIRECTION_KINDS
    rank: int  # from 0 within its unit and kind


# ---- which directions


def require_pairs(shapes: Shapes, r: int) -> None:
    """Refuses more pairs of directions than the smallest of some units has.

    Raises:
        ValueError: r is not from 1 to what the smallest unit has.
    """
    checks.integer("r", r)
    for unit, shape in shapes.items():
        if r > min(shape):
            raise ValueError(f"r is {r}; {unit} of shape {tuple(shape)} has 1 to {min(shape)} orthogonal pairs")


def choose_directions(
    change: Params, r: int, *, key: keys.Key | int
) -> tuple[dict[str, Directions], list[DirectionName]]:
    """r pairs of each kind in each unit, and their names in the same order.

    Args:
        change: what each unit, a matrix, gained.
        r: pairs of each kind.
        key: of the rotations.

    Raises:
        ValueError: as ``require_pairs``.
    """
    pairs, names = dict[str, Directions](), list[DirectionName]()
    for unit, gained in change.items():
        rotated = rotated_directions(gained, r, key=keys.fold_in(key, unit))
        kinds = (singular_directions(gained, r), largest_weights(gained, r), rotated)
        pairs[unit] = Directions(*map(torch.cat, zip(*kinds, strict=True)))
        names += [DirectionName(unit, kind, rank) for kind in DIRECTION_KINDS for rank in range(r)]
    return pairs, names


def singular_directions(change: Float[Tensor, "o i"], r: int) -> Directions:
    """The r leading singular pairs of a unit's change: uᵀ ΔW v is the singular value.

    >>> change = torch.tensor([[0.0, -3.0], [2.0, 0.0]])
    >>> output, input = singular_directions(change, 2)
    >>> (output @ change @ input.T).diagonal()
    tensor([3., 2.])
    """
    require_pairs({"the unit": tuple(change.shape)}, r)
    left, _, right = torch.linalg.svd(change, full_matrices=False)
    sign = _sign(left.gather(0, left.abs().argmax(0, keepdim=True)))  # an SVD leaves it open
    return Directions((left * sign).T[:r].contiguous(), (right * sign.T)[:r].contiguous())


def largest_weights(change: Float[Tensor, "o i"], r: int) -> Directions:
    """The axes of the r weights that changed most, with the sign of their change."""
    require_pairs({"the unit": tuple(change.shape)}, r)
    flat = change.flatten()
    place = flat.abs().argsort(descending=True, stable=True)[:r]
    row, column = place // change.shape[1], place % change.shape[1]
    output, input = torch.eye(change.shape[0]).to(change)[row], torch.eye(change.shape[1]).to(change)[column]
    return Directions(output, input * _sign(flat[place])[:, None])


def rotated_directions(change: Float[Tensor, "o i"], r: int, *, key: keys.Key | int) -> Directions:
    """r orthonormal directions of input and output, uniform over rotations, with the sign of uᵀ ΔW v."""
    require_pairs({"the unit": tuple(change.shape)}, r)
    output, input = (
        torch.linalg.qr(torch.from_numpy(keys.generator(keys.fold_in(key, side)).standard_normal((size, r))))[0].T
        for side, size in enumerate(change.shape)
    )
    output, input = output.to(change).contiguous(), input.to(change)
    return Directions(output, input * _sign(torch.einsum("ro,oi,ri->r", output, change, input))[:, None])


# ---- what moved them


def directions(
    run: Run, pairs: Mapping[str, Directions], start: int, stop: int
) -> Iterator[tuple[int, dict[Side, TokenAmounts]]]:
    """Replays a run's steps; yields each with the amounts of all pairs so far, by target and by input token.

    Σ_v net[v] of a pair is uᵀ (W_stop − W_start) v less what past and decay did in these steps, which is nothing under
    SGD without momentum and weight decay. The tables are the same arrays at every step.

    Args:
        run: the run; only read.
        pairs: of any units of the model that are linear maps, captured by the run or not.
        start, stop: steps.

    Raises:
        ValueError: the run does not have these steps, or of ``direction_amounts``.
        RecordError: its data are no text.
    """
    start, stop = run.span(start, stop)
    data, V = run.data, len(run.corpus.vocab)
    shape = V, sum(len(pair.output) for pair in pairs.values())
    tables: dict[Side, TokenAmounts] = {"target": _no_amounts(shape), "input": _no_amounts(shape)}
    for move in run.moves(start, stop, tuple(pairs)):
        amounts = direction_amounts(pairs, move.factors).cpu()
        add_by_token(tables["target"], amounts, data.targets[move.datum])
        add_by_token(tables["input"], amounts, data.tokens[move.datum])
        yield move.step, tables


def direction_amounts(pairs: Mapping[str, Directions], factors: Mapping[str, Factor]) -> Float[Tensor, "n C R"]:
    """uᵀ Δ_j v of each pair, units one after the other, split over the token positions of each datum.

    Raises:
        ValueError: a unit is no linear map's weight, or was not captured.
    """
    parts = []
    for name, (output, input) in pairs.items():
        own = outers(factors[name]) if name in factors else ()
        if not own:
            raise ValueError(f"{name} has no factors of a linear map; the step has those of {', '.join(factors)}")
        parts.append(reduce(torch.add, (_pair_amounts(output, input, products) for products in own)))
    return torch.cat(parts, dim=2)


def _pair_amounts(
    output: Float[Tensor, "r o"], input: Float[Tensor, "r i"], products: Products
) -> Float[Tensor, "n C r"]:
    if isinstance(products, Scaled):  # a gain mixes the two sides: a matrix product for each pair
        pairs = zip(output, input, strict=True)
        return torch.stack([per_example.amounts({"": torch.outer(u, v)}, {"": products}) for u, v in pairs], -1)
    inputs, signals, _ = plain(products)
    output, input = output.to(signals.device), input.to(signals.device)
    return (signals @ output.T) * (inputs @ input.T)


# ---- can it be read?


def divergence(amounts: TokenAmounts) -> Float[Tensor, "R"]:
    """Kullback-Leibler divergence of where a pair's gross amounts lie from where positions lie, by token; nats.

    0: every position moves it alike, whatever its token. A pair that only one token moves has the token's −log
    frequency.
    """
    p = amounts.gross / amounts.gross.sum(0)
    q = (amounts.positions / amounts.positions.sum())[:, None]
    return torch.xlogy(p, torch.where(q > 0, p / q, 1)).sum(0)


def consistency(amounts: TokenAmounts) -> Float[Tensor, "R"]:
    """|Σ amounts| ÷ Σ |amounts|: 1 if every position pushed the same way."""
    return amounts.net.sum(0).abs() / amounts.gross.sum(0)


def _no_amounts(shape: tuple[int, int]) -> TokenAmounts:
    net = torch.zeros(shape, dtype=torch.float64)
    return TokenAmounts(net, torch.zeros_like(net), torch.zeros(shape[0], dtype=torch.int64))


def _sign(x: Tensor) -> Tensor:
    return torch.where(x < 0, -1.0, 1.0).to(x.dtype)
