"""Derivatives through a step: ``apply`` is the step that is made, ``pull`` is ``torch.func.vjp`` of ``apply``.

In float64, for every rule; the gradient clipped and not, the memory empty and full, units of any shape.
"""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizers import OPTIMIZERS, SHAPES, made_of, normal, settings_of_groups, warm
from oracles import assert_equal
from strategies import seeds
from torch.func import jvp, vjp

from devinterp_func import optim, tree
from devinterp_func.optim import Covector, Optimizer, State
from devinterp_func.tree import Params

TOLERANCE = 1e-10
GROUPS = optim.grouped(
    (("bias", "scalar"), optim.sgd(momentum=0.9, dampening=0.5, weight_decay=0.2)),
    (("wide",), optim.adam(betas=(0.5, 0.9), weight_decay=0.3, undecayed=("wide",))),
    rest=optim.adamw(betas=(0.9, 0.99), weight_decay=0.3, matrices_only=True),
    scales=(3.0, 0.25),
)
RULES = OPTIMIZERS | {
    "groups": GROUPS,
    "usual adamw": optim.adamw(),
    "dampened entirely": optim.sgd(momentum=0.5, dampening=1.0),
    "muon of all settings": optim.muon(0.5, eps=1e-2, ns_steps=3, coefficients=(2.0, -1.5, 0.5), rest=optim.adam()),
}
each_rule = pytest.mark.parametrize("optimizer", RULES.values(), ids=RULES)
each_clip = pytest.mark.parametrize("max_norm", [0.3, math.inf], ids=["clipped", "not clipped"])
each_memory = pytest.mark.parametrize("steps", [0, 3], ids=["first step", "fourth step"])


def given_step(optimizer: Optimizer, steps: int, shapes: Any = SHAPES, seed: int = 0) -> tuple[Params, Params, State]:
    """Weights, gradients and what is remembered of ``steps`` steps."""
    params = normal(shapes, seed)
    return params, normal(shapes, seed + 1000), warm(optimizer, params, steps, seed)


def drawn_covector(params: Params, state: State, seed: int) -> Covector:
    """Derivatives from a normal distribution."""
    shapes = {name: tuple(w.shape) for name, w in params.items()}
    memory = {name: normal(dict.fromkeys(own, shapes[name]), seed + 1) for name, own in state.buffers.items()}
    return Covector(normal(shapes, seed), memory)


def by_definition(
    optimizer: Optimizer, params: Params, grads: Params, state: State, back: Covector, lr: float, max_norm: float
) -> tuple[Covector, Params]:
    def step(params: Params, grads: Params, memory: Any) -> tuple[Params, Any]:
        after, new = optimizer.apply(params, grads, State(state.steps, memory), lr, max_norm)
        return after, new.buffers

    by_weights, by_grads, by_memory = vjp(step, params, grads, state.buffers)[1]((back.weights, back.memory))
    return Covector(by_weights, by_memory), by_grads


def missed(found: Any, expected: Any) -> float:
    """The largest error of any unit's derivatives, relative to the largest of them."""
    pairs = list(zip(tree.leaves(found), tree.leaves(expected), strict=True))
    assert tree.flat(found).keys() == tree.flat(expected).keys()
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
    errors = [float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


# ---- apply


@each_rule
@each_clip
@each_memory
def test_apply_is_the_step_that_is_made(optimizer, max_norm, steps):
    params, grads, state = given_step(optimizer, steps)
    after, new, split = optimizer.update(params, grads, state, 0.05, max_norm)
    applied, memory = optimizer.apply(params, grads, state, 0.05, max_norm)
    assert (float(split.clip) < 1) == (max_norm < 1) and memory.steps == new.steps == steps + 1
    assert missed((applied, memory.buffers), (after, new.buffers)) <= 1e-13


@settings(max_examples=15, deadline=None)
@given(settings_of_groups(), seeds, st.integers(0, 2), st.sampled_from([0.1, 5.0, math.inf]), st.floats(1e-4, 1.0))
def test_of_drawn_settings_apply_is_the_step_and_pull_its_derivative(drawn, seed, steps, max_norm, lr):
    optimizer = made_of(drawn)
    shapes = {f"{i % 2}.{name}": shape for i, (name, shape) in enumerate(SHAPES.items())} | {"0.bias": (2, 2)}
    params, grads, state = given_step(optimizer, steps, shapes, seed)
    after, new, _ = optimizer.update(params, grads, state, lr, max_norm)
    applied, memory = optimizer.apply(params, grads, state, lr, max_norm)
    assert missed((applied, memory.buffers), (after, new.buffers)) <= 1e-12
    back = drawn_covector(params, state, seed)
    found = optimizer.pull(params, grads, state, back, lr, max_norm)
    assert missed(found, by_definition(optimizer, params, grads, state, back, lr, max_norm)) <= TOLERANCE


# ---- pull


@each_rule
@each_clip
@each_memory
def test_pull_is_the_vjp_of_apply(optimizer, max_norm, steps):
    params, grads, state = given_step(optimizer, steps)
    back = drawn_covector(params, state, 5)
    found = optimizer.pull(params, grads, state, back, 0.05, max_norm)
    assert missed(found, by_definition(optimizer, params, grads, state, back, 0.05, max_norm)) <= TOLERANCE


@each_rule
@each_clip
def test_pull_is_the_derivative_by_central_differences_of_update(optimizer, max_norm):
    """⟨λ, step(z + h ż) − step(z − h ż)⟩ / 2h = ⟨pulled λ, ż⟩, of the very steps that training makes."""
    params, grads, state = given_step(optimizer, 3)
    back, h = drawn_covector(params, state, 5), 1e-6
    (by_start, by_grads), along = (
        optimizer.pull(params, grads, state, back, 0.05, max_norm),
        drawn_covector(params, state, 9),
    )
    tilt = normal({name: tuple(g.shape) for name, g in grads.items()}, 11)

    def moved(h: float) -> float:
        at = [tree.map(lambda x, d: x + h * d, *pair) for pair in ((params, along.weights), (grads, tilt))]
        memory = tree.map(lambda x, d: x + h * d * x.abs(), state.buffers, along.memory)  # v stays above 0
        after, new, _ = optimizer.update(*at, State(state.steps, memory), 0.05, max_norm)
        return float(tree.dot((after, new.buffers), (back.weights, back.memory)))

    memory = tree.map(lambda d, x: d * x.abs(), along.memory, state.buffers)
    expected = float(tree.dot((by_start.weights, by_grads), (along.weights, tilt)))
    expected += float(tree.dot(by_start.memory, memory)) if tree.leaves(memory) else 0.0
    assert (moved(h) - moved(-h)) / (2 * h) == pytest.approx(expected, rel=1e-6)


@each_rule
@each_clip
def test_rows_without_a_gradient_so_far_have_a_derivative(optimizer, max_norm):
    """Where the second moment is 0 its root has no derivative; the step is linear in the first moment there."""
    params, grads, state = given_step(optimizer, 0)
    for _ in range(2):
        for gradient in grads.values():
            gradient.view(-1)[::2] = 0.0
        back = drawn_covector(params, state, 5)
        found = optimizer.pull(params, grads, state, back, 0.05, max_norm)
        expected = by_definition(optimizer, params, grads, state, back, 0.05, max_norm)
        assert all(bool(x.isfinite().all()) for x in tree.leaves((found, expected)))
        assert missed(found, expected) <= TOLERANCE
        params, state, _ = optimizer.update(params, grads, state, 0.05, max_norm)


def test_where_there_was_no_gradient_the_derivative_is_that_of_the_first_moment_alone():
    """w' = w − lr / (1 − β₁) · (1 − β₁) u / ε for small u, so the derivative by u is −lr / ε, decay or not."""
    params, zero = {"w": torch.tensor([0.5], dtype=torch.float64)}, {"w": torch.zeros(1, dtype=torch.float64)}
    optimizer = optim.adamw(betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1)
    state = optimizer.init(params)
    back = Covector({"w": torch.ones(1, dtype=torch.float64)}, tree.map(torch.zeros_like, state.buffers))
    found, by_grad = optimizer.pull(params, zero, state, back, 0.02)
    assert float(by_grad["w"]) == pytest.approx(-0.02 / 1e-3)
    assert float(found.weights["w"]) == pytest.approx(1 - 0.02 * 0.1)
    assert float(found.memory["w"]["exp_avg"]) == pytest.approx(-0.02 / (1 - 0.8) * 0.8 / 1e-3)
    assert float(found.memory["w"]["exp_avg_sq"]) == 0.0


@each_rule
@pytest.mark.parametrize("max_norm", [1e-9, 1.0, math.inf])
def test_a_step_without_any_gradient_has_a_derivative(optimizer, max_norm):
    params, _, state = given_step(optimizer, 1)
    zero, back = tree.map(torch.zeros_like, params), drawn_covector(params, state, 5)
    found = optimizer.pull(params, zero, state, back, 0.05, max_norm)
    assert all(bool(x.isfinite().all()) for x in tree.leaves(found))
    assert missed(found, by_definition(optimizer, params, zero, state, back, 0.05, max_norm)) <= TOLERANCE


def test_the_gradient_is_clipped_by_the_norm_over_all_units():
    """By hand, of one step of SGD at lr 1: ∂/∂g of −⟨a, max_norm g / (‖g‖ + 1e-6)⟩; below the norm it is −a."""
    params = {"u": torch.zeros(2, dtype=torch.float64), "v": torch.zeros(1, dtype=torch.float64)}
    grads = {"u": torch.tensor([3.0, 0.0]).double(), "v": torch.tensor([4.0]).double()}
    optimizer, back = (
        optim.sgd(),
        Covector({name: torch.ones_like(w) for name, w in params.items()}, {"u": {}, "v": {}}),
    )
    _, found = optimizer.pull(params, grads, optimizer.init(params), back, 1.0, 0.5)
    g, a, r = torch.tensor([3.0, 0.0, 4.0]).double(), torch.ones(3, dtype=torch.float64), 5 + 1e-6
    expected = -(0.5 / r * a - 0.5 / r**2 * (g @ a) * g / 5)
    torch.testing.assert_close(torch.cat([found["u"], found["v"]]), expected, rtol=1e-12, atol=0)
    _, free = optimizer.pull(params, grads, optimizer.init(params), back, 1.0, 5.1)
    assert torch.equal(torch.cat([free["u"], free["v"]]), -a)


@each_rule
@each_clip
def test_pulling_back_is_linear(optimizer, max_norm):
    params, grads, state = given_step(optimizer, 2)
    one, other = drawn_covector(params, state, 5), drawn_covector(params, state, 6)
    both = tree.map(lambda x, y: 2 * x - 3 * y, one, other)
    pulled = [optimizer.pull(params, grads, state, back, 0.05, max_norm) for back in (one, other, both)]
    assert missed(pulled[2], tree.map(lambda x, y: 2 * x - 3 * y, *pulled[:2])) <= TOLERANCE


@each_rule
@each_clip
@each_memory
def test_nothing_given_is_changed_and_nothing_found_is_the_memory_of_what_is_given(optimizer, max_norm, steps):
    params, grads, state = given_step(optimizer, steps)
    back = drawn_covector(params, state, 5)
    copies = tree.map(torch.clone, (params, grads, state.buffers, back))
    found = optimizer.pull(params, grads, state, back, 0.05, max_norm)
    optimizer.apply(params, grads, state, 0.05, max_norm)
    for x in tree.leaves(found):
        x.add_(1.0)
    assert_equal((params, grads, state.buffers, back), copies)


@each_rule
def test_units_of_many_blocks_and_of_other_layouts_are_pulled_the_same(optimizer, monkeypatch):
    params, grads, state = given_step(optimizer, 2)
    back = drawn_covector(params, state, 5)
    whole = optimizer.pull(params, grads, state, back, 0.05, 0.3)
    monkeypatch.setattr("devinterp_func.optim._adam.BLOCK", 4)
    assert missed(optimizer.pull(params, grads, state, back, 0.05, 0.3), whole) <= 1e-14
    turned = tree.map(lambda x: x.mT.contiguous().mT if x.ndim > 1 else x, (params, grads, state.buffers, back))
    found = optimizer.pull(turned[0], turned[1], State(2, turned[2]), turned[3], 0.05, 0.3)
    assert missed(found, whole) <= 1e-12


@each_rule
@each_clip
def test_in_float32_it_is_the_same_but_for_rounding(optimizer, max_norm):
    params, grads, state = given_step(optimizer, 3)
    back = drawn_covector(params, state, 5)
    single = tree.map(torch.Tensor.float, (params, grads, state.buffers, back))
    found = optimizer.pull(single[0], single[1], State(3, single[2]), single[3], 0.05, max_norm)
    assert {x.dtype for x in tree.leaves(found)} == {torch.float32}
    expected = optimizer.pull(params, grads, state, back, 0.05, max_norm)
    assert missed(tree.map(torch.Tensor.double, found), expected) <= 2e-4


@each_rule
def test_apply_is_differentiated_forwards_too(optimizer):
    """⟨λ, jvp⟩ = ⟨vjp of λ, direction⟩."""
    params, grads, state = given_step(optimizer, 2)
    back, along = drawn_covector(params, state, 5), drawn_covector(params, state, 6)

    def step(params: Params, memory: Any) -> tuple[Params, Any]:
        after, new = optimizer.apply(params, grads, State(state.steps, memory), 0.05, 0.3)
        return after, new.buffers

    moved = jvp(step, (params, state.buffers), (along.weights, along.memory))[1]
    found, _ = optimizer.pull(params, grads, state, back, 0.05, 0.3)
    one, other = tree.dot(moved, (back.weights, back.memory)), tree.dot(found, along)
    assert float(one) == pytest.approx(float(other), rel=1e-10)
