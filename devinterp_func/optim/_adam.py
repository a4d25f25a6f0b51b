"""Adam and AdamW (Kingma and Ba 2015; Loshchilov and Hutter 2019)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from devinterp_func import checks
from devinterp_func.optim._rule import Buffers, clipped
from devinterp_func.optim._share import Rooted, Share, inner_products

FIRST, SECOND = "exp_avg", "exp_avg_sq"
BLOCK = 2**16  # entries stepped at once on a CPU: what is written is read again while it is in the cache


@dataclass(frozen=True)
class Adam:
    """m' = β₁ m + (1 − β₁) u, v' = β₂ v + (1 − β₂) u², w' = w − lr / (1 − β₁ᵗ) · m' / (√v' / √(1 − β₂ᵗ) + ε).

    Decoupled weight decay takes lr · weight_decay · w off the weight (``torch.optim.AdamW``); otherwise it is part of
    the gradient, u = c · g + weight_decay · w (``torch.optim.Adam``).

    Raises:
        TypeError, ValueError: a value of another type or out of range; it is named.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = True

    def __post_init__(self) -> None:
        betas = checks.numbers("betas", self.betas, 2)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}; both must be at least 0 and below 1")
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "eps", checks.positive("eps", self.eps))
        object.__setattr__(self, "weight_decay", checks.non_negative("weight_decay", self.weight_decay))
        object.__setattr__(self, "decoupled", checks.flag("decoupled", self.decoupled))

    @property
    def remembered(self) -> tuple[str, ...]:
        """Names of the buffers."""
        return FIRST, SECOND

    def init(self, weight: Tensor) -> Buffers:
        """What is remembered of a unit before the first step."""
        return {name: torch.zeros_like(weight) for name in self.remembered}

    def step(
        self, weight: Tensor, grad: Tensor, clip: float, buffers: Buffers, lr: float, t: int, decayed: bool
    ) -> tuple[Tensor, Buffers, Share]:
        """One unit's step, the t-th from 1: its new weight and memory, and how the step came about."""
        decay = self.weight_decay if decayed else 0.0
        coupled = 0.0 if self.decoupled else decay
        (first, second), memory = self.betas, buffers[FIRST]
        rate, correction = lr / (1 - first**t), (1 - second**t) ** 0.5
        olds = [x.contiguous().view(-1) for x in (weight, grad, memory, buffers[SECOND])]
        news = [torch.empty_like(x) for x in (olds[0], olds[2], olds[3])]
        size, products = BLOCK if weight.device.type == "cpu" else max(1, weight.numel()), []
        for w, g, m, v, w_new, m_new, v_new in zip(*(x.split(size) for x in (*olds, *news)), strict=True):
            u = clipped(w, g, clip, coupled)
            torch.lerp(m, u, 1 - first, out=m_new)
            torch.mul(v, second, out=v_new).addcmul_(u, u, value=1 - second)
            root = v_new.sqrt().div_(correction).add_(self.eps)
            shrunk = w * (1 - lr * decay) if decay and self.decoupled else w
            torch.addcdiv(shrunk, m_new, root, value=-rate, out=w_new)
            divided = [x / root for x in ((g, m, w) if coupled else (g, m))]
            products.append(inner_products((*divided, w)[: 3 if decay else 2]))
        w_new, m_new, v_new = (x.view(weight.shape) for x in news)
        gain = Rooted(-rate, v_new, correction, self.eps)
        measured = torch.stack(products).double().sum(0)
        share = Share(gain, 1 - first, first, first, 1 - first, memory, -lr * (decay - coupled), coupled, measured)
        return w_new, {FIRST: m_new, SECOND: v_new}, share

    def apply(
        self, weight: Tensor, grad: Tensor, buffers: Buffers, lr: float, t: int, decayed: bool
    ) -> tuple[Tensor, Buffers]:
        """The same step by a gradient that is clipped already, of operations that ``torch.func`` differentiates."""
        decay, (first, second) = self.weight_decay if decayed else 0.0, self.betas
        u = grad if self.decoupled else grad + decay * weight
        m, v = first * buffers[FIRST] + (1 - first) * u, second * buffers[SECOND] + (1 - second) * u * u
        seen = v > 0  # where it is not, there has been no gradient, and the root, which has no derivative at 0, is 0
        root = torch.where(seen, torch.where(seen, v, 1.0).sqrt(), 0.0) / (1 - second**t) ** 0.5
        shrunk = weight * (1 - lr * decay) if self.decoupled else weight
        return shrunk - lr / (1 - first**t) * m / (root + self.eps), {FIRST: m, SECOND: v}

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
        decay, (first, second) = self.weight_decay if decayed else 0.0, self.betas
        coupled, shrunk = (0.0, 1 - lr * decay) if self.decoupled else (decay, 1.0)
        rate, correction = lr / (1 - first**t), (1 - second**t) ** 0.5
        given = (weight, grad, buffers[FIRST], buffers[SECOND], back, memory[FIRST], memory[SECOND])
        olds = [x.contiguous().view(-1) for x in given]
        news = [torch.empty_like(olds[0]) for _ in range(4)]
        size = BLOCK if weight.device.type == "cpu" else max(1, weight.numel())
        for w, g, m, v, a, by_m, by_v, *out in zip(*(x.split(size) for x in (*olds, *news)), strict=True):
            u = clipped(w, g, clip, coupled)
            m_new, v_new = torch.lerp(m, u, 1 - first), (v * second).addcmul_(u, u, value=1 - second)
            root = v_new.sqrt()
            divisor = (root / correction).add_(self.eps)
            by_direction = (a * -rate).div_(divisor)
            by_first = by_m + by_direction
            slope = by_direction.mul_(m_new).div_(divisor).div_(root.mul_(2 * correction))
            by_second = by_v - slope.masked_fill_(v_new == 0, 0.0)  # no gradient yet: the step is linear in the first
            by_u = torch.mul(by_first, 1 - first, out=out[1]).addcmul_(u, by_second, value=2 * (1 - second))
            torch.add(a * shrunk, by_u, alpha=coupled, out=out[0])
            torch.mul(by_first, first, out=out[2])
            torch.mul(by_second, second, out=out[3])
        by_weight, by_grad, by_first, by_second = (x.view(weight.shape) for x in news)
        return by_weight, by_grad, {FIRST: by_first, SECOND: by_second}
