"""Optimizers as values with two pure functions, ``init`` and ``update``; the rule of a unit's group steps it.

The gradient is clipped by its norm over ALL units, before any rule sees it.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from devinterp_func import checks, tree, units
from devinterp_func.optim._rule import Buffers, Rule
from devinterp_func.optim._share import Share
from devinterp_func.optim._split import Split
from devinterp_func.tree import Params
from devinterp_func.units import Patterns


class State(NamedTuple):
    """What an optimizer remembers."""

    steps: int  # that it has made
    buffers: dict[str, Buffers]  # unit -> what its rule remembers, under torch's names; {} for none

    def __repr__(self) -> str:
        kinds = sorted({name for own in self.buffers.values() for name in own})
        return f"State after {self.steps:,} step{'s' * (self.steps != 1)}: {', '.join(kinds) or 'nothing'}"


class Covector(NamedTuple):
    """Derivatives of a number by the weights and by what the optimizer remembers."""

    weights: Params
    memory: dict[str, Buffers]

    def __repr__(self) -> str:
        return f"Covector of norm {tree.norm(self.weights):.4g} by the weights"


@dataclass(frozen=True)
class Group:
    """Some units and how they are stepped.

    Raises:
        TypeError, ValueError: a value of another type or out of range; it is named.
    """

    rule: Rule
    units: Patterns = ("*",)  # name patterns
    ndim: int | None = None  # only units of so many dimensions
    scale: float = 1.0  # times the learning rate
    undecayed: Patterns = ()  # name patterns of units without weight decay
    matrices_only: bool = False  # nor do units of fewer than 2 dimensions decay: biases and norms

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule):
            raise TypeError(f"rule is {self.rule!r}; it must be a rule, such as Sgd(), Adam() or Muon()")
        object.__setattr__(self, "units", units.as_patterns(self.units))
        object.__setattr__(self, "undecayed", _as_undecayed(self.undecayed))
        object.__setattr__(self, "ndim", None if self.ndim is None else checks.integer("ndim", self.ndim, least=0))
        object.__setattr__(self, "scale", checks.positive("scale", self.scale))
        object.__setattr__(self, "matrices_only", checks.flag("matrices_only", self.matrices_only))

    def takes(self, name: str, ndim: int) -> bool:
        """Whether a unit is of the group, if of none before it."""
        return self.ndim in (None, ndim) and units.matches(name, self.units)

    def decays(self, name: str, ndim: int) -> bool:
        """Whether a unit of the group has weight decay, if the rule has."""
        return not units.matches(name, self.undecayed) and (ndim >= 2 or not self.matrices_only)


@dataclass(frozen=True)
class Optimizer:
    """Groups of units; a unit is stepped by the first that takes it."""

    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        if not self.groups or not all(isinstance(group, Group) for group in self.groups):
            raise TypeError(f"groups are {self.groups!r}; they must be one Group or more")
        object.__setattr__(self, "groups", tuple(self.groups))

    def init(self, params: Params) -> State:
        """What is remembered before the first step: nothing yet, as zeros.

        Raises:
            TypeError: a parameter is no floating-point tensor.
            ValueError: a pattern matches no unit, a group with patterns of its own has no unit left, no group takes a
                unit, or its rule cannot step it.
        """
        for pattern in (p for group in self.groups for p in (*group.units, *group.undecayed)):
            units.choose(params, (pattern,))
        for name, weight in params.items():
            if not weight.is_floating_point():
                raise TypeError(f"{name} is {weight.dtype}; what is trained must be floating-point, and real")
        taken = {name: self.group(name, weight.ndim) for name, weight in params.items()}
        for group in self.groups:
            if group.units != units.EVERY and not any(group is own for own in taken.values()):
                why = "groups before it take them" if group.ndim is None else f"none of {group.ndim} dimensions is left"
                raise ValueError(f"the group of {', '.join(group.units)} has no unit to step: {why}")
        return State(0, {name: _init(taken[name].rule, name, weight) for name, weight in params.items()})

    @torch.no_grad()
    def update(
        self, params: Params, grads: Params, state: State, lr: float, max_norm: float = math.inf
    ) -> tuple[Params, State, Split]:
        """New parameters and memory, and how the step came about.

        Args:
            params: the weights; the new ones carry no autograd graph.
            grads: the batch gradient of every parameter.
            state: of ``init``, or of the step before.
            lr: learning rate of this step.
            max_norm: the largest gradient norm left unclipped; ``math.inf`` clips none.

        Raises:
            TypeError: lr or max_norm is no number.
            ValueError: params, grads and state are of different units, a gradient is of another shape than its unit,
                the state is another optimizer's, or lr or max_norm is not positive.

        >>> params, grads = {"w": torch.zeros(2)}, {"w": torch.tensor([3.0, 4.0])}
        >>> from devinterp_func.optim import sgd
        >>> after, state, split = sgd().update(params, grads, sgd().init(params), lr=1.0, max_norm=0.5)
        >>> after, state, split
        ({'w': tensor([-0.3000, -0.4000])}, State after 1 step: nothing, Split(lr=1, clip=0.1, grad_norm=5))
        """
        self._check(params, grads, state)
        lr, max_norm = checks.positive("lr", lr), checks.positive("max_norm", max_norm, infinite=True)
        norm = tree.norm(grads)
        clip = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        c, t = float(clip), state.steps + 1
        after, buffers, shares = Params(), dict[str, Buffers](), dict[str, Share]()
        for name, weight in params.items():
            group = self.group(name, weight.ndim)
            decays, rate = group.decays(name, weight.ndim), lr * group.scale
            after[name], buffers[name], shares[name] = group.rule.step(
                weight, grads[name], c, state.buffers[name], rate, t, decays
            )
        before, grads = ({name: x.detach() for name, x in given.items()} for given in (params, grads))
        return after, State(t, buffers), Split(torch.tensor(lr, dtype=torch.float64), clip, norm, shares, before, grads)

    def apply(
        self, params: Params, grads: Params, state: State, lr: float, max_norm: float = math.inf
    ) -> tuple[Params, State]:
        """``update`` of operations that ``torch.func`` differentiates, clipping included; slower, and without a split.

        Args:
            params, grads, state, lr, max_norm: of ``update``.
        """
        # an infinite max_norm has no derivative: 0 · ∞, which is NaN
        clip = torch.clamp(max_norm / (tree.norm(grads) + 1e-6), max=1.0) if math.isfinite(max_norm) else 1.0
        after, buffers, t = Params(), dict[str, Buffers](), state.steps + 1
        for name, weight in params.items():
            group = self.group(name, weight.ndim)
            own, decays = state.buffers[name], group.decays(name, weight.ndim)
            after[name], buffers[name] = group.rule.apply(weight, clip * grads[name], own, lr * group.scale, t, decays)
        return after, State(t, buffers)

    @torch.no_grad()
    def pull(
        self,
        params: Params,
        grads: Params,
        state: State,
        back: Covector,
        lr: float,
        max_norm: float = math.inf,
    ) -> tuple[Covector, Params]:
        """A number's derivatives by the new weights and memory, pulled back through a step.

        Args:
            params, grads, state, lr, max_norm: of ``update``.
            back: the derivatives by what the step led to.

        Returns:
            The derivatives by the weights and the memory before the step, the gradient held, and those by the gradient.
        """
        norm = float(tree.norm(grads))
        clip = min(1.0, max_norm / (norm + 1e-6))
        by_weight, by_grad, by_memory = Params(), Params(), dict[str, Buffers]()
        for name, weight in params.items():
            group = self.group(name, weight.ndim)
            which = lr * group.scale, state.steps + 1, group.decays(name, weight.ndim)
            given = weight, grads[name], clip, state.buffers[name], *which, back.weights[name], back.memory[name]
            by_weight[name], by_grad[name], by_memory[name] = group.rule.pull(*given)
        if clip < 1:  # c = max_norm / (‖g‖ + 1e-6) moves with the gradient
            along = math.fsum(float((grads[name] * y).sum(dtype=torch.float64)) for name, y in by_grad.items())
            slope = -max_norm / (norm + 1e-6) ** 2 * along / norm if norm else 0.0
            by_grad = {name: torch.add(y * clip, grads[name], alpha=slope) for name, y in by_grad.items()}
        return Covector(by_weight, by_memory), by_grad

    def group(self, name: str, ndim: int) -> Group:
        """The group that a unit is of.

        Raises:
            ValueError: of none.
        """
        for group in self.groups:
            if group.takes(name, ndim):
                return group
        raise ValueError(f"no group takes {name!r}; a last group with units=('*',) takes what is left")

    @property
    def remembers(self) -> bool:
        """Whether later steps depend on what earlier ones left in the state."""
        return any(group.rule.remembered for group in self.groups)

    def _check(self, params: Params, grads: Params, state: State) -> None:
        for what, given in (("grads", grads), ("the state", state.buffers)):
            if differing := params.keys() ^ given.keys():
                raise ValueError(f"params and {what} differ in {sorted(differing)}; both need every parameter")
        for name, weight in params.items():
            if (found := grads[name].shape) != weight.shape:
                raise ValueError(
                    f"the gradient of {name} is {tuple(found)}; it must be {tuple(weight.shape)}, as the unit"
                )
            names, own = state.buffers[name].keys(), self.group(name, weight.ndim).rule.remembered
            if names != set(own):
                there, wanted = (", ".join(sorted(some)) or "nothing" for some in (names, own))
                raise ValueError(f"of {name} the state remembers {there}; this optimizer remembers {wanted}")


def _init(rule: Rule, name: str, weight: Tensor) -> Buffers:
    try:
        return rule.init(weight)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _as_undecayed(value: Patterns) -> tuple[str, ...]:
    try:
        return units.as_patterns(value)
    except TypeError as error:
        raise TypeError(str(error).replace("units", "undecayed", 1)) from None
