"""Capture in bfloat16: the definition within its roundings, and one rounding from the sum of its factors."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import token_parts
from rounded_models import MADE, Case, U, case, drawn, ids, normal, post
from strategies import mixed_arrays, mixture

from devinterp_func import graph, models, per_example, tree
from devinterp_func.graph import draw_masks
from devinterp_func.per_example import Outer, Sum, _cross_entropy
from devinterp_func.training import _logits

ROUNDINGS = 8  # that two ways of a backward pass may differ by, of the whole gradient; six are seen at most
FLOAT = 2.0**-20  # sums in float32 of fewer than a hundred numbers
every_model = pytest.mark.parametrize("name", MADE)


@cache
def made(name: str) -> Case:
    return case(*MADE[name]())


@cache
def captured(name: str) -> per_example.Capture:
    own = made(name)
    return per_example.capture(own.graph, own.params, *own.batch, units=("*",))


def parts(factor):
    return factor.parts if isinstance(factor, Sum) else (factor,)


def is_short(part):
    return isinstance(part, Outer) and part.signals.dtype == part.inputs.dtype == torch.bfloat16


def exact(factor):
    """The factor in float64, which rounds none of its numbers."""
    return tree.map(lambda x: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, factor)


def distance(a, b):
    return float(tree.norm(tree.sub(a, b)) / tree.norm(b))


# ---- the graph


@every_model
def test_every_use_and_the_head_are_found_as_without_casts(name):
    own = made(name)
    plain = graph.of(own.model.loss, own.params, *(x[0] for x in own.batch))
    assert own.graph.dense == plain.dense == {}
    kinds = [
        [(use.unit, use.kind, use.transposed, use.rows, use.columns) for use in g.uses] for g in (own.graph, plain)
    ]
    assert kinds[0] == kinds[1] and not plain.rounded and graph.unrounded(plain) is plain
    assert own.graph.rounded and set(own.graph.rounded.values()) == {torch.bfloat16}
    assert (own.graph.head is None) == (plain.head is None)
    if own.graph.head is not None and plain.head is not None:
        assert own.graph.head.weight == plain.head.weight and own.graph.head.dtype == torch.bfloat16
        assert "_to_copy" not in own.graph.head.stream.name  # it is what is cast
    assert graph.fingerprint(graph.unrounded(own.graph)) == graph.fingerprint(plain)
    assert "in bfloat16" in repr(own.graph) and "bfloat16" not in repr(plain)


# ---- the definition


@every_model
def test_gradients_are_the_definitions_within_some_roundings(name):
    own, found = made(name), captured(name)
    each = per_example.grads(own.rounded.loss, loop=True)(own.params, *own.batch)
    mean = tree.map(lambda g: g.mean(0), each)
    assert distance(found.mean_grads, mean) <= ROUNDINGS * U
    assert distance(per_example.gradients(found.factors), each) <= ROUNDINGS * U
    plain = tree.map(lambda g: g.mean(0), per_example.grads(own.model.loss)(own.params, *own.batch))
    assert U / 8 <= distance(found.mean_grads, plain) <= ROUNDINGS * U  # rounded they are
    rows = zip(*own.batch, strict=True)
    losses = torch.stack([own.rounded.loss(own.params, *row) for row in rows])
    assert ((found.losses - losses).abs() <= 2 * U * (1 + losses)).all() and found.losses.dtype == torch.float32


@every_model
def test_a_mean_gradient_is_one_rounding_from_the_mean_of_the_factors(name):
    found, n = captured(name), len(made(name).batch[0])
    assert any(is_short(part) for factor in found.factors.values() for part in parts(factor))
    for unit, factor in found.factors.items():
        each = [per_example.total(exact(part)) / n for part in parts(factor)]
        sizes = sum(
            per_example.total(tree.map(lambda x: x.abs() if isinstance(x, torch.Tensor) else x, exact(part)))
            for part in parts(factor)
        )
        most = sum(x.abs() * U * is_short(part) for x, part in zip(each, parts(factor), strict=True)) + FLOAT * sizes
        assert found.mean_grads[unit].dtype == torch.float32
        assert ((found.mean_grads[unit] - sum(each)).abs() <= most).all(), unit


def test_dropout_goes_on_working():
    own = case(post(dropout=0.3), made("post").batch)
    masks = draw_masks(own.graph, list(range(len(own.batch[0]))))
    found = per_example.capture(own.graph, own.params, *own.batch, masks=masks, units=("*",))
    plain = graph.of(own.model.loss, own.params, *(x[0] for x in own.batch))
    other = per_example.capture(plain, own.params, *own.batch, masks=masks, units=("*",))
    assert U / 8 <= distance(found.mean_grads, other.mean_grads) <= ROUNDINGS * U


# ---- factors of 16 bits


def rounded(factor):
    return tree.map(lambda x: x.bfloat16() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, factor)


@given(mixed_arrays(), st.data())
@settings(max_examples=25)
def test_what_is_made_of_factors_of_16_bits_rounds_none_of_them(drawn, data):
    factors = {name: rounded(factor) for name, factor in mixture(drawn).items()}
    wide = {name: exact(factor) for name, factor in factors.items()}
    by = {name: normal(*per_example.shape_of(factor), seed=1) for name, factor in factors.items()}
    sizes = {
        name: token_parts(tree.map(lambda x: x.abs() if isinstance(x, torch.Tensor) else x, f))
        for name, f in wide.items()
    }

    def close(a, b, size):
        assert a.dtype == torch.float32
        assert ((a - b).abs() <= 1e-5 * size + 1e-30).all()

    for name, factor in factors.items():
        size, parts = sizes[name].sum(1), token_parts(wide[name])
        close(per_example.form(factor), parts.sum(1), size)
        close(per_example.total(factor), parts.sum((0, 1)), size.sum(0))
        close(per_example.form(per_example.scale(factor, 1 / 3)), parts.sum(1) / 3, size)
        close(per_example.form(per_example.scale(factor, by[name])), parts.sum(1) * by[name], size * by[name].abs())
    amounts = per_example.amounts(by, factors)
    expected = per_example.amounts(tree.map(torch.Tensor.double, by), wide)
    most = per_example.amounts(
        tree.map(lambda x: x.double().abs(), by),
        {name: tree.map(lambda x: x.abs() if isinstance(x, torch.Tensor) else x, f) for name, f in wide.items()},
    )
    close(amounts, expected, most)
    norms = (
        torch.stack([x.reshape(len(x), -1).square().sum(1) for x in (s.sum(1) for s in sizes.values())]).sum(0).sqrt()
    )
    assert ((per_example.delta_norms(factors) - per_example.delta_norms(wide)).abs() <= 1e-2 * norms + 1e-30).all()
    assert per_example.delta_norms(factors).dtype == torch.float32


def test_outliers_and_their_positions_are_those_of_the_formed_deltas():
    factors = captured("GPT-2").factors
    found = per_example.top_k_from_factors(factors, k=7)
    assert torch.equal(found.delta, per_example.top_k(per_example.gradients(factors), k=7).delta)
    names = list(factors)
    sizes = [per_example.size_of(factor) for factor in factors.values()]
    for j in range(len(found.delta)):
        parameter = int(found.parameter[j, 0])
        unit = next(i for i in range(len(sizes)) if parameter < sum(sizes[: i + 1]))
        at = torch.tensor([parameter - sum(sizes[:unit])])
        given = per_example.contributions(factors[names[unit]], torch.tensor([j]), at)
        assert given.dtype == torch.float32 and int(given.abs().argmax()) == int(found.position[j, 0])
        assert torch.allclose(given.sum(), found.delta[j, 0], rtol=1e-5)


# ---- the head


@pytest.mark.parametrize("block", [3, 7, 1024])
@pytest.mark.parametrize("scale", [1.0, 20.0, 300.0])  # with a softmax near 1; with logits that overflow unshifted
def test_the_head_is_cross_entropy_of_rounded_logits(block, scale, monkeypatch):
    monkeypatch.setattr(_cross_entropy, "VOCABULARY_BLOCK", block)
    own = case(*head_alone())
    params = own.params | {"weight": own.params["weight"] * scale}
    (x, y), (w, b) = own.batch, (params[name].bfloat16() for name in ("weight", "bias"))
    logits = torch.addmm(b, x.flatten(0, 1).bfloat16(), w.T).float().requires_grad_()
    y = torch.where(torch.arange(len(x))[:, None] < 2, logits.argmax(1).view(y.shape), y)  # of some p is near 1
    found = per_example.capture(own.graph, params, x, y, units=("*",))
    losses = torch.nn.functional.cross_entropy(logits, y.flatten(), reduction="none").view(y.shape).mean(1)
    assert torch.allclose(found.losses, losses, rtol=1e-5, atol=1e-5)
    signals = torch.autograd.grad(losses.sum(), logits)[0].view(*y.shape, -1)
    factor = found.factors["weight"]
    assert isinstance(factor, Outer)
    assert factor.signals.dtype == torch.bfloat16
    assert ((factor.signals.float() - signals).abs() <= 1.01 * U * signals.abs() + 1e-6).all()  # rounded once
    assert torch.equal(factor.inputs, x.bfloat16())
    mean = per_example.total(exact(factor)) / len(x)
    slack = FLOAT * per_example.total(tree.map(lambda z: z.abs() if isinstance(z, torch.Tensor) else z, exact(factor)))
    subnormal = 100 * torch.finfo(torch.float32).tiny  # numbers that are rounded to fewer bits
    assert ((found.mean_grads["weight"] - mean).abs() <= U * mean.abs() + slack + subnormal).all()


def head_alone():
    net = drawn(lambda: torch.nn.Linear(8, 17))
    model = models.module(net, lambda model, x, y: torch.nn.functional.cross_entropy(model(x), y))
    return model, (normal(4, 5, 8, seed=7), ids(17, 4, 5, seed=8))


def test_the_heads_buffer_has_half_the_bytes_and_factors_do_not_lie_in_it():
    own = made("post")
    buffer = _logits.logits_buffer(own.graph, own.params, len(own.batch[0]))
    assert buffer is not None and buffer.dtype == torch.bfloat16
    one = per_example.capture(own.graph, own.params, *own.batch, units=("decoder.weight",), buffer=buffer)
    before = per_example.form(one.factors["decoder.weight"])
    other = tuple(x.flip(0) for x in own.batch)
    per_example.capture(own.graph, own.params, *other, buffer=buffer)
    assert torch.equal(per_example.form(one.factors["decoder.weight"]), before)
    with pytest.raises(ValueError, match=r"buffer is .*torch.float32; for 5 data it must be .*torch.bfloat16"):
        per_example.capture(own.graph, own.params, *own.batch, buffer=buffer.float())


def test_data_that_count_differently_are_weighed():
    own, weights = made("Llama"), torch.tensor([1.0, 0.0, 2.0, 0.5, -1.0])
    found = per_example.capture(own.graph, own.params, *own.batch, weights=weights, units=("*",))
    each = per_example.gradients(captured("Llama").factors)
    expected = tree.map(lambda g: torch.einsum("n...,n->...", g, weights) / len(weights), each)
    assert distance(found.mean_grads, expected) <= ROUNDINGS * U


def test_the_check_against_autograd_allows_for_rounding_alone():
    own = made("post")
    few = tuple(x[:2] for x in own.batch)
    assert 0 < max(per_example.capture_missed(own.graph, own.params, *few).values()) < 0.25
    assert max(per_example.capture_missed(graph.unrounded(own.graph), own.params, *few).values()) < 1e-4


def test_second_derivatives_are_refused():
    own = made("MLP")
    with pytest.raises(ValueError, match=r"rounding has no second derivative; graph.unrounded\(graph\) gives"):
        per_example.tangents(own.graph, own.params, *own.batch, directions=[own.params])
    (found,) = per_example.tangents(graph.unrounded(own.graph), own.params, *own.batch, directions=[own.params])
    plain = graph.of(own.model.loss, own.params, *(x[0] for x in own.batch))
    (expected,) = per_example.tangents(plain, own.params, *own.batch, directions=[own.params])
    assert torch.equal(found.losses, expected.losses)
