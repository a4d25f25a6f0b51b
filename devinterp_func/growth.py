"""Which words built a neuron and which wore it down: the growth of every neuron's squared norm, split over tokens.

In a step a neuron's weights w move by Δ = Σ_jk Δ_jk, the sum over the data j and their token positions k, and

    ‖w + Δ‖² − ‖w‖² = Σ_jk 2 ⟨w + Δ/2, Δ_jk⟩ = Σ_jk 2 ⟨w, Δ_jk⟩ + ‖Δ‖²

The terms of the first sum are credits and explain the growth to the last bit. Those of the second are of first order:
they leave the remainder ‖Δ‖², which at a large learning rate is most of the growth, to no one. Both are kept. A term
belongs to a position: to its target token, and to its input token. With the factors a, b of a linear map,
Δ_jk = b_jk ⊗ a_jk, the credits of column i are 2 a_jk,i ⟨b_jk, w_i + Δ_i/2⟩ and those of row o are
2 b_jk,o ⟨a_jk, w_o + Δ_o/2⟩: one matrix product for all neurons of a unit at once, where ``ledger`` takes a probe for
each. Units of other factors have no neurons here.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import polars as pl
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from devinterp_func import batches, neurons, per_example, training, walks
from devinterp_func.neurons import Axis, Neuron
from devinterp_func.per_example import Outer
from devinterp_func.rundir import Run
from devinterp_func.training import Move
from devinterp_func.tree import Params
from devinterp_func.vocabulary import Vocab

SHARES = ("share of 10 tokens", "their share of positions")
TINY = 1e-300  # in place of 0 in a denominator: a dead neuron's amounts are all 0


class Account(NamedTuple):
    """The growth of G neurons over some steps, by token; a row for each token, so that a step adds whole rows."""

    neurons: list[Neuron]  # as ``neurons.every`` has them
    target: Float64[Tensor, "V G"]  # credits by the target token of their position
    input: Float64[Tensor, "V G"]  # the same by the input token
    linear: Float64[Tensor, "V G"]  # first-order terms by target token
    positions: Int64[Tensor, "V"]  # how many had the target token
    remainder: Float64[Tensor, "G"]  # Σ ‖Δ‖² over the steps
    before: Float64[Tensor, "G"]  # squared norm before the first step
    after: Float64[Tensor, "G"]  # ... and after the last

    def growth(self) -> Float64[Tensor, "G"]:
        """What the steps did to each neuron's squared norm."""
        return self.after - self.before

    def residual(self) -> Float64[Tensor, "G"]:
        """What the credits leave unexplained: rounding."""
        return self.growth() - self.target.sum(0)

    def __repr__(self) -> str:
        size = f"{len(self.neurons):,} neurons by {len(self.target):,} tokens"
        growth, missed = (float(x.abs().sum()) for x in (self.growth(), self.residual()))
        return f"Account of {size}: Σ|growth| {growth:.4g}, residual {missed:.1e}"


def init(move: Move, axis: Axis, vocab_size: int) -> Account:
    """An account without entries, opened before a step.

    Args:
        move: the first step to come.
        axis: columns or rows of its units.
        vocab_size: tokens.

    Raises:
        ValueError: an unknown axis, or the step has no factors of a linear map.
    """
    maps = _maps(move)
    if not maps:
        raise ValueError(
            f"step {move.step} has factors of {', '.join(move.factors) or 'no unit'}; none is a linear map"
        )
    everyone = neurons.every({unit: per_example.shape(factor) for unit, factor in maps.items()}, axis)
    norms = _squares({unit: move.before[unit] for unit in maps}, axis)
    target, input, linear = (norms.new_zeros(vocab_size, len(everyone)) for _ in range(3))
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    return Account(everyone, target, input, linear, counts, torch.zeros_like(norms), norms, norms)


def add(account: Account, move: Move, tokens: Int[Tensor, "n C"], targets: Int[Tensor, "n C"]) -> Account:
    """The account after one more step. Its three large tables are written in place: the old account's are gone.

    Args:
        account: up to the step.
        move: the step.
        tokens, targets: of the step's data.

    Raises:
        ValueError: the account is of other neurons.
    """
    axis, V = account.neurons[0].axis, len(account.target)
    credit, linear = (x.double().flatten(0, 1) for x in of_move(move, axis))
    if credit.shape[1] != len(account.neurons):
        raise ValueError(
            f"the account is of {len(account.neurons)} neurons, but step {move.step} has {credit.shape[1]}"
        )
    account.target.index_add_(0, targets.flatten(), credit)
    account.input.index_add_(0, tokens.flatten(), credit)
    account.linear.index_add_(0, targets.flatten(), linear)
    after = {unit: move.after[unit].double() for unit in _maps(move)}
    moved = {unit: weight - move.before[unit].double() for unit, weight in after.items()}
    return account._replace(
        positions=account.positions + torch.bincount(targets.flatten(), minlength=V),
        remainder=account.remainder + _squares(moved, axis),
        after=_squares(after, axis),
    )


def of_move(move: Move, axis: Axis) -> tuple[Float[Tensor, "n C G"], Float[Tensor, "n C G"]]:
    """Credits and first-order terms of a step's growth at every position, neurons of all its linear maps in order."""
    credit, linear = [], []
    for unit, factor in _maps(move).items():
        before, after = move.before[unit], move.after[unit]
        credit.append(positions((before + after) / 2, factor, axis))
        linear.append(positions(before, factor, axis))
    return torch.cat(credit, -1), torch.cat(linear, -1)


def positions(weight: Float[Tensor, "o i"], factor: Outer, axis: Axis) -> Float[Tensor, "n C g"]:
    """2 ⟨w, Δ_jk⟩ for every neuron w of a unit and every position's part of the unit's update.

    Args:
        weight: the unit: before the step for terms of first order, half way for credits.
        factor: of the data's deltas.
        axis: columns or rows.

    >>> positions(torch.tensor([[1.0, 2.0]]), Outer(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[0.5]]])), "in")
    tensor([[[3., 2.]]])
    """
    inputs, signals = factor
    return 2 * inputs * (signals @ weight) if axis == "in" else 2 * signals * (inputs @ weight.mT)


def walk(
    run: Run, axes: Sequence[Axis] = ("in",), *, start: int = 0, stop: int | None = None
) -> Iterator[dict[Axis, Account]]:
    """Makes the steps of a run again and keeps account of all neurons of the units captured by default.

    Args:
        run: the run; only read.
        axes: columns, rows, or both in one walk; each takes three tables of (V, G) float64.
        start: first step.
        stop: step to stop before; None for as far as the run is recorded.

    Yields:
        After each step the account of each axis so far; the large tables are the same ones throughout.

    Raises:
        ValueError: start or stop out of range, or an unknown axis.
        RecordError: there is no run, or it is damaged.
    """
    start, stop = walks.span(run, start, stop)
    config, recipe, corpus = training.load(run)
    data = batches.chunk(corpus.train, recipe.context)
    found: dict[Axis, Account] = {}
    for move in walks.roll(run, start, stop):
        if move.step < start:  # on the way from the snapshot
            continue
        for axis in axes:
            account = found[axis] if axis in found else init(move, axis, config.vocab_size)
            found[axis] = add(account, move, data.tokens[move.datum], data.targets[move.datum])
        yield dict(found)


def _maps(move: Move) -> dict[str, Outer]:
    return {unit: factor for unit, factor in move.factors.items() if isinstance(factor, Outer)}


def _squares(weights: Params, axis: Axis) -> Float64[Tensor, "G"]:
    """Squared norm of every neuron."""
    return torch.cat([weight.double().square().sum(0 if axis == "in" else 1) for weight in weights.values()])


# ---- in words and tables


def by_unit(account: Account) -> dict[str, Account]:
    """The account of each unit's neurons; views."""
    found = {}
    for unit in dict.fromkeys(neuron.unit for neuron in account.neurons):
        own = [i for i, neuron in enumerate(account.neurons) if neuron.unit == unit]
        found[unit] = _part(account, own[0], own[-1] + 1)
    return found


def concentration(account: Account, most: int = 10) -> tuple[Float64[Tensor, "G"], Float64[Tensor, "G"]]:
    """The share of each neuron's ``most`` largest tokens in its Σ_v |target[v]|, and the share of positions they have.

    The second is what the first would be if every position weighed the same.
    """
    gross = account.target.abs()
    top = gross.topk(min(most, len(gross)), 0)
    share = top.values.sum(0) / gross.sum(0).clamp(min=TINY)
    return share, account.positions.double()[top.indices].sum(0) / account.positions.sum()


def unit_frame(account: Account) -> pl.DataFrame:
    """Each unit's growth and its parts, the worst residual of a neuron, and how far few tokens make up an account.

    The residual is relative to Σ_v |target[v]|; shares are of ``concentration``, medians over the neurons.
    """
    rows = []
    for unit, part in by_unit(account).items():
        row: dict[str, object] = {"unit": unit, "neurons": len(part.neurons), **_sums(part)}
        row["residual"] = float((part.residual().abs() / part.target.abs().sum(0).clamp(min=TINY)).max())
        shares = zip(SHARES, concentration(part), strict=True)
        rows.append(row | {name: float(share.median()) for name, share in shares})
    return pl.DataFrame(rows)


def neuron_frame(account: Account, vocab: Vocab, each: int = 2, most: int = 8, least: int = 20) -> pl.DataFrame:
    """The neurons of each unit that grew most and least, with the words that built them and wore them down.

    Args:
        account: of a walk.
        vocab: the vocabulary.
        each: so many neurons of either end.
        most: so many words of either sign.
        least: positions with a target token, for it to be listed by its amount per position.
    """
    rows = []
    for part in by_unit(account).values():
        order = part.growth().argsort(descending=True, stable=True).tolist()
        shares = torch.stack(concentration(part), 1).tolist()
        for i in dict.fromkeys([*order[:each], *order[-each:]]):
            own = _part(part, i, i + 1)
            row: dict[str, object] = {"neuron": str(own.neurons[0]), **_sums(own)}
            row |= dict(zip(SHARES, shares[i], strict=True))
            target, input = own.target[:, 0], own.input[:, 0]
            mean = torch.where(own.positions >= least, target / own.positions.clamp(min=1), 0)
            for reading, amount in (("", target), (", per position", mean), (", by input", input)):
                row[f"built by{reading}"] = _words(amount, 1, most, vocab)
                row[f"worn down by{reading}"] = _words(amount, -1, most, vocab)
            rows.append(row)
    return pl.DataFrame(rows)


def _part(account: Account, start: int, stop: int) -> Account:
    at = slice(start, stop)
    return account._replace(
        neurons=account.neurons[at],
        target=account.target[:, at],
        input=account.input[:, at],
        linear=account.linear[:, at],
        remainder=account.remainder[at],
        before=account.before[at],
        after=account.after[at],
    )


def _sums(account: Account) -> dict[str, float]:
    return {
        "before": float(account.before.sum()),
        "growth": float(account.growth().sum()),
        "first order": float(account.linear.sum()),
        "remainder": float(account.remainder.sum()),
    }


def _words(amount: Float64[Tensor, "V"], sign: int, most: int, vocab: Vocab) -> str:
    """The tokens with the largest amounts of one sign, each before its amount."""
    order = (sign * amount).argsort(descending=True, stable=True)[:most]
    chosen = order[sign * amount[order] > 0].tolist()
    return ", ".join(f"{vocab.tokens[v]} {float(amount[v]):+.2g}" for v in chosen)
