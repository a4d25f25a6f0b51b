"""Which token a changed stream predicts, proven from a few logits instead of all V.

Let h be the stream that the decoder reads at a position, ℓ_v = ⟨W_U[v], h⟩ + b_v, and h' = h + δ. For every
token ℓ'_v ≤ ℓ_v + ‖W_U[v]‖ ‖δ‖ (Cauchy and Schwarz). So with the new logits of K candidates, and over all other tokens

    B(t) = max_v ℓ_v + ‖W_U[v]‖ t

a candidate whose new logit is above those of the other candidates and above B(‖δ‖) is the prediction. B is convex: it
is kept at a few t, and between two of them the chord is above it. Where nothing is proven so, the decoder decides.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devinterp_func import models, units
from devinterp_func.models import Config
from devinterp_func.tree import Params

CANDIDATES = 32
STEPS = (0.0, 0.125, 0.5, 2.0)  # where B is kept, in units of ‖h‖
TYPICAL = 0.125  # of which size candidates are chosen to prove the most for
ROUNDING = 32.0  # units in the last place of the largest possible logit that rounding may amount to


class Margins(NamedTuple):
    """What is known of the intact logits at m positions."""

    stream: Float[Tensor, "m d"]
    candidates: Int[Tensor, "m K"]  # token ids; the intact prediction first
    bounds: Float[Tensor, "m s"]  # B at ``STEPS``

    def __repr__(self) -> str:
        return f"Margins({len(self.stream)} positions, {self.candidates.shape[1]} candidates each)"


class Suspects(NamedTuple):
    """Changed streams whose prediction may not be the intact one."""

    row: Int[Tensor, "s"]  # which change
    position: Int[Tensor, "s"]
    token: Int[Tensor, "s"]  # the likeliest found
    proven: Bool[Tensor, "s"]  # that it is the prediction


def measure_margins(params: Params, stream: Float[Tensor, "m d"], logits: Float[Tensor, "m V"]) -> Margins:
    """Candidates and bounds of intact positions.

    Args:
        params: weights.
        stream: what the decoder reads.
        logits: of ``models.decode``; they are used up.
    """
    norms, length = row_norms(params), torch.linalg.vector_norm(stream, dim=1)
    score = torch.addr(logits, length * TYPICAL, norms)
    score.scatter_(1, logits.argmax(1, keepdim=True), math.inf)
    candidates = score.topk(min(CANDIDATES, len(norms)), dim=1).indices
    others = logits.scatter_(1, candidates, -math.inf)
    bounds = [torch.addr(others, length * step, norms, out=score).amax(1) for step in STEPS]
    return Margins(stream, candidates, torch.stack(bounds, dim=1).clamp_(min=torch.finfo(logits.dtype).min))


def compare_margins(
    params: Params,
    margins: Margins,
    changed: Float[Tensor, "N m d"],
    moved: Bool[Tensor, "N m"],
    tolerance: float,
) -> Suspects:
    """The moved streams but for those that are proven to predict what the intact ones do.

    Args:
        params: weights.
        margins: of the m positions.
        changed: streams of N changes.
        moved: which of them are different at all.
        tolerance: of ``tolerance``.
    """
    weight, bias = params[units.UNEMBEDDING][margins.candidates], params[units.UNEMBEDDING_BIAS][margins.candidates]
    logits = torch.baddbmm(bias[..., None], weight, changed.permute(1, 2, 0))  # (m, K, N)
    ceiling = _ceiling(margins, torch.linalg.vector_norm(changed - margins.stream, dim=-1).T)
    rival = torch.maximum(logits[:, 1:].amax(1), ceiling) if logits.shape[1] > 1 else ceiling
    position, row = (moved.T & ~(logits[:, 0] > rival + tolerance)).nonzero(as_tuple=True)  # so written, NaN stays
    slot, clear = leader(logits[position, :, row], ceiling[position, row], tolerance)
    return Suspects(row, position, margins.candidates[position, slot], clear)


def leader(
    logits: Float[Tensor, "s K"], ceiling: Float[Tensor, "s"], tolerance: float
) -> tuple[Int[Tensor, "s"], Bool[Tensor, "s"]]:
    """The largest logit's column, and whether it is above the second and the ceiling by more than the tolerance."""
    values, columns = logits.topk(min(2, logits.shape[1]), dim=1)
    second = torch.maximum(values[:, 1], ceiling) if logits.shape[1] > 1 else ceiling
    return columns[:, 0], values[:, 0] > second + tolerance


def decide(
    params: Params, changed: Float[Tensor, "s d"], tolerance: float
) -> tuple[Int[Tensor, "s"], Bool[Tensor, "s"]]:
    """Predictions from all logits, and whether they are clear of rounding."""
    rows = max(1, models.LOGITS // len(params[units.UNEMBEDDING]))
    parts = [models.decode(params, part) for part in changed.split(rows)]
    nothing = changed.new_full((rows,), -math.inf)
    found = [leader(logits, nothing[: len(logits)], tolerance) for logits in parts]
    token, clear = zip(*found, strict=True)
    return torch.cat(token), torch.cat(clear)


def tolerance(params: Params, config: Config) -> float:
    """Logits that differ by no more are not told apart: ``ROUNDING`` · eps · the largest that the last norm allows."""
    gain, shift = (params[name] for name in units.final_norm(params))
    longest = math.sqrt(config.d_model) * gain.abs().max() + shift.norm()
    largest = longest * row_norms(params).max() + params[units.UNEMBEDDING_BIAS].abs().max()
    return ROUNDING * torch.finfo(largest.dtype).eps * float(largest)


def row_norms(params: Params) -> Float[Tensor, "V"]:
    """‖W_U[v]‖ of every token."""
    return torch.linalg.vector_norm(params[units.UNEMBEDDING], dim=1)


def _ceiling(margins: Margins, distance: Float[Tensor, "m N"]) -> Float[Tensor, "m N"]:
    """At least B(distance): on the chord between the two steps around it, infinite beyond the last."""
    steps = distance.new_tensor(STEPS)
    size = distance / torch.linalg.vector_norm(margins.stream, dim=1, keepdim=True)
    after = torch.bucketize(size.contiguous(), steps, right=True).clamp_(1, len(STEPS) - 1)
    low, high = steps[after - 1], steps[after]
    chord = torch.lerp(
        margins.bounds.gather(1, after - 1), margins.bounds.gather(1, after), (size - low) / (high - low)
    )
    return torch.where(size <= STEPS[-1], chord, math.inf)
