"""The bigram decoder and its shifts: which next tokens a step makes likelier after which, along the direct path.

    W_UE = W_U W_Eᵀ        ΔW_UE = W_U ΔW_Eᵀ + ΔW_U W_Eᵀ + ΔW_U ΔW_Eᵀ

Rows are output tokens, columns input tokens. The direct path runs from the embedding straight to the unembedding: it
leaves out the positions, the layer norms, attention, the MLPs and the unembedding's bias, and also the factor √d by
which the embedding is scaled on its way in (multiply by it to compare with logits).

Source: Appendix IV of *Training Process Transparency through Gradient Interpretability: Early Experiments on Toy
Language Models* (Krzyzanowski and Hubinger 2023).
"""

import math
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

FIRST, LAST = 8, 128  # leaders multiplied at once: few while the threshold is still low, then twice as many each time
CHUNK = 2048  # pairs evaluated in float64 at once

Matrix = Float[Tensor, "V d"]  # V tokens, d = d_model
Rows = Float[Tensor, "n p d"]  # of n data, at p pairs
Pairs = Float[Tensor, "p d"]  # at p pairs


class Terms(NamedTuple):
    """The three terms of ΔW_UE apart, all dense (V, V) or all at k pairs."""

    embedding: Float[Tensor, "*pairs"]  # W_U ΔW_Eᵀ
    unembedding: Float[Tensor, "*pairs"]  # ΔW_U W_Eᵀ
    cross: Float[Tensor, "*pairs"]  # ΔW_U ΔW_Eᵀ

    def total(self) -> Float[Tensor, "*pairs"]:
        """ΔW_UE, the sum of the three."""
        return self.embedding + self.unembedding + self.cross

    def __repr__(self) -> str:
        norms = ", ".join(f"{name} {torch.linalg.vector_norm(term):.4g}" for name, term in self._asdict().items())
        return f"Terms{list(self.cross.shape)}(norms: {norms})"


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


class DatumShifts(NamedTuple):
    """ΔW_UE at p pairs, split over the n data of a step: its columns' sums and ``cross`` add up to ΔW_UE."""

    embedding: Float[Tensor, "n p"]  # W_U ΔW_E,jᵀ: datum j's part of the first term
    unembedding: Float[Tensor, "n p"]  # ΔW_U,j W_Eᵀ: its part of the second
    cross: Float[Tensor, "p"]  # ΔW_U ΔW_Eᵀ of the whole step: pairs of data cause it, no datum alone

    def total(self) -> Float[Tensor, "p"]:
        """ΔW_UE at the pairs."""
        return self.embedding.sum(0) + self.unembedding.sum(0) + self.cross

    def __repr__(self) -> str:
        n, p = self.embedding.shape
        return f"DatumShifts of {n} data at {p} pairs: norm {torch.linalg.vector_norm(self.total()):.4g}"


def decoder(W_U: Matrix, W_E: Matrix) -> Float[Tensor, "V V"]:
    """W_UE = W_U W_Eᵀ: the direct path's logit of each output token (row) after each input token (column).

    Raises:
        ValueError: the shapes or dtypes differ.

    >>> decoder(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]]))
    tensor([[3., 4.],
            [6., 8.]])
    """
    _check_matrices(W_U=W_U, W_E=W_E)
    return W_U @ W_E.T


def terms(W_U: Matrix, W_E: Matrix, dW_U: Matrix, dW_E: Matrix) -> Terms:
    """The three terms of ΔW_UE apart, dense; arguments and errors as for ``shift``."""
    _check_matrices(W_U=W_U, W_E=W_E, dW_U=dW_U, dW_E=dW_E)
    return Terms(W_U @ dW_E.T, dW_U @ W_E.T, dW_U @ dW_E.T)


def shift(W_U: Matrix, W_E: Matrix, dW_U: Matrix, dW_E: Matrix) -> Float[Tensor, "V V"]:
    """ΔW_UE = decoder(W_U + dW_U, W_E + dW_E) - decoder(W_U, W_E): the definition, dense, for small vocabularies.

    Args:
        W_U, W_E: unembedding and embedding before the step, (V, d).
        dW_U, dW_E: the step's updates of them, (V, d).

    Raises:
        ValueError: the shapes or dtypes differ.
    """
    return terms(W_U, W_E, dW_U, dW_E).total()


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
    _check_matrices(**matrices)
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


@torch.no_grad()
def entries(output: Int[Tensor, "p"], input: Int[Tensor, "p"], W_U: Matrix, W_E: Matrix) -> Float[Tensor, "p"]:
    """W_UE at chosen pairs, in float64; a pair's entry has the same bits whatever other pairs are chosen.

    Raises:
        ValueError: shapes or dtypes differ, or a token is not in the vocabulary.

    >>> entries(torch.tensor([1, 0]), torch.tensor([0, 0]), torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]]))
    tensor([6., 3.], dtype=torch.float64)
    """
    _check_matrices(W_U=W_U, W_E=W_E)
    check_pairs(output, input, len(W_U))
    chunks = zip(output.split(CHUNK), input.split(CHUNK), strict=True)
    return torch.cat([_dot(W_U[o].double(), W_E[i].double()) for o, i in chunks])


def row_terms(w: Pairs, e: Pairs, dw: Pairs, de: Pairs) -> Terms:
    """The three terms at p pairs from their rows of W_U, W_E, ΔW_U and ΔW_E."""
    return Terms(_dot(w, de), _dot(dw, e), _dot(dw, de))


def check_pairs(output: Int[Tensor, "p"], input: Int[Tensor, "p"], V: int) -> None:
    """Raises a ValueError that names the fault if these are not pairs of tokens 0 to V - 1."""
    for name, token in dict(output=output, input=input).items():
        _check(name, "shape", tuple(token.shape), (output.numel(),))
        if ((token < 0) | (token >= V)).any():
            raise ValueError(f"{name} has tokens from {token.min()} to {token.max()}; they must be in 0..{V - 1}")


def datum_shifts(
    output: Int[Tensor, "p"], input: Int[Tensor, "p"], W_U: Matrix, W_E: Matrix, dW_U_rows: Rows, dW_E_rows: Rows
) -> DatumShifts:
    """ΔW_UE at chosen pairs, split over the data of a step.

    Args:
        output, input: the pairs' output and input tokens, (p,).
        W_U, W_E: unembedding and embedding before the step, (V, d).
        dW_U_rows: row ``output[q]`` of datum j's part of the update of W_U, (n, p, d); see ``unembedding_rows``.
        dW_E_rows: row ``input[q]`` of datum j's part of the update of W_E, (n, p, d); see ``embedding_rows``.

    Raises:
        ValueError: shapes differ, or a token is not in the vocabulary.
    """
    _check_matrices(W_U=W_U, W_E=W_E)
    check_pairs(output, input, len(W_U))
    for name, rows in dict(dW_U_rows=dW_U_rows, dW_E_rows=dW_E_rows).items():
        _check(name, "shape", tuple(rows.shape), (len(dW_U_rows), len(output), W_U.shape[1]))
    embedding = torch.einsum("pd,npd->np", W_U[output], dW_E_rows)
    unembedding = torch.einsum("npd,pd->np", dW_U_rows, W_E[input])
    return DatumShifts(embedding, unembedding, torch.einsum("pd,pd->p", dW_U_rows.sum(0), dW_E_rows.sum(0)))


def unembedding_rows(signal: Float[Tensor, "n C p"], hidden: Float[Tensor, "n C d"]) -> Rows:
    """Rows of each datum's part of the update of W_U: ΔW_U,j[output[q]] = Σ_c signal[j, c, q] hidden[j, c].

    Args:
        signal: -lr · clip / n times the gradient of datum j's loss by its logits at the pairs' output tokens.
        hidden: what W_U is applied to.
    """
    return torch.einsum("ncp,ncd->npd", signal, hidden)


def embedding_rows(input: Int[Tensor, "p"], tokens: Int[Tensor, "n C"], rows: Float[Tensor, "n C d"]) -> Rows:
    """Rows of each datum's part of the update of W_E: ΔW_E,j[input[q]] = Σ_c [tokens[j, c] = input[q]] rows[j, c].

    Args:
        input: the pairs' input tokens.
        tokens: the data's input tokens.
        rows: -lr · clip / n times the gradient of datum j's loss by the row of W_E looked up at each position.

    >>> embedding_rows(torch.tensor([7]), torch.tensor([[7, 3, 7]]), torch.tensor([[[1.0], [2.0], [4.0]]]))
    tensor([[[5.]]])
    """
    return torch.einsum("ncp,ncd->npd", (tokens[..., None] == input).to(rows.dtype), rows)


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


def _dot(x: Float[Tensor, "m d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "m"]:
    """⟨x, y⟩ row by row, by halving, so that a row's result has the same bits whatever rows stand beside it."""
    product = x * y
    while (d := product.shape[1]) > 1:
        product[:, : d // 2] += product[:, d - d // 2 :]
        product = product[:, : d - d // 2]
    return product[:, 0].clone()  # a copy, so as not to hold on to the products


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


def _check_matrices(**matrices: Tensor) -> None:
    (like, W), *others = matrices.items()
    if W.ndim != 2 or 0 in W.shape:
        raise ValueError(f"{like} has shape {tuple(W.shape)}; it must be (V, d) with V and d at least 1")
    if W.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{like} is {W.dtype}; it must be torch.float32 or torch.float64")
    for name, x in others:
        _check(name, "shape", tuple(x.shape), tuple(W.shape), f" as {like} has")
        _check(name, "dtype", x.dtype, W.dtype, f" as {like} has")


def _check(name: str, what: str, got: object, right: object, why: str = "") -> None:
    if got != right:
        raise ValueError(f"{name} has {what} {got}; it must be {right}{why}")
