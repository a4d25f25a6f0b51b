"""Layers of random losses, each for the shape that the one before gives: (d,), (C, d) or (c, h, w).

A layer is a function of (draw, sheet, shape): it asks the sheet for parameters and gives back a function of
(params, x) and the shape that comes out, or nothing where it does not fit.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import embedding, linear

from devinterp_func.tree import Params

Shape = tuple[int, ...]
Apply = Callable[[Params, Tensor], Tensor]
Layer = Callable[[st.DrawFn, "Sheet", Shape], tuple[Apply, Shape] | None]


class Sheet(dict[str, Shape]):
    """Shapes of the parameters so far."""

    def add(self, kind: str, *shape: int) -> str:
        name = f"{kind}{len(self)}"
        self[name] = shape
        return name

    def either(self, draw: st.DrawFn, kind: str, *shape: int) -> str:
        """A parameter of this shape: a new one, or one that is there already."""
        there = [name for name, of in self.items() if of == shape]
        again = draw(st.sampled_from([None, *there]))
        return self.add(kind, *shape) if again is None else again


sizes = st.integers(2, 4)

# ---- layers of the last axis


def dense(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    out, bias = draw(sizes), draw(st.booleans())
    w = sheet.either(draw, "w", out, shape[-1])
    b = sheet.either(draw, "b", out) if bias else ""
    return lambda p, x: linear(x, p[w], p[b] if b else None), (*shape[:-1], out)


def product(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    out, turned = draw(sizes), draw(st.booleans())
    w = sheet.either(draw, "m", *((out, shape[-1]) if turned else (shape[-1], out)))
    return lambda p, x: x @ (p[w].T if turned else p[w]), (*shape[:-1], out)


def part(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    """A linear map by some rows of a parameter, the others used on the other side."""
    out = draw(sizes)
    w = sheet.add("rows", out + shape[-1], shape[-1])
    return lambda p, x: linear(linear(x, p[w][out:]).tanh(), p[w][:out]), (*shape[:-1], out)


def twice(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    w, b = sheet.either(draw, "w", shape[-1], shape[-1]), sheet.either(draw, "b", shape[-1])
    return lambda p, x: linear(linear(x, p[w], p[b]).tanh(), p[w], p[b]), shape


def residual(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    inner, _ = feed_forward(draw, sheet, shape)
    return lambda p, x: x + inner(p, x), shape


def feed_forward(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    width = draw(sizes)
    up, down = sheet.either(draw, "up", width, shape[-1]), sheet.either(draw, "down", shape[-1], width)
    b = sheet.either(draw, "b", width)
    return lambda p, x: linear(F.gelu(linear(x, p[up], p[b])), p[down]), shape


def gated(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    out = draw(sizes)
    w, v = sheet.either(draw, "w", out, shape[-1]), sheet.either(draw, "w", out, shape[-1])
    return lambda p, x: F.silu(linear(x, p[w])) * linear(x, p[v]), (*shape[:-1], out)


def bilinear(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    w, b = sheet.add("bilinear", 3, shape[-1], shape[-1]), sheet.either(draw, "b", 3)
    return lambda p, x: F.bilinear(x, x.sin(), p[w], p[b]), (*shape[:-1], 3)


def gain(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    w = sheet.either(draw, "g", shape[-1])
    left = draw(st.booleans())
    return lambda p, x: p[w] * x if left else x * p[w], shape


def shift(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    b, how = sheet.either(draw, "b", shape[-1]), draw(st.integers(0, 2))
    return lambda p, x: (x + p[b], p[b] + x, x - p[b])[how], shape


def scalar(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    a, b = sheet.either(draw, "s"), sheet.either(draw, "s")
    return lambda p, x: x * p[a] + p[b], shape


def norm(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    """Layer or RMS norm; without much of an epsilon two numbers would be standardised to rounding."""
    w, how, d = sheet.either(draw, "g", shape[-1]), draw(st.integers(0, 3)), (shape[-1],)
    b = sheet.either(draw, "b", shape[-1]) if how == 0 else ""
    ways: list[Apply] = [
        lambda p, x: F.layer_norm(x, d, p[w], p[b], 0.1),
        lambda p, x: F.layer_norm(x, d, p[w], None, 0.1),
        lambda p, x: F.rms_norm(x, d, p[w], 0.1),
        lambda p, x: p[w] * (x * (x.square().mean(-1, keepdim=True) + 0.1).rsqrt()),
    ]
    return ways[how], shape


def activation(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    f = draw(st.sampled_from([torch.relu, F.gelu, torch.tanh, F.silu, F.softplus, lambda x: x.softmax(-1)]))
    return lambda p, x: f(x), shape


def dropout(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    rate = draw(st.sampled_from([0.1, 0.3, 0.5]))
    return lambda p, x: F.dropout(x, rate), shape


LINEAR: dict[str, Layer] = {
    "linear": dense, "matmul": product, "rows of a weight": part, "one weight twice": twice, "residual": residual,
    "feed-forward": feed_forward, "gated": gated, "bilinear": bilinear,
}  # fmt: skip
ANY: dict[str, Layer] = {"scalars": scalar, "activation": activation, "dropout": dropout}
ROWS: dict[str, Layer] = {**LINEAR, **ANY, "gain": gain, "shift": shift, "norm": norm}

# ---- layers of a vector


def cell(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    """Two steps of an LSTM cell that reads the same thing twice."""
    d, h = shape[0], draw(sizes)
    w, u, b = sheet.add("lstm", 4 * h, d), sheet.add("lstm", 4 * h, h), sheet.either(draw, "b", 4 * h)

    def apply(p: Params, x: Tensor) -> Tensor:
        state = memory = x.new_zeros(h)
        for _ in range(2):
            i, f, g, o = (linear(x, p[w], p[b]) + linear(state, p[u])).chunk(4)
            memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
            state = o.sigmoid() * memory.tanh()
        return state

    return apply, (h,)


def from_left(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    out = draw(sizes)
    w = sheet.either(draw, "w", out, shape[0])
    return lambda p, x: p[w] @ x, (out, *shape[1:])


def repeated(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    w = sheet.either(draw, "t", 3, *shape)
    return lambda p, x: x + p[w], (3, *shape)


VECTOR: dict[str, Layer] = {**ROWS, "cell": cell, "W @ x": from_left, "at three places": repeated}

# ---- layers of a sequence


def table(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    longer, how = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    w = sheet.either(draw, "t", shape[0] + longer, shape[1])
    ways: list[Apply] = [
        lambda p, x: x + p[w][: len(x)],
        lambda p, x: x + embedding(torch.arange(len(x)), p[w]),
        lambda p, x: x * p[w][longer:],
    ]
    return ways[how], shape


def over_positions(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    how = draw(st.integers(0, 3))
    return lambda p, x: (x.mean(0), x[-1], x.sum(0), x.amax(0))[how], shape[1:]


def along(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    how = draw(st.integers(0, 2))
    return lambda p, x: (x.cumsum(0), x.roll(1, 0), x.flip(0))[how], shape


def turned(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    return lambda p, x: x.T, shape[::-1]


def flat(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    return lambda p, x: x.flatten(), (math.prod(shape),)


def attention(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    """One causal head: fused with dropout, or by hand."""
    d, fused = shape[1], draw(st.booleans())
    w, b = sheet.add("qkv", 3 * d, d), sheet.either(draw, "b", 3 * d)

    def apply(p: Params, x: Tensor) -> Tensor:
        q, k, v = (y[None] for y in linear(x, p[w], p[b]).chunk(3, -1))
        if fused:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=0.2, is_causal=True)[0]
        later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        return ((q @ k.mT).masked_fill(later, -torch.inf).softmax(-1) @ v)[0]

    return apply, shape


def windows(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    """A convolution over positions."""
    out, pad, bias = draw(sizes), draw(st.integers(0 if shape[0] > 1 else 1, 1)), draw(st.booleans())
    w = sheet.either(draw, "conv", out, shape[1], 2)
    b = sheet.either(draw, "b", out) if bias else ""
    apply: Apply = lambda p, x: F.conv1d(x.T, p[w], p[b] if b else None, padding=pad).T  # noqa: E731
    return apply, (shape[0] - 1 + 2 * pad, out)


def recurrence(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    """A recurrent network: its last state, or all of them."""
    h, whole = draw(sizes), draw(st.booleans())
    w, u = sheet.either(draw, "w", h, shape[1]), sheet.either(draw, "w", h, h)

    def apply(p: Params, x: Tensor) -> Tensor:
        states = [x.new_zeros(h)]
        for row in x:
            states.append((linear(row, p[w]) + linear(states[-1], p[u])).tanh())
        return torch.stack(states[1:]) if whole else states[-1]

    return apply, (shape[0], h) if whole else (h,)


SEQUENCE: dict[str, Layer] = {
    **ROWS, "positions": table, "pooled": over_positions, "along": along, "turned": turned, "flat": flat,
    "attention": attention, "windows": windows, "recurrence": recurrence, "W @ X": from_left,
}  # fmt: skip

# ---- layers of a picture


def filters(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape] | None:
    channels, *sides = shape
    groups, stride, pad = (draw(st.integers(1, 2)) for _ in range(3))
    dilation, k, bias = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.booleans())
    new = [(side + 2 * (pad - 1) - dilation * (k - 1) - 1) // stride + 1 for side in sides]
    if channels % groups or min(new) < 1:
        return None
    w = sheet.either(draw, "conv", 2 * groups, channels // groups, k, k)
    b = sheet.either(draw, "b", 2 * groups) if bias else ""
    options: dict[str, Any] = {"stride": stride, "padding": pad - 1, "dilation": dilation, "groups": groups}
    return lambda p, x: F.conv2d(x, p[w], p[b] if b else None, **options), (2 * groups, *new)


def group_norm(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    w, b = sheet.either(draw, "g", shape[0]), sheet.either(draw, "b", shape[0])
    groups = draw(st.sampled_from([n for n in (1, 2) if shape[0] % n == 0]))
    return lambda p, x: F.group_norm(x[None], groups, p[w], p[b], 0.1)[0], shape


def channel_gain(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    w, b = sheet.either(draw, "g", shape[0]), sheet.either(draw, "b", shape[0])
    return lambda p, x: x * p[w][:, None, None] + p[b].view(-1, 1, 1), shape


def places(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    return lambda p, x: x.flatten(1).T, (math.prod(shape[1:]), shape[0])


def over_places(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape]:
    return lambda p, x: F.adaptive_avg_pool2d(x, 1).flatten(), shape[:1]


def pooled(draw: st.DrawFn, sheet: Sheet, shape: Shape) -> tuple[Apply, Shape] | None:
    if min(shape[1:]) < 2:
        return None
    pools: list[Callable[..., Tensor]] = [F.max_pool2d, F.avg_pool2d]
    pool = pools[draw(st.integers(0, 1))]
    return lambda p, x: pool(x, 2), (shape[0], shape[1] // 2, shape[2] // 2)


PICTURE: dict[str, Layer] = {
    **ANY, "filters": filters, "group norm": group_norm, "channel gain": channel_gain, "places": places,
    "pooled": pooled, "over places": over_places, "flat": flat, "linear": dense,
}  # fmt: skip

LAYERS: dict[int, dict[str, Layer]] = {1: VECTOR, 2: SEQUENCE, 3: PICTURE}
