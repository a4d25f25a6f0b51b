"""Optimizers to test with, torch's of the same settings, and steps as they are made."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from devinterp_func import keys, optim, per_example, tree
from devinterp_func.optim import Matrix, Optimizer, Rooted, Split, State
from devinterp_func.per_example import Factor
from devinterp_func.tree import Params

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": optim.sgd(),
    "decay": optim.sgd(weight_decay=0.1),
    "momentum": optim.sgd(momentum=0.9, dampening=0.25, weight_decay=0.1),
    "nesterov": optim.sgd(momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": optim.adam(betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
    "adamw": optim.adamw(betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
    "no memory": optim.adamw(betas=(0.0, 0.0), eps=0.5),
    "muon": optim.muon(rest=optim.adamw(eps=1e-3)),
    "plain muon": optim.muon(momentum=0.7, nesterov=False, adjust="original", rest=optim.sgd(momentum=0.5)),
}
SHAPES: dict[str, tuple[int, ...]] = {"scalar": (), "bias": (3,), "wide": (3, 5), "tall": (6, 2), "conv": (2, 3, 2, 2)}


class Made(NamedTuple):
    """A step as it was made: all that ``optim.missed`` reads of one, and the memory around it."""

    before: Params
    after: Params
    split: Split
    factors: dict[str, Factor]  # of the deltas
    state_before: State
    state: State


def normal(shapes: Mapping[str, tuple[int, ...]], seed: int = 0, dtype: torch.dtype = torch.float64) -> Params:
    """Weights or gradients from a normal distribution."""
    rng = keys.generator(seed)
    return {name: torch.from_numpy(rng.standard_normal(shape)).to(dtype) for name, shape in shapes.items()}


def warm(optimizer: Optimizer, params: Params, steps: int, seed: int = 0) -> State:
    """What is remembered after some steps that led to ``params``, of any gradients."""
    state, shapes = optimizer.init(params), {name: tuple(w.shape) for name, w in params.items()}
    for step in range(steps):
        gradient = {name: g.to(params[name].dtype) for name, g in normal(shapes, seed + step).items()}
        _, state, _ = optimizer.update(params, gradient, state, lr=0.1)
    return state


def step(
    optimizer: Optimizer,
    params: Params,
    factors: dict[str, Factor],
    gradient: Params,
    state: State | None = None,
    lr: float = 0.5,
    max_norm: float = math.inf,
) -> Made:
    """A step by factors of the data's gradients, whose mean is ``gradient``."""
    state = optimizer.init(params) if state is None else state
    after, new, split = optimizer.update(params, gradient, state, lr, max_norm)
    n = per_example.n_data(next(iter(factors.values())))
    return Made(params, after, split, optim.delta_factors(factors, split, n), state, new)


def magnitude(split: Split, unit: str, x: Tensor) -> Tensor:
    """|L| |x|: what rounding of a product by the gain is measured against, entry by entry."""
    gain = split.shares[unit].gain
    if isinstance(gain, Rooted):
        return gain.array().abs() * x.abs()
    if isinstance(gain, Matrix):
        return gain.matrix.abs() @ x.abs() if gain.left else x.abs() @ gain.matrix.abs().mT
    return abs(gain) * x.abs()


OF_EACH_KIND = {  # one of each rule, for the post's model
    "sgd": optim.sgd(),
    "momentum": optim.sgd(momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": optim.adamw(betas=(0.8, 0.95), weight_decay=0.1, matrices_only=True),
    "muon": optim.muon(but=("embedding.weight", "decoder.weight")),
}


# ---- torch's


def torch_steps(
    make: Callable[[dict[str, nn.Parameter]], Iterable[torch.optim.Optimizer]],
    params: Params,
    gradients: Sequence[Params],
    max_norm: float = math.inf,
    factors: Sequence[float] | None = None,
) -> Params:
    """Weights after steps of torch's optimizers and torch's clipping; ``factors`` of their rates, step by step."""
    own = {name: nn.Parameter(weight.clone()) for name, weight in params.items()}
    optimizers = list(make(own))
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    for i, gradient in enumerate(gradients):
        for name, parameter in own.items():
            parameter.grad = gradient[name].clone()
        nn.utils.clip_grad_norm_(own.values(), max_norm)
        for optimizer, usual in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, usual, strict=True):
                group["lr"] = rate * (1.0 if factors is None else factors[i])
            optimizer.step()
    return {name: parameter.detach() for name, parameter in own.items()}


def our_steps(
    optimizer: Optimizer,
    params: Params,
    gradients: Sequence[Params],
    lr: float,
    max_norm: float = math.inf,
    factors: Sequence[float] | None = None,
) -> tuple[Params, State, list[float]]:
    """Weights and memory after steps, and what each step's gradient was clipped by."""
    state, clips = optimizer.init(params), []
    for i, gradient in enumerate(gradients):
        rate = lr * (1.0 if factors is None else factors[i])
        params, state, split = optimizer.update(params, gradient, state, rate, max_norm)
        clips.append(float(split.clip))
    return params, state, clips


# ---- to draw


@st.composite
def settings_of_sgd(draw: st.DrawFn) -> dict[str, Any]:
    """Settings that ``optim.sgd`` and ``torch.optim.SGD`` share."""
    momentum, nesterov = draw(st.sampled_from([0.0, 0.5, 0.9, 0.99])), draw(st.booleans())
    nesterov = nesterov and momentum > 0
    dampening = 0.0 if nesterov else draw(st.sampled_from([0.0, 0.3, 1.0]))
    decay = draw(st.sampled_from([0.0, 0.01, 0.5]))
    return {"momentum": momentum, "dampening": dampening, "nesterov": nesterov, "weight_decay": decay}


@st.composite
def settings_of_adam(draw: st.DrawFn) -> dict[str, Any]:
    """Settings that ``optim.adam``, ``optim.adamw`` and torch's share."""
    betas = draw(st.sampled_from([0.0, 0.5, 0.9])), draw(st.sampled_from([0.0, 0.5, 0.999]))
    decay = draw(st.sampled_from([0.0, 0.01, 0.5]))
    return {"betas": betas, "eps": draw(st.sampled_from([1e-8, 1e-2])), "weight_decay": decay}


@st.composite
def settings_of_muon(draw: st.DrawFn) -> dict[str, Any]:
    """Settings that ``optim.Muon`` and ``torch.optim.Muon`` share."""
    return {
        "momentum": draw(st.sampled_from([0.0, 0.5, 0.95])),
        "nesterov": draw(st.booleans()),
        "weight_decay": draw(st.sampled_from([0.0, 0.1])),
        "eps": draw(st.sampled_from([1e-7, 1e-2])),
        "ns_steps": draw(st.sampled_from([1, 3, 5])),
    }


@st.composite
def settings_of_groups(draw: st.DrawFn) -> dict[str, Any]:
    """What ``made_of`` makes an optimizer of one group or of several of."""
    groups = []
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(["sgd", "adam", "adamw"]))
        own = draw(settings_of_sgd() if name == "sgd" else settings_of_adam())
        decay = {"undecayed": draw(st.sampled_from([(), ("*.bias",)])), "matrices_only": draw(st.booleans())}
        groups.append((name, own | decay))
    muon = draw(st.none() | settings_of_muon())
    return {"groups": groups, "muon": muon, "scales": [draw(st.floats(0.1, 10)) for _ in groups[1:]]}


def made_of(drawn: dict[str, Any]) -> Optimizer:
    """The optimizer of what ``settings_of_groups`` drew."""
    rest, *others = [getattr(optim, name)(**settings) for name, settings in drawn["groups"]]
    parts = [((f"{i}.*", "*.bias"), one) for i, one in enumerate(others)]
    rest = rest if drawn["muon"] is None else optim.muon(**drawn["muon"], rest=rest)
    return optim.grouped(*parts, rest=rest, scales=drawn["scales"])


def add(*trees: Params) -> Params:
    """Their sum, unit by unit."""
    return tree.map(lambda *xs: sum(xs), *trees)
