"""Losses at the end of a small language model, and data that are no plain pair of tensors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import cross_entropy, embedding, linear, mse_loss
from zoo import C, D, H, Make, N, V, ids, of, plain, reals, square

from devinterp_func.tree import Params


def text(
    loss: Callable[[Params, Tensor, Tensor], Tensor], y: Tensor | None = None, found: bool = True, **more: Any
) -> Make:
    """A case of a small language model: ``loss(params, stream, targets)``."""

    def whole(p: Params, x: Tensor, y: Tensor) -> Tensor:
        h = embedding(x, p["table"])
        return loss(p, h + linear(h, p["inner"]).tanh(), y)

    y = ids(V, C, seed=2) if y is None else y
    return plain(whole, ids(V, C), y, found=found, table=(V, D), inner=(D, D), **more)


def both(p: Params, h: Tensor, y: Tensor, other: Tensor) -> Tensor:
    """Two losses added, of the same targets in another order."""
    return cross_entropy(logits(p, h), y) + 0.3 * cross_entropy(other, y.flip(0))


def masked(p: Params, h: Tensor, y: Tensor) -> Tensor:
    """The mean over positions that have a target, by hand."""
    each = cross_entropy(logits(p, h), y.clamp(min=0), reduction="none")
    return (each * (y >= 0)).sum() / (y >= 0).sum()


def of_few(p: Params, h: Tensor, y: Tensor) -> Tensor:
    """Cross entropy among some of the classes."""
    return cross_entropy(logits(p, h).index_fill(1, torch.tensor([V - 1]), -9.0), y.clamp(max=V - 2))


def regular(p: Params, h: Tensor, y: Tensor) -> Tensor:
    """Cross entropy and the square of its normaliser."""
    return cross_entropy(z := logits(p, h), y) + 0.01 * z.logsumexp(-1).square().mean()


def logits(p: Params, h: Tensor) -> Tensor:
    return linear(h, p["head"], p["bias"])


HEAD: dict[str, Any] = {"head": (V, D), "bias": (V,)}
ANOTHER = int(ids(V, C, seed=2)[0, 0])
IGNORED = ids(V, C, seed=2).index_fill(1, torch.tensor([0, 2]), -100)

ends: dict[str, Make] = {
    "mean": text(lambda p, h, y: cross_entropy(logits(p, h), y), **HEAD),
    "without bias": text(lambda p, h, y: cross_entropy(linear(h, p["head"]), y), head=(V, D)),
    "tied": text(lambda p, h, y: cross_entropy(linear(h, p["table"]), y)),
    "tied, matmul": text(lambda p, h, y: cross_entropy(h @ p["table"].T, y)),
    "stored (in, out)": text(lambda p, h, y: cross_entropy(torch.addmm(p["b"], h, p["head"]), y), head=(D, V), b=(V,)),
    "sum": text(lambda p, h, y: cross_entropy(logits(p, h), y, reduction="sum"), **HEAD),
    "ignored": text(lambda p, h, y: cross_entropy(logits(p, h), y), IGNORED, **HEAD),
    "another ignored": text(lambda p, h, y: cross_entropy(logits(p, h), y, ignore_index=ANOTHER), **HEAD),
    "masked": text(masked, IGNORED, **HEAD),
    "smoothed": text(lambda p, h, y: cross_entropy(logits(p, h), y, label_smoothing=0.1), **HEAD),
    "class weights": text(lambda p, h, y: cross_entropy(logits(p, h), y, torch.arange(1.0, V + 1).double()), **HEAD),
    "soft targets": text(lambda p, h, y: cross_entropy(logits(p, h), y), reals(C, V).softmax(-1), **HEAD),
    "last position": text(lambda p, h, y: cross_entropy(logits(p, h[-1]), y), ids(V), **HEAD),
    "last logits": text(lambda p, h, y: cross_entropy(logits(p, h)[-1], y), ids(V), **HEAD),
    "next token": text(lambda p, h, y: cross_entropy(logits(p, h)[:-1], y[1:]), **HEAD),
    "mean position": text(lambda p, h, y: cross_entropy(logits(p, h.mean(0)), y), ids(V), **HEAD),
    "batch of one": text(lambda p, h, y: cross_entropy(logits(p, h[None]).mT, y[None]), **HEAD),
    "scaled": text(lambda p, h, y: 0.5 * cross_entropy(logits(p, h) / 2, y), **HEAD),
    "capped": text(lambda p, h, y: cross_entropy(logits(p, h).tanh() * 3, y), **HEAD),
    "masked classes": text(of_few, **HEAD),
    "two heads": text(lambda p, h, y: both(p, h, y, h.sin() @ p["w"]), w=(D, V), **HEAD),
    "one head twice": text(lambda p, h, y: both(p, h, y, logits(p, h.tanh())), **HEAD),
    "logits used twice": text(regular, **HEAD),
    "stream used twice": text(lambda p, h, y: cross_entropy(logits(p, h), y) + 0.1 * h.square().mean(), **HEAD),
    "head and penalty": text(
        lambda p, h, y: cross_entropy(logits(p, h), y) + p["head"].sin().sum(), found=False, **HEAD
    ),
    "nll": text(lambda p, h, y: F.nll_loss(logits(p, h).log_softmax(-1), y), **HEAD),
    "gathered": text(lambda p, h, y: -logits(p, h).log_softmax(-1).gather(1, y[:, None]).mean(), **HEAD),
    "mse": text(lambda p, h, y: mse_loss(logits(p, h), y), reals(C, V), **HEAD),
    "bce": text(lambda p, h, y: F.binary_cross_entropy_with_logits(logits(p, h), y), reals(C, V).sigmoid(), **HEAD),
    "huber": text(lambda p, h, y: F.huber_loss(logits(p, h)[:, 0], y, delta=0.5), reals(C), **HEAD),
    "poisson": text(lambda p, h, y: F.poisson_nll_loss(logits(p, h)[:, 0], y.abs()), reals(C), **HEAD),
    "contrast": text(lambda p, h, y: F.cosine_embedding_loss(logits(p, h), y, torch.ones(C)), reals(C, V), **HEAD),
}
ENDS = {f"loss: {name}": make for name, make in ends.items()}


class Datum(NamedTuple):
    """A datum that is no plain tuple of tensors."""

    picture: dict[str, Tensor]
    label: Tensor


def of_datum(p: Params, datum: Datum, scale: tuple[Tensor, Tensor]) -> Tensor:
    h = linear(datum.picture["left"] * scale[0], p["w"]) + linear(datum.picture["right"] * scale[1], p["v"])
    return cross_entropy(h, datum.label)


def everything(p: Params, x: Tensor) -> Tensor:
    return linear(x, p["w"], p["b"]) * p["g"] + p["t"]


def square_of(n: int) -> dict[str, Any]:
    return {"x": reals(n, n), "w": (n, n), "b": (n,), "g": (n,), "t": (n, n)}


PICTURES = Datum({"right": reals(D), "left": reals(D, seed=3)}, ids(V))
DATA: dict[str, Make] = {
    "datum of several tensors": plain(of_datum, PICTURES, (reals(), reals(seed=4)), w=(V, D), v=(V, D)),
    "integers and truths": plain(
        lambda p, k, on: square(p["w"] @ (k * on).double()), ids(V, D), ids(2, D) > 0, w=(H, D)
    ),
    "as many positions as data": of(everything, **square_of(N)),
    "everything of size one": of(everything, **square_of(1)),
}

LOSSES = {**ENDS, **DATA}
