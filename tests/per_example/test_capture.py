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
from oracles import assert_close, assert_equal, definition, relative_error, tensors, torch_masks
from small_transformers import CONFIGS, LEAST, torch_model
from strategies import Small, few, small
from torch import nn

from devinterp_func import graph, per_example, tree
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
    own = small(dtype, masked, config)
    losses, gradients = definition(*own[1:4], config, own.masks)
    captured = own.capture()
    assert relative_error(captured.losses, losses) <= TOLERANCES[dtype]
    assert_close(per_example.gradients(captured.factors), gradients, TOLERANCES[dtype])
    assert_close(captured.mean_grads, tree.map(lambda g: g.mean(0), gradients), TOLERANCES[dtype])
    assert {leaf.dtype for leaf in tensors(captured)} == {dtype, torch.int64}


@each_dtype
def test_a_model_of_one_token_has_nothing_to_learn(dtype):
    captured = small(dtype, config=LEAST).capture()
    numbers = (captured.losses, captured.mean_grads, per_example.gradients(captured.factors))
    assert max(x.abs().max().item() for x in tensors(numbers)) <= (1e-15 if dtype == torch.float64 else 1e-6)


def test_the_mean_gradient_is_the_batch_gradient():
    own = small(masked=False)
    assert_close(own.capture().mean_grads, torchs_gradients(torch_model(own.params, own.config), own), 1e-10)


@each_config
def test_under_torchs_own_dropout_masks_the_gradient_is_torchs(config):
    own = small(config=config)
    model = torch_model(own.params, config).train()
    torch.manual_seed(3)
    masks = dict(zip(own.graph.sites, torch_masks(model, own.tokens), strict=True))
    found = own._replace(masks=masks).capture().mean_grads
    assert_close(found, torchs_gradients(model, own), 1e-10)


def torchs_gradients(model: Any, own: Small) -> Params:
    model.losses(own.tokens, own.targets).mean().backward()
    return {name: p.grad for name, p in model.units().items()}


def test_data_sum_to_the_batch_gradient():
    captured = small().capture()
    gradients = per_example.gradients(captured.factors)
    assert_close(tree.map(lambda g: g.sum(0) / 3, gradients), captured.mean_grads, 1e-13)


@given(st.permutations(range(3)))
@few
def test_permuted_data_have_permuted_gradients(order):
    own = small()
    tokens, targets, masks = tree.map(lambda x: x[order], own[2:5])
    before, after = own.capture(), own._replace(tokens=tokens, targets=targets, masks=masks).capture()
    expected = tree.map(lambda g: g[order], per_example.gradients(before.factors))
    assert_close(per_example.gradients(after.factors), expected, 1e-13)
    assert_close(after.mean_grads, before.mean_grads, 1e-13)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)], ids=str)
def test_a_datum_alone_is_the_datum_in_any_batch(dtype, tolerance):
    own = small(dtype)
    together = per_example.gradients(own.capture().factors)
    for j in range(3):
        x, y, mask = tree.map(lambda x, j=j: x[j : j + 1], own[2:5])
        alone = own._replace(tokens=x, targets=y, masks=mask).capture()
        expected = tree.map(lambda g, j=j: g[j : j + 1], together)
        assert_close(per_example.gradients(alone.factors), expected, tolerance)


@pytest.mark.parametrize("context", [1, 2, 9])
@pytest.mark.parametrize("n", [1, 4])
def test_capture_takes_any_batch_and_context(n, context):
    own = small(n=n, context=context)
    expected = definition(*own[1:4], own.config, own.masks)[1]
    assert_close(per_example.gradients(own.capture().factors), expected, 1e-10)


def test_capture_takes_somebody_elses_model():
    own = small()
    theirs = torch_model(own.params, own.config).units()  # nn.Parameters that require gradients
    assert_equal(own._replace(params=theirs).capture(), own.capture())


def test_capture_leaves_no_trace():
    own = small()
    own = own._replace(params={name: nn.Parameter(w) for name, w in own.params.items()})
    before = copy.deepcopy(own[1:5])
    captured = own.capture()
    assert_equal(own[1:5], before)
    assert all(p.requires_grad and p.grad is None and not p._backward_hooks for p in own.params.values())
    assert not any(leaf.requires_grad for leaf in tensors(captured))
    assert torch.is_grad_enabled()


def test_parameters_in_another_order_give_the_same_gradients():
    own = small()
    backwards = own._replace(params=dict(reversed(own.params.items()))).capture()
    assert list(backwards.factors) == list(backwards.mean_grads) == list(own.params)
    assert_equal(backwards, own.capture())


def test_a_capture_prints_short():
    assert repr(small().capture()).startswith("Capture of 3 data: mean loss 2.")
    assert len(repr(small().capture())) < 150


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
    some, everything = small().capture(units=patterns), small().capture()
    assert list(some.factors) == [name for name in everything.factors if chosen(name)]
    assert_equal(some.factors, {name: everything.factors[name] for name in some.factors})
    assert_equal(some.mean_grads, everything.mean_grads)


def test_the_default_is_every_weight_matrix_of_the_layers():
    chosen = list(small().capture(units=()).factors)
    matrices = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    assert chosen == [f"layers.{i}.{name}" for i in range(2) for name in matrices]
    assert chosen == graph.choose(small().graph)


def test_a_pattern_that_matches_nothing_is_refused_before_the_work():
    with pytest.raises(ValueError, match=r"no parameter is called 'layers.7.\*'; nearest are\n  layers"):
        small().capture(units=("layers.0.*", "layers.7.*"))


# ---- what is refused


def captured(own: Small, *batch: Any, **options: Any) -> Any:
    return per_example.capture(own.graph, own.params, *batch, **options)


def losses(own: Small, *batch: Any, **options: Any) -> Any:
    return per_example.losses(own.graph, own.params, *batch, **options)


everywhere = pytest.mark.parametrize("refused", [captured, losses])


@everywhere
@pytest.mark.parametrize("bad", [-100, -1, 11, 2**40])
@pytest.mark.parametrize("which", ["tokens", "targets"])
def test_ids_that_the_vocabulary_lacks_are_refused_everywhere(refused, which, bad):
    own = small()
    ids = getattr(own, which).clone()
    ids[1, 2] = bad
    own = own._replace(**{which: ids})
    with pytest.raises(ValueError, match=f"{which} hold the id {bad}; ids must be in 0..10, and nothing is padded"):
        refused(own, own.tokens, own.targets)


@everywhere
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y: (x, y[:2]), r"the batch's tensors have \[2, 3\] data; all must have the same number"),
        (lambda x, y: (x, y, y), "the batch has 3 tensors; an example of this graph has 2"),
        (lambda x, y: (), "the batch has 0 tensors; an example of this graph has 2"),
        (lambda x, y: (x[:, :4], y), r"tensor 0 .* shape \(4,\), torch.int64; the graph .* \(5,\), torch.int64"),
        (lambda x, y: (x, y.int()), r"tensor 1 .* shape \(5,\), torch.int32; the graph .* \(5,\), torch.int64"),
        (lambda x, y: (x, y[0, 0]), r"the batch's tensors have \[0, 3\] data"),
    ],
    ids=["unequal", "too many", "none", "another shape", "another dtype", "no leading n"],
)
def test_a_batch_that_does_not_fit_the_graph_is_refused(refused, change, said):
    own = small()
    with pytest.raises(ValueError, match=said):
        refused(own, *change(own.tokens, own.targets))


@everywhere
def test_a_batch_without_targets_has_no_losses(refused):
    own = small()
    with pytest.raises(ValueError, match="the batch has 1 tensors; an example .* has 2|depends on tensor 1"):
        refused(own, own.tokens)


def test_float16_is_refused_and_bfloat16_is_not():
    own = small(torch.float16, masked=False)
    for refused in (captured, losses):
        with pytest.raises(TypeError, match="float16, whose range is too small; use float32, float64 or bfloat16"):
            refused(own, own.tokens, own.targets)
    exact, rough = small(masked=False).capture(), small(torch.bfloat16, masked=False).capture()
    assert relative_error(rough.losses.double(), exact.losses) <= 0.02


@everywhere
def test_a_buffer_of_another_shape_is_refused(unchecked, refused):
    own = small()
    with pytest.raises(ValueError, match=r"buffer is \(11, 14\).* it must be \(11, 15\)"):
        refused(own, own.tokens, own.targets, buffer=torch.empty(11, 14, dtype=torch.float64))


def test_inference_mode_is_refused_where_gradients_are_made():
    own = small()
    expected = own.capture(), losses(own, own.tokens, own.targets)
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="leave it, or use torch.no_grad"):
            own.capture()
        with pytest.raises(RuntimeError, match="leave it, or use torch.no_grad"):
            per_example.grads(lambda w, x: (w * x).sum())(torch.zeros(2), torch.ones(3, 2))
        assert_equal(losses(own, own.tokens, own.targets), expected[1])  # makes none
    with torch.no_grad():
        assert_equal(own.capture(), expected[0])


def test_another_default_dtype_changes_nothing(float64_by_default):
    own = small(torch.float32)
    traced = graph.of(own.graph.loss, own.params, own.tokens[0], own.targets[0])
    captured = own._replace(graph=traced).capture()
    assert {leaf.dtype for leaf in tensors(captured)} == {torch.float32, torch.int64}
    torch.set_default_dtype(torch.float32)
    assert_equal(captured, own.capture())
