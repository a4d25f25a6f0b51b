"""What amounts are held against: a step without one of its data, its gain as it was or as it would have been."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from devinterp_func.credit._ledger import require_all_factors
from devinterp_func.credit.probes import Probe
from devinterp_func.per_example import Factor, form, take_data
from devinterp_func.training import Move, Recipe
from devinterp_func.tree import Params


@torch.no_grad()
def leave_one_out(move: Move, probe: Probe) -> Float[Tensor, "n"]:
    """f(w + Δw) - f(w + Δw - Δ_j) for each datum: what it really did, given what the others did. A probe's value each.

    The rest of the step stands as it was: past, decay, and the gain (clip coefficient, AdamW's second moments, Muon's
    orthogonaliser), in all of which the datum had a part. ``rerun_without`` lets the gain follow.

    Args:
        move: a step with the factors of all parameters.
        probe: any.

    Raises:
        ValueError: a parameter has no factors.
    """
    require_all_factors(move)
    after, changes = float(probe.value(move.after)), []
    for j in range(len(move.datum)):
        delta = _formed(move.factors, j)
        changes.append(after - float(probe.value({name: w - delta[name] for name, w in move.after.items()})))
    return torch.tensor(changes, dtype=torch.float64)


@torch.no_grad()
def rerun_without(move: Move, probes: Sequence[Probe], recipe: Recipe) -> Float[Tensor, "P n"]:
    """f(w') - f(w' without datum j), the step made again without it: clip coefficient and memory follow.

    The gradient without the datum is the sum over the others, its divisor still the batch size, as in ``retrain``. An
    update and a value of each probe for each datum.

    Args:
        move: a step with the factors of all parameters.
        probes: at least one.
        recipe: by which the step was made.

    Raises:
        ValueError: a parameter has no factors.
    """
    require_all_factors(move)
    changes = torch.zeros(len(probes), len(move.datum), dtype=torch.float64)
    lr, values = float(move.split.lr), _values(probes, move.after)
    for j in range(len(move.datum)):
        own = _formed(move.gradients, j)
        grads = {name: g - own[name] / recipe.batch_size for name, g in move.split.grads.items()}
        after, *_ = recipe.optimizer.update(move.before, grads, move.state_before, lr, recipe.max_norm)
        changes[:, j] = values - _values(probes, after)
    return changes


def _values(probes: Sequence[Probe], params: Params) -> Float[Tensor, "P"]:
    return torch.tensor([float(probe.value(params)) for probe in probes], dtype=torch.float64)


def _formed(factors: dict[str, Factor], j: int) -> Params:
    """One datum's part of every unit."""
    return {name: form(take_data(factor, slice(j, j + 1)))[0] for name, factor in factors.items()}
