"""Virtual parameters: the shift of uᵀ W v for any directions u, v of a unit, split over the tokens that caused it.

A single weight is uᵀ W v with axes for u and v, and nothing but the ReLU makes a layer keep to its axes: a residual
stream has none. So the leading singular directions of what a unit gained are looked at beside the weights that gained
most, and beside random rotations of the unit's input and output, which are the null: what is seen there too belongs to
the unit and not to the direction.

The amount of a token position is exact, as uᵀ W v is linear in W: (u · b)(v · a) with the factors a, b of its delta.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import polars as pl
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from devinterp_func import batches, keys, training, walks
from devinterp_func.per_example import Factor, Outer
from devinterp_func.rundir import Run
from devinterp_func.vocabulary import Vocab

KINDS = ("singular", "largest weights", "rotated")


class Directions(NamedTuple):
    """Pairs of directions of a unit, rows of norm 1."""

    output: Float[Tensor, "r o"]
    input: Float[Tensor, "r i"]


class Tally(NamedTuple):
    """Amounts of R pairs of directions by token, and how often each token stood at a position."""

    net: Float[Tensor, "V R"]
    gross: Float[Tensor, "V R"]  # sum of absolute values
    positions: Int[Tensor, "V"]

    def __repr__(self) -> str:
        return f"Tally of {self.net.shape[1]} directions over {int(self.positions.sum()):,} positions"


def singular(change: Float[Tensor, "o i"], r: int) -> Directions:
    """The r leading singular pairs of a unit's change: uᵀ ΔW v is the singular value.

    >>> change = torch.tensor([[0.0, -3.0], [2.0, 0.0]])
    >>> output, input = singular(change, 2)
    >>> (output @ change @ input.T).diagonal()
    tensor([3., 2.])
    """
    _check(change.shape, r)
    left, _, right = torch.linalg.svd(change, full_matrices=False)
    sign = _sign(left.gather(0, left.abs().argmax(0, keepdim=True)))  # an SVD leaves it open
    return Directions((left * sign).T[:r].contiguous(), (right * sign.T)[:r].contiguous())


def largest(change: Float[Tensor, "o i"], r: int) -> Directions:
    """The axes of the r weights that changed most, with the sign of their change."""
    _check(change.shape, r)
    flat = change.flatten()
    place = flat.abs().argsort(descending=True, stable=True)[:r]
    row, column = place // change.shape[1], place % change.shape[1]
    output, input = torch.eye(change.shape[0]).to(change)[row], torch.eye(change.shape[1]).to(change)[column]
    return Directions(output, input * _sign(flat[place])[:, None])


def rotated(change: Float[Tensor, "o i"], r: int, *, key: keys.Key | int) -> Directions:
    """r orthonormal directions of input and output, uniform over rotations, with the sign of uᵀ ΔW v."""
    _check(change.shape, r)
    output, input = (
        torch.linalg.qr(torch.from_numpy(keys.generator(keys.fold_in(key, side)).standard_normal((size, r))))[0].T
        for side, size in enumerate(change.shape)
    )
    output, input = output.to(change.dtype).contiguous(), input.to(change.dtype)
    return Directions(output, input * _sign(torch.einsum("ro,oi,ri->r", output, change, input))[:, None])


def amounts(directions: Mapping[str, Directions], factors: Mapping[str, Factor]) -> Float[Tensor, "n C R"]:
    """uᵀ Δ_j v of each pair, units one after the other, split over the token positions of each datum.

    Raises:
        ValueError: a unit is no linear map's weight, or was not captured.
    """
    parts = []
    for name, (output, input) in directions.items():
        factor = factors.get(name)
        if not isinstance(factor, Outer):
            raise ValueError(f"{name} has no factors of a linear map; the step has those of {', '.join(factors)}")
        parts.append((factor.signals @ output.T) * (factor.inputs @ input.T))
    return torch.cat(parts, dim=2)


def over(
    run: Run, directions: Mapping[str, Directions], start: int, stop: int
) -> Iterator[tuple[int, dict[str, Tally]]]:
    """Walks over a run's steps; yields each with the tallies so far, by target and by input token.

    Σ_v net[v] of a pair is uᵀ (W_stop − W_start) v. The tallies are the same arrays at every step.

    Raises:
        ValueError: the run does not have these steps, or of ``amounts``.
    """
    start, stop = walks.span(run, start, stop)
    config, recipe, corpus = training.load(run)
    data, total = batches.chunk(corpus.train, recipe.context), sum(len(pair.output) for pair in directions.values())
    zeros = torch.zeros(config.vocab_size, total, dtype=torch.float64)
    tallies = {
        side: Tally(zeros.clone(), zeros.clone(), torch.zeros(config.vocab_size, dtype=torch.int64))
        for side in ("target", "input")
    }
    for move in walks.roll(run, start, stop, tuple(directions)):
        if move.step >= start:
            each = amounts(directions, move.factors).flatten(0, 1).double()
            for side, tokens in (("target", data.targets), ("input", data.tokens)):
                add(tallies[side], tokens[move.datum].flatten(), each)
        yield move.step, tallies


def add(tally: Tally, tokens: Int[Tensor, "m"], amounts: Float[Tensor, "m R"]) -> None:
    """Adds positions to a tally, in place: it is too large to be made anew at every step."""
    tally.net.index_add_(0, tokens, amounts)
    tally.gross.index_add_(0, tokens, amounts.abs())
    tally.positions.index_add_(0, tokens, torch.ones_like(tokens))


# ---- can it be read?


def divergence(tally: Tally) -> Float[Tensor, "R"]:
    """Kullback-Leibler divergence of where a pair's gross amounts lie from where positions lie, by token; nats.

    0: every position moves it alike, whatever its token. A pair that only one token moves has the token's −log
    frequency.
    """
    p = tally.gross / tally.gross.sum(0)
    q = (tally.positions / tally.positions.sum())[:, None]
    return torch.xlogy(p, torch.where(q > 0, p / q, 1)).sum(0)


def consistency(tally: Tally) -> Float[Tensor, "R"]:
    """|Σ amounts| ÷ Σ |amounts|: 1 if every position pushed the same way."""
    return tally.net.sum(0).abs() / tally.gross.sum(0)


def frame(tallies: Mapping[str, Tally], names: list[tuple[str, str, int]]) -> pl.DataFrame:
    """A row for each pair: what it gained, how consistently, and how far its tokens are from the usual.

    Args:
        tallies: of ``over``.
        names: unit, kind and rank of each pair, in their order.
    """
    columns: dict[str, object] = dict(zip(("unit", "kind", "rank"), zip(*names, strict=True), strict=True))
    columns["change"] = tallies["target"].net.sum(0).tolist()
    columns["consistency"] = consistency(tallies["target"]).tolist()
    for side, tally in tallies.items():
        columns[f"{side}: divergence"] = divergence(tally).tolist()
    return pl.DataFrame(columns)


def summary(table: pl.DataFrame) -> pl.DataFrame:
    """By unit: the median divergence of each kind, and how sure it is that singular pairs have more than rotated ones.

    p is of a one-sided Mann-Whitney test over the pairs of the unit.
    """
    rows: list[dict[str, object]] = []
    for unit in table["unit"].unique(maintain_order=True):
        own, row = table.filter(pl.col("unit") == unit), {"unit": unit}
        for side in ("target", "input"):
            by = {kind: own.filter(pl.col("kind") == kind)[f"{side}: divergence"].to_numpy() for kind in KINDS}
            row |= {f"{side}: {kind}": float(pl.Series(values).median()) for kind, values in by.items()}  # type: ignore[arg-type]
            row[f"{side}: p"] = float(stats.mannwhitneyu(by["singular"], by["rotated"], alternative="greater").pvalue)
        rows.append(row)
    return pl.DataFrame(rows)


def words_frame(
    tallies: Mapping[str, Tally], names: list[tuple[str, str, int]], vocab: Vocab, most: int = 8
) -> pl.DataFrame:
    """The tokens that moved each pair most, up (with its change) and down, in all and for each time they occurred.

    Args:
        tallies, names: as in ``frame``.
        vocab: of the run.
        most: tokens of each list; those for each time must occur 20 times.
    """
    rows = []
    for r, (unit, kind, rank) in enumerate(names):
        row: dict[str, object] = {"unit": unit, "kind": kind, "rank": rank}
        for side, tally in tallies.items():
            net = tally.net[:, r]
            each = torch.where(tally.positions >= 20, net / tally.positions.clamp(min=1), 0)
            for what, score in (("up", net), ("down", -net), ("up, each time", each), ("down, each time", -each)):
                top = score.topk(min(most, len(score)))
                row[f"{side}: {what}"] = " ".join(vocab.tokens[v] for v in top.indices[top.values > 0].tolist())
        rows.append(row)
    return pl.DataFrame(rows)


def _sign(x: Tensor) -> Tensor:
    return torch.where(x < 0, -1.0, 1.0).to(x.dtype)


def _check(shape: tuple[int, ...], r: int) -> None:
    if not 1 <= r <= min(shape):
        raise ValueError(
            f"r is {r}; a unit of shape {tuple(shape)} has 1 to {min(shape)} orthogonal pairs of directions"
        )
