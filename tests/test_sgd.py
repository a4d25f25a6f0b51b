"""Laws of sgd.py: the deltas of the data add up to the update, and the update is torch's."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_close, clip_and_step, flat, rates_of
from strategies import floats, like, seeds, some, trees
from torch.optim.lr_scheduler import ExponentialLR, StepLR

from devinterp_func import keys, sgd, tree

LAW = {torch.float64: 1e-14, torch.float32: 1e-6}  # of the largest of the numbers that are added
rates = st.floats(0.01, 10)
max_norms = st.sampled_from([1e-3, 0.5, 10.0, 1e4, math.inf])
each_dtype = pytest.mark.parametrize("dtype", LAW, ids=str)


@st.composite
def steps(draw):
    """Weights and per-example gradients."""
    n = draw(st.integers(1, 4))
    params = draw(trees())
    return params, draw(like(params, examples=n))


def taken(params, gradients, lr=0.5, max_norm=0.5):
    """A step from per-example gradients: new weights, info, deltas."""
    after, info = sgd.update(params, tree.map(lambda g: g.mean(0), gradients), lr=lr, max_norm=max_norm)
    return after, info, sgd.deltas(gradients, info)


def normal(n, scale=1.0, seed=0, dtype=torch.float64):
    """Weights of two units and n per-example gradients."""
    rng = keys.generator(seed)
    draw = lambda *shape: torch.from_numpy(rng.standard_normal(shape)).to(dtype)  # noqa: E731
    return {"a": draw(4, 3), "b": draw(5)}, {"a": scale * draw(n, 4, 3), "b": scale * draw(n, 5)}


# ---- the law


@each_dtype
@given(steps(), rates, max_norms)
@some
def test_deltas_sum_to_the_update(dtype, step, lr, max_norm):
    params, gradients = tree.map(lambda x: x.to(dtype), step)
    after, _, deltas = taken(params, gradients, lr, max_norm)
    for name, w in params.items():
        missed = (after[name] - w) - deltas[name].sum(0)
        size = w.abs() + deltas[name].abs().sum(0) + 1e-30  # where float32 has no relative precision left
        assert (missed.abs() <= LAW[dtype] * size).all()


@pytest.mark.parametrize(("max_norm", "clipped"), [(1e-3, True), (math.inf, False)])
@each_dtype
def test_the_residual_of_true_deltas_is_rounding(dtype, max_norm, clipped):
    params, gradients = normal(6, dtype=dtype)
    after, info, deltas = taken(params, gradients, lr=5.0, max_norm=max_norm)
    assert bool(info.clip < 1) == clipped
    lost = LAW[dtype] * float(tree.norm(params) / tree.norm(tree.sub(after, params)))  # where w + Δ is rounded
    assert max(sgd.residual(params, after, deltas).values()) <= max(lost, LAW[dtype])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda deltas, info: tree.map(lambda d: d[1:], deltas),
        lambda deltas, info: tree.scale(deltas, 1 / info.clip),
        lambda deltas, info: tree.scale(deltas, -1.0),
        lambda deltas, info: tree.map(lambda d: d.mean(0, keepdim=True), deltas),
        lambda deltas, info: deltas | {"b": deltas["b"].flip(1)},
    ],
    ids=["a datum is dropped", "clipping is forgotten", "sign", "mean for sum", "entries are mixed up"],
)
def test_the_residual_shows_wrong_deltas(wrong):
    params, gradients = normal(20)
    after, info, deltas = taken(params, gradients)
    assert max(sgd.residual(params, after, deltas).values()) <= 1e-12
    assert max(sgd.residual(params, after, wrong(deltas, info)).values()) > 0.01


def test_the_residual_is_relative_to_the_move_by_unit():
    before = {"moved": torch.zeros(2), "still": torch.zeros(2)}
    after = {"moved": torch.tensor([3.0, 4.0]), "still": torch.zeros(2)}
    deltas = {"moved": torch.tensor([[3.0, 0.0], [0.0, 3.0]]), "still": torch.tensor([[1.0, 2.0], [-1.0, -2.0]])}
    assert sgd.residual(before, after, deltas) == {"moved": pytest.approx(0.2), "still": 0.0}


def test_the_residual_may_be_of_some_units():
    params, gradients = normal(3)
    after, _, deltas = taken(params, gradients)
    assert list(sgd.residual(params, after, {"b": deltas["b"]})) == ["b"]


# ---- torch's update


@each_dtype
@pytest.mark.parametrize("max_norm", [0.5, math.inf])
@pytest.mark.parametrize("scale", [0.1, 10.0], ids=["small", "large"])
@pytest.mark.parametrize("lr", [0.5, 4.05])
def test_updates_are_torchs_over_several_steps(dtype, max_norm, scale, lr):
    ours = theirs = normal(1, dtype=dtype)[0]
    for step in range(5):
        gradient = tree.map(lambda g: g[0], normal(1, scale, seed=step, dtype=dtype)[1])
        ours, _ = sgd.update(ours, gradient, lr=lr, max_norm=max_norm)
        theirs = clip_and_step(theirs, gradient, lr=lr, max_norm=max_norm)
    assert_close(ours, theirs, LAW[dtype])


@given(trees(), max_norms)
@some
def test_clip_is_the_formula(gradient, max_norm):
    _, info = sgd.update(tree.scale(gradient, 0.0), gradient, lr=1.0, max_norm=max_norm)
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
    ours = [sgd.learning_rate(epoch, 5.0, gamma) for epoch in range(5)]
    assert ours == pytest.approx(rates_of(lambda optimizer: StepLR(optimizer, 1, gamma), 5.0, 5), rel=1e-14)
    assert ours == pytest.approx(rates_of(lambda optimizer: ExponentialLR(optimizer, gamma), 5.0, 5), rel=1e-14)


# ---- deltas


@given(floats((3, 2)), rates)
@some
def test_deltas_are_the_formula(gradients, lr):
    params = {"w": torch.zeros(2, dtype=torch.float64)}
    _, info, deltas = taken(params, {"w": gradients}, lr, max_norm=0.5)
    expected = -lr * info.clip * gradients / 3
    assert torch.allclose(deltas["w"], expected, rtol=1e-14, atol=1e-300)


@given(seeds)
@some
def test_the_unclipped_shift_is_one_division_away(seed):
    params, gradients = normal(4, scale=10.0, seed=seed)
    _, info, deltas = taken(params, gradients, lr=5.0)
    assert info.clip < 1
    assert_close(tree.scale(deltas, 1 / info.clip), tree.scale(gradients, -5.0 / 4), 1e-14)


def test_share_turns_a_gradient_into_its_delta():
    _, gradients = normal(4)
    _, info, deltas = taken(*normal(4))
    assert_close(deltas, tree.scale(gradients, sgd.share(info, 4)), 0.0)


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
    _, info = sgd.update({"w": torch.zeros(1)}, {"w": torch.tensor([0.25])}, lr=5.0, max_norm=0.5)
    assert repr(info) == "StepInfo(lr=5, clip=1, grad_norm=0.25)"


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("name", ["lr", "max_norm"])
def test_update_refuses_what_is_not_positive(name, value):
    params, gradients = normal(1)
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be positive"):
        sgd.update(params, params, **({"lr": 1.0, "max_norm": 1.0} | {name: value}))


def test_update_refuses_missing_and_unknown_gradients():
    one = {"a": torch.zeros(1), "b": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"differ in \['b'\]"):
        sgd.update(one, {"a": torch.zeros(1)}, lr=1.0, max_norm=1.0)
    with pytest.raises(ValueError, match=r"differ in \['b'\]"):
        sgd.update({"a": torch.zeros(1)}, one, lr=1.0, max_norm=1.0)
