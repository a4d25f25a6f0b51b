"""Laws of per_example.py: capture computes the definition's numbers, and factors say which token moved what.

Errors are relative to the largest value of each unit: at most 1e-10 in float64; in float32, against the definition
in float64 on the same weights, 1e-5.
"""

import copy
from collections import namedtuple
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_close, loop_of_grads, relative_error, token_parts, torch_model
from strategies import CONFIGS, LEAST, SMALL, batch, factor_arrays, factors_of, few, masks_of, some, weights
from torch import Tensor, nn
from torch.func import functional_call

from devinterp_func import keys, per_example, transformer, tree
from devinterp_func.per_example import capture
from devinterp_func.transformer import Config, Masks
from devinterp_func.tree import Params

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
Line = namedtuple("Line", "slope intercept")

each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"width {config.d_model}")
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
with_and_without_masks = pytest.mark.parametrize("masked", [False, True], ids=["no dropout", "dropout"])


def every(name):
    """Captures all parameters."""
    return True


def small(dtype=torch.float64, masked=True, config=SMALL) -> tuple[Params, Tensor, Tensor, Config, Masks | None]:
    """Arguments of ``capture`` for a small model."""
    return (weights(config, dtype), *batch(config), config, masks_of(config) if masked else None)


def loss_of(config):
    """The loss of one example as a function of parameters and example."""
    return lambda params, x, y, mask=None: transformer.loss(params, x, y, config, mask)


def definition(params, tokens, targets, config, masks=None):
    """Losses and per-example gradients in float64 by ``vmap(grad(loss))``."""
    loss = loss_of(config)
    params = {name: w.double() for name, w in params.items()}
    data = (tokens, targets) if masks is None else (tokens, targets, masks)
    losses = torch.stack([loss(params, *tree.map(lambda x, j=j: x[j], data)) for j in range(len(tokens))])
    return losses, per_example.grads(loss)(params, *data)


def assert_equal(found, expected):
    """The same bits in two trees."""
    assert all(torch.equal(a, b) for a, b in zip(tensors(found), tensors(expected), strict=True))


def tensors(one):
    return [leaf for leaf in tree.leaves(one) if isinstance(leaf, Tensor)]


# ---- grads, the definition


def line_loss(line, x, y):
    return (line.slope @ x + line.intercept - y) ** 2


def nested_loss(params, example):
    return (params["deep"][0] * example["x"]).sum().tanh() + params["deep"][1]["scalar"] ** 3 * example["y"]


def mlp_loss(params, x, y):
    return F.mse_loss(functional_call(MLP, params, (x,)), y)


def normal(*shape, seed=0):
    return torch.from_numpy(keys.generator(seed).standard_normal(shape))


MLP = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
MLP_PARAMS = {name: normal(*p.shape) for name, p in MLP.named_parameters()}


@pytest.mark.parametrize(
    ("loss", "params", "data"),
    [
        (lambda w, x: (w * x).sum().exp(), normal(3), (normal(5, 3, seed=1),)),
        (lambda ws, x: (ws[0] * x + ws[1]).square().sum(), [normal(3), normal(3)], (normal(5, 3, seed=1),)),
        (line_loss, Line(normal(3), normal()), (normal(5, 3, seed=1), normal(5, seed=2))),
        (nested_loss, {"deep": (normal(3), {"scalar": normal()})}, ({"x": normal(5, 3), "y": normal(5, seed=1)},)),
        (mlp_loss, MLP_PARAMS, (normal(5, 3, seed=1), normal(5, 2, seed=2))),
    ],
    ids=["tensor", "list", "NamedTuple", "nested", "module"],
)
def test_grads_are_the_loop_of_autograd(loss, params, data):
    ours, theirs = per_example.grads(loss)(params, *data), loop_of_grads(loss, params, *data)
    pairs = zip(tree.leaves(ours), tree.leaves(theirs), strict=True)
    assert type(ours) is type(params)
    assert max(relative_error(a, b) for a, b in pairs) <= 1e-14


def test_the_definition_is_the_loop_of_autograd_for_the_transformer():
    params, tokens, targets, config, masks = small()
    expected = loop_of_grads(loss_of(config), params, tokens, targets, masks)
    assert_close(definition(*small())[1], expected, 1e-13)


# ---- capture = definition


@each_config
@each_dtype
@with_and_without_masks
def test_capture_is_the_definition_for_all_parameters(config, dtype, masked):
    arguments = small(dtype, masked, config)
    losses, gradients = definition(*arguments)
    captured = capture(*arguments, units=every)
    assert relative_error(captured.losses, losses) <= TOLERANCES[dtype]
    assert_close(per_example.gradients(captured.factors), gradients, TOLERANCES[dtype])
    assert_close(captured.mean_grads, tree.map(lambda g: g.mean(0), gradients), TOLERANCES[dtype])
    assert {leaf.dtype for leaf in tensors(captured)} == {dtype, torch.int64}


@each_dtype
def test_a_model_of_one_token_has_nothing_to_learn(dtype):
    captured = capture(*small(dtype, config=LEAST), units=every)
    numbers = (captured.losses, captured.mean_grads, per_example.gradients(captured.factors))
    assert max(x.abs().max().item() for x in tensors(numbers)) <= (1e-15 if dtype == torch.float64 else 1e-6)


def test_the_mean_gradient_is_the_batch_gradient():
    params, tokens, targets, config, _ = small(masked=False)
    model = torch_model(params, config)
    model.losses(tokens, targets).mean().backward()
    theirs: Any = {name: p.grad for name, p in model.units().items()}
    assert_close(capture(params, tokens, targets, config).mean_grads, theirs, 1e-10)


def test_data_sum_to_the_batch_gradient():
    captured = capture(*small(), units=every)
    gradients = per_example.gradients(captured.factors)
    assert_close(tree.map(lambda g: g.sum(0) / 3, gradients), captured.mean_grads, 1e-13)


@given(st.permutations(range(3)))
@few
def test_permuted_data_have_permuted_gradients(order):
    params, tokens, targets, config, masks = small()
    tokens, targets, masks = tree.map(lambda x: x[order], (tokens, targets, masks))
    before, after = capture(*small(), units=every), capture(params, tokens, targets, config, masks, units=every)
    expected = tree.map(lambda g: g[order], per_example.gradients(before.factors))
    assert_close(per_example.gradients(after.factors), expected, 1e-13)
    assert_close(after.mean_grads, before.mean_grads, 1e-13)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)], ids=str)
def test_a_datum_alone_is_the_datum_in_any_batch(dtype, tolerance):
    params, tokens, targets, config, masks = small(dtype)
    together = per_example.gradients(capture(*small(dtype), units=every).factors)
    for j in range(3):
        x, y, mask = tree.map(lambda x, j=j: x[j : j + 1], (tokens, targets, masks))
        alone = capture(params, x, y, config, mask, units=every)
        expected = tree.map(lambda g, j=j: g[j : j + 1], together)
        assert_close(per_example.gradients(alone.factors), expected, tolerance)


@pytest.mark.parametrize("context", [1, 2, 9])
@pytest.mark.parametrize("n", [1, 4])
def test_capture_takes_any_batch_and_context(n, context):
    params, (tokens, targets) = weights(SMALL), batch(SMALL, n, context)
    captured = capture(params, tokens, targets, SMALL, units=every)
    assert_close(per_example.gradients(captured.factors), definition(params, tokens, targets, SMALL)[1], 1e-10)


def test_capture_takes_somebody_elses_model():
    params, tokens, targets, config, _ = small(masked=False)
    theirs = torch_model(params, config).units()  # nn.Parameters that require gradients
    assert_equal(capture(theirs, tokens, targets, config), capture(params, tokens, targets, config))


def test_capture_leaves_no_trace():
    params, tokens, targets, config, masks = small()
    parameters: Params = {name: nn.Parameter(w) for name, w in params.items()}
    before = copy.deepcopy((parameters, tokens, targets, masks))
    captured = capture(parameters, tokens, targets, config, masks, units=every)
    assert_equal((parameters, tokens, targets, masks), before)
    assert all(p.requires_grad and p.grad is None and not p._backward_hooks for p in parameters.values())
    assert not any(leaf.requires_grad for leaf in tensors(captured))
    assert torch.is_grad_enabled()


def test_parameters_in_another_order_give_the_same_gradients():
    params, tokens, targets, config, masks = small()
    backwards = capture(dict(reversed(params.items())), tokens, targets, config, masks, units=every)
    assert list(backwards.factors) == list(backwards.mean_grads) == list(reversed(params))
    forwards = capture(*small(), units=every)
    assert_equal(dict(reversed(backwards.mean_grads.items())), forwards.mean_grads)


def test_a_capture_prints_short():
    assert repr(capture(*small())).startswith("Capture of 3 data: mean loss 2.")
    assert len(repr(capture(*small()))) < 150


# ---- the head


@pytest.mark.parametrize("vocab_size", [6, 7, 8, 20])
def test_blocks_of_the_vocabulary_change_nothing(monkeypatch, vocab_size):
    monkeypatch.setattr(per_example, "VOCABULARY_BLOCK", 7)
    config = Config(vocab_size, d_model=8, n_heads=2, d_hidden=6, n_layers=1)
    params, (tokens, targets) = weights(config), batch(config)
    losses, gradients = definition(params, tokens, targets, config)
    captured = capture(params, tokens, targets, config, units=every)
    assert relative_error(captured.losses, losses) <= 1e-10
    assert_close(per_example.gradients(captured.factors), gradients, 1e-10)
    assert_close(captured.mean_grads, tree.map(lambda g: g.mean(0), gradients), 1e-10)


def with_head(dtype, weight=1.0, bias=0.0) -> tuple[Params, Tensor, Tensor, Config, Masks | None]:
    """A small model's arguments with a decoder so scaled and shifted."""
    params, tokens, targets, config, masks = small(dtype)
    changed = {"decoder.weight": params["decoder.weight"] * weight, "decoder.bias": params["decoder.bias"] + bias}
    return params | changed, tokens, targets, config, masks


HEADS = [
    (torch.float32, {"weight": 200.0}, 1e-4),  # some exponentials overflow
    (torch.float64, {"weight": 2000.0}, 1e-10),
    (torch.float32, {"bias": 1e4}, 1e-2),  # all overflow; 1e4 has a float32 grain of 1e-3
    (torch.float32, {"bias": -1e4}, 1e-2),  # all underflow
    (torch.float64, {"bias": 1e4}, 1e-10),
    (torch.float64, {"bias": -1e4}, 1e-10),
    (torch.float32, {"bias": -87.0}, 1e-4),  # subnormal
]


@pytest.mark.parametrize(("dtype", "head", "tolerance"), HEADS)
@pytest.mark.parametrize("block", [4, 1024])
def test_no_logit_is_too_large_or_too_small(monkeypatch, block, dtype, head, tolerance):
    monkeypatch.setattr(per_example, "VOCABULARY_BLOCK", block)
    arguments = with_head(dtype, **head)
    losses, gradients = definition(*arguments)
    captured = capture(*arguments, units=every)
    assert relative_error(captured.losses, losses) <= tolerance
    assert_close(per_example.gradients(captured.factors), gradients, tolerance)
    assert_close(captured.mean_grads, tree.map(lambda g: g.mean(0), gradients), tolerance)


@pytest.mark.parametrize(("dtype", "head", "tolerance"), HEADS)
def test_losses_are_the_cross_entropy_at_every_position(dtype, head, tolerance):
    params, tokens, targets, config, _ = with_head(dtype, **head)
    double = {name: w.double() for name, w in params.items()}
    logits = torch.stack([transformer.apply(double, example, config) for example in tokens])
    expected = F.cross_entropy(logits.mT, targets, reduction="none")
    assert relative_error(per_example.losses(params, tokens, targets, config), expected) <= tolerance


def test_mean_losses_are_those_of_capture():
    params, tokens, targets, config, _ = small()
    losses = per_example.losses(params, tokens, targets, config)
    assert relative_error(losses.mean(1), capture(params, tokens, targets, config).losses) <= 1e-14


@each_dtype
def test_the_buffers_content_is_of_no_account(dtype):
    params, tokens, targets, config, masks = small(dtype)
    without = capture(*small(dtype), units=every)
    buffer = torch.full((config.vocab_size, tokens.numel()), float("nan"), dtype=dtype)
    captured = capture(*small(dtype), units=every, buffer=buffer)
    buffer.fill_(7.0)  # nor is what happens to it later
    assert_equal(captured, without)
    losses = per_example.losses(params, tokens, targets, config, buffer)
    assert_equal(losses, per_example.losses(params, tokens, targets, config))


# ---- factors


@given(factor_arrays())
@some
def test_gradients_and_token_gradients_are_the_sums_of_the_definition(drawn):
    factors = factors_of(drawn)
    parts = {name: token_parts(factor) for name, factor in factors.items()}
    assert_equal(per_example.token_gradients(factors), parts)
    assert_equal(per_example.gradients(factors), tree.map(lambda part: part.sum(1), parts))


@given(factor_arrays())
@some
def test_contributions_are_the_entries_of_the_token_gradients(drawn):
    for factor in factors_of(drawn).values():
        n, size = len(factor.signals), per_example.size(factor)
        datum, index = (x.flatten() for x in torch.meshgrid(torch.arange(n), torch.arange(size), indexing="ij"))
        expected = token_parts(factor).flatten(2)[datum, :, index]
        assert_equal(per_example.contributions(factor, datum, index), expected)


@given(factor_arrays())
@few
def test_form_overwrites_what_it_is_given(drawn):
    for factor in factors_of(drawn).values():
        out = torch.full((len(factor.signals), *per_example.shape(factor)), float("nan"), dtype=torch.float64)
        assert per_example.form(factor, out=out) is out
        assert_equal(out, per_example.form(factor))


@given(factor_arrays(), st.sampled_from([-0.5, 2.0, torch.tensor(-4.0)]))
@few
def test_scaled_factors_have_scaled_gradients(drawn, factor):
    factors = factors_of(drawn)
    expected = tree.scale(per_example.gradients(factors), factor)
    assert_equal(per_example.gradients(per_example.scale(factors, factor)), expected)


@given(factor_arrays(), st.integers(0, 3), st.integers(0, 5))
@few
def test_some_datas_factors_have_their_gradients(drawn, start, length):
    rows = slice(start, start + length)
    for factor in factors_of(drawn).values():
        assert_equal(per_example.form(per_example.data(factor, rows)), per_example.form(factor)[rows])


def test_factors_know_the_shape_and_size_of_their_unit():
    factors = capture(*small(), units=every).factors
    assert {name: per_example.shape(f) for name, f in factors.items()} == transformer.shapes(SMALL)
    assert {name: per_example.size(f) for name, f in factors.items()} == tree.map(torch.numel, small()[0])


def test_token_gradients_sum_to_the_gradients():
    factors = capture(*small(), units=every).factors
    parts = per_example.token_gradients(factors)
    assert all(part.shape[:2] == (3, 5) for part in parts.values())
    assert_close(tree.map(lambda part: part.sum(1), parts), per_example.gradients(factors), 1e-13)


def test_embedding_and_decoder_are_captured_in_factored_form():
    params, tokens, targets, config, masks = small()
    factors = capture(*small(), units=lambda name: not name.startswith("layers.")).factors
    embedding, decoder, bias = cast(list[Any], list(factors.values()))
    assert list(factors) == ["embedding.weight", "decoder.weight", "decoder.bias"]
    assert torch.equal(embedding.tokens, tokens) and embedding.signals.shape == (3, 5, 8)
    assert decoder.inputs.shape == (3, 5, 8) and decoder.signals.shape == bias.signals.shape == (3, 5, 11)
    logits = torch.stack(
        [transformer.apply(params, x, config, tree.map(lambda m, j=j: m[j], masks)) for j, x in enumerate(tokens)]
    )
    expected = (logits.softmax(-1) - F.one_hot(targets, 11)) / 5
    assert relative_error(decoder.signals, expected) <= 1e-13 and torch.equal(decoder.signals, bias.signals)


# ---- the choice of units


@pytest.mark.parametrize(
    "units",
    [
        lambda name: name.endswith("bias"),
        lambda name: ".norm" in name,
        lambda name: name == "decoder.bias",
        lambda name: name.startswith("layers.1.self_attn"),
    ],
    ids=["biases", "norms", "decoder bias", "attention"],
)
def test_chosen_units_have_the_factors_that_they_have_among_all(units):
    chosen, everything = capture(*small(), units=units), capture(*small(), units=every)
    assert list(chosen.factors) == [name for name in everything.factors if units(name)]
    assert_equal(chosen.factors, {name: everything.factors[name] for name in chosen.factors})
    assert_equal(chosen.mean_grads, everything.mean_grads)


def test_the_default_is_every_weight_matrix_of_the_layers():
    chosen = per_example.choose(transformer.shapes(SMALL))
    matrices = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    assert chosen == [f"layers.{i}.{name}" for i in range(2) for name in matrices]
    assert chosen == list(capture(*small()).factors)


def test_choose_keeps_the_order_of_the_names():
    assert per_example.choose("badc", "dab".__contains__) == ["b", "a", "d"]


def test_choose_refuses_an_empty_choice_and_lists_the_names():
    with pytest.raises(ValueError, match="no parameter is captured; choose among embedding.weight, layers.0.self_attn"):
        capture(*small(), units=lambda name: False)
