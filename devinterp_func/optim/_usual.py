"""The usual optimizers, and how they are put together by names of units."""

from collections.abc import Sequence
from dataclasses import replace

from devinterp_func.optim._adam import Adam
from devinterp_func.optim._muon import COEFFICIENTS, Adjustment, Muon
from devinterp_func.optim._optimizer import Group, Optimizer
from devinterp_func.optim._rule import Rule
from devinterp_func.optim._sgd import Sgd
from devinterp_func.units import Patterns


def sgd(
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    *,
    undecayed: Patterns = (),
    matrices_only: bool = False,
) -> Optimizer:
    """Stochastic gradient descent; the decay is coupled. ``torch.optim.SGD``.

    Args:
        momentum, dampening, nesterov, weight_decay: of ``torch.optim.SGD``.
        undecayed: patterns of units without weight decay.
        matrices_only: nor do units of fewer than two dimensions decay: biases and norms.

    Raises:
        TypeError, ValueError: a value of another type or out of range; it is named.
    """
    return _of(Sgd(momentum, dampening, nesterov, weight_decay), undecayed, matrices_only)


def adam(
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    undecayed: Patterns = (),
    matrices_only: bool = False,
) -> Optimizer:
    """Adam; the decay is coupled. ``torch.optim.Adam``.

    Args:
        betas, eps, weight_decay: of ``torch.optim.Adam``; eps must be positive.
        undecayed, matrices_only: as for ``sgd``.

    Raises:
        TypeError, ValueError: as for ``sgd``.
    """
    return _of(Adam(betas, eps, weight_decay, decoupled=False), undecayed, matrices_only)


def adamw(
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    *,
    undecayed: Patterns = (),
    matrices_only: bool = False,
) -> Optimizer:
    """Adam with decoupled weight decay. ``torch.optim.AdamW``.

    Args:
        betas, eps, weight_decay: of ``torch.optim.AdamW``; eps must be positive.
        undecayed, matrices_only: as for ``sgd``.

    Raises:
        TypeError, ValueError: as for ``sgd``.
    """
    return _of(Adam(betas, eps, weight_decay), undecayed, matrices_only)


def muon(
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.1,
    *,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust: Adjustment = "match_rms_adamw",
    rest: Optimizer | None = None,
    but: Patterns = (),
) -> Optimizer:
    """Muon for 2-D units, another optimizer for the rest: biases, norms, convolutions. ``torch.optim.Muon``.

    Args:
        momentum, nesterov, weight_decay, coefficients, eps, ns_steps: of ``torch.optim.Muon``.
        adjust: its ``adjust_lr_fn``. By default Muon takes rates that are usual for AdamW: one rate does for both.
        rest: for the units of other dimensions; ``adamw()`` by default.
        but: patterns of 2-D units that ``rest`` takes too: embeddings and the head, usually.

    Raises:
        TypeError, ValueError: a value of another type or out of range; ``rest`` has several groups, of which ``but``
            cannot say one.
    """
    rest = adamw() if rest is None else rest
    rule = Muon(momentum, nesterov, weight_decay, coefficients, eps, ns_steps, adjust)
    excepted = grouped((but, rest)).groups if but else ()
    return Optimizer((*excepted, Group(rule, ndim=2), *rest.groups))


def grouped(
    *parts: tuple[Patterns, Optimizer], rest: Optimizer | None = None, scales: Sequence[float] = ()
) -> Optimizer:
    """Optimizers by name pattern; a unit is stepped by the first whose patterns match it.

    Args:
        parts: patterns, and the optimizer of the units that match one. It must be of one group.
        rest: for all others.
        scales: of each part, times the learning rate; 1 by default.

    Raises:
        TypeError: a part is not patterns and an optimizer, or the patterns are a single string.
        ValueError: an optimizer is made of groups already, or scales are of another number.

    >>> two = grouped((("*.bias",), sgd()), rest=adamw())
    >>> [type(two.group(name, 2).rule).__name__ for name in ("linear1.bias", "linear1.weight")]
    ['Sgd', 'Adam']
    """
    if scales and len(scales) != len(parts):
        raise ValueError(f"there are {len(scales)} scales for {len(parts)} parts; each part takes one")
    found = []
    for i, part in enumerate(parts):
        if not isinstance(part, tuple | list) or len(part) != 2 or not isinstance(part[1], Optimizer):
            raise TypeError(f"part {i} is {part!r}; it must be patterns and an optimizer, such as (('*.bias',), sgd())")
        patterns, optimizer = part
        if len(optimizer.groups) != 1:
            raise ValueError(f"the optimizer for {patterns} has {len(optimizer.groups)} groups; it must have one")
        scale = scales[i] if scales else optimizer.groups[0].scale
        found.append(replace(optimizer.groups[0], units=patterns, scale=scale))
    return Optimizer((*found, *(() if rest is None else rest.groups)))


def _of(rule: Rule, undecayed: Patterns, matrices_only: bool) -> Optimizer:
    return Optimizer((Group(rule, undecayed=undecayed, matrices_only=matrices_only),))
