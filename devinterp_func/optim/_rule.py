"""What a rule of an optimizer is: how one unit is stepped."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from devinterp_func.optim._share import Share

Buffers = dict[str, Tensor]
"""What a rule remembers of one unit, under torch's names."""


@runtime_checkable
class Rule(Protocol):
    """A frozen dataclass of numbers with two pure functions."""

    @property
    def remembered(self) -> tuple[str, ...]:
        """Names of the buffers; () for a rule without memory."""
        ...

    def init(self, weight: Tensor) -> Buffers:
        """What is remembered of a unit before the first step.

        Raises:
            ValueError: the rule cannot step such a unit.
        """
        ...

    def step(
        self, weight: Tensor, grad: Tensor, clip: float, buffers: Buffers, lr: float, t: int, decayed: bool
    ) -> tuple[Tensor, Buffers, Share]:
        """One unit's step: its new weight and memory, and how the step came about.

        Args:
            weight: w; it is left alone.
            grad: g, unclipped.
            clip: c, by which g is multiplied.
            buffers: m, of ``init`` or of the step before.
            lr: the learning rate, a group's scale included.
            t: the number of the step, from 1.
            decayed: whether the unit has weight decay, if the rule has.
        """
        ...

    def apply(
        self, weight: Tensor, grad: Tensor, buffers: Buffers, lr: float, t: int, decayed: bool
    ) -> tuple[Tensor, Buffers]:
        """The same step by a gradient that is clipped already, of operations that ``torch.func`` differentiates."""
        ...

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
        """A number's derivatives by the new weight and memory, pulled back through the step: ``vjp`` of ``apply``.

        Args:
            weight, grad, clip, buffers, lr, t, decayed: of ``step``.
            back: the derivative by the new weight.
            memory: ... by the new buffers.

        Returns:
            The derivatives by the weight, by the clipped gradient c · g, and by the buffers.
        """
        ...


def clipped(weight: Tensor, grad: Tensor, clip: float, decay: float) -> Tensor:
    """u = c · g + λ · w: what a rule takes for the gradient. It may be ``grad`` itself."""
    u = grad if clip == 1 else grad * clip
    return torch.add(u, weight, alpha=decay) if decay else u
