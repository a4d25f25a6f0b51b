"""Stochastic gradient descent, with momentum, Nesterov's too, and weight decay that is coupled, as in torch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from devinterp_func import checks
from devinterp_func.optim._rule import Buffers, clipped
from devinterp_func.optim._share import Share

MOMENTUM = "momentum_buffer"


@dataclass(frozen=True)
class Sgd:
    """m' = μ m + (1 − dampening) u, at the first step m' = u; w' = w − lr · m', Nesterov's: w − lr · (u + μ m').

    u = c · g + weight_decay · w: the decay is part of the gradient, and is remembered like it. ``torch.optim.SGD``.

    Raises:
        TypeError, ValueError: a value of another type or out of range; it is named.
    """

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("momentum", "dampening", "weight_decay"):
            object.__setattr__(self, name, checks.non_negative(name, getattr(self, name)))
        object.__setattr__(self, "nesterov", checks.flag("nesterov", self.nesterov))
        if self.nesterov and (not self.momentum or self.dampening):
            raise ValueError(
                f"nesterov takes a momentum and no dampening; these are {self.momentum} and {self.dampening}"
            )

    @property
    def remembered(self) -> tuple[str, ...]:
        """Names of the buffers."""
        return (MOMENTUM,) if self.momentum else ()

    def init(self, weight: Tensor) -> Buffers:
        """What is remembered of a unit before the first step."""
        return {name: torch.zeros_like(weight) for name in self.remembered}

    def step(
        self, weight: Tensor, grad: Tensor, clip: float, buffers: Buffers, lr: float, t: int, decayed: bool
    ) -> tuple[Tensor, Buffers, Share]:
        """One unit's step, the t-th from 1: its new weight and memory, and how the step came about."""
        decay = self.weight_decay if decayed else 0.0
        if not self.momentum:
            share = Share(-lr, 1.0, 0.0, 0.0, 0.0, None, 0.0, decay)
            if not decay:
                return torch.sub(weight, grad, alpha=lr * clip), {}, share
            return weight - lr * clipped(weight, grad, clip, decay), {}, share
        u, memory = clipped(weight, grad, clip, decay), buffers[MOMENTUM]
        keep, take = self._memory(t)
        new = memory * keep + u * take if t > 1 else u.clone()
        ahead = self.momentum if self.nesterov else None
        direction = new if ahead is None else torch.add(u, new, alpha=ahead)
        present, past = (take, keep) if ahead is None else (1 + ahead * take, ahead * keep)
        share = Share(-lr, present, past, keep, take, memory, 0.0, decay)
        return torch.sub(weight, direction, alpha=lr), {MOMENTUM: new}, share

    def apply(
        self, weight: Tensor, grad: Tensor, buffers: Buffers, lr: float, t: int, decayed: bool
    ) -> tuple[Tensor, Buffers]:
        """The same step by a gradient that is clipped already, of operations that ``torch.func`` differentiates."""
        u = grad + (self.weight_decay if decayed else 0.0) * weight
        if not self.momentum:
            return weight - lr * u, {}
        keep, take = self._memory(t)
        new = keep * buffers[MOMENTUM] + take * u
        return weight - lr * (u + self.momentum * new if self.nesterov else new), {MOMENTUM: new}

    def pull(
        self,
        weight: Tensor,
        grad: Tensor,
        clip: float,
        buffers: Buffers,
        lr: float,
        t: int,
        decayed: bool,
        back: Tensor,
        memory: Buffers,
    ) -> tuple[Tensor, Tensor, Buffers]:
        """Derivatives by the new weight and memory, pulled back to the weight, the clipped gradient and the memory."""
        decay = self.weight_decay if decayed else 0.0
        if not self.momentum:
            by_u, old = back * -lr, Buffers()
        else:
            keep, take = self._memory(t)
            by_new = torch.add(memory[MOMENTUM], back, alpha=-lr * (self.momentum if self.nesterov else 1.0))
            by_u, old = by_new * take, {MOMENTUM: by_new * keep}
            by_u = by_u.sub_(back, alpha=lr) if self.nesterov else by_u
        return torch.add(back, by_u, alpha=decay), by_u, old

    def _memory(self, t: int) -> tuple[float, float]:
        """(keep, take): the first step's memory is its gradient."""
        return (self.momentum, 1 - self.dampening) if t > 1 else (0.0, 1.0)
