"""Which tokens built a neuron and which wore it down: the growth of every neuron's squared norm, split over tokens.

In a step a neuron's weights w move by Δ = Σ_jk Δ_jk, the sum over the data j and their token positions k, and

    ‖w + Δ‖² − ‖w‖² = Σ_jk 2 ⟨w + Δ/2, Δ_jk⟩ = Σ_jk 2 ⟨w, Δ_jk⟩ + ‖Δ‖²

The terms of the first sum are credits and explain the growth to the last bit. Those of the second are of first order:
they leave the remainder ‖Δ‖², which at a large learning rate is most of the growth, to no one. Both are kept. A term
belongs to a position: to its target token, and to its input token. With the factors a, b of a linear map,
Δ_jk = b_jk ⊗ a_jk, the credits of column i are 2 a_jk,i ⟨b_jk, w_i + Δ_i/2⟩ and those of row o are
2 b_jk,o ⟨a_jk, w_o + Δ_o/2⟩: one matrix product for all neurons of a unit at once, where ``ledger`` takes a probe for
each. Where the optimizer gives each entry a gain, as AdamW does, the weight is multiplied by it first.

Where the optimizer remembers or decays, the step is Δ = Σ_jk Δ_jk + past + decay, and what these two add to a squared
norm, 2 ⟨w + Δ/2, past⟩ and 2 ⟨w + Δ/2, decay⟩, is no token's of the step. The remainder is then ⟨Δ, Σ_jk Δ_jk⟩.

Rows and columns are those of the weight as it is stored. Convolutions, tables that are looked up, units of other
factors, and maps that do not read every token's place have no neurons here.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from devinterp_func import neurons, per_example
from devinterp_func.credit._matrices import Products, outers, plain, pulled
from devinterp_func.neurons import Axis, Neuron
from devinterp_func.records import Run
from devinterp_func.training import Move
from devinterp_func.tree import Params

TINY = 1e-300  # in place of 0 in a denominator: a dead neuron's amounts are all 0


class NormGrowth(NamedTuple):
    """The growth of G neurons' squared norms over some steps, by token; a row a token, so that a step adds whole rows.

    ``TokenAmounts`` of the same would hold gross amounts too, at twice the memory.
    """

    neurons: list[Neuron]  # as ``neurons.every`` has them
    target: Float64[Tensor, "V G"]  # credits by the target token of their position
    input: Float64[Tensor, "V G"]  # the same by the input token
    linear: Float64[Tensor, "V G"]  # first-order terms by target token
    positions: Int64[Tensor, "V"]  # how many had the target token
    remainder: Float64[Tensor, "G"]  # Σ ⟨Δ, Σ_j Δ_j⟩ over the steps: Σ ‖Δ‖² without past and decay
    past: Float64[Tensor, "G"]  # what data of earlier steps did, through the optimizer's memory
    decay: Float64[Tensor, "G"]  # what weight decay did
    before: Float64[Tensor, "G"]  # squared norm before the first step
    after: Float64[Tensor, "G"]  # ... and after the last

    def growth(self) -> Float64[Tensor, "G"]:
        """What the steps did to each neuron's squared norm."""
        return self.after - self.before

    def missed(self) -> Float64[Tensor, "G"]:
        """What credits, past and decay miss: rounding."""
        return self.growth() - self.target.sum(0) - self.past - self.decay

    def missed_share(self) -> Float64[Tensor, "G"]:
        """|missed| as a share of Σ_v |target[v]|."""
        return self.missed().abs() / self.target.abs().sum(0).clamp(min=TINY)

    def concentration(self, most: int = 10) -> tuple[Float64[Tensor, "G"], Float64[Tensor, "G"]]:
        """The share of each neuron's ``most`` largest tokens in its Σ_v |target[v]|, and their share of positions.

        The second is what the first would be if every position weighed the same.
        """
        gross = self.target.abs()
        top = gross.topk(min(most, len(gross)), 0)
        share = top.values.sum(0) / gross.sum(0).clamp(min=TINY)
        return share, self.positions.double()[top.indices].sum(0) / self.positions.sum()

    def per_position(self, least: int) -> Float64[Tensor, "V G"]:
        """Credits per position with the target token; 0 for tokens with fewer than ``least`` positions."""
        often = (self.positions >= least)[:, None]
        return torch.where(often, self.target / self.positions.clamp(min=1)[:, None], 0)

    def part(self, start: int, stop: int) -> "NormGrowth":
        """The neurons start to stop − 1; views."""
        at = slice(start, stop)
        return NormGrowth(
            self.neurons[at],
            self.target[:, at],
            self.input[:, at],
            self.linear[:, at],
            self.positions,
            self.remainder[at],
            self.past[at],
            self.decay[at],
            self.before[at],
            self.after[at],
        )

    def by_unit(self) -> "dict[str, NormGrowth]":
        """The neurons of each unit; views."""
        names = [neuron.unit for neuron in self.neurons]
        starts = {unit: names.index(unit) for unit in dict.fromkeys(names)}
        return {unit: self.part(start, start + names.count(unit)) for unit, start in starts.items()}

    def __repr__(self) -> str:
        size = f"{len(self.neurons):,} neurons by {len(self.target):,} tokens"
        growth, missed = (float(x.abs().sum()) for x in (self.growth(), self.missed()))
        return f"NormGrowth of {size}: Σ|growth| {growth:.4g}, misses {missed:.1e}"


def norms(
    run: Run, axes: Sequence[Axis] = ("in",), *, start: int = 0, stop: int | None = None
) -> Iterator[dict[Axis, NormGrowth]]:
    """Replays the steps of a run and splits the growth of every neuron of the layers' matrices.

    Args:
        run: the run; only read, and whatever units it captured.
        axes: columns, rows, or both in one replay; each takes three tables of (V, G) float64.
        start: first step.
        stop: step to stop before; None for as far as the run is recorded.

    Yields:
        After each step the growth so far, by axis; the large tables are the same ones throughout.

    Raises:
        ValueError: start or stop out of range, an unknown axis, or none.
        RecordError: there is no run, it is damaged, or its data are no text.
    """
    if not axes or not {*axes} <= {"in", "out"}:
        raise ValueError(f"axes are {list(axes)}; they must be 'in', 'out', or both")
    V, data, growth = len(run.corpus.vocab), run.data, dict[Axis, NormGrowth]()
    for move in run.moves(start, stop, captured=()):
        for axis in axes:
            before = growth[axis] if axis in growth else init_norms(move, axis, V, data.tokens.shape[1])
            growth[axis] = add_norms(before, move, data.tokens[move.datum], data.targets[move.datum])
        yield dict(growth)


# ---- a step


def init_norms(move: Move, axis: Axis, vocab_size: int, context: int) -> NormGrowth:
    """No growth yet, before a step.

    Args:
        move: the first step to come.
        axis: columns or rows of its units.
        vocab_size: tokens.
        context: C, tokens of a datum.

    Raises:
        ValueError: an unknown axis, or the step has no factors of a linear map.
    """
    maps = _maps(move, context)
    if not maps:
        raise ValueError(
            f"step {move.step} has factors of {', '.join(move.factors) or 'no unit'}; none is a linear map with a "
            f"position for each of {context} tokens"
        )
    weights = {unit: move.before[unit] for unit in maps}
    everyone = neurons.every({unit: tuple(weight.shape) for unit, weight in weights.items()}, axis)
    before = _squares(weights, axis)
    target, input, linear = (before.new_zeros(vocab_size, len(everyone)) for _ in range(3))
    counts = torch.zeros(vocab_size, dtype=torch.int64, device=before.device)
    nothing = torch.zeros_like(before)
    return NormGrowth(everyone, target, input, linear, counts, nothing, nothing, nothing, before, before)


def add_norms(growth: NormGrowth, move: Move, tokens: Int[Tensor, "n C"], targets: Int[Tensor, "n C"]) -> NormGrowth:
    """The growth after one more step. The three large tables are written in place: the old growth's are gone.

    Args:
        growth: up to the step.
        move: the step.
        tokens, targets: of the step's data.

    Raises:
        ValueError: the growth is of other neurons.
    """
    axis, V, context = growth.neurons[0].axis, len(growth.target), tokens.shape[1]
    credit, linear = (x.double().flatten(0, 1) for x in norm_terms(move, axis, context))
    if credit.shape[1] != len(growth.neurons):
        raise ValueError(f"the growth is of {len(growth.neurons)} neurons, but step {move.step} has {credit.shape[1]}")
    output, read = (ids.flatten().to(credit.device) for ids in (targets, tokens))
    growth.target.index_add_(0, output, credit)
    growth.input.index_add_(0, read, credit)
    growth.linear.index_add_(0, output, linear)
    remainder, past, decay = _rest(move, axis, context)
    return growth._replace(
        positions=growth.positions + torch.bincount(output, minlength=V),
        remainder=growth.remainder + remainder,
        past=growth.past + past,
        decay=growth.decay + decay,
        after=_squares({unit: move.after[unit] for unit in _maps(move, context)}, axis),
    )


def norm_terms(move: Move, axis: Axis, context: int) -> tuple[Float[Tensor, "n C G"], Float[Tensor, "n C G"]]:
    """Credits and first-order terms of a step's growth at every position, neurons of all its linear maps in order."""
    credit, linear = [], []
    for unit, factors in _maps(move, context).items():
        before, after = move.before[unit], move.after[unit]
        credit.append(norm_positions((before + after) / 2, factors, axis))
        linear.append(norm_positions(before, factors, axis))
    return torch.cat(credit, -1), torch.cat(linear, -1)


def norm_positions(weight: Float[Tensor, "o i"], factors: Sequence[Products], axis: Axis) -> Float[Tensor, "n C g"]:
    """2 ⟨w, Δ_jk⟩ for every neuron w of a unit and every position's part of the unit's update.

    Args:
        weight: the unit: before the step for terms of first order, half way for credits.
        factors: of the data's deltas, which are their sum.
        axis: columns or rows.

    >>> factor = per_example.Outer(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[0.5]]]))
    >>> norm_positions(torch.tensor([[1.0, 2.0]]), [factor], "in")
    tensor([[[3., 2.]]])
    """
    each = []
    for products in factors:
        own, (inputs, signals, _) = pulled(weight, products), plain(products)
        each.append(inputs * (signals @ own) if axis == "in" else signals * (inputs @ own.mT))
    return 2 * reduce(torch.add, each)


def _rest(move: Move, axis: Axis, context: int) -> tuple[Float64[Tensor, "G"], ...]:
    """What first-order terms leave of a step's growth, and what past and decay added to it, by neuron."""
    found = []
    for unit in _maps(move, context):
        before, after = (params[unit].double() for params in (move.before, move.after))
        change, past, decay = after - before, move.split.past(unit).double(), move.split.decay(unit).double()
        own = change * (change - past - decay), (before + after) * past, (before + after) * decay
        found.append(torch.stack(own).sum(1 if axis == "in" else 2))
    remainder, past, decay = torch.cat(found, -1)
    return remainder, past, decay


def _maps(move: Move, context: int) -> dict[str, tuple[Products, ...]]:
    """The matrices of linear maps that have a position for each token."""
    found = {unit: outers(factor) for unit, factor in move.factors.items()}
    return {unit: own for unit, own in found.items() if own and per_example.n_positions(own[0]) == context}


def _squares(weights: Params, axis: Axis) -> Float64[Tensor, "G"]:
    """Squared norm of every neuron."""
    return torch.cat([weight.double().square().sum(0 if axis == "in" else 1) for weight in weights.values()])
