"""Of every loss in the zoo: capture computes what a loop of ``torch.func.grad`` computes.

Errors are relative to the largest number of each parameter (``loops.worst``): at most 1e-10 in float64; in float32,
against the loop in float64 on the same numbers, 1e-5.
"""

import copy
from typing import Any, NamedTuple

import pytest
import torch
from loops import Masks, loop, worst
from oracles import assert_equal, tensors
from strategies import drawn_masks
from torch import Tensor, nn
from zoo import OPERATIONS, Case
from zoo_losses import LOSSES
from zoo_modules import MODULES, TRANSFORMERS

from devinterp_func import graph, keys, per_example, tree
from devinterp_func.per_example import Bias, Dense, Gain, Lookup, Outer, Sum, _check
from devinterp_func.tree import Params

ZOO = {**OPERATIONS, **LOSSES, **MODULES}
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


class Traced(NamedTuple):
    """A case, its graph, its dropout masks, and what capture finds of it."""

    case: Case
    graph: Any
    masks: Masks | None
    captured: Any

    def capture(self, *batch: Any, masks: Masks | None = None, units: tuple[str, ...] = ("*",)) -> Any:
        return per_example.capture(self.graph, self.case.params, *batch, masks=masks, units=units)


def trace(case: Case) -> Traced:
    first = tree.map(lambda x: x[0], case.batch)
    made = graph.of(case.loss, case.params, *first)
    masks = graph.draw_masks(made, each=[keys.fold_in(0, "masks", j) for j in range(3)])
    captured = per_example.capture(made, case.params, *case.batch, masks=masks, units=("*",))
    return Traced(case, made, masks, captured)


def assert_is_the_loop(traced: Traced, captured: Any, masks: Masks | None, tolerance: float = 1e-10) -> None:
    case = traced.case
    losses, gradients = loop(case.loss, case.params, case.batch, traced.graph.sites, masks)
    assert worst({"losses": captured.losses}, {"losses": losses}) <= tolerance
    assert worst(formed(captured), gradients) <= tolerance
    assert worst(captured.mean_grads, tree.map(lambda g: g.mean(0), gradients)) <= tolerance


def formed(captured: Any) -> Params:
    return {name: per_example.form(factor) for name, factor in captured.factors.items()}


@pytest.fixture(scope="module", params=ZOO)
def traced(request: pytest.FixtureRequest) -> Traced:
    """Each case of the zoo, one after the other."""
    return trace(ZOO[request.param]())


# ---- laws of all


def test_capture_is_the_loop(traced):
    assert_is_the_loop(traced, traced.captured, traced.masks)


def test_without_masks_nothing_is_dropped(traced):
    if not traced.graph.sites:
        assert traced.masks is None
        return
    assert set(traced.masks) == set(traced.graph.sites)
    assert {name: m.shape[1:] for name, m in traced.masks.items()} == {
        k: s.shape for k, s in traced.graph.sites.items()
    }
    assert_is_the_loop(traced, traced.capture(*traced.case.batch), None)


def test_the_graph_knows_every_parameter_and_finds_its_uses(traced):
    case, made = traced.case, traced.graph
    assert dict(made.shapes) == {name: tuple(w.shape) for name, w in case.params.items()}
    assert {use.unit for use in made.uses} | set(made.dense) | set(made.unused) == set(case.params)
    assert set(made.unused).isdisjoint({use.unit for use in made.uses} | set(made.dense))
    if case.found:
        assert not made.dense
    for name in made.unused:
        assert not traced.captured.mean_grads[name].any()


def test_positions_sum_to_the_datum(traced):
    parts = per_example.token_gradients(traced.captured.factors)
    summed = {name: part.sum(1) for name, part in parts.items()}
    assert worst(summed, formed(traced.captured)) <= 1e-12


def test_chosen_units_have_the_factors_that_they_have_among_all(traced):
    chosen = list(traced.case.params)[::2]
    some = traced.capture(*traced.case.batch, masks=traced.masks, units=tuple(chosen))
    assert list(some.factors) == chosen
    assert worst(formed(some), {name: formed(traced.captured)[name] for name in chosen}) <= 1e-12
    assert worst(some.mean_grads, traced.captured.mean_grads) <= 1e-12


def test_a_datum_alone_is_the_datum_in_a_batch(traced):
    batch, masks = tree.map(lambda x: None if x is None else x[1:2], (traced.case.batch, traced.masks))
    alone = traced.capture(*batch, masks=masks)
    assert worst(formed(alone), tree.map(lambda g: g[1:2], formed(traced.captured))) <= 1e-12
    assert worst({"": alone.losses}, {"": traced.captured.losses[1:2]}) <= 1e-12


def test_capture_misses_nothing_of_what_autograd_finds(traced):
    missed = per_example.capture_missed(traced.graph, traced.case.params, *traced.case.batch)
    assert missed.keys() == traced.case.params.keys() and max(missed.values()) <= 1e-10


def test_capture_leaves_no_graph(traced):
    assert not any(leaf.requires_grad for leaf in tensors(tuple(traced.captured)))
    assert traced.captured.losses.shape == (3,)


# ---- float32


SINGLE = ["linear", "conv2d strided", "rms norm", "loss: tied", "loss: masked", "the post's transformer", "Llama sdpa"]


@pytest.mark.parametrize("name", [*SINGLE, "pictures", "LSTM", "bilinear"])
def test_single_precision_is_the_loop_in_double(name):
    case = ZOO[name]()
    params, batch = of_dtype((case.params, case.batch), torch.float32)
    single = trace(case._replace(params=params, batch=batch))
    assert {leaf.dtype for leaf in tensors(formed(single.captured))} == {torch.float32}
    params, batch = of_dtype((params, batch), torch.float64)
    double = single._replace(case=case._replace(params=params, batch=batch))
    found = of_dtype(single.captured, torch.float64)
    assert_is_the_loop(double, found, single.masks, TOLERANCES[torch.float32])


def of_dtype(numbers: Any, dtype: torch.dtype) -> Any:
    """The same numbers; what counts or names stays as it is."""
    return tree.map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, numbers)


# ---- laws of a few


KINDS: dict[str, dict[str, type]] = {
    "linear": {"w": Outer, "b": Bias, "before": Gain},
    "x @ W of a grid": {"w": Outer},
    "addmm": {"w": Outer, "b": Bias},
    "conv2d strided": {"w": Outer, "b": Bias},
    "x - b": {"b": Bias},
    "layer norm": {"w": Gain, "b": Bias},
    "rms norm by hand": {"w": Gain},
    "group norm": {"w": Gain, "b": Bias},
    "W[ids]": {"w": Lookup},
    "longer position table": {"w": Lookup},
    "looked-up positions": {"w": Lookup},
    "three-dimensional weight": {"w": Dense},
    "used both ways": {"w": Sum},
    "loss: tied": {"table": Sum, "inner": Outer},
}


@pytest.mark.parametrize("name", KINDS)
def test_each_operation_has_a_factor_of_its_kind(name):
    factors = trace(ZOO[name]()).captured.factors
    assert {unit: type(factors[unit]) for unit in KINDS[name]} == KINDS[name]


@pytest.mark.parametrize(
    ("name", "unit", "positions"),
    [("linear", "w", 4), ("linear of one position", "w", 1), ("linear of a grid", "w", 6),
     ("embedding of one id", "w", 1), ("conv2d", "w", 8),
     ("conv1d", "b", 3), ("recurrence", "u", 4), ("three-dimensional weight", "w", 1)],
)  # fmt: skip
def test_a_position_is_a_row_of_the_operation(name, unit, positions):
    part = per_example.token_gradients(trace(ZOO[name]()).captured.factors)[unit]
    assert part.shape[:2] == (3, positions)


def test_a_position_of_a_unit_is_a_position_of_the_text():
    """What is not read at a position takes nothing from it."""
    traced = trace(ZOO["loss: last logits"]())
    parts = per_example.token_gradients(traced.captured.factors)
    for unit, read in {"table": [False, False, False, True], "inner": [False, False, False, True]}.items():
        assert (parts[unit].flatten(2) != 0).any(-1).tolist() == [read] * 3


def test_the_default_is_every_weight_of_the_layers_but_the_head_and_the_tables():
    layer = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    block = ["attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"]
    expected = {
        "encoder, norm first": [f"layers.layers.{i}.{name}" for i in range(2) for name in layer],
        "the post's transformer": [f"layers.{i}.{name}" for i in range(2) for name in layer],
        "GPT2 sdpa": [f"transformer.h.{i}.{name}" for i in range(2) for name in block],
        "pictures": ["0.weight", "4.weight"],
        "regression": ["0.weight", "3.weight", "5.weight"],
        "loss: tied": ["inner"],
    }
    for name, chosen in expected.items():
        traced = trace(ZOO[name]())
        assert list(traced.capture(*traced.case.batch, units=()).factors) == chosen, name


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_graph_knows_a_language_models_head_and_table(name):
    traced = trace(ZOO[name]())
    tied = {"GPT2": "transformer.wte.weight"}
    heads = {
        "GPTN": ("lm_head.weight", "gpt_neox.embed_in.weight"),
        "Llam": ("lm_head.weight", "model.embed_tokens.weight"),
    }
    ours = ("decoder.weight", "embedding.weight")
    made = traced.graph
    if "attention" in name or "decoder" in name:
        assert made.head is None and made.embedding is None
        with pytest.raises(ValueError, match="head"):
            made.vocab_size  # noqa: B018
        return
    head, table = (tied["GPT2"],) * 2 if name.startswith("GPT2") else heads.get(name[:4], ours)
    assert (made.head.weight, made.embedding, made.vocab_size, made.width) == (head, table, 13, 8)


@pytest.mark.parametrize("name", ["GPT2 eager", "the post's transformer", "loss: mean", "loss: tied", "regression"])
def test_losses_are_those_of_every_position(name):
    traced = trace(ZOO[name]())
    losses = per_example.losses(traced.graph, traced.case.params, *traced.case.batch)
    whole, _ = loop(traced.case.loss, traced.case.params, traced.case.batch, {}, None)
    positions = 1 if name == "regression" else traced.case.batch[1].shape[1]
    assert losses.shape == (3, positions)
    torch.testing.assert_close(losses.mean(1), whole, rtol=1e-12, atol=1e-12)


def test_somebody_elses_parameters_are_left_as_they_were():
    case = ZOO["encoder"]()
    theirs: Params = {name: nn.Parameter(w.clone()) for name, w in case.params.items()}
    before = copy.deepcopy((theirs, case.batch))
    traced = trace(case._replace(params=theirs))
    assert_equal((theirs, case.batch), before)
    assert all(w.requires_grad and w.grad is None for w in theirs.values())
    assert_equal(formed(traced.captured), formed(trace(case).captured))


def test_a_graph_serves_other_numbers_than_it_was_traced_with():
    traced = trace(ZOO["encoder"]())
    moved = traced._replace(
        case=traced.case._replace(
            params=tree.map(lambda w: w.flip(0) * 1.1, traced.case.params),
            batch=tree.map(lambda x: x.roll(1, 1), traced.case.batch),
        )
    )
    found = moved.capture(*moved.case.batch, masks=traced.masks)
    assert_is_the_loop(moved, found, traced.masks)


def test_sequences_of_other_lengths_have_graphs_of_their_own():
    case = ZOO["Llama sdpa"]()
    for length in (1, 2, 4):
        shorter = trace(case._replace(batch=tree.map(lambda x, length=length: x[:, :length], case.batch)))
        assert_is_the_loop(shorter, shorter.captured, shorter.masks)


def test_masks_of_a_datum_are_its_keys_alone():
    made = trace(ZOO["dropout"]()).graph
    one, other = ([keys.fold_in(0, j) for j in order] for order in ([4, 7], [7, 1, 4]))
    first, second = drawn_masks(made, one), drawn_masks(made, other)
    for name in made.sites:
        assert torch.equal(first[name], second[name][[2, 0]])
        assert first[name].dtype == torch.bool


def test_masks_keep_the_share_that_the_rate_leaves():
    made = trace(ZOO["dropout"]()).graph
    masks = drawn_masks(made, range(500))
    for name, site in made.sites.items():
        n = masks[name].numel()
        assert abs(masks[name].double().mean() - (1 - site.p)) <= 5 * (site.p * (1 - site.p) / n) ** 0.5 + 1e-12


# ---- what is held against autograd


def test_a_gradient_that_capture_gets_wrong_is_found(monkeypatch):
    made = trace(ZOO["linear"]())

    def wrong(*args: Any, **kwargs: Any) -> Any:
        found = per_example.capture(*args, **kwargs)
        return found._replace(mean_grads={**found.mean_grads, "w": found.mean_grads["w"] * 1.5})

    monkeypatch.setattr(_check, "capture", wrong)
    missed = per_example.capture_missed(made.graph, made.case.params, *made.case.batch)
    assert abs(missed["w"] - 0.5) <= 1e-10 and missed["b"] <= 1e-10
