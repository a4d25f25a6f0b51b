"""The exact k largest entries of a bigram shift, by branch and bound; the V×V matrix is never formed.

A first threshold is the k-th of any k pairs. Rows are taken in blocks (``_search``): pairs whose bound (``_sides.py``)
is below the threshold are ruled out; of the others first some coordinates, then all are multiplied in the inputs'
precision with a margin for rounding (``_multiply``); what may still enter is evaluated in float64 in one fixed order
(``_Best.merge``).
"""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func.bigram._decoder import CHUNK, Matrix, Terms, check_matrices, row_terms
from devinterp_func.bigram._sides import Side, dense_sides, row_norms, sparse_sides

SPARSE = 4  # at most one in so many embeddings moved: the search is by them
PROBED = 64  # inputs of the largest bounds, multiplied first with all outputs
FIRST, LAST = 8, 128  # leaders multiplied at once: few while the threshold is still low, then twice as many each time


class Certificate(NamedTuple):
    """What ``top_shifts`` looked at, and the bound on all the rest."""

    rows: int  # output tokens by which pairs were multiplied: where few embeddings moved, with those that did not
    columns: int  # input tokens by which: those whose embedding moved, or, where many did, the first few
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
    non-zero and few of ``dW_U`` large, as in a step of SGD. With memory or weight decay every row moves: then what all
    have in common is taken off, and bounds are by direction. Slower, still exact, in O(V d + k) memory.

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
    norm = {name: row_norms(name, x) for name, x in matrices.items()}
    tokens, moved = torch.arange(V, device=W_U.device), norm["dW_E"].nonzero().squeeze(1)

    def evaluate(flat: Int[Tensor, "m"]) -> Terms:
        return row_terms(*(x[at].double() for x, at in zip(matrices.values(), (flat // V, flat % V) * 2, strict=True)))

    # The first k pairs give a first threshold, and are the zeros that a sort would put first.
    best = _Best(k, evaluate, tokens[:0], evaluate(tokens[:0])).merge(torch.arange(k, device=W_U.device))
    if SPARSE * len(moved) <= V:
        outputs, inputs = sparse_sides(matrices, norm, moved)
        best, n_rows = _search(best, *outputs)
        best, n_columns = _search(best, *inputs)
    else:
        rows, columns = dense_sides(matrices, norm)
        assert rows.rests is not None
        order = (columns.parts.T @ rows.parts.amax(1)).argsort(descending=True)
        best, n_columns = _search(best, columns.at(order[:PROBED]), rows)  # gives a threshold near the last
        best, n_rows = _search(best, rows, columns.at(order[PROBED:]), key=rows.rests[1])
    certificate = Certificate(n_rows, n_columns, best.pairs, best.evaluated, best.bound)
    return TopShifts(best.flat // V, best.flat % V, best.terms.total(), best.terms, certificate)


class _Best(NamedTuple):
    """The best k pairs so far, in the answer's order, and the work done for them."""

    k: int
    evaluate: Callable[[Tensor], Terms]
    flat: Int[Tensor, "m"]
    terms: Terms
    sketched: int = 0
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


def _search(best: _Best, leaders: Side, followers: Side, key: Float[Tensor, "m"] | None = None) -> tuple[_Best, int]:
    """Adds all pairs of a leader and a follower, in blocks of leaders; says how many leaders were multiplied.

    By descending bound, up to the first that is ruled out; or, all of them, by a descending ``key``, which brings those
    together that are alike.
    """
    if not len(followers.flat):
        return best, 0
    reach = leaders.parts.T @ followers.parts.amax(1)
    order = (reach if key is None else key).argsort(descending=True)
    done, multiplied, width = 0, 0, FIRST
    while done < len(order):
        block = order[done : done + width]
        most = reach[block].max()
        if best.rules_out(most):
            best = best._replace(bound=max(best.bound, float(most)))
            if key is None:
                break
        else:
            best = _multiply(best, leaders.at(block), followers)
            multiplied += len(block)
        done, width = done + len(block), min(2 * width, LAST)
    return best, multiplied


def _multiply(best: _Best, leaders: Side, followers: Side) -> _Best:
    """Adds the pairs of one block of leaders: bound, multiply in part, multiply, evaluate what may still enter."""
    bound = leaders.parts.amax(1) @ followers.parts
    out, threshold = best.rules_out(bound), best.threshold()
    best = best._replace(bound=max(best.bound, float(bound.where(out, 0).max())))
    chosen = (~out).nonzero().squeeze(1)
    if leaders.sketch is not None and len(chosen):
        assert followers.sketch is not None and leaders.rests is not None and followers.rests is not None
        values, margin = _values([leaders.sketch], [followers.sketch[chosen]], leaders, followers)
        rest = leaders.rests.amax(1) @ followers.rests[:, chosen]
        best = best._replace(sketched=best.sketched + values.numel(), bound=max(best.bound, threshold))
        chosen = chosen[~(_peak(values) < threshold - margin - rest)]  # so written, NaN (overflow) stays
    if not len(chosen):
        return best
    whole = 2 * len(chosen) > len(out)  # if most stay, multiply all: that saves copying rows
    values, margin = _values(
        leaders.factors, [x if whole else x[chosen] for x in followers.factors], leaders, followers
    )
    best = best._replace(pairs=best.pairs + values.numel())
    near = ~(_peak(values) < threshold - margin)
    if whole:
        near = near.new_zeros(len(out)).index_fill(0, chosen, True) & near
        chosen = torch.arange(len(out), device=chosen.device)
    sizes, chosen = values[near].abs_(), chosen[near]
    if (sizes >= threshold - margin).sum() > best.k + CHUNK:  # so many that the k largest prove a higher threshold
        threshold = max(threshold, float(sizes.flatten().topk(best.k).values[-1]) - margin)
    follower, leader = (~(sizes < threshold - margin)).nonzero(as_tuple=True)
    flat = followers.flat[chosen[follower]] + leaders.flat[leader]
    best = best._replace(bound=max(best.bound, threshold))
    return best.merge(flat[flat >= best.k])  # the first k pairs were there from the start


def _peak(values: Float[Tensor, "followers leaders"]) -> Float[Tensor, "followers"]:
    """The largest |value| of each follower, in float64."""
    return torch.maximum(values.amax(1), -values.amin(1)).double()


def _values(
    x: list[Tensor], y: list[Tensor], leaders: Side, followers: Side
) -> tuple[Float[Tensor, "followers leaders"], float]:
    """⟨x, y⟩ summed over factors, of all pairs, by matrix products; and how far they may be off by rounding.

    The relative error is at least twice that of any order of summation (Higham 2002, section 3.1) and of rounding the
    vectors themselves; some is added for underflow. Where torch may multiply float32 in a lower precision: in float64.
    """
    dtype, d = x[0].dtype, leaders.factors[0].shape[1] + (0 if leaders.sketch is None else leaders.sketch.shape[1])
    try:
        work = dtype if torch.get_float32_matmul_precision() == "highest" else torch.float64
    except RuntimeError:  # the precision was set through torch's newer, per-backend interface
        work = torch.float64
    values = reduce(torch.add, (b.to(work) @ a.to(work).T for a, b in zip(x, y, strict=True)))
    longest = float(leaders.lengths.amax(1) @ followers.lengths.amax(1))
    return values, (2 * d + 32) * torch.finfo(dtype).eps * longest + 4 * d * torch.finfo(dtype).tiny
