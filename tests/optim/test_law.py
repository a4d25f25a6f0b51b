"""The law: a step's change is the sum of what its data did.

    w' − w = Σ_j Δ_j      Δ_j = −lr · c · g_j / n      g = (1/n) Σ_j g_j      c = min(1, max_norm / (‖g‖ + 1e-6))

``optim.update`` makes the step, ``optim.deltas`` and ``optim.delta_factors`` split it, ``optim.missed`` says how far a
split is from the step that was made.
"""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import token_parts
from strategies import floats, like, mixed_arrays, mixture, small, some, trees
from torch import Tensor

from devinterp_func import optim, per_example, tree
from devinterp_func.per_example import Bias, Factor, Outer

EPS = {torch.float64: 1e-15, torch.float32: 5e-7}
each_dtype = pytest.mark.parametrize("dtype", EPS, ids=str)
rates = st.floats(0.01, 10)
max_norms = st.sampled_from([1e-3, 0.5, 10.0, 1e4, math.inf])  # clipping is active for some steps and idle for others


class Made(NamedTuple):
    """A step as it was made: all that ``missed`` reads of one."""

    before: dict[str, Tensor]
    after: dict[str, Tensor]
    factors: dict[str, Factor]


def n_data(factors):
    return per_example.n_data(next(iter(factors.values())))


def mean_gradients(factors):
    """g, by the factors' definitions: the data's and their positions' parts added up."""
    return {name: token_parts(factor).sum((0, 1)) / n_data(factors) for name, factor in factors.items()}


def step(before, factors, lr=0.5, max_norm=0.5):
    """A step of SGD and what it used."""
    after, info = optim.update(before, mean_gradients(factors), lr=lr, max_norm=max_norm)
    return Made(before, after, optim.delta_factors(factors, info, n_data(factors))), info


def rounding(made, dtype):
    """What ``missed`` may be of each unit: weights and deltas are rounded, relative to a change that may be small."""
    deltas = per_example.gradients(made.factors)
    sizes = {
        name: made.before[name].norm() + delta.reshape(len(delta), -1).norm(dim=1).sum()
        for name, delta in deltas.items()
    }
    return {
        name: float(EPS[dtype] * size / (made.after[name] - made.before[name]).norm()) for name, size in sizes.items()
    }


# ---- it holds


@each_dtype
@given(mixed_arrays(), rates, max_norms, st.data())
@some
def test_factors_of_every_kind_obey_the_law(dtype, drawn, lr, max_norm, data):
    factors = mixture(drawn, dtype)
    before = tree.map(lambda g: data.draw(floats(tuple(g.shape))).to(dtype), mean_gradients(factors))
    made, _ = step(before, factors, lr, max_norm)
    most = rounding(made, dtype)
    assert optim.missed(made).keys() == factors.keys()
    assert all(missed == 0 or missed <= most[unit] for unit, missed in optim.missed(made).items())


@pytest.mark.parametrize(("max_norm", "clipped"), [(1e-3, True), (math.inf, False)], ids=["clipped", "not clipped"])
@each_dtype
def test_every_parameter_of_a_model_obeys_the_law(dtype, max_norm, clipped):
    own = small(dtype)
    params, captured = own.params, own.capture()
    after, info = optim.update(params, captured.mean_grads, lr=5.0, max_norm=max_norm)
    made = Made(params, after, optim.delta_factors(captured.factors, info, 3))
    most = rounding(made, dtype)
    assert bool(info.clip < 1) == clipped and optim.missed(made).keys() == params.keys()
    assert all(missed <= 10 * most[unit] for unit, missed in optim.missed(made).items())


@each_dtype
@given(trees(), st.integers(1, 4), rates, max_norms, st.data())
@some
def test_deltas_of_any_tree_sum_to_the_update(dtype, params, n, lr, max_norm, data):
    params, gradients = (tree.map(lambda x: x.to(dtype), x) for x in (params, data.draw(like(params, examples=n))))
    after, info = optim.update(params, tree.map(lambda g: g.mean(0), gradients), lr=lr, max_norm=max_norm)
    for name, delta in optim.deltas(gradients, info).items():
        missed = (after[name] - params[name]) - delta.sum(0)
        assert (missed.abs() <= 10 * EPS[dtype] * (params[name].abs() + delta.abs().sum(0) + 1e-30)).all()


# ---- each delta is the formula's


@given(floats((3, 2)), rates, max_norms)
@some
def test_a_delta_is_the_formula(gradients, lr, max_norm):
    mean = [sum(row[i] for row in gradients.tolist()) / 3 for i in range(2)]
    c = min(1.0, max_norm / (math.hypot(*mean) + 1e-6))
    _, info = optim.update({"w": torch.zeros(2).double()}, {"w": gradients.mean(0)}, lr=lr, max_norm=max_norm)
    expected = [[-lr * c * g / 3 for g in row] for row in gradients.tolist()]
    assert optim.deltas({"w": gradients}, info)["w"].tolist() == [pytest.approx(row, rel=1e-9) for row in expected]


@given(mixed_arrays(), rates, max_norms)
@some
def test_factors_of_deltas_form_the_deltas(drawn, lr, max_norm):
    factors = mixture(drawn)
    n = n_data(factors)
    _, info = step(mean_gradients(factors), factors, lr, max_norm)
    formed = per_example.gradients(optim.delta_factors(factors, info, n))
    for name, delta in optim.deltas(per_example.gradients(factors), info).items():
        largest = float(optim.share(info, n).abs()) * 100  # of what is added: terms may cancel
        torch.testing.assert_close(formed[name], delta, rtol=1e-13, atol=1e-14 * largest)


# ---- what misses it is seen


def normal_factors(n=20) -> dict[str, Factor]:
    rng = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    return {"weight": Outer(draw(n, 2, 3), draw(n, 2, 4)), "bias": Bias(draw(n, 2, 4))}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda f, info: per_example.take_data(f, slice(1, None)),
        lambda f, info: f._replace(signals=f.signals / info.clip),
        lambda f, info: f._replace(signals=-f.signals),
        lambda f, info: f._replace(signals=f.signals / 20),
        lambda f, info: f._replace(signals=f.signals.flip(2)),
    ],
    ids=["a datum is dropped", "clipping is forgotten", "sign", "mean for sum", "entries are mixed up"],
)
def test_wrong_deltas_miss_the_law(wrong):
    made, info = step({"weight": torch.ones(4, 3).double(), "bias": torch.ones(4).double()}, normal_factors())
    assert info.clip < 1 and max(optim.missed(made).values()) <= 1e-13
    changed = {unit: wrong(factor, info) for unit, factor in made.factors.items()}
    assert min(optim.missed(made._replace(factors=changed)).values()) > 0.01


def test_missed_is_a_part_of_the_units_change():
    before = {"moved": torch.zeros(2), "still": torch.zeros(2), "stuck": torch.zeros(1)}
    after = {"moved": torch.tensor([3.0, 4.0]), "still": torch.zeros(2), "stuck": torch.zeros(1)}
    factors: dict[str, Factor] = {
        "moved": Bias(torch.tensor([[[3.0, 0.0]], [[0.0, 3.0]]])),  # (3, 4) − (3, 3) is a fifth of (3, 4)
        "still": Bias(torch.tensor([[[1.0, 2.0]], [[-1.0, -2.0]]])),
        "stuck": Bias(torch.tensor([[[1.0]], [[2.0]]])),
    }
    missed = optim.missed(Made(before, after, factors))
    assert missed == {"moved": pytest.approx(0.2), "still": 0.0, "stuck": math.inf}


def test_missed_may_be_of_some_units():
    made, _ = step({"weight": torch.ones(4, 3).double(), "bias": torch.ones(4).double()}, normal_factors())
    assert list(optim.missed(made._replace(factors={"bias": made.factors["bias"]}))) == ["bias"]
