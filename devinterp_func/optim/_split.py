"""How a step came about: present, past and decay of every unit, which add up to its change."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from devinterp_func.optim._share import Matrix, Rooted, Share, apply_gain, inner_products
from devinterp_func.tree import Params

PARTS = ("present", "past", "decay")
BLOCK = 2**16  # entries measured at once


class Sizes(NamedTuple):
    """How much of the change of U units is present, past and decay."""

    size: Float[Tensor, "*S U 3"]  # norms
    along: Float[Tensor, "*S U 3"]  # inner products with the change: they add up to its squared norm

    def shares(self) -> Float[Tensor, "*S U 3"]:
        """Each part's share of the change, along it: they add up to 1; NaN of a unit that did not change."""
        return self.along / self.along.sum(-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Split:
    """What a step used, and how the change of each unit came about.

        w' − w = present + past + decay        present = Σ_j Δ_j

    The tensors are those of the step; each part is made when it is asked for.
    """

    lr: Float[Tensor, ""]  # of the whole step, before a group's scale
    clip: Float[Tensor, ""]  # c, 1 where clipping was idle
    grad_norm: Float[Tensor, ""]  # ‖g‖ over ALL parameters, before clipping
    shares: dict[str, Share] = field(repr=False)
    before: Params = field(repr=False)
    grads: Params = field(repr=False)  # g, unclipped

    def __repr__(self) -> str:
        return f"Split(lr={self.lr:.6g}, clip={self.clip:.6g}, grad_norm={self.grad_norm:.6g})"

    def present(self, unit: str) -> Tensor:
        """What the step's own data did: Σ_j Δ_j."""
        share = self.shares[unit]
        return apply_gain(share.gain, self.grads[unit] * (share.present * float(self.clip)))

    def past(self, unit: str) -> Tensor:
        """What data of earlier steps did, through the optimizer's memory."""
        share = self.shares[unit]
        if share.memory is None or not share.past:
            return torch.zeros_like(self.before[unit])
        return apply_gain(share.gain, share.memory * share.past)

    def decay(self, unit: str) -> Tensor:
        """What weight decay did."""
        share, weight = self.shares[unit], self.before[unit]
        if share.coupled:
            return apply_gain(share.gain, weight * (share.present * share.coupled))
        return weight * share.decay

    def sizes(self) -> Sizes:
        """How much of each unit's change is present, past and decay; float64."""
        grams = torch.stack([self._gram(unit) for unit in self.before])
        return Sizes(grams.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt(), grams.sum(-1))

    def _gram(self, unit: str) -> Float[Tensor, "3 3"]:
        """Inner products of the three parts, in float64."""
        share, weight = self.shares[unit], self.before[unit]
        if isinstance(share.gain, Matrix):
            made = (self.present(unit), self.past(unit), self.decay(unit))
            return _gram(inner_products([x.reshape(-1) for x in made]).double(), len(made))
        rooted = share.gain if isinstance(share.gain, Rooted) else None
        scale = share.gain if isinstance(share.gain, float) else share.gain.scale
        coupled = scale * share.present * share.coupled
        terms = (
            (self.grads[unit], scale * share.present * float(self.clip)),
            (share.memory, scale * share.past),
            (weight, coupled or share.decay),
        )
        vectors = {i: x.contiguous().view(-1) for i, (x, by) in enumerate(terms) if x is not None and by}
        gram = weight.new_zeros(3, 3, dtype=torch.float64)
        if not vectors:
            return gram
        factor = torch.tensor([terms[i][1] for i in vectors], dtype=torch.float64, device=weight.device)
        at = torch.tensor(list(vectors), device=weight.device)
        if share.products is None:
            products = _gram(_measured(vectors, rooted, bool(coupled)), len(vectors))
        else:
            products = _gram(share.products, 3 if len(share.products) == 6 else 2)[at[:, None], at]
        gram[at[:, None], at] = products * factor[:, None] * factor
        return gram


def _measured(vectors: dict[int, Tensor], rooted: Rooted | None, coupled: bool) -> Float[Tensor, "p"]:
    """Inner products of g, m and w, of those that are given by their place in this list, divided by the gain's root."""
    divided = [i for i in vectors if i < 2 or coupled]
    some_vector, found = next(iter(vectors.values())), []
    size = BLOCK if some_vector.device.type == "cpu" else max(1, len(some_vector))
    roots = [] if rooted is None else [rooted.second.contiguous().view(-1)]
    for some in zip(*(x.split(size) for x in (*vectors.values(), *roots)), strict=True):
        if rooted is not None:
            root = rooted._replace(second=some[-1]).root()
            some = tuple(x / root if i in divided else x for i, x in zip(vectors, some, strict=False))
        found.append(inner_products(some))
    return torch.stack(found).double().sum(0)


def _gram(products: Float[Tensor, "p"], m: int) -> Float[Tensor, "m m"]:
    """The whole matrix of a lower triangle."""
    at = [[max(i, j) * (max(i, j) + 1) // 2 + min(i, j) for j in range(m)] for i in range(m)]
    return products[torch.tensor(at, device=products.device)]
