"""Random losses of one example: a start, layers drawn one after the other, and an end."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from grammar_layers import LAYERS, Apply, Shape, Sheet, sizes
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, embedding, linear
from zoo import Case, ids, reals, values

from devinterp_func.tree import Params


class Program(NamedTuple):
    """A loss and the names of its layers, by which Hypothesis tells it."""

    case: Case
    layers: tuple[str, ...]

    def __repr__(self) -> str:
        shapes = {name: tuple(w.shape) for name, w in self.case.params.items()}
        return f"{' | '.join(self.layers)} on {[tuple(x.shape) for x in self.case.batch]} with {shapes}"


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """One to six layers between a start and an end."""
    sheet, n, seed = Sheet(), draw(st.integers(1, 3)), draw(st.integers(0, 99))
    start = draw(st.sampled_from(sorted(STARTS)))
    first, x, shape = STARTS[start](draw, sheet, n, seed)
    names, steps = [start], [first]
    for _ in range(draw(st.integers(1, 6))):
        fitting = sorted(LAYERS[len(shape)])
        name = draw(st.sampled_from(fitting))
        made = LAYERS[len(shape)][name](draw, sheet, shape)
        if made is not None:
            names, steps, shape = [*names, f"{name} {made[1]}"], [*steps, made[0]], made[1]
    end = draw(st.sampled_from(sorted(ENDS)))
    last, y = ENDS[end](draw, sheet, shape, n, seed + 1)

    def loss(p: Params, x: Tensor, y: Tensor) -> Tensor:
        for step in steps:
            x = step(p, x)
        return last(p, x, y)

    return Program(Case(loss, values(dict(sheet), seed), (x, y)), (*names, end))


# ---- what goes in


def of_vector(draw: st.DrawFn, sheet: Sheet, n: int, seed: int) -> tuple[Apply, Tensor, Shape]:
    shape = (draw(sizes),)
    return lambda p, x: x, reals(*shape, seed=seed, n=n), shape


def of_sequence(draw: st.DrawFn, sheet: Sheet, n: int, seed: int) -> tuple[Apply, Tensor, Shape]:
    shape = (draw(sizes), draw(sizes))
    return lambda p, x: x, reals(*shape, seed=seed, n=n), shape


def of_picture(draw: st.DrawFn, sheet: Sheet, n: int, seed: int) -> tuple[Apply, Tensor, Shape]:
    shape = (2 * draw(st.integers(1, 2)), draw(st.integers(3, 5)), draw(st.integers(3, 5)))
    return lambda p, x: x, reals(*shape, seed=seed, n=n), shape


def of_words(draw: st.DrawFn, sheet: Sheet, n: int, seed: int) -> tuple[Apply, Tensor, Shape]:
    context, rows, width = draw(sizes), draw(st.integers(3, 5)), draw(sizes)
    table, how = sheet.add("table", rows, width), draw(st.sampled_from(["looked up", "padded", "indexed", "one-hot"]))
    ways: dict[str, Apply] = {
        "looked up": lambda p, x: embedding(x, p[table]) * math.sqrt(width),
        "padded": lambda p, x: embedding(x, p[table], padding_idx=0),
        "indexed": lambda p, x: p[table][x],
        "one-hot": lambda p, x: F.one_hot(x, rows).to(p[table].dtype) @ p[table],
    }
    return ways[how], ids(rows, context, seed=seed, n=n), (context, width)


STARTS = {"vector": of_vector, "sequence": of_sequence, "picture": of_picture, "words": of_words}

# ---- what comes out


def regression(draw: st.DrawFn, sheet: Sheet, shape: Shape, n: int, seed: int) -> tuple[Any, Tensor]:
    a, target, how = sheet.either(draw, "s"), reals(*shape, seed=seed, n=n), draw(st.integers(0, 2))
    measures: list[Callable[..., Tensor]] = [
        F.mse_loss,
        F.smooth_l1_loss,
        lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid()),
    ]
    return lambda p, x, y: measures[how](x * p[a], y), target


def classes(draw: st.DrawFn, sheet: Sheet, shape: Shape, n: int, seed: int) -> tuple[Any, Tensor]:
    """Cross entropy of a linear map of the last axis, whose weight may be a table or another layer's."""
    way = draw(st.sampled_from(sorted(REDUCTIONS)))
    tied = [
        name for name, (first, *rest) in ((k, s) for k, s in sheet.items() if s) if [shape[-1]] == rest and first > 1
    ]
    w = draw(st.sampled_from([None, *tied])) or sheet.add("head", 3, shape[-1])
    bias = sheet.either(draw, "b", sheet[w][0]) if draw(st.booleans()) else ""
    target = ids(sheet[w][0], *shape[:-1], seed=seed, n=n)
    if way == "ignored" and target.ndim == 2:
        target[:, 0] = -100
    if way == "ignored" and target.ndim == 3:
        target[:, 0, 0] = -100

    def loss(p: Params, x: Tensor, y: Tensor) -> Tensor:
        logits = linear(x, p[w], p[bias] if bias else None)
        return REDUCTIONS[way](logits.flatten(0, -2) if logits.ndim > 1 else logits, y.flatten() if y.ndim else y)

    return loss, target


REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": cross_entropy,
    "sum": lambda z, y: cross_entropy(z, y, reduction="sum"),
    "ignored": lambda z, y: cross_entropy(z, y) if y.ndim == 0 or len(y) > 1 else cross_entropy(z, y, reduction="sum"),
    "smoothed": lambda z, y: cross_entropy(z, y, label_smoothing=0.2),
    "likelihood": lambda z, y: F.nll_loss(z.log_softmax(-1), y),
    "weighted": lambda z, y: (cross_entropy(z, y, reduction="none") * (1 + y)).mean(),
    "scaled": lambda z, y: 0.5 * cross_entropy(z / 2, y),
}

ENDS = {"regression": regression, "classes": classes, "classes again": classes}
