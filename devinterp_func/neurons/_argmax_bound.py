"""Which class a changed stream predicts, proven from a few logits instead of all V.

Let h be the stream that the head reads at a position, ℓ_v = ⟨W_U[v], h⟩ + b_v, and h' = h + δ. For every
class ℓ'_v ≤ ℓ_v + ‖W_U[v]‖ ‖δ‖ (Cauchy and Schwarz). So with the new logits of K candidates, and over all other classes

    B(t) = max_v ℓ_v + ‖W_U[v]‖ t

a candidate whose new logit is above those of the other candidates and above B(‖δ‖) is the prediction. B is convex: it
is kept at a few t, and between two of them the chord is above it. Where nothing is proven so, all logits are formed.

Rounding: logits of a stream h are told apart if they differ by more than some units in the last place of the largest
logit that a stream of its length may have, max_v ‖W_U[v]‖ ‖h‖ + max_v |b_v|.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devinterp_func.graph import LOGITS, Graph, decode, require_head
from devinterp_func.tree import Params

CANDIDATES = 32
STEPS = (0.0, 0.125, 0.5, 2.0)  # where B is kept, in units of ‖h‖
TYPICAL = 0.125  # of which size candidates are chosen to prove the most for
ROUNDING = 32.0  # units in the last place of the largest logit that rounding may amount to


class Margins(NamedTuple):
    """What is known of the intact logits at m positions."""

    stream: Float[Tensor, "m d"]
    length: Float[Tensor, "m"]  # of the stream
    candidates: Int[Tensor, "m K"]  # classes; the intact prediction first
    bounds: Float[Tensor, "m s"]  # B at ``STEPS``

    def __repr__(self) -> str:
        return f"Margins({len(self.stream)} positions, {self.candidates.shape[1]} candidates each)"


class Suspects(NamedTuple):
    """Changed streams whose prediction may not be the intact one."""

    row: Int[Tensor, "s"]  # which change
    position: Int[Tensor, "s"]
    token: Int[Tensor, "s"]  # the likeliest found
    proven: Bool[Tensor, "s"]  # that it is the prediction
    tolerance: Float[Tensor, "s"]  # logits that differ by no more are not told apart


class Rounding(NamedTuple):
    """Logits of a stream that differ by no more than ``slope`` · its length + ``shift`` are not told apart."""

    slope: float
    shift: float

    def at(self, length: Float[Tensor, "*m"]) -> Float[Tensor, "*m"]:
        """By how much they must differ."""
        return self.slope * length + self.shift


def rounding(graph: Graph, params: Params) -> Rounding:
    """``ROUNDING`` units in the last place of the largest logit."""
    norms, bias = row_norms(graph, params), _bias(graph, params)
    unit = ROUNDING * torch.finfo(norms.dtype).eps
    return Rounding(unit * float(norms.max()), 0.0 if bias is None else unit * float(bias.abs().max()))


def measure_margins(
    graph: Graph, params: Params, stream: Float[Tensor, "m d"], logits: Float[Tensor, "m V"]
) -> Margins:
    """Candidates and bounds of intact positions.

    Args:
        graph, params: the model.
        stream: what the head reads.
        logits: of ``graph.decode``; they are used up.
    """
    norms, length = row_norms(graph, params), torch.linalg.vector_norm(stream, dim=1)
    score = torch.addr(logits, length * TYPICAL, norms)
    score.scatter_(1, logits.argmax(1, keepdim=True), math.inf)
    candidates = score.topk(min(CANDIDATES, len(norms)), dim=1).indices
    others = logits.scatter_(1, candidates, -math.inf)
    bounds = [torch.addr(others, length * step, norms, out=score).amax(1) for step in STEPS]
    return Margins(stream, length, candidates, torch.stack(bounds, dim=1).clamp_(min=torch.finfo(logits.dtype).min))


def compare_margins(
    graph: Graph,
    params: Params,
    margins: Margins,
    changed: Float[Tensor, "N m d"],
    moved: Bool[Tensor, "N m"],
    rounding: Rounding,
) -> Suspects:
    """The moved streams but for those that are proven to predict what the intact ones do.

    Args:
        graph, params: the model.
        margins: of the m positions.
        changed: streams of N changes.
        moved: which of them are different at all.
        rounding: of the model.
    """
    bias, weight = _bias(graph, params), params[require_head(graph).weight][margins.candidates]
    streams = changed.permute(1, 2, 0)
    if bias is None:
        logits = weight @ streams  # (m, K, N)
    else:
        logits = torch.baddbmm(bias[margins.candidates][..., None], weight, streams)
    distance = torch.linalg.vector_norm(changed - margins.stream, dim=-1).T
    ceiling, tolerance = _ceiling(margins, distance), rounding.at(margins.length[:, None] + distance)
    rival = torch.maximum(logits[:, 1:].amax(1), ceiling) if logits.shape[1] > 1 else ceiling
    position, row = (moved.T & ~(logits[:, 0] > rival + tolerance)).nonzero(as_tuple=True)  # so written, NaN stays
    near = tolerance[position, row]
    slot, clear = leader(logits[position, :, row], ceiling[position, row], near)
    return Suspects(row, position, margins.candidates[position, slot], clear, near)


def leader(
    logits: Float[Tensor, "s K"], ceiling: Float[Tensor, "s"], tolerance: Float[Tensor, "s"]
) -> tuple[Int[Tensor, "s"], Bool[Tensor, "s"]]:
    """The largest logit's column, and whether it is above the second and the ceiling by more than the tolerance."""
    values, columns = logits.topk(min(2, logits.shape[1]), dim=1)
    second = torch.maximum(values[:, 1], ceiling) if logits.shape[1] > 1 else ceiling
    return columns[:, 0], values[:, 0] > second + tolerance


def decide(
    graph: Graph, params: Params, changed: Float[Tensor, "s d"], tolerance: Float[Tensor, "s"]
) -> tuple[Int[Tensor, "s"], Bool[Tensor, "s"]]:
    """Predictions from all logits, and whether they are clear of rounding."""
    rows = max(1, LOGITS // graph.vocab_size)
    parts = zip(changed.split(rows), tolerance.split(rows), strict=True)
    found = [leader(decode(graph, params, h), torch.full_like(near, -math.inf), near) for h, near in parts]
    token, clear = zip(*found, strict=True)
    return torch.cat(token), torch.cat(clear)


def row_norms(graph: Graph, params: Params) -> Float[Tensor, "V"]:
    """‖W_U[v]‖ of every class."""
    return torch.linalg.vector_norm(params[require_head(graph).weight], dim=1)


def _bias(graph: Graph, params: Params) -> Float[Tensor, "V"] | None:
    name = require_head(graph).bias
    return None if name is None else params[name]


def _ceiling(margins: Margins, distance: Float[Tensor, "m N"]) -> Float[Tensor, "m N"]:
    """At least B(distance): on the chord between the two steps around it, infinite beyond the last."""
    steps = distance.new_tensor(STEPS)
    size = distance / margins.length[:, None]
    after = torch.bucketize(size.contiguous(), steps, right=True).clamp_(1, len(STEPS) - 1)
    low, high = steps[after - 1], steps[after]
    chord = torch.lerp(
        margins.bounds.gather(1, after - 1), margins.bounds.gather(1, after), (size - low) / (high - low)
    )
    return torch.where(size <= STEPS[-1], chord, math.inf)
