"""A step of SGD is torch's: clipped by the global norm, at a rate that falls by epoch."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_close, clip_and_step, flat, rates_of
from strategies import seeds, some, trees
from torch.optim.lr_scheduler import ExponentialLR, StepLR

from devinterp_func import keys, optim, per_example, tree

LAW = {torch.float64: 1e-14, torch.float32: 1e-6}  # of the largest of the numbers that are added
max_norms = st.sampled_from([1e-3, 0.5, 10.0, 1e4, math.inf])
each_dtype = pytest.mark.parametrize("dtype", LAW, ids=str)


def taken(params, gradients, lr=0.5, max_norm=0.5):
    """A step from per-example gradients: new weights, info, deltas."""
    after, info = optim.update(params, tree.map(lambda g: g.mean(0), gradients), lr=lr, max_norm=max_norm)
    return after, info, optim.deltas(gradients, info)


def normal(n, scale=1.0, seed=0, dtype=torch.float64):
    """Weights of two units and n per-example gradients."""
    rng = keys.generator(seed)
    draw = lambda *shape: torch.from_numpy(rng.standard_normal(shape)).to(dtype)  # noqa: E731
    return {"a": draw(4, 3), "b": draw(5)}, {"a": scale * draw(n, 4, 3), "b": scale * draw(n, 5)}


# ---- torch's update


@each_dtype
@pytest.mark.parametrize("max_norm", [0.5, math.inf])
@pytest.mark.parametrize("scale", [0.1, 10.0], ids=["small", "large"])
@pytest.mark.parametrize("lr", [0.5, 4.05])
def test_updates_are_torchs_over_several_steps(dtype, max_norm, scale, lr):
    ours = theirs = normal(1, dtype=dtype)[0]
    for step in range(5):
        gradient = tree.map(lambda g: g[0], normal(1, scale, seed=step, dtype=dtype)[1])
        ours, _ = optim.update(ours, gradient, lr=lr, max_norm=max_norm)
        theirs = clip_and_step(theirs, gradient, lr=lr, max_norm=max_norm)
    assert_close(ours, theirs, LAW[dtype])


@given(trees(), max_norms)
@some
def test_clip_is_the_formula(gradient, max_norm):
    _, info = optim.update(tree.scale(gradient, 0.0), gradient, lr=1.0, max_norm=max_norm)
    norm = math.sqrt(sum(x * x for x in flat(gradient)))
    assert info.grad_norm.item() == pytest.approx(norm, rel=1e-12)
    assert info.clip.item() == pytest.approx(min(1.0, max_norm / (norm + 1e-6)), rel=1e-12)


def test_nothing_is_clipped_without_a_largest_norm():
    params, gradients = normal(1, scale=1e6)
    _, info, deltas = taken(params, gradients, lr=0.25, max_norm=math.inf)
    assert info.clip == 1
    assert_close(deltas, tree.scale(gradients, -0.25), 0.0)


def test_clipping_bounds_the_update():
    params, gradients = normal(3, scale=1e3)
    after, info, _ = taken(params, gradients, lr=2.0, max_norm=0.5)
    assert info.clip < 1
    assert tree.norm(tree.sub(after, params)).item() == pytest.approx(1.0, rel=1e-8)


def test_a_zero_gradient_moves_nothing():
    params, gradients = normal(3, scale=0.0)
    after, info, deltas = taken(params, gradients)
    assert_close(after, params, 0.0)
    assert info.clip == 1 and info.grad_norm == 0 and not flat(deltas).any()


@pytest.mark.parametrize("gamma", [0.9, 0.95, 1.0])
def test_the_learning_rate_is_torchs_schedule(gamma):
    ours = [optim.learning_rate(epoch, 5.0, gamma) for epoch in range(5)]
    assert ours == pytest.approx(rates_of(lambda optimizer: StepLR(optimizer, 1, gamma), 5.0, 5), rel=1e-14)
    assert ours == pytest.approx(rates_of(lambda optimizer: ExponentialLR(optimizer, gamma), 5.0, 5), rel=1e-14)


# ---- what was clipped


@given(seeds)
@some
def test_the_unclipped_shift_is_one_division_away(seed):
    params, gradients = normal(4, scale=10.0, seed=seed)
    _, info, deltas = taken(params, gradients, lr=5.0)
    assert info.clip < 1
    assert_close(tree.scale(deltas, 1 / info.clip), tree.scale(gradients, -5.0 / 4), 1e-14)


# ---- the function


def test_update_is_pure():
    params, gradients = normal(3)
    before = copy.deepcopy((params, gradients))
    first, again = taken(params, gradients), taken(params, gradients)
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(first), tree.leaves(again), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves((params, gradients)), tree.leaves(before), strict=True))
    assert all(first[0][name].data_ptr() != w.data_ptr() for name, w in params.items())


def test_update_keeps_names_order_and_dtype():
    params, gradients = normal(3, dtype=torch.float32)
    after, info, _ = taken(params, dict(reversed(gradients.items())))
    assert list(after) == list(params)
    assert {x.dtype for x in tree.leaves((after, info))} == {torch.float32}


def test_info_prints_its_numbers():
    _, info = optim.update({"w": torch.zeros(1)}, {"w": torch.tensor([0.25])}, lr=5.0, max_norm=0.5)
    assert repr(info) == "StepInfo(lr=5, clip=1, grad_norm=0.25)"


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("name", ["lr", "max_norm"])
def test_update_refuses_what_is_not_positive(name, value):
    params, gradients = normal(1)
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be positive"):
        optim.update(params, params, **({"lr": 1.0, "max_norm": 1.0} | {name: value}))


def test_update_refuses_missing_and_unknown_gradients():
    one = {"a": torch.zeros(1), "b": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"differ in \['b'\]"):
        optim.update(one, {"a": torch.zeros(1)}, lr=1.0, max_norm=1.0)
    with pytest.raises(ValueError, match=r"differ in \['b'\]"):
        optim.update({"a": torch.zeros(1)}, one, lr=1.0, max_norm=1.0)


def test_any_tree_of_tensors_is_updated():
    params = {"deep": (torch.ones(2), [torch.ones(1)]), "scale": torch.tensor(2.0)}
    after, info = optim.update(params, tree.map(torch.ones_like, params), lr=0.5, max_norm=math.inf)
    assert info.grad_norm == 2.0
    assert torch.equal(after["deep"][0], torch.full((2,), 0.5)) and after["deep"][1][0].item() == 0.5
    assert after["scale"].item() == 1.5
    with pytest.raises(ValueError, match=r"differ in \['deep.1.0'\]"):
        optim.update(params, {"deep": (torch.ones(2), []), "scale": torch.tensor(2.0)}, lr=0.5, max_norm=1.0)


def test_updated_weights_carry_no_graph():
    module = torch.nn.Linear(3, 2)
    params, x = dict(module.named_parameters()), torch.ones(4, 3)

    def loss(params, x):
        return torch.func.functional_call(module, params, (x,)).square().sum()

    gradients = per_example.grads(loss)(params, x)
    after, info = optim.update(params, tree.map(lambda g: g.mean(0), gradients), lr=0.1, max_norm=1.0)
    assert all(leaf.grad_fn is None and not leaf.requires_grad for leaf in tree.leaves((gradients, after, info)))
    assert all(w.requires_grad for w in params.values())


@pytest.mark.parametrize("value", ["0.1", None, True, [1.0]])
@pytest.mark.parametrize("name", ["lr", "max_norm"])
def test_update_refuses_what_is_no_number(unchecked, name, value):
    params, _ = normal(1)
    with pytest.raises(TypeError, match=f"{name} is .*; it must be a number"):
        optim.update(params, params, **({"lr": 1.0, "max_norm": 1.0} | {name: value}))
