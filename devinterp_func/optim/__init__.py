"""Optimizers as values, and the law that splits what they did: present, past and decay."""

from devinterp_func.optim._adam import Adam
from devinterp_func.optim._law import (
    Summed,
    add_summed,
    delta_factors,
    delta_sums,
    deltas,
    missed,
    missed_bound,
    summed,
)
from devinterp_func.optim._muon import Muon, orthogonaliser
from devinterp_func.optim._optimizer import Covector, Group, Optimizer, State
from devinterp_func.optim._rule import Buffers, Rule
from devinterp_func.optim._schedule import Schedule
from devinterp_func.optim._sgd import Sgd
from devinterp_func.optim._share import Matrix, Rooted, Share, apply_gain, apply_gain_to_factor, pull_gain
from devinterp_func.optim._split import PARTS, Sizes, Split
from devinterp_func.optim._usual import adam, adamw, grouped, muon, sgd
from devinterp_func.optim._written import from_dict, to_dict

__all__ = [
    "Adam",
    "Buffers",
    "Covector",
    "Group",
    "Matrix",
    "Muon",
    "Optimizer",
    "PARTS",
    "Rooted",
    "Rule",
    "Schedule",
    "Sgd",
    "Share",
    "Sizes",
    "Split",
    "State",
    "Summed",
    "adam",
    "adamw",
    "add_summed",
    "apply_gain",
    "apply_gain_to_factor",
    "delta_factors",
    "delta_sums",
    "deltas",
    "from_dict",
    "grouped",
    "missed",
    "missed_bound",
    "muon",
    "orthogonaliser",
    "pull_gain",
    "sgd",
    "summed",
    "to_dict",
]
