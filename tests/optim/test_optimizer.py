"""An optimizer is a value with two pure functions; the first group that takes a unit steps it; bad input is refused."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optimizers import OPTIMIZERS, SHAPES, normal, our_steps, warm
from oracles import assert_equal, flat, tensors
from strategies import few, trees

from devinterp_func import optim, per_example, tree
from devinterp_func.optim import Adam, Group, Muon, Optimizer, Sgd

each_rule = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
max_norms = st.sampled_from([1e-3, 0.5, 10.0, 1e4, math.inf])
ONE = {"w": torch.zeros(2)}
ANY: Any = optim  # with whatever arguments


def taken(optimizer, steps=1, max_norm=math.inf, dtype=torch.float64, seed=0):
    """The last of some steps: parameters, gradient, state, and what ``update`` gives."""
    params, gradient = normal(SHAPES, seed, dtype), normal(SHAPES, seed + 1, dtype)
    state = warm(optimizer, params, steps - 1)
    return params, gradient, state, optimizer.update(params, gradient, state, 0.1, max_norm)


# ---- clipping


@given(trees(), max_norms)
@few
def test_clip_is_the_formula(gradient, max_norm):
    zeros = tree.scale(gradient, 0.0)
    _, _, split = optim.sgd().update(zeros, gradient, optim.sgd().init(zeros), 1.0, max_norm)
    norm = math.sqrt(sum(x * x for x in flat(gradient)))
    assert split.grad_norm.item() == pytest.approx(norm, rel=1e-12)
    assert split.clip.item() == pytest.approx(min(1.0, max_norm / (norm + 1e-6)), rel=1e-12)


@each_rule
def test_clipping_is_the_same_as_a_smaller_gradient(optimizer):
    params, gradient, state, (after, new, split) = taken(optimizer, 2, max_norm=0.5)
    assert split.clip < 1
    smaller = tree.scale(gradient, split.clip)
    again, state, whole = optimizer.update(params, smaller, state, 0.1)
    assert whole.clip == 1
    torch.testing.assert_close((again, state.buffers), (after, new.buffers), rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("name", ["sgd", "muon", "adamw", "no memory"])
def test_a_zero_gradient_moves_nothing_but_by_decay(name):
    params, optimizer = normal(SHAPES), OPTIMIZERS[name]
    after, state, split = optimizer.update(params, tree.scale(params, 0.0), optimizer.init(params), 0.1, 0.5)
    assert split.clip == 1 and split.grad_norm == 0 and torch.isfinite(split.sizes().size).all()
    for unit in params:
        assert not split.present(unit).any() and not split.past(unit).any()
        torch.testing.assert_close(after[unit], params[unit] + split.decay(unit), rtol=1e-15, atol=0)
        assert not any(buffer.any() for buffer in state.buffers[unit].values())


@each_rule
def test_a_gradient_that_is_not_finite_is_seen_in_the_norm(optimizer):
    params, gradient, state, _ = taken(optimizer)
    gradient["tall"][0, 0] = torch.nan
    after, _, split = optimizer.update(params, gradient, state, 0.1, 0.5)
    assert split.grad_norm.isnan() and after["tall"].isnan().any()


# ---- the function


@each_rule
@pytest.mark.parametrize("max_norm", [0.5, math.inf])
def test_update_is_pure(optimizer, max_norm):
    params, gradient, state, made = taken(optimizer, 2, max_norm)
    before = copy.deepcopy((params, gradient, state))
    again = optimizer.update(params, gradient, state, 0.1, max_norm)
    assert_equal(made[:2], again[:2])
    assert_equal((params, gradient, state), before)
    given = {x.data_ptr() for x in tensors((params, gradient, state))}
    assert not given & {x.data_ptr() for x in tensors(made[:2])}  # nothing is handed on under two names


@each_rule
def test_names_order_dtype_and_shapes_are_kept(optimizer):
    params, gradient, state, _ = taken(optimizer, dtype=torch.float32)
    after, new, split = optimizer.update(params, dict(reversed(gradient.items())), state, 0.1, 0.5)
    assert list(after) == list(new.buffers) == list(split.shares) == list(params)
    assert {x.dtype for x in tensors((after, new))} == {torch.float32} and new.steps == state.steps + 1
    for unit, w in params.items():
        parts = after[unit], split.present(unit), split.past(unit), split.decay(unit), *new.buffers[unit].values()
        assert all(part.shape == w.shape and part.dtype == w.dtype for part in parts)


@each_rule
def test_how_weights_lie_in_memory_does_not_matter(optimizer):
    params, gradient, state, (after, new, split) = taken(optimizer, 2, 0.5)
    other = lambda tree_: {name: x.mT.contiguous().mT if x.ndim > 1 else x for name, x in tree_.items()}  # noqa: E731
    buffers = {name: other(own) for name, own in state.buffers.items()}
    made = optimizer.update(other(params), other(gradient), state._replace(buffers=buffers), 0.1, 0.5)
    assert not other(params)["wide"].is_contiguous()
    torch.testing.assert_close(made[0], after, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(made[2].sizes(), split.sizes(), rtol=1e-12, atol=1e-14)


@each_rule
def test_an_empty_unit_is_stepped_like_any_other(optimizer):
    params = {"empty": torch.zeros(0, 3), "none": torch.zeros(3, 0), "w": torch.ones(2)}
    after, _, split = optimizer.update(params, params, optimizer.init(params), 0.1, 0.5)
    assert after["empty"].shape == (0, 3) and after["none"].shape == (3, 0)
    assert not split.sizes().size[:2].any() and split.sizes().shares()[0].isnan().all()


@each_rule
def test_updated_weights_carry_no_graph(optimizer):
    module = torch.nn.Linear(3, 2)
    params, x = dict(module.named_parameters()), torch.ones(4, 3)

    def loss(params, x):
        return torch.func.functional_call(module, params, (x,)).square().sum()

    gradient = tree.map(lambda g: g.mean(0), per_example.grads(loss)(params, x))
    after, state, split = optimizer.update(params, gradient, optimizer.init(params), 0.1, 1.0)
    assert not any(leaf.requires_grad for leaf in tensors((after, state.buffers, split.sizes())))
    assert all(w.requires_grad for w in params.values())


@each_rule
def test_it_remembers_if_later_steps_depend_on_earlier_ones(optimizer):
    params, gradient, state, _ = taken(optimizer, 2)
    other = warm(optimizer, params, 1, seed=9)
    one, two = (flat(optimizer.update(params, gradient, memory, 0.1)[0]) for memory in (state, other))
    assert (one != two).any() <= optimizer.remembers == any(state.buffers.values())
    for name, own in state.buffers.items():
        assert own.keys() == set(optimizer.group(name, params[name].ndim).rule.remembered)


def test_a_split_and_a_state_print_their_numbers():
    params, gradient = {"w": torch.zeros(1)}, {"w": torch.tensor([0.25])}
    _, state, split = optim.adamw().update(params, gradient, optim.adamw().init(params), 5.0, 0.5)
    assert repr(split) == "Split(lr=5, clip=1, grad_norm=0.25)"
    assert repr(state) == "State after 1 step: exp_avg, exp_avg_sq"
    assert repr(optim.sgd().init(params)) == "State after 0 steps: nothing"


def test_equal_settings_are_equal_optimizers_and_may_be_keys(unchecked):
    assert optim.adamw(weight_decay=0) == optim.adamw(weight_decay=0.0) != optim.adam(weight_decay=0.0)
    assert len({optim.sgd(), optim.sgd(), optim.sgd(0.9), optim.muon(), optim.muon()}) == 3
    assert Optimizer([Group(Sgd())]) == optim.sgd()  # type: ignore[arg-type]


# ---- Newton-Schulz


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 9), (6, 6)], ids=str)
def test_the_orthogonaliser_brings_singular_values_near_1_and_leaves_the_vectors(shape):
    M = normal({"M": shape})["M"]
    P = optim.orthogonaliser(M)
    U, s, V = torch.linalg.svd(M, full_matrices=False)
    a, b, c = (3.4445, -4.7750, 2.0315)
    x = s / s.norm()
    for _ in range(5):
        x = a * x + b * x**3 + c * x**5
    torch.testing.assert_close(P @ M, U * x @ V, rtol=1e-10, atol=1e-12)
    assert (x[s > 0.05 * s[0]] > 0.5).all() and (x < 1.3).all()


def test_the_orthogonaliser_of_zero_is_finite():
    assert torch.isfinite(optim.orthogonaliser(torch.zeros(2, 3))).all()


# ---- groups


def test_a_unit_is_of_the_first_group_that_takes_it():
    made = optim.grouped((("*.bias",), optim.sgd()), (("a.*",), optim.adam()), rest=optim.muon(but=("e*",)))
    found = {
        name: made.group(name, ndim) for name, ndim in (("a.bias", 1), ("a.w", 2), ("b.w", 2), ("ew", 2), ("c", 4))
    }
    assert [type(group.rule).__name__ for group in found.values()] == ["Sgd", "Adam", "Muon", "Adam", "Adam"]
    assert found["ew"].rule == found["c"].rule == Adam(weight_decay=0.01)


def test_scales_are_of_the_learning_rate():
    params, gradient = {"a": torch.zeros(1), "b": torch.zeros(1)}, {"a": torch.ones(1), "b": torch.ones(1)}
    made = optim.grouped((("a",), optim.sgd()), rest=optim.sgd(), scales=(4.0,))
    after, _, split = made.update(params, gradient, made.init(params), 0.5)
    assert (after["a"].item(), after["b"].item(), split.lr.item()) == (-2.0, -0.5, 0.5)
    nested = optim.grouped((("a",), Optimizer((Group(Sgd(), scale=3.0),))))
    assert nested.groups[0].scale == 3.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.grouped((("q*",), optim.sgd()), rest=optim.adam()), r"no parameter is called 'q\*'"),
        (lambda: optim.adamw(undecayed=("*.norm",)), r"no parameter is called '\*.norm'"),
        (lambda: optim.muon(but=("wte*",)), r"no parameter is called 'wte\*'"),
        (lambda: optim.grouped((("b*",), optim.sgd())), "no group takes 'a.w'; a last group"),
        (
            lambda: optim.grouped((("*",), optim.sgd()), (("*.bias", "b"), optim.adam())),
            r"the group of \*.bias, b has no unit to step: groups before it take them",
        ),
        (
            lambda: Optimizer((Group(Muon(), ("a.b*",), ndim=2), Group(Sgd()))),
            r"the group of a.b\* has no unit to step: none of 2 dimensions is left",
        ),
        (
            lambda: optim.grouped((("a.w",), optim.sgd()), rest=Optimizer((Group(Muon()),))),
            r"^a.bias: Muon steps 2-D weights, and this one's shape is \(3,\); use another rule",
        ),
    ],
    ids=["pattern", "undecayed", "but", "none takes", "overlap", "dimensions", "rule"],
)
def test_init_refuses_groups_that_do_not_fit_the_model(make, message):
    params = {"a.w": torch.zeros(3, 2), "a.bias": torch.zeros(3), "b": torch.zeros(1)}
    with pytest.raises(ValueError, match=message):
        make().init(params)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_init_refuses_what_cannot_be_trained(unchecked, dtype):
    with pytest.raises(TypeError, match=f"w is {dtype}; what is trained must be floating-point, and real"):
        optim.sgd().init({"w": torch.zeros(2, dtype=dtype)})


def test_muon_has_nothing_to_refuse_where_the_rest_takes_it():
    params = {"conv": torch.ones(2, 3, 2, 2), "bias": torch.ones(2)}
    after, _, _ = optim.muon().update(params, params, optim.muon().init(params), 0.1)
    expected, _, _ = our_steps(optim.adamw(), params, [params], 0.1)
    assert_equal(after, expected)


# ---- bad input


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("name", ["lr", "max_norm"])
def test_update_refuses_what_is_not_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be positive"):
        optim.sgd().update(ONE, ONE, optim.sgd().init(ONE), **({"lr": 1.0, "max_norm": 1.0} | {name: value}))


@pytest.mark.parametrize("value", ["0.1", None, True, [1.0]])
@pytest.mark.parametrize("name", ["lr", "max_norm"])
def test_update_refuses_what_is_no_number(unchecked, name, value):
    with pytest.raises(TypeError, match=f"{name} is .*; it must be a number"):
        optim.sgd().update(ONE, ONE, optim.sgd().init(ONE), **({"lr": 1.0, "max_norm": 1.0} | {name: value}))


def test_update_refuses_gradients_and_states_of_other_units():
    one, two = {"a": torch.zeros(1)}, {"a": torch.zeros(1), "b": torch.zeros(1)}
    sgd, adam = optim.sgd(), optim.adam()
    for params, grads, state, what in (
        (two, one, sgd.init(two), "grads"),
        (one, two, sgd.init(one), "grads"),
        (one, one, sgd.init(two), "the state"),
        (two, two, sgd.init(one), "the state"),
    ):
        with pytest.raises(ValueError, match=rf"params and {what} differ in \['b'\]; both need every parameter"):
            sgd.update(params, grads, state, 1.0)
    with pytest.raises(ValueError, match=r"the gradient of a is \(1,\); it must be \(2,\), as the unit"):
        sgd.update({"a": torch.zeros(2)}, one, sgd.init(one), 1.0)
    with pytest.raises(
        ValueError, match="of a the state remembers nothing; this optimizer remembers exp_avg, exp_avg_sq"
    ):
        adam.update(one, one, sgd.init(one), 1.0)
    with pytest.raises(
        ValueError, match="of a the state remembers exp_avg, exp_avg_sq; this optimizer remembers nothing"
    ):
        sgd.update(one, one, adam.init(one), 1.0)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: ANY.Sgd(momentum=-0.1), ValueError, "momentum is -0.1; it must be at least 0 and finite"),
        (lambda: ANY.Sgd(dampening=math.nan), ValueError, "dampening is nan; it must be at least 0 and finite"),
        (lambda: ANY.Sgd(weight_decay="1"), TypeError, "weight_decay is '1'; it must be a number"),
        (
            lambda: ANY.Sgd(nesterov=True),
            ValueError,
            "nesterov takes a momentum and no dampening; these are 0.0 and 0.0",
        ),
        (
            lambda: ANY.Sgd(0.9, 0.5, True),
            ValueError,
            "nesterov takes a momentum and no dampening; these are 0.9 and 0.5",
        ),
        (lambda: ANY.Sgd(0.9, nesterov="no"), TypeError, "nesterov is 'no'; it must be True or False"),
        (
            lambda: ANY.Adam(betas=(0.9, 1.0)),
            ValueError,
            r"betas are \(0.9, 1.0\); both must be at least 0 and below 1",
        ),
        (
            lambda: ANY.Adam(betas=(-0.1, 0.9)),
            ValueError,
            r"betas are \(-0.1, 0.9\); both must be at least 0 and below 1",
        ),
        (lambda: ANY.Adam(betas=(0.9, math.nan)), ValueError, r"betas are \(0.9, nan\); both must be"),
        (lambda: ANY.Adam(betas=(0.9,)), ValueError, r"betas is \(0.9,\); it must be 2 numbers"),
        (lambda: ANY.Adam(betas=0.9), TypeError, "betas is 0.9; it must be 2 numbers"),
        (lambda: ANY.Adam(eps=0.0), ValueError, "eps is 0.0; it must be positive and finite"),
        (lambda: ANY.Adam(weight_decay=-1), ValueError, "weight_decay is -1.0; it must be at least 0 and finite"),
        (lambda: ANY.Adam(decoupled=1), TypeError, "decoupled is 1; it must be True or False"),
        (lambda: ANY.Muon(momentum=1.0), ValueError, "momentum is 1.0; Muon's must be at least 0 and below 1"),
        (lambda: ANY.Muon(momentum=-0.5), ValueError, "momentum is -0.5; Muon's must be at least 0 and below 1"),
        (lambda: ANY.Muon(nesterov=None), TypeError, "nesterov is None; it must be True or False"),
        (lambda: ANY.Muon(weight_decay=math.inf), ValueError, "weight_decay is inf; it must be at least 0 and finite"),
        (lambda: ANY.Muon(coefficients=(1.0, 2.0)), ValueError, r"coefficients is \(1.0, 2.0\); it must be 3 numbers"),
        (lambda: ANY.Muon(coefficients=("a", 1, 2)), TypeError, r"coefficients is \('a', 1, 2\); it must be 3 numbers"),
        (lambda: ANY.Muon(eps=0), ValueError, "eps is 0.0; it must be positive and finite"),
        (lambda: ANY.Muon(ns_steps=0), ValueError, "ns_steps is 0; it must be at least 1"),
        (lambda: ANY.Muon(ns_steps=2.5), TypeError, "ns_steps is 2.5; it must be an integer of at least 1"),
        (lambda: ANY.Muon(adjust="none"), ValueError, "adjust is 'none'; it must be one of original, match_rms_adamw"),
        (
            lambda: ANY.Group("sgd"),
            TypeError,
            r"rule is 'sgd'; it must be a rule, such as Sgd\(\), Adam\(\) or Muon\(\)",
        ),
        (lambda: ANY.Group(Sgd(), "*.w"), TypeError, r"units is '\*.w'; it must be a tuple of patterns"),
        (lambda: ANY.Group(Sgd(), undecayed="b"), TypeError, "undecayed is 'b'; it must be a tuple of patterns"),
        (lambda: ANY.Group(Sgd(), ndim=-1), ValueError, "ndim is -1; it must be at least 0"),
        (lambda: ANY.Group(Sgd(), scale=0), ValueError, "scale is 0.0; it must be positive and finite"),
        (lambda: ANY.Group(Sgd(), matrices_only="yes"), TypeError, "matrices_only is 'yes'; it must be True or False"),
        (lambda: ANY.Optimizer(()), TypeError, r"groups are \(\); they must be one Group or more"),
        (lambda: ANY.Optimizer((Sgd(),)), TypeError, r"groups are \(Sgd.*; they must be one Group or more"),
        (lambda: ANY.sgd(undecayed="*.bias"), TypeError, r"undecayed is '\*.bias'; it must be a tuple of patterns"),
        (lambda: ANY.grouped(("*.bias", optim.sgd())), TypeError, r"units is '\*.bias'; it must be a tuple of patte"),
        (lambda: ANY.grouped(optim.sgd()), TypeError, "part 0 is .*; it must be patterns and an optimizer"),
        (
            lambda: ANY.grouped((("a",), optim.sgd()), scales=(1.0, 2.0)),
            ValueError,
            "there are 2 scales for 1 parts; each part takes one",
        ),
        (
            lambda: ANY.grouped((("a",), optim.muon())),
            ValueError,
            r"the optimizer for \('a',\) has 2 groups; it must have one",
        ),
        (
            lambda: ANY.muon(but=("e",), rest=optim.grouped((("b",), optim.sgd()), rest=optim.adam())),
            ValueError,
            r"the optimizer for \('e',\) has 2 groups; it must have one",
        ),
    ],
)
def test_settings_are_refused_by_name(unchecked, make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_settings_come_out_in_one_form(unchecked):
    numbers = Adam(betas=[torch.tensor(0.5), 0], eps=1, weight_decay=torch.tensor(2))  # type: ignore[arg-type]
    assert numbers == Adam((0.5, 0.0), 1.0, 2.0) and type(numbers.betas) is tuple
    assert type(Muon(momentum=0).momentum) is float and type(Muon(coefficients=[1, 2, 3]).coefficients) is tuple  # type: ignore[arg-type]
