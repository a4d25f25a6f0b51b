"""``capture`` computes the definition's numbers.

Errors are relative to the largest value of each unit: at most 1e-10 in float64; in float32, against the definition
in float64 on the same weights, 1e-5.
"""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_close, assert_equal, definition, relative_error, tensors, torch_model
from strategies import CONFIGS, LEAST, SMALL, batch, few, small, weights
from torch import nn

from devinterp_func import models, per_example, tree, units
from devinterp_func.per_example import capture
from devinterp_func.tree import Params

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"width {config.d_model}")
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
with_and_without_masks = pytest.mark.parametrize("masked", [False, True], ids=["no dropout", "dropout"])


# ---- capture = definition


@each_config
@each_dtype
@with_and_without_masks
def test_capture_is_the_definition_for_all_parameters(config, dtype, masked):
    arguments = small(dtype, masked, config)
    losses, gradients = definition(*arguments)
    captured = capture(*arguments, units=units.EVERY)
    assert relative_error(captured.losses, losses) <= TOLERANCES[dtype]
    assert_close(per_example.gradients(captured.factors), gradients, TOLERANCES[dtype])
    assert_close(captured.mean_grads, tree.map(lambda g: g.mean(0), gradients), TOLERANCES[dtype])
    assert {leaf.dtype for leaf in tensors(captured)} == {dtype, torch.int64}


@each_dtype
def test_a_model_of_one_token_has_nothing_to_learn(dtype):
    captured = capture(*small(dtype, config=LEAST), units=units.EVERY)
    numbers = (captured.losses, captured.mean_grads, per_example.gradients(captured.factors))
    assert max(x.abs().max().item() for x in tensors(numbers)) <= (1e-15 if dtype == torch.float64 else 1e-6)


def test_the_mean_gradient_is_the_batch_gradient():
    params, tokens, targets, config, _ = small(masked=False)
    model = torch_model(params, config)
    model.losses(tokens, targets).mean().backward()
    theirs: Any = {name: p.grad for name, p in model.units().items()}
    assert_close(capture(params, tokens, targets, config).mean_grads, theirs, 1e-10)


def test_data_sum_to_the_batch_gradient():
    captured = capture(*small(), units=units.EVERY)
    gradients = per_example.gradients(captured.factors)
    assert_close(tree.map(lambda g: g.sum(0) / 3, gradients), captured.mean_grads, 1e-13)


@given(st.permutations(range(3)))
@few
def test_permuted_data_have_permuted_gradients(order):
    params, tokens, targets, config, masks = small()
    tokens, targets, masks = tree.map(lambda x: x[order], (tokens, targets, masks))
    before, after = (
        capture(*small(), units=units.EVERY),
        capture(params, tokens, targets, config, masks, units=units.EVERY),
    )
    expected = tree.map(lambda g: g[order], per_example.gradients(before.factors))
    assert_close(per_example.gradients(after.factors), expected, 1e-13)
    assert_close(after.mean_grads, before.mean_grads, 1e-13)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)], ids=str)
def test_a_datum_alone_is_the_datum_in_any_batch(dtype, tolerance):
    params, tokens, targets, config, masks = small(dtype)
    together = per_example.gradients(capture(*small(dtype), units=units.EVERY).factors)
    for j in range(3):
        x, y, mask = tree.map(lambda x, j=j: x[j : j + 1], (tokens, targets, masks))
        alone = capture(params, x, y, config, mask, units=units.EVERY)
        expected = tree.map(lambda g, j=j: g[j : j + 1], together)
        assert_close(per_example.gradients(alone.factors), expected, tolerance)


@pytest.mark.parametrize("context", [1, 2, 9])
@pytest.mark.parametrize("n", [1, 4])
def test_capture_takes_any_batch_and_context(n, context):
    params, (tokens, targets) = weights(SMALL), batch(SMALL, n, context)
    captured = capture(params, tokens, targets, SMALL, units=units.EVERY)
    assert_close(per_example.gradients(captured.factors), definition(params, tokens, targets, SMALL)[1], 1e-10)


def test_capture_takes_somebody_elses_model():
    params, tokens, targets, config, _ = small(masked=False)
    theirs = torch_model(params, config).units()  # nn.Parameters that require gradients
    assert_equal(capture(theirs, tokens, targets, config), capture(params, tokens, targets, config))


def test_capture_leaves_no_trace():
    params, tokens, targets, config, masks = small()
    parameters: Params = {name: nn.Parameter(w) for name, w in params.items()}
    before = copy.deepcopy((parameters, tokens, targets, masks))
    captured = capture(parameters, tokens, targets, config, masks, units=units.EVERY)
    assert_equal((parameters, tokens, targets, masks), before)
    assert all(p.requires_grad and p.grad is None and not p._backward_hooks for p in parameters.values())
    assert not any(leaf.requires_grad for leaf in tensors(captured))
    assert torch.is_grad_enabled()


def test_parameters_in_another_order_give_the_same_gradients():
    params, tokens, targets, config, masks = small()
    backwards = capture(dict(reversed(params.items())), tokens, targets, config, masks, units=units.EVERY)
    assert list(backwards.factors) == list(backwards.mean_grads) == list(reversed(params))
    forwards = capture(*small(), units=units.EVERY)
    assert_equal(dict(reversed(backwards.mean_grads.items())), forwards.mean_grads)


def test_a_capture_prints_short():
    assert repr(capture(*small())).startswith("Capture of 3 data: mean loss 2.")
    assert len(repr(capture(*small()))) < 150


# ---- the choice of units


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        (("*bias",), lambda name: name.endswith("bias")),
        (("*.norm*",), lambda name: ".norm" in name),
        (("decoder.bias",), lambda name: name == "decoder.bias"),
        (("layers.1.self_attn*",), lambda name: name.startswith("layers.1.self_attn")),
        (("layers.?.linear2.weight", "embedding.*"), lambda name: "linear2.w" in name or name.startswith("emb")),
    ],
    ids=["biases", "norms", "decoder bias", "attention", "several"],
)
def test_chosen_units_have_the_factors_that_they_have_among_all(patterns, chosen):
    some, everything = capture(*small(), units=patterns), capture(*small(), units=units.EVERY)
    assert list(some.factors) == [name for name in everything.factors if chosen(name)]
    assert_equal(some.factors, {name: everything.factors[name] for name in some.factors})
    assert_equal(some.mean_grads, everything.mean_grads)


def test_the_default_is_every_weight_matrix_of_the_layers():
    chosen = units.choose(models.shapes(SMALL))
    matrices = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    assert chosen == [f"layers.{i}.{name}" for i in range(2) for name in matrices]
    assert chosen == list(capture(*small()).factors)


def test_a_pattern_that_matches_nothing_is_refused_before_the_work():
    with pytest.raises(ValueError, match=r"no parameter is called 'layers.7.\*'; nearest are\n  layers"):
        capture(*small(), units=("layers.0.*", "layers.7.*"))


# ---- what is refused


@pytest.mark.parametrize("bad", [-100, -1, 11, 2**40])
@pytest.mark.parametrize("which", ["tokens", "targets"])
def test_ids_that_the_vocabulary_lacks_are_refused_everywhere(which, bad):
    params, tokens, targets, config, _ = small()
    ids: dict[str, Any] = {"tokens": tokens, "targets": targets}
    ids[which] = ids[which].clone()
    ids[which][1, 2] = bad
    for refused in (capture, per_example.losses):
        with pytest.raises(ValueError, match=f"{which} hold the id {bad}; ids must be in 0..10, and nothing is padded"):
            refused(params, **ids, config=config)


def test_float16_is_refused_and_bfloat16_is_not():
    params, tokens, targets, config, _ = small(torch.float16)
    for refused in (capture, per_example.losses):
        with pytest.raises(TypeError, match="float16, whose range is too small; use float32, float64 or bfloat16"):
            refused(params, tokens, targets, config)
    exact = capture(*small(masked=False))
    rough = capture(tree.map(lambda w: w.bfloat16(), params), tokens, targets, config)
    assert relative_error(rough.losses.double(), exact.losses) <= 0.02


@pytest.mark.parametrize("refused", [capture, per_example.losses])
def test_a_buffer_of_another_shape_is_refused(unchecked, refused):
    params, tokens, targets, config, _ = small()
    with pytest.raises(ValueError, match=r"buffer is \(11, 14\).* it must be \(11, 15\)"):
        refused(params, tokens, targets, config, buffer=torch.empty(11, 14, dtype=torch.float64))


def test_inference_mode_is_refused_where_gradients_are_made():
    arguments = small()
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="leave it, or use torch.no_grad"):
            capture(*arguments)
        with pytest.raises(RuntimeError, match="leave it, or use torch.no_grad"):
            per_example.grads(lambda w, x: (w * x).sum())(torch.zeros(2), torch.ones(3, 2))
        losses = per_example.losses(*arguments[:4])  # makes none
    assert_equal(losses, per_example.losses(*small()[:4]))
    with torch.no_grad():
        assert_equal(capture(*arguments).mean_grads, capture(*small()).mean_grads)


def test_another_default_dtype_changes_nothing(float64_by_default):
    params, tokens, targets, config, masks = small(torch.float32)
    assert {w.dtype for w in models.init(config, key=0).values()} == {torch.float32}
    captured = capture(params, tokens, targets, config, masks, units=units.EVERY)
    assert {leaf.dtype for leaf in tensors(captured)} == {torch.float32, torch.int64}
    torch.set_default_dtype(torch.float32)
    assert_equal(captured, capture(*small(torch.float32), units=units.EVERY))
