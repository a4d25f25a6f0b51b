"""Losses of one example for the laws of capture: small, pure, of all kinds, with parameters and data from seeds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, einsum
from torch.nn.functional import embedding, linear

from devinterp_func.tree import Params

N, C, D, H, V = 3, 4, 5, 6, 7  # data, positions, width, hidden width, classes


class Case(NamedTuple):
    """A loss, where to take its gradients, and what the graph ought to say of it."""

    loss: Callable[..., Tensor]
    params: Params
    batch: tuple[Any, ...]
    found: bool = True  # every use of every parameter has a rule; False: one may be dense


Make = Callable[[], Case]


def values(shapes: dict[str, Any], seed: int = 0) -> Params:
    """float64 numbers in [-0.6, 0.6): no bias is zero and no gain is one, as they are at the start."""
    return {name: torch.from_numpy(_generator(seed, name).uniform(-0.6, 0.6, tuple(s))) for name, s in shapes.items()}


def reals(*shape: int, seed: int = 1, n: int = N) -> Tensor:
    return (2 * values({"reals": (n, *shape)}, seed)["reals"]).contiguous()


def ids(rows: int, *shape: int, seed: int = 1, n: int = N) -> Tensor:
    return torch.from_numpy(_generator(seed, "ids").integers(0, rows, (n, *shape)))


def _generator(seed: int, name: str) -> np.random.Generator:
    """Not the library's, whose type checks draw from the global generator: Hypothesis forbids that in a strategy."""
    return np.random.default_rng([seed, *name.encode()])


def plain(loss: Callable[..., Tensor], *batch: Any, found: bool = True, **shapes: tuple[int, ...]) -> Make:
    """A case from a function of a dict of tensors."""
    return lambda: Case(loss, values(shapes), batch, found)


def square(y: Tensor) -> Tensor:
    """A loss of which no gradient is zero or the same everywhere."""
    return (y.tanh() + 0.1 * y.square()).mean() + y.sin().sum()


def of(f: Callable[[Params, Tensor], Tensor], x: Tensor | None = None, found: bool = True, **shapes: Any) -> Make:
    """A case from an operation on C positions of width D: what goes in has a parameter of its own."""
    x = reals(C, D) if x is None else x

    def loss(p: Params, x: Tensor) -> Tensor:
        return square(f(p, x * p["before"]))

    return plain(loss, x, found=found, before=(x.shape[-1],), **shapes)


def _chunks(p: Params, x: Tensor) -> Tensor:
    q, k, v = p["w"].chunk(3)
    return linear(x, q) + 2 * linear(x.roll(1, 0), k) + 3 * linear(x.roll(2, 0), v)


MAPS: dict[str, Make] = {
    "linear": of(lambda p, x: linear(x, p["w"], p["b"]), w=(H, D), b=(H,)),
    "linear without bias": of(lambda p, x: linear(x, p["w"]), w=(H, D)),
    "linear of one position": of(lambda p, x: linear(x, p["w"], p["b"]), reals(D), w=(H, D), b=(H,)),
    "linear of a grid": of(lambda p, x: linear(x, p["w"], p["b"]), reals(2, 3, D), w=(H, D), b=(H,)),
    "x @ W": of(lambda p, x: x @ p["w"], w=(D, H)),
    "x @ W of one position": of(lambda p, x: x @ p["w"], reals(D), w=(D, H)),
    "x @ W of a grid": of(lambda p, x: x @ p["w"], reals(2, 3, D), w=(D, H)),
    "x @ W.T": of(lambda p, x: x @ p["w"].T, w=(H, D)),
    "linear of W.T": of(lambda p, x: linear(x, p["w"].T), w=(D, H)),
    "W @ x": of(lambda p, x: p["w"] @ x, reals(D), w=(H, D)),
    "einsum of (out, in)": of(lambda p, x: einsum("ci,oi->co", x, p["w"]), w=(H, D)),
    "einsum of (in, out)": of(lambda p, x: einsum("io,ci->oc", p["w"], x), w=(D, H)),
    "einsum to heads": of(lambda p, x: einsum("ci,hai->hca", x, p["w"]), w=(2, 3, D)),
    "einsum of heads": of(lambda p, x: einsum("cha,had->cd", x, p["w"]), reals(C, 2, 3), w=(2, 3, D)),
    "einsum of each head's input": of(lambda p, x: einsum("ci,hia->hca", x, p["w"]), w=(2, D, 3), found=False),
    "einsum of batches": of(lambda p, x: einsum("bci,bio->bco", x, p["w"]), reals(2, C, D), w=(2, D, 3), found=False),
    "x @ v": of(lambda p, x: x @ p["v"], v=(D,), found=False),
    "dot product": of(lambda p, x: x @ p["v"], reals(D), v=(D,), found=False),
    "W @ X": of(lambda p, x: p["w"] @ x, w=(H, C), found=False),
    "x @ W @ x": of(lambda p, x: x @ p["w"] @ x.T, w=(D, D)),
    "addmm": of(lambda p, x: torch.addmm(p["b"], x, p["w"]), w=(D, H), b=(H,)),
    "addmm scaled": of(lambda p, x: torch.addmm(p["b"], x, p["w"], beta=0.3, alpha=2.0), w=(D, H), b=(H,), found=False),
    "einsum": of(lambda p, x: torch.einsum("cd,hd->ch", x, p["w"]), w=(H, D), found=False),
    "three-dimensional weight": of(lambda p, x: torch.einsum("cd,hde->hce", x, p["w"]), w=(2, D, 3), found=False),
    "bmm": of(lambda p, x: torch.bmm(x.expand(2, C, D), p["w"]), w=(2, D, 3), found=False),
    "bilinear": of(lambda p, x: F.bilinear(x, x.flip(0), p["w"], p["b"]), w=(2, D, D), b=(2,), found=False),
    "rows of a weight": of(
        lambda p, x: linear(x, p["w"][:3], p["b"][:3]).tanh() + linear(x, p["w"][3:]), w=(H, D), b=(H,)
    ),
    "columns of a weight": of(lambda p, x: linear(x[..., :2], p["w"][:, :2]), w=(H, D), found=False),
    "chunks of a weight": of(_chunks, w=(3 * H, D)),
    "conv1d": of(lambda p, x: F.conv1d(x, p["w"], p["b"], stride=2, padding=1), w=(H, C, 3), b=(H,)),
    "conv1d dilated": of(lambda p, x: F.conv1d(x[None], p["w"], dilation=2)[0], w=(H, C, 2)),
    "conv2d": of(lambda p, x: F.conv2d(x, p["w"], p["b"]), reals(2, 5, 4), w=(3, 2, 2, 3), b=(3,)),
    "conv2d strided": of(
        lambda p, x: F.conv2d(x[None], p["w"], p["b"], stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        reals(2, 5, 4),
        w=(3, 2, 3, 2),
        b=(3,),
    ),  # fmt: skip
    "conv2d in groups": of(
        lambda p, x: F.conv2d(x, p["w"], groups=2, padding="same"), reals(4, 5, 4), w=(6, 2, 3, 3), found=False
    ),
    "conv2d of several": of(lambda p, x: F.conv2d(x, p["w"], p["b"]), reals(2, 2, 5, 4), w=(3, 2, 2, 2), b=(3,)),
    "conv_transpose2d": of(lambda p, x: F.conv_transpose2d(x, p["w"]), reals(2, 3, 3), w=(2, 3, 2, 2), found=False),
    "conv3d": of(lambda p, x: F.conv3d(x, p["w"]), reals(2, 3, 3, 3), w=(3, 2, 2, 2, 2), found=False),
}

GAINS: dict[str, Make] = {
    "x * w": of(lambda p, x: x * p["w"], w=(D,)),
    "w * x": of(lambda p, x: p["w"] * x.sin(), w=(D,)),
    "x + b": of(lambda p, x: x + p["b"], b=(D,)),
    "b + x": of(lambda p, x: p["b"] + x, b=(D,)),
    "x - b": of(lambda p, x: x - p["b"], b=(D,)),
    "b - x": of(lambda p, x: p["b"] - x, b=(D,), found=False),
    "x + 2 b": of(lambda p, x: torch.add(x, p["b"], alpha=2), b=(D,), found=False),
    "x / w": of(lambda p, x: x / (2 + p["w"]), w=(D,), found=False),
    "gain of 1 + w": of(lambda p, x: x * (1 + p["w"]), w=(D,), found=False),
    "gain of each position": of(lambda p, x: x * p["w"][:, None], w=(C,), found=False),
    "table of gains": of(lambda p, x: x * p["w"], w=(C, D), found=False),
    "scalars": of(lambda p, x: x * p["s"] + p["t"], s=(), t=(), found=False),
    "softplus of a scalar": of(lambda p, x: x * F.softplus(p["s"]), s=(), found=False),
    "gate": of(lambda p, x: x * p["w"].sigmoid(), w=(D,), found=False),
    "broadcast gain": of(lambda p, x: x[..., :1] * p["w"], w=(H,), found=False),
    "broadcast bias": of(lambda p, x: x[..., :1] + p["b"], b=(H,), found=False),
    "one gain for all": of(lambda p, x: x * p["w"] + p["b"], w=(1,), b=(1,), found=False),
    "prelu": of(lambda p, x: F.prelu(x, p["w"].abs()), w=(1,), found=False),
    "layer norm": of(lambda p, x: F.layer_norm(x, (D,), p["w"], p["b"]), w=(D,), b=(D,)),
    "layer norm without bias": of(lambda p, x: F.layer_norm(x, (D,), p["w"], eps=0.1), w=(D,)),
    "layer norm of all": of(lambda p, x: F.layer_norm(x, (C, D), p["w"], p["b"]), w=(C, D), b=(C, D), found=False),
    "layer norm by hand": of(
        lambda p, x: (x - x.mean(-1, True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt() * p["w"] + p["b"], w=(D,), b=(D,)
    ),
    "rms norm": of(lambda p, x: F.rms_norm(x, (D,), p["w"], eps=1e-6), w=(D,)),
    "rms norm of default eps": of(lambda p, x: F.rms_norm(x, (D,), p["w"]), w=(D,)),
    "rms norm by hand": of(lambda p, x: p["w"] * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)), w=(D,)),
    "group norm": of(lambda p, x: F.group_norm(x[None], 2, p["w"], p["b"]), reals(4, 3, 2), w=(4,), b=(4,)),
    "instance norm": of(
        lambda p, x: F.instance_norm(x[None], weight=p["w"], bias=p["b"]), reals(4, 3, 2), w=(4,), b=(4,), found=False
    ),
    "gain of channels": of(lambda p, x: x * p["w"][:, None, None] + p["b"].view(-1, 1, 1), reals(4, 3, 2),
                           w=(4,), b=(4,), found=False),  # fmt: skip
}  # fmt: skip

TABLES: dict[str, Make] = {
    "embedding": plain(lambda p, x: square(embedding(x, p["w"])), ids(V, C), w=(V, D)),
    "embedding of one id": plain(lambda p, x: square(embedding(x, p["w"])), ids(V), w=(V, D)),
    "embedding of a grid": plain(lambda p, x: square(embedding(x, p["w"]) * 3), ids(V, 2, 3), w=(V, D)),
    "embedding with padding": plain(lambda p, x: square(embedding(x, p["w"], padding_idx=2)), ids(4, C), w=(4, D)),
    "W[ids]": plain(lambda p, x: square(p["w"][x]), ids(V, C), w=(V, D)),
    "W[-1 - ids]": plain(lambda p, x: square(p["w"][-1 - x]), ids(V, C), w=(V, D)),
    "W[i, j]": plain(lambda p, x: square(p["w"][x, x.flip(0)]), ids(D, C), w=(V, D), found=False),
    "index_select": plain(lambda p, x: square(p["w"].index_select(0, x)), ids(V, C), w=(V, D), found=False),
    "bias of a class": plain(lambda p, x: square(p["b"][x]), ids(V, C), b=(V,), found=False),
    "one-hot @ W": plain(lambda p, x: square(F.one_hot(x, V).double() @ p["w"]), ids(V, C), w=(V, D)),
    "embedding bag": plain(lambda p, x: square(F.embedding_bag(x[None], p["w"])), ids(V, C), w=(V, D), found=False),
    "position table": of(lambda p, x: x + p["w"], w=(C, D)),
    "longer position table": of(lambda p, x: x + p["w"][:C], w=(C + 2, D)),
    "looked-up positions": of(lambda p, x: x + embedding(torch.arange(C), p["w"]), w=(C + 2, D)),
    "positions from a start": of(lambda p, x: x + p["w"][torch.arange(C) + 1], w=(C + 2, D)),
    "table of all data": of(lambda p, x: x @ p["w"].T, w=(C, D)),
    "class token": of(lambda p, x: torch.cat([p["w"][None], x]).cumsum(0), w=(D,), found=False),
    "first state": of(lambda p, x: torch.stack([x[0] + p["w"], x[1] * p["w"]]), w=(D,)),
}


def _recurrent(p: Params, x: Tensor) -> Tensor:
    h = p["h"]
    for row in x:
        h = linear(row, p["w"], p["b"]).add(linear(h, p["u"])).tanh()
    return h


def _in_place(p: Params, x: Tensor) -> Tensor:
    h = linear(x, p["w"])
    h += p["b"]
    h[0] = p["b"]
    h[1:, 0].mul_(2)
    return h.relu_()


def _penalised(p: Params, x: Tensor) -> Tensor:
    return linear(x, p["w"]) + 0.1 * p["w"].square().sum()


def _thrice(p: Params, x: Tensor) -> Tensor:
    return linear(linear(linear(x, p["w"]).tanh(), p["w"], p["b"]).tanh(), p["w"], p["b"])


def _both_ways(p: Params, x: Tensor) -> Tensor:
    return linear(linear(x, p["w"]).relu(), p["w"].T) + x + p["w"][:C]


def _dropped(p: Params, x: Tensor) -> Tensor:
    h = F.dropout(linear(F.dropout(x, 0.2), p["w"]).relu(), 0.5)
    return (
        x + F.dropout(linear(h, p["v"]), 0.4) + F.dropout(h, 0.0)[..., :D] + F.dropout(h, 0.5, training=False)[..., :D]
    )


def _attention(p: Params, x: Tensor) -> Tensor:
    q, k, v = linear(x, p["w"], p["b"]).unflatten(-1, (3, 2, D)).movedim(0, -2)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=0.3, is_causal=True)


SHARED: dict[str, Make] = {
    "used thrice": of(_thrice, w=(D, D), b=(D,)),
    "used both ways": of(_both_ways, w=(H, D)),
    "bias of two layers": of(lambda p, x: (x + p["b"]).sin() * p["b"] + linear(x, p["w"], p["b"]), w=(D, D), b=(D,)),
    "weight and penalty": of(_penalised, w=(H, D), found=False),
    "only a penalty": of(lambda p, x: x + p["w"].square().sum(), w=(H, D), found=False),
    "residual reuse": of(lambda p, x: (h := x + linear(x, p["w"]).relu()) + linear(h, p["v"]) * h, w=(D, D), v=(D, D)),
    "never used": of(lambda p, x: linear(x, p["w"]), w=(H, D), idle=(3, 2)),
    "used for nothing": of(lambda p, x: (x * p["idle"]).detach() + linear(x, p["w"]), w=(D, D), idle=(D,), found=False),
    "times zero": of(lambda p, x: x * p["w"] * 0.0 + x, w=(D,)),
    "recurrence": of(_recurrent, w=(H, D), u=(H, H), b=(H,), h=(H,), found=False),
    "in place": of(_in_place, w=(H, D), b=(H,), found=False),
    "where": of(lambda p, x: torch.where(x > 0, x, p["b"]), b=(D,), found=False),
    "cumulative": of(lambda p, x: (x @ p["w"]).cumsum(0) + p["v"].cumsum(0), w=(D, D), v=(C, D), found=False),
    "sorted": of(lambda p, x: linear(x, p["w"]).sort(0).values * x.cumprod(0).amax(0), w=(D, D)),
    "joined": of(lambda p, x: torch.hstack(linear(x, p["w"]).split([2, 4], -1)[::-1]).unfold(0, 2, 1), w=(H, D)),
    "views": of(lambda p, x: linear(x, p["w"]).T.reshape(3, -1).T.flatten()[::2].unflatten(0, (2, -1)), w=(H, D)),
    "complex": of(lambda p, x: torch.fft.rfft(linear(x, p["w"])).abs(), w=(H, D)),
    "dropout": of(_dropped, w=(H, D), v=(D, H)),
    "attention": of(_attention, w=(6 * D, D), b=(6 * D,)),
}  # fmt: skip

OPERATIONS = {**MAPS, **GAINS, **TABLES, **SHARED}
