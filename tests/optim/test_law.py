"""The law: a step's change is what its data did, what earlier data did through the memory, and decay.

    w' − w = Σ_j Δ_j + past + decay      Δ_j = L(present · c · g_j / n)      g = (1/n) Σ_j g_j

for every rule, every kind of factor, clipping active and idle. ``Optimizer.update`` makes the step and its ``Split``,
``optim.deltas`` and ``optim.delta_factors`` split it over the data, ``optim.missed`` says how far it is from the law.
"""

import dataclasses
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizers import OPTIMIZERS, SHAPES, Made, add, magnitude, normal, step, warm
from oracles import flat, token_parts
from strategies import floats, mixed_arrays, mixture, seeds, small

from devinterp_func import graph, optim, per_example, tree
from devinterp_func.per_example import Bias, Factor, Outer

EPS = {torch.float64: 1e-14, torch.float32: 5e-6}
each_rule = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
fewer = settings(max_examples=12)  # of each rule
max_norms = st.sampled_from([1e-3, 1.0, math.inf])  # clipping is active for some steps and idle for others
warmups = st.integers(0, 2)


def n_data(factors):
    return per_example.n_data(next(iter(factors.values())))


def mean_gradients(factors):
    """g, by the factors' definitions: the data's and their positions' parts added up."""
    return {name: token_parts(factor).sum((0, 1)) / n_data(factors) for name, factor in factors.items()}


def drawn_step(optimizer, drawn, data):
    """A step of factors of any kind, from any memory, and the factors of its gradients."""
    factors = mixture(drawn)
    gradient = mean_gradients(factors)
    before = tree.map(lambda g: data.draw(floats(tuple(g.shape), 10)), gradient)
    state = warm(optimizer, before, data.draw(warmups), data.draw(seeds))
    return step(optimizer, before, factors, gradient, state, max_norm=data.draw(max_norms)), factors


def rounding(made, factors, unit, dtype=torch.float64):
    """What a sum of the step's parts may be off by: all that is added, in absolute values, entry by entry."""
    split, share = made.split, made.split.shares[unit]
    each = token_parts(factors[unit]).abs().sum((0, 1)) * (abs(share.present) * split.clip / n_data(factors))
    memory = torch.zeros_like(each) if share.memory is None else share.memory.abs() * abs(share.past)
    given = each + memory + made.before[unit].abs() * abs(share.present * share.coupled)
    decay = made.before[unit].abs() * (1 + abs(share.decay))
    return EPS[dtype] * (magnitude(split, unit, given) + decay) + 1e-300


# ---- it holds


@each_rule
@given(mixed_arrays(), st.data())
@fewer
def test_present_past_and_decay_add_up_to_the_change(optimizer, drawn, data):
    made, factors = drawn_step(optimizer, drawn, data)
    formed, split = per_example.gradients(made.factors), made.split
    for unit, delta in formed.items():
        most = rounding(made, factors, unit)
        present, past, decay = split.present(unit), split.past(unit), split.decay(unit)
        assert ((delta.sum(0) - present).abs() <= most).all()
        assert ((made.after[unit] - made.before[unit] - delta.sum(0) - past - decay).abs() <= most).all()


@each_rule
@given(mixed_arrays(), st.data())
@fewer
def test_missed_is_what_is_left_of_the_change(optimizer, drawn, data):
    made, factors = drawn_step(optimizer, drawn, data)
    found = optim.missed(made)
    assert found.keys() == factors.keys()
    for unit, missed in found.items():
        change = (made.after[unit] - made.before[unit]).norm()
        assert missed == 0 or missed * change <= rounding(made, factors, unit).norm() * 2


@each_rule
@given(mixed_arrays(), st.data())
@fewer
def test_factors_of_deltas_are_those_of_the_datas_deltas(optimizer, drawn, data):
    made, factors = drawn_step(optimizer, drawn, data)
    gradients = {name: token_parts(factor).sum(1) for name, factor in factors.items()}
    expected, split, n = optim.deltas(gradients, made.split), made.split, n_data(factors)
    for unit, delta in per_example.gradients(made.factors).items():
        share = split.shares[unit]
        assert ((delta - expected[unit]).abs() <= rounding(made, factors, unit)).all()
        for j in range(n):  # by the formula, one after the other
            one = optim.apply_gain(share.gain, share.present * float(split.clip) * gradients[unit][j] / n)
            assert ((expected[unit][j] - one).abs() <= rounding(made, factors, unit)).all()


@each_rule
@given(seeds, st.integers(0, 3), max_norms)
@fewer
def test_a_step_and_its_memory_are_linear_given_the_gain(optimizer, seed, steps, max_norm):
    before, gradient = normal(SHAPES, seed), normal(SHAPES, seed + 1)
    state = warm(optimizer, before, steps, seed + 2)
    after, new, split = optimizer.update(before, gradient, state, 0.5, max_norm)
    for unit, w in before.items():
        share = split.shares[unit]
        u = split.clip * gradient[unit] + share.coupled * w
        m = torch.zeros_like(w) if share.memory is None else share.memory
        given = share.present * u + share.past * m
        change = optim.apply_gain(share.gain, given) + share.decay * w
        assert ((after[unit] - w - change).abs() <= 1e-14 * (magnitude(split, unit, given) + w.abs())).all()
        buffers = [buffer for name, buffer in new.buffers[unit].items() if name != "exp_avg_sq"]
        assert (share.memory is None) == (not buffers) and share.coupled * share.decay == 0
        for buffer, old in zip(buffers, state.buffers[unit].values(), strict=False):
            assert torch.equal(m, old)
            torch.testing.assert_close(buffer, share.keep * m + share.take * u, rtol=1e-13, atol=1e-14)


@each_rule
@given(seeds, warmups, max_norms)
@fewer
def test_sizes_are_those_of_the_parts(optimizer, seed, steps, max_norm):
    before, gradient = normal(SHAPES, seed), normal(SHAPES, seed + 1)
    state = warm(optimizer, before, steps, seed + 2)
    after, _, split = optimizer.update(before, gradient, state, 0.5, max_norm)
    sizes = split.sizes()
    assert sizes.size.dtype == sizes.along.dtype == torch.float64 and sizes.size.shape == (
        len(SHAPES),
        len(optim.PARTS),
    )
    for unit, size, along in zip(before, *sizes, strict=True):
        parts = [split.present(unit), split.past(unit), split.decay(unit)]
        change = sum(parts)
        torch.testing.assert_close(size, torch.stack([part.norm() for part in parts]), rtol=1e-10, atol=1e-13)
        expected = torch.stack([(part * change).sum() for part in parts])
        scale = float(sum(part.norm() for part in parts)) ** 2
        assert ((along - expected).abs() <= 1e-13 * scale).all()
        assert abs(float(along.sum() - (after[unit] - before[unit]).square().sum())) <= 1e-12 * (scale + 1)
    torch.testing.assert_close(sizes.shares().sum(-1), torch.ones(len(SHAPES)).double())


@pytest.mark.parametrize("block", [5, 2**16])
@each_rule
@given(seeds, warmups, max_norms)
@fewer
def test_what_a_step_measures_in_passing_is_what_is_measured_afterwards(optimizer, block, seed, steps, max_norm):
    before, gradient = normal(SHAPES, seed), normal(SHAPES, seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optim._adam, "BLOCK", block)
        patch.setattr(optim._split, "BLOCK", block)
        _, _, split = optimizer.update(before, gradient, warm(optimizer, before, steps, seed + 2), 0.5, max_norm)
        without = {unit: share._replace(products=None) for unit, share in split.shares.items()}
        afterwards = dataclasses.replace(split, shares=without).sizes()
        assert all(torch.equal(x, y) for x, y in zip(split.sizes(), afterwards, strict=True))
    measured = {unit for unit, share in split.shares.items() if share.products is not None}
    assert measured == {unit for unit, share in split.shares.items() if isinstance(share.gain, optim.Rooted)}


@each_rule
@given(seeds, warmups)
@fewer
def test_pulling_back_is_the_adjoint_of_the_gain(optimizer, seed, steps):
    before = normal(SHAPES, seed)
    _, _, split = optimizer.update(before, normal(SHAPES, seed + 1), warm(optimizer, before, steps, seed), 0.5)
    x, G = normal(SHAPES, seed + 2), normal(SHAPES, seed + 3)
    for unit, share in split.shares.items():
        found, expected = (
            G[unit] * optim.apply_gain(share.gain, x[unit]),
            optim.pull_gain(share.gain, G[unit]) * x[unit],
        )
        most = (magnitude(split, unit, x[unit]) * G[unit].abs()).sum()
        assert (found.sum() - expected.sum()).abs() <= 1e-14 * most
        several = optim.apply_gain(share.gain, torch.stack([x[unit], 2 * x[unit]]))  # a gain is each datum's alike
        torch.testing.assert_close(several[1], 2 * optim.apply_gain(share.gain, x[unit]), rtol=1e-12, atol=1e-12)


@given(seeds)
@fewer
def test_gains_of_any_kind_are_what_they_say_and_have_their_adjoint(seed):
    drawn = normal({"x": (4, 3), "G": (4, 3), "left": (4, 4), "right": (3, 3), "root": (4, 3)}, seed)
    x, G, left, right = (drawn[name] for name in ("x", "G", "left", "right"))
    rooted = optim.Rooted(-0.5, drawn["root"].square(), 0.25, 1e-2)
    gains: dict[str, float | optim.Rooted | optim.Matrix] = {  # Muon's matrices are symmetric; these are not
        "number": -0.5,
        "rooted": rooted,
        "left": optim.Matrix(left, True),
        "right": optim.Matrix(right, False),
    }
    root = drawn["root"].abs() / 0.25 + 1e-2
    expected = {"number": -0.5 * x, "rooted": -0.5 * x / root, "left": left @ x, "right": x @ right.T}
    for name, gain in gains.items():
        torch.testing.assert_close(optim.apply_gain(gain, x), expected[name], rtol=1e-13, atol=1e-14)
        pulled = (optim.pull_gain(gain, G) * x).sum()
        torch.testing.assert_close((G * expected[name]).sum(), pulled, rtol=1e-11, atol=1e-12)


# ---- of models


def tied_loss(params, x, y):
    hidden = F.embedding(x, params["table"])
    hidden = F.conv1d(hidden.T[None], params["conv"], params["bias"], padding=1)[0].T.tanh()
    return F.cross_entropy(F.linear(hidden, params["table"]), y)


@functools.lru_cache
def tied(dtype):
    """Weights of a model whose table is embedding and head, and their capture on three data."""
    shapes: dict[str, tuple[int, ...]] = {"table": (7, 4), "conv": (4, 4, 3), "bias": (4,)}
    before = normal(shapes, dtype=dtype)
    x, y = torch.randint(7, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    return before, per_example.capture(graph.of(tied_loss, before, x[0], y[0]), before, x, y, units=("*",))


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("max_norm", [1e-3, math.inf], ids=["clipped", "not clipped"])
@each_rule
def test_tied_weights_and_convolutions_obey_the_law(optimizer, max_norm, dtype):
    before, captured = tied(dtype)
    state = warm(optimizer, before, 2)
    made = step(optimizer, before, captured.factors, captured.mean_grads, state, max_norm=max_norm)
    assert bool(made.split.clip < 1) == (max_norm < 1) and isinstance(captured.factors["table"], per_example.Sum)
    for unit, missed in optim.missed(made).items():
        change = (made.after[unit] - made.before[unit]).double().norm()
        assert missed * change <= rounding(made, captured.factors, unit, dtype).double().norm()


@each_rule
def test_every_parameter_of_a_transformer_obeys_the_law_for_some_steps(optimizer):
    own = small()
    params, state = own.params, optimizer.init(own.params)
    for max_norm in (math.inf, 0.1):
        captured = own._replace(params=params).capture()
        made = step(optimizer, params, captured.factors, captured.mean_grads, state, lr=0.1, max_norm=max_norm)
        assert optim.missed(made).keys() == params.keys() and bool(made.split.clip < 1) == (max_norm < 1)
        for unit, missed in optim.missed(made).items():
            change = (made.after[unit] - made.before[unit]).norm()
            assert missed * change <= 10 * rounding(made, captured.factors, unit).norm()
        params, state = made.after, made.state


# ---- what misses it is seen


def normal_factors(n=20) -> dict[str, Factor]:
    shapes = {"a": (n, 2, 3), "b": (n, 2, 4), "c": (n, 2, 4)}
    drawn = normal(shapes)
    return {"weight": Outer(drawn["a"], drawn["b"]), "bias": Bias(drawn["c"])}


def a_step(optimizer=OPTIMIZERS["sgd"], max_norm=0.5):
    """A second step."""
    factors, before = normal_factors(), {"weight": torch.ones(4, 3).double(), "bias": torch.ones(4).double()}
    return step(optimizer, before, factors, mean_gradients(factors), warm(optimizer, before, 1), max_norm=max_norm)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda f, split: per_example.take_data(f, slice(1, None)),
        lambda f, split: per_example.scale(f, 1 / split.clip),
        lambda f, split: per_example.scale(f, -1.0),
        lambda f, split: per_example.scale(f, 1 / 20),
        lambda f, split: per_example.scale(
            f, torch.arange(1.0, 1 + per_example.size_of(f)).double().view(per_example.shape_of(f))
        ),
    ],
    ids=["a datum is dropped", "clipping is forgotten", "sign", "mean for sum", "entries' gains are mixed up"],
)
@each_rule
def test_wrong_deltas_miss_the_law(optimizer, wrong):
    made = a_step(optimizer)
    assert made.split.clip < 1 and max(optim.missed(made).values()) <= 1e-13
    changed = {unit: wrong(factor, made.split) for unit, factor in made.factors.items()}
    assert min(optim.missed(made._replace(factors=changed)).values()) > 1e-3


@pytest.mark.parametrize("part", ["past", "decay"])
def test_a_forgotten_part_misses_the_law(part):
    made = a_step(OPTIMIZERS["adamw"])
    shares = {unit: share._replace(**{part: 0.0}) for unit, share in made.split.shares.items()}
    changed = made._replace(split=type(made.split)(**vars(made.split) | {"shares": shares}))
    assert min(optim.missed(changed).values()) > 1e-3


def test_missed_is_a_part_of_the_units_change():
    before = {"moved": torch.zeros(2), "still": torch.zeros(2), "stuck": torch.zeros(1)}
    after = {"moved": torch.tensor([3.0, 4.0]), "still": torch.zeros(2), "stuck": torch.zeros(1)}
    factors: dict[str, Factor] = {
        "moved": Bias(torch.tensor([[[3.0, 0.0]], [[0.0, 3.0]]])),  # (3, 4) − (3, 3) is a fifth of (3, 4)
        "still": Bias(torch.tensor([[[1.0, 2.0]], [[-1.0, -2.0]]])),
        "stuck": Bias(torch.tensor([[[1.0]], [[2.0]]])),
    }
    _, state, split = optim.sgd().update(before, before, optim.sgd().init(before), 1.0)
    missed = optim.missed(Made(before, after, split, factors, state, state))
    assert missed == {"moved": pytest.approx(0.2), "still": 0.0, "stuck": math.inf}


def test_missed_may_be_of_some_units():
    made = a_step()
    assert list(optim.missed(made._replace(factors={"bias": made.factors["bias"]}))) == ["bias"]


def test_deltas_of_data_sum_to_the_present_share():
    made = a_step(OPTIMIZERS["nesterov"])
    deltas = optim.deltas(per_example.gradients(normal_factors()), made.split)
    expected = {unit: made.split.present(unit) for unit in deltas}
    assert abs(flat(add(tree.map(lambda x: x.sum(0), deltas), tree.scale(expected, -1.0)))).max() <= 1e-15
