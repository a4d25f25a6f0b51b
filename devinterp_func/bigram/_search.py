"""The exact k largest entries of a bigram shift, by branch and bound; the V×V matrix is never formed.

A first threshold is the k-th of any k pairs. Rows are taken in blocks by descending bound (``_search``): pairs whose
bound is below the threshold are ruled out, the others multiplied in the inputs' precision with a margin for rounding
(``_multiply``), and what may still enter is evaluated in float64 in one fixed order (``_Best.merge``).
"""

import math
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func.bigram._decoder import CHUNK, Matrix, Terms, check_matrices, row_terms

FIRST, LAST = 8, 128  # leaders multiplied at once: few while the threshold is still low, then twice as many each time


class Certificate(NamedTuple):
    """What ``top_shifts`` looked at, and the bound on all the rest."""

    rows: int  # output tokens multiplied with input tokens whose embedding stood still
    columns: int  # input tokens multiplied whose embedding moved
    pairs: int  # pairs multiplied in the inputs' precision
    evaluated: int  # pairs evaluated in float64
    bound: float  # no pair that was not evaluated has a larger |value|; at most the answer's last |value|


class TopShifts(NamedTuple):
    """The k largest entries of |ΔW_UE|, largest first; value and terms in float64."""

    output: Int[Tensor, "k"]
    input: Int[Tensor, "k"]
    value: Float[Tensor, "k"]
    terms: Terms
    certificate: Certificate

    def __repr__(self) -> str:
        values = f"{self.value[0]:+.4g} at ({self.output[0]}, {self.input[0]}) to {self.value[-1]:+.4g}"
        work = f"{self.certificate.pairs:,} pairs multiplied, {self.certificate.evaluated:,} evaluated"
        return f"TopShifts(k={len(self.value)}: {values}; {work}, the others within {self.certificate.bound:.4g})"


@torch.no_grad()
def top_shifts(W_U: Matrix, W_E: Matrix, dW_U: Matrix, dW_E: Matrix, k: int) -> TopShifts:
    """The k entries of ΔW_UE with the largest absolute values, exactly, without forming the V×V matrix.

    Exactly: it is the head of a full sort of all V² entries by descending |value|, ties by ascending
    ``output * V + input``, where a value is the sum of its three terms, each evaluated in float64 in one fixed order.
    Zeros therefore fill up in index order, and a zero update gives the value 0 at the pairs 0 to k - 1.

    Branch and bound: |ΔW_UE[o,i]| ≤ ‖W_U[o]‖ ‖ΔW_E[i]‖ + ‖ΔW_U[o]‖ ‖(W_E + ΔW_E)[i]‖ rules most pairs out; products in
    the inputs' precision, with a margin for their rounding, rule out most others. Fast when few rows of ``dW_E`` are
    non-zero and few of ``dW_U`` large, as in a step of SGD; otherwise slower, still exact, in O(V d + k) memory.

    Args:
        W_U, W_E: unembedding and embedding before the step, (V, d), all four float32 or all float64.
        dW_U, dW_E: the step's updates of them, (V, d).
        k: how many entries, from 1 to V².

    Raises:
        ValueError: shapes or dtypes differ, an entry is NaN, infinite or beyond 1e150, or k is out of range.

    >>> top_shifts(torch.eye(2), torch.eye(2), torch.zeros(2, 2), torch.tensor([[0.0, -3.0], [2.0, 0.0]]), k=2)
    TopShifts(k=2: -3 at (1, 0) to +2; 4 pairs multiplied, 4 evaluated, the others within 0)
    """
    matrices = dict(W_U=W_U, W_E=W_E, dW_U=dW_U, dW_E=dW_E)
    check_matrices(**matrices)
    V = len(W_U)
    if not 1 <= k <= V * V:
        raise ValueError(f"k is {k}; it must be from 1 to V² = {V * V}")
    norm = {name: _row_norms(name, x) for name, x in matrices.items()}
    tokens, moved = torch.arange(V, device=W_U.device), norm["dW_E"].nonzero().squeeze(1)

    def evaluate(flat: Int[Tensor, "m"]) -> Terms:
        return row_terms(*(x[at].double() for x, at in zip(matrices.values(), (flat // V, flat % V) * 2, strict=True)))

    # The first k pairs give a first threshold, and are the zeros that a sort would put first.
    best = _Best(k, evaluate, tokens[:0], evaluate(tokens[:0])).merge(torch.arange(k, device=W_U.device))
    rows = _Side([dW_U], norm["dW_U"][None], tokens * V)
    best, n_rows = _search(best, rows, _Side([W_E], norm["W_E"].index_fill(0, moved, 0)[None], tokens))
    rows = _Side([W_U, dW_U], torch.stack([norm["W_U"], norm["dW_U"]]), tokens * V)
    norms = torch.stack([norm["dW_E"], norm["W_E"] + norm["dW_E"]])
    columns = _Side([dW_E[moved], W_E[moved] + dW_E[moved]], norms[:, moved], moved)
    best, n_columns = _search(best, columns, rows)
    certificate = Certificate(n_rows, n_columns, best.pairs, best.evaluated, best.bound)
    return TopShifts(best.flat // V, best.flat % V, best.terms.total(), best.terms, certificate)


class _Side(NamedTuple):
    """Tokens on one side of the pairs; an entry is the sum over factors of ⟨one side's vector, the other's⟩."""

    factors: list[Tensor]  # each (m, d)
    norms: Float[Tensor, "factors m"]
    flat: Int[Tensor, "m"]  # what a token adds to the pair's flat index

    def at(self, index: Tensor | slice) -> "_Side":
        return _Side([x[index] for x in self.factors], self.norms[:, index], self.flat[index])


class _Best(NamedTuple):
    """The best k pairs so far, in the answer's order, and the work done for them."""

    k: int
    evaluate: Callable[[Tensor], Terms]
    flat: Int[Tensor, "m"]
    terms: Terms
    pairs: int = 0
    evaluated: int = 0
    bound: float = 0.0  # on every pair ruled out so far

    def threshold(self) -> float:
        return float(self.terms.total()[-1].abs())

    def rules_out(self, bound: Tensor) -> Tensor:
        """Where no pair under ``bound`` can enter: an equal one may, by its index; a zero, after the first k, never."""
        return (bound < self.threshold()) | (bound == 0)

    def merge(self, flat: Int[Tensor, "m"]) -> "_Best":
        best = self._replace(evaluated=self.evaluated + len(flat))
        for new in flat.split(max(self.k, CHUNK)):
            pairs = torch.cat([best.flat, new])
            parts = [best.terms, *map(self.evaluate, new.split(CHUNK))]
            terms = Terms(*map(torch.cat, zip(*parts, strict=True)))
            order = pairs.argsort()
            order = order[terms.total().abs()[order].argsort(descending=True, stable=True)][: self.k]
            best = best._replace(flat=pairs[order], terms=Terms(*(term[order] for term in terms)))
        return best


def _search(best: _Best, leaders: _Side, followers: _Side) -> tuple[_Best, int]:
    """Adds all pairs of a leader and a follower, in blocks of leaders by descending bound; says how many leaders."""
    reach = leaders.norms.T @ followers.norms.amax(1)
    done, width = 0, FIRST
    while done < len(reach):
        bounds, block = reach.topk(min(width, len(reach) - done))
        if best.rules_out(bounds[0]):
            return best._replace(bound=max(best.bound, float(bounds[0]))), done
        best = _multiply(best, leaders.at(block), followers)
        reach[block] = -1.0
        done, width = done + len(block), min(2 * width, LAST)
    return best, done


def _multiply(best: _Best, leaders: _Side, followers: _Side) -> _Best:
    """Adds the pairs of one block of leaders: bound, multiply, evaluate what may still enter."""
    bound = leaders.norms.amax(1) @ followers.norms
    out = best.rules_out(bound)
    # If most stay, multiply all: that saves copying rows.
    chosen = slice(None) if 2 * out.sum() < len(out) else (~out).nonzero().squeeze(1)
    followers = followers.at(chosen)
    sizes, relative, absolute = _sizes(leaders.factors, followers.factors)
    sizes.masked_fill_(out[chosen, None], -math.inf)
    margin, threshold = relative * float(bound.max()) + absolute, best.threshold()
    if (sizes >= threshold - margin).sum() > best.k + CHUNK:  # so many that the k largest prove a higher threshold
        threshold = max(threshold, float(sizes.flatten().topk(best.k).values[-1]) - margin)
    follower, leader = (~(sizes < threshold - margin)).nonzero(as_tuple=True)  # so written, NaN (overflow) stays
    flat = followers.flat[follower] + leaders.flat[leader]
    ruled_out = max(best.bound, threshold, float(bound.where(out, 0).max()))
    best = best._replace(pairs=best.pairs + sizes.numel(), bound=ruled_out)
    return best.merge(flat[flat >= best.k])  # the first k pairs were there from the start


def _sizes(leaders: list[Tensor], followers: list[Tensor]) -> tuple[Float[Tensor, "followers leaders"], float, float]:
    """|entry| of all pairs from matrix products, and their error: relative to the bound on the entries, and absolute.

    The relative error is at least twice that of any order of summation (Higham 2002, section 3.1) and of rounding
    W_E + ΔW_E; the absolute one is for underflow. Where torch may multiply float32 in a lower precision: in float64.
    """
    dtype, d = leaders[0].dtype, leaders[0].shape[1]
    try:
        work = dtype if torch.get_float32_matmul_precision() == "highest" else torch.float64
    except RuntimeError:  # the precision was set through torch's newer, per-backend interface
        work = torch.float64
    entries = reduce(torch.add, (y.to(work) @ x.to(work).T for x, y in zip(leaders, followers, strict=True)))
    return entries.abs_(), (2 * d + 8) * torch.finfo(dtype).eps, 4 * d * torch.finfo(dtype).tiny


def _row_norms(name: str, x: Matrix) -> Float[Tensor, "V"]:
    """An upper bound on the norm of each row, in float64; 0 exactly where the row is zero."""
    d, info = x.shape[1], torch.finfo(x.dtype)
    norms, low = torch.linalg.vector_norm(x, dim=1).double(), info.tiny**0.4
    odd = ~((norms > low) & (norms < 1 / low))  # zero, NaN, or squares that may have under- or overflowed
    if odd.any():
        largest = torch.maximum(x.amax(1), -x.amin(1)).double()
        if not (largest < 1e150).all():
            row = int((~(largest < 1e150)).nonzero()[0])
            raise ValueError(f"{name} has {largest[row]} in row {row}; entries must be finite and within ±1e150")
        norms = torch.where(odd, largest * math.sqrt(d), norms)
    return norms * (1 + (2 * d + 8) * info.eps)
