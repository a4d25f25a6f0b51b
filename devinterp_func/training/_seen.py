"""What a step sees of its batch: data and dropout masks, part by part, each captured, their gradients added."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devinterp_func import keys, per_example, tree
from devinterp_func.graph import Graph, Masks, draw_masks
from devinterp_func.per_example import Capture, Factor
from devinterp_func.training._distributed import ALONE, World, sum_in_order
from devinterp_func.training._logits import for_fewer
from devinterp_func.training._parts import add_part, bucket, shares, units_of
from devinterp_func.training._recipe import Recipe
from devinterp_func.tree import Params
from devinterp_func.units import Patterns


def masks_of(graph: Graph, recipe: Recipe, epoch: int, datum: Int[Tensor, "n"]) -> Masks | None:
    """Dropout masks of some data in an epoch, stacked: each a function of (seed, epoch, datum id) alone."""
    key = keys.fold_in(recipe.seed, "dropout", epoch)
    return draw_masks(graph, [keys.fold_in(key, j) for j in datum.tolist()])


def step_data(
    graph: Graph, recipe: Recipe, data: Any, epoch: int, datum: Int[Tensor, "n"], device: torch.device
) -> tuple[tuple[Any, ...], Masks | None]:
    """Some data and their dropout masks in an epoch, on a device."""
    masks = masks_of(graph, recipe, epoch, datum)
    masks = None if masks is None else {site: mask.to(device) for site, mask in masks.items()}
    return tree.map(lambda x: x[datum].to(device), tuple(data)), masks


class Seeing(NamedTuple):
    """What capturing a batch takes besides the weights; the arguments of ``moves``."""

    graph: Graph
    data: Any
    recipe: Recipe
    captured: Patterns
    buffer: Float[Tensor, "V mC"] | None  # of ``logits_buffer``
    world: World = ALONE
    hold: float = math.inf
    scratch: Tensor | None = None  # as large as a bucket, where there are other processes

    def own(self) -> list[list[slice]]:
        """The rows of a batch that this process captures: its share, or, alone, every process's."""
        every, rank = shares(self.recipe), self.world.rank
        return every if self.world.size == 1 else every[rank : rank + 1]

    def batch(
        self,
        params: Params,
        epoch: int,
        ids: Int[Tensor, "n"],
        kept: Bool[Tensor, "n"],
        weights: Float[Tensor, "n"] | None,
    ) -> tuple[Capture, Int[Tensor, "m"]]:
        """A batch's gradient; losses and factors of this process's data, and their ids."""
        own, several = self.own(), self.recipe.processes > 1
        whole = slice(own[0][0].start, own[-1][-1].stop)
        seen, total, summed = list[Capture](), None, None
        for share in own:
            flat = bucket(params, self.recipe.processes) if several else None
            total, into = None, None if flat is None else units_of(flat, params)
            for rows in share:
                here = kept[rows]
                if not here.any():
                    continue
                datum, counted = ids[rows][here], None if weights is None else weights[rows][here]
                capture = self.part(params, epoch, datum, counted)
                total = add_part(total, capture.mean_grads, len(datum) / len(ids), into)
                times = len(ids[whole]) / len(datum)
                held = times == 1 or times * n_bytes(capture.factors) <= self.hold
                seen.append(capture._replace(mean_grads={}, factors=capture.factors if held else {}))
                del capture
            if flat is not None:
                flat = flat.zero_() if total is None else flat
                summed = flat if summed is None else summed.add_(flat)  # in rank order, as ``sum_in_order`` has it
        if summed is not None:
            summed = summed if self.scratch is None else sum_in_order(self.world, summed, self.scratch)
            total = units_of(summed, params)
        if not seen:  # nothing is left of them: made like any other, with a gradient of 0
            return self._nothing(params, epoch, ids, total), ids[:0]
        assert total is not None
        losses = torch.cat([capture.losses for capture in seen])
        return Capture(losses, total, joined_factors(seen)), ids[whole][kept[whole]]

    def part(self, params: Params, epoch: int, datum: Int[Tensor, "m"], counted: Float[Tensor, "m"] | None) -> Capture:
        """Some data captured at once."""
        device = next(iter(params.values())).device
        taken, masks = step_data(self.graph, self.recipe, self.data, epoch, datum, device)
        return per_example.capture(
            self.graph,
            params,
            *taken,
            masks=masks,
            units=self.captured,
            buffer=for_fewer(self.graph, self.buffer, len(datum)),
            weights=None if counted is None else counted.to(device),
        )

    def _nothing(self, params: Params, epoch: int, ids: Int[Tensor, "n"], total: Params | None) -> Capture:
        some = self.part(params, epoch, ids[:1], None)
        factors = {name: per_example.take_data(factor, slice(0)) for name, factor in some.factors.items()}
        return Capture(
            some.losses[:0], tree.map(torch.zeros_like, some.mean_grads) if total is None else total, factors
        )


def joined_factors(seen: list[Capture]) -> dict[str, Factor]:
    """The factors of several parts' data as those of all; none where a part holds none. Parts go as they are joined."""
    if not all(capture.factors for capture in seen):
        return {}
    names = list(seen[0].factors)
    return {name: per_example.join_data([capture.factors.pop(name) for capture in seen]) for name in names}


def n_bytes(factors: dict[str, Factor]) -> int:
    """What factors take in memory."""
    return sum(x.nbytes for x in tree.leaves(factors) if isinstance(x, Tensor))
