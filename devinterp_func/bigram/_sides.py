"""Bounds on all entries of a bigram shift: how large no pair of tokens can be, from a few numbers of each token.

An entry is a sum of inner products of vectors of the output and of the input token. Where few embeddings moved, these
are the updates themselves (``sparse_sides``). Where all did, as with weight decay and memory (``dense_sides``), a
number a takes off what all of them share, and the entry is

    ΔW_UE[o,i] = ⟨u + Δu, r⟩ + ⟨z, e⟩        r = Δe + a · e,  z = (1 − a) Δu − a · u

for any a: with the decay's, r is almost zero for tokens that have not been seen of late. The z lie near a few
directions, since the rows of most tokens' unembeddings are pushed the same way; each direction is bounded by itself.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func.bigram._decoder import Matrix

HEAD = 50  # per cent of a vector's coordinates that are multiplied first
DIRECTIONS = 8  # of z that are bounded one by one
SAMPLE = 4096  # rows that directions and a are found from; the bounds hold for any


class Side(NamedTuple):
    """Tokens on one side of the pairs; an entry is the sum over factors of ⟨one side's vector, the other's⟩."""

    factors: list[Tensor]  # each (m, d)
    lengths: Float[Tensor, "factors m"]  # no factor's vector is longer, nor what rounding it lost
    parts: Float[Tensor, "parts m"]  # no |entry| is larger than the sum over parts of one side's times the other's
    flat: Int[Tensor, "m"]  # what a token adds to the pair's flat index
    sketch: Float[Tensor, "m q"] | None = None  # inner products of it are most of the entries:
    rests: Float[Tensor, "rests m"] | None = None  # they miss no more than the sum over these

    def at(self, index: Tensor | slice) -> "Side":
        return Side(
            [x[index] for x in self.factors],
            self.lengths[:, index],
            self.parts[:, index],
            self.flat[index],
            None if self.sketch is None else self.sketch[index],
            None if self.rests is None else self.rests[:, index],
        )


def sparse_sides(
    matrices: dict[str, Matrix], norm: dict[str, Tensor], moved: Int[Tensor, "m"]
) -> tuple[tuple[Side, Side], tuple[Side, Side]]:
    """Outputs and inputs whose embedding stood still; inputs whose embedding moved, and outputs.

    Args:
        matrices: W_U, W_E, dW_U, dW_E.
        norm: ``row_norms`` of each.
        moved: rows of dW_E that are not zero.
    """
    W_U, W_E, dW_U, dW_E = matrices.values()
    V, tokens = len(W_U), torch.arange(len(W_U), device=W_U.device)
    still = norm["W_E"].index_fill(0, moved, 0)[None]
    first = _side([dW_U], norm["dW_U"][None], tokens * V), _side([W_E], still, tokens)
    rows = _side([W_U, dW_U], torch.stack([norm["W_U"], norm["dW_U"]]), tokens * V)
    after = torch.stack([norm["dW_E"], norm["W_E"] + norm["dW_E"]])[:, moved]
    return first, (_side([dW_E[moved], W_E[moved] + dW_E[moved]], after, moved), rows)


def dense_sides(matrices: dict[str, Matrix], norm: dict[str, Tensor]) -> tuple[Side, Side]:
    """Outputs and inputs, whichever moved; arguments as for ``sparse_sides``."""
    W_U, W_E, dW_U, dW_E = matrices.values()
    V, tokens, eps = len(W_U), torch.arange(len(W_U), device=W_U.device), torch.finfo(W_U.dtype).eps
    a = _shared_decay(W_E, dW_E)
    u, r = W_U + dW_U, torch.add(dW_E, W_E, alpha=a) if a else dW_E
    z = torch.add(dW_U * (1 - a), W_U, alpha=-a) if a else dW_U
    least = math.sqrt(W_U.shape[1]) * torch.finfo(W_U.dtype).tiny * bool(a)  # what underflow may have cost
    most_u, most_r = norm["W_U"] + norm["dW_U"], norm["dW_E"] + abs(a) * norm["W_E"] + least / eps
    most_z = (1 + abs(a)) * norm["dW_U"] + abs(a) * norm["W_U"] + least / eps
    lost_r, lost_z = ((8 * eps * most if a else torch.zeros_like(most)) for most in (most_r, most_z))
    across, along = _by_direction(z, W_E, _least(row_bounds(z), most_z), norm["W_E"], lost_z)
    short_u, short_r = _least(row_bounds(u), most_u), _least(row_bounds(r), most_r) + lost_r
    lengths = torch.stack([most_u, most_z]), torch.stack([most_r, norm["W_E"]])
    rows = _sketched([u, z], lengths[0], short_u, torch.zeros_like(short_u), across, tokens * V)
    return rows, _sketched([r, W_E], lengths[1], short_r, lost_r, along, tokens)


class _Split(NamedTuple):
    """One side of a bound on an inner product, by direction."""

    components: Float[Tensor, "V r"]  # along the directions
    size: Float[Tensor, "r V"]  # their absolute values, and a little
    left: Float[Tensor, "3 V"]  # what is not along them, and rounding


def _sketched(
    factors: list[Tensor], lengths: Tensor, short: Tensor, lost: Tensor, by_direction: _Split, flat: Tensor
) -> Side:
    """A side whose first factor, not longer than ``short``, is sketched by coordinates, the second by components."""
    x, p = factors[0], factors[0].shape[1] * HEAD // 100
    parts = torch.cat([short[None], by_direction.size, by_direction.left])
    tail = _least(row_bounds(x[:, p:]) + lost, short)
    sketch = torch.cat([x[:, :p], by_direction.components], 1)
    return Side(factors, lengths, parts, flat, sketch, torch.cat([tail[None], by_direction.left]))


def row_norms(name: str, x: Matrix) -> Float[Tensor, "V"]:
    """An upper bound on the norm of each row, in float64; 0 exactly where the row is zero.

    Raises:
        ValueError: an entry is NaN, infinite or beyond 1e150; ``name`` and row are named.
    """
    norms = row_bounds(x)
    if not (norms < 1e150).all():
        largest = torch.maximum(x.amax(1), -x.amin(1)).double()
        if not (largest < 1e150).all():
            row = int((~(largest < 1e150)).nonzero()[0])
            raise ValueError(f"{name} has {largest[row]} in row {row}; entries must be finite and within ±1e150")
    return norms


def row_bounds(x: Matrix) -> Float[Tensor, "V"]:
    """``row_norms``, infinite or NaN where a row is."""
    d, info = x.shape[1], torch.finfo(x.dtype)
    norms, low = torch.linalg.vector_norm(x, dim=1).double(), info.tiny**0.4
    odd = ~((norms > low) & (norms < 1 / low))  # zero, NaN, or squares that may have under- or overflowed
    if odd.any():
        norms = torch.where(odd, torch.maximum(x.amax(1), -x.amin(1)).double() * math.sqrt(d), norms)
    return norms * (1 + (2 * d + 8) * info.eps)


def _side(factors: list[Tensor], norms: Float[Tensor, "factors m"], flat: Int[Tensor, "m"]) -> Side:
    return Side(factors, norms, norms, flat)


def _least(found: Float[Tensor, "V"], most: Float[Tensor, "V"]) -> Float[Tensor, "V"]:
    """The smaller bound, ``most`` where what was found overflowed."""
    return torch.where(found < most, found, most)


def _shared_decay(W_E: Matrix, dW_E: Matrix) -> float:
    """The a for which −a · e is most rows' update, 0 where there is none; a number of the matrices' dtype."""
    few = slice(None, None, -(-len(W_E) // SAMPLE))
    e, de = W_E[few].double(), dW_E[few].double()
    found = -((e * de).sum(1) / (e * e).sum(1).clamp(min=1e-300)).median().to(W_E.dtype)
    return float(found) if 1e-12 < abs(float(found)) < 0.5 else 0.0


def _by_direction(z: Matrix, e: Matrix, norm_z: Tensor, norm_e: Tensor, lost: Tensor) -> tuple[_Split, _Split]:
    """Bounds ⟨z, e⟩: components along a few directions, the norms of what is left, and rounding.

    For any Q with QᵀQ = I + D, c = Qᵀz as computed, η its error and t = z − Q c:

        |⟨z, e⟩ − ⟨c_z, c_e⟩| ≤ ‖t_z‖ ‖t_e‖ + 4 (η + ‖D‖) ‖z‖ ‖e‖        ‖t‖² ≤ ‖z‖² − ‖c‖² + (4 η + 2 ‖D‖) ‖z‖²
    """
    Q = _directions(z)
    c_z, c_e = z @ Q, e @ Q
    if not (torch.isfinite(c_z).all() and torch.isfinite(c_e).all()) or float(norm_z.max() * norm_e.max()) > 1e30:
        Q, c_z, c_e = Q[:, :0], c_z[:, :0], c_e[:, :0]
    d, r = Q.shape
    off = float(
        torch.linalg.vector_norm(Q.double().T @ Q.double() - torch.eye(r, dtype=torch.float64, device=Q.device))
    )
    info, root = torch.finfo(z.dtype), math.sqrt(r)
    low_z, low_e = (4 * d * root * info.tiny * (norm > 0) for norm in (norm_z, norm_e))  # of underflow
    lossy, grown = d * info.eps * root * (1 + off), 1 + (2 * d + 8) * info.eps  # ... and of the bounds themselves
    rounding = (8 * ((lossy + off) * norm_z + low_z) + lost, norm_z), (norm_e, 8 * low_e)
    sides = []
    for c, norm, low, left in ((c_z, norm_z, low_z, rounding[0]), (c_e, norm_e, low_e, rounding[1])):
        size, some = c.double().T, norm.clamp(min=torch.finfo(torch.float64).tiny)
        part = torch.linalg.vector_norm(size, dim=0) / some  # a quotient, as squares of tiny norms would underflow
        rest = norm * (1 - part.square() + 4 * (lossy + low / some) + 2 * off).clamp(0, 1).sqrt()
        sides.append(_Split(c, size.abs() * grown, torch.stack([rest, *left]) * grown))
    return sides[0], sides[1]


def _directions(z: Matrix) -> Float[Tensor, "d r"]:
    """Orthonormal but for rounding: where most of the rows lie."""
    some = z[:: -(-len(z) // SAMPLE)].double()
    some = some / some.abs().max().clamp(min=1e-300)
    _, vectors = torch.linalg.eigh(some.T @ some)
    return vectors.flip(1)[:, :DIRECTIONS].to(z.dtype).contiguous()
