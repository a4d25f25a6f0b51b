"""A bigram shift at chosen pairs by its causes: each datum of the step, earlier data, weight decay.

The update of each table is present + past + decay (``optim.Split``). So is the shift, in its first two terms; in the
third, ΔW_U ΔW_Eᵀ, causes meet, and it stands apart. Only the rows of the chosen pairs are formed.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import optim
from devinterp_func.bigram._decoder import Matrix, PairRows, check_is, check_matrices, check_pairs
from devinterp_func.optim import Split
from devinterp_func.per_example import Factor, Lookup, Outer, Scaled, Sum, form
from devinterp_func.tree import wide

DatumRows = Float[Tensor, "n p d"]  # of n data, at p pairs
Gain = float | optim.Rooted | optim.Matrix


class UpdateRows(NamedTuple):
    """Rows of a step's update of a matrix, at p pairs, by where they come from: they add up to the whole update's."""

    present: DatumRows  # of each of the step's data
    past: PairRows  # of earlier data, through the optimizer's memory
    decay: PairRows  # of weight decay

    def total(self) -> PairRows:
        """The update's rows."""
        return self.present.sum(0) + self.past + self.decay


class DatumShifts(NamedTuple):
    """ΔW_UE at p pairs, split over the n data of a step: present of all data, past, decay and cross add up to it."""

    embedding: Float[Tensor, "n p"]  # W_U ΔW_E,jᵀ: datum j's part of the first term
    unembedding: Float[Tensor, "n p"]  # ΔW_U,j W_Eᵀ: its part of the second
    past: Float[Tensor, "p"]  # both terms of what earlier data did, through the optimizer's memory
    decay: Float[Tensor, "p"]  # both terms of what weight decay did
    cross: Float[Tensor, "p"]  # ΔW_U ΔW_Eᵀ of the whole step: pairs of causes make it, none alone

    def present(self) -> Float[Tensor, "p"]:
        """What the step's data did together."""
        return self.embedding.sum(0) + self.unembedding.sum(0)

    def total(self) -> Float[Tensor, "p"]:
        """ΔW_UE at the pairs."""
        return self.present() + self.past + self.decay + self.cross

    def __repr__(self) -> str:
        n, p = self.embedding.shape
        return f"DatumShifts of {n} data at {p} pairs: norm {torch.linalg.vector_norm(self.total()):.4g}"


def datum_shifts(
    output: Int[Tensor, "p"], input: Int[Tensor, "p"], W_U: Matrix, W_E: Matrix, dW_U: UpdateRows, dW_E: UpdateRows
) -> DatumShifts:
    """ΔW_UE at chosen pairs, split over the data of a step, those of earlier steps, and weight decay.

    Args:
        output, input: the pairs' output and input tokens, (p,).
        W_U, W_E: unembedding and embedding before the step, (V, d).
        dW_U: rows ``output`` of the update of W_U.
        dW_E: rows ``input`` of the update of W_E.

    Raises:
        ValueError: shapes differ, or a token is not in the vocabulary.
    """
    check_matrices(W_U=W_U, W_E=W_E)
    check_pairs(output, input, len(W_U))
    wanted = (len(output), W_U.shape[1])
    for name, rows in dict(dW_U=dW_U, dW_E=dW_E).items():
        shapes = ((len(dW_U.present), *wanted), wanted, wanted)
        for part, x, shape in zip(rows._fields, rows, shapes, strict=True):
            check_is(f"{name}.{part}", "shape", tuple(x.shape), shape)
    w, e = W_U[output], W_E[input]
    return DatumShifts(
        torch.einsum("pd,npd->np", w, dW_E.present),
        torch.einsum("npd,pd->np", dW_U.present, e),
        _both(w, e, dW_U.past, dW_E.past),
        _both(w, e, dW_U.decay, dW_E.decay),
        torch.einsum("pd,pd->p", dW_U.total(), dW_E.total()),
    )


def update_rows(factor: Factor, split: Split, unit: str, ids: Int[Tensor, "p"]) -> UpdateRows:
    """Chosen rows of a step's update of a matrix, by where they come from, forming no other rows where that can be.

    Args:
        factor: of the unit's deltas.
        split: of the step.
        unit: the matrix's name.
        ids: of the rows.
    """
    share, weight = split.shares[unit], split.before[unit]
    none = torch.zeros_like(weight[ids])
    past = none if share.memory is None else _gained_rows(share.gain, share.memory, ids) * share.past
    decay = weight[ids] * share.decay
    if share.coupled:
        decay = _gained_rows(share.gain, weight, ids) * (share.present * share.coupled)
    return UpdateRows(datum_rows(factor, ids), past, decay)


def _gained_rows(gain: Gain, x: Matrix, ids: Int[Tensor, "p"]) -> PairRows:
    """Rows of L(x): an array's own; of a matrix on the right, the rows times it; on the left, its rows times x."""
    match gain:
        case optim.Rooted():
            return optim.apply_gain(gain._replace(second=gain.second[ids]), x[ids])
        case optim.Matrix(matrix, True):
            return matrix[ids] @ x
        case _:
            return optim.apply_gain(gain, x[ids])


def _both(w: PairRows, e: PairRows, dw: PairRows, de: PairRows) -> Float[Tensor, "p"]:
    """The first two terms at p pairs."""
    return torch.einsum("pd,pd->p", w, de) + torch.einsum("pd,pd->p", dw, e)


def datum_rows(factor: Factor, ids: Int[Tensor, "p"]) -> DatumRows:
    """Chosen rows of each datum's part of the update of a matrix, forming no other rows where it has factors.

    Args:
        factor: of the matrix's deltas. Of the unembedding an ``Outer`` of the stream and the logits' signals, of the
            embedding a ``Lookup``, of tied weights the ``Sum`` of both; with a gain for each entry, as of AdamW, an
            ``Outer`` is ``Scaled``.
        ids: of the rows.

    >>> datum_rows(Lookup(torch.tensor([[7, 3, 7]]), torch.tensor([[[1.0], [2.0], [4.0]]]), 9), torch.tensor([7]))
    tensor([[[5.]]])
    """
    match factor:
        case Outer(inputs, signals):
            return torch.einsum("ncp,ncd->npd", wide(signals[..., ids]), wide(inputs))
        case Lookup(tokens, signals, _):
            return torch.einsum("ncp,ncd->npd", (tokens[..., None] == ids).to(wide(signals).dtype), wide(signals))
        case Scaled(outer, gain):
            return datum_rows(outer, ids) * gain[ids]
        case Sum(parts):
            return torch.stack([datum_rows(part, ids) for part in parts]).sum(0)
        case _:
            return form(factor)[:, ids]
