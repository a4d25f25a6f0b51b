"""Credit of any loss: language models of other makes, pictures, regression, recurrence, against the definition."""

import functools
from typing import Any, NamedTuple

import pytest
import torch
from oracles import assert_close, masked, without_dropout
from torch.func import grad
from zoo import OPERATIONS, Case, plain
from zoo_losses import ends
from zoo_modules import MODULES

from devinterp_func import batches, credit, graph, optim, per_example, training, units
from devinterp_func.credit import probes
from devinterp_func.graph import Graph
from devinterp_func.training import Move, Recipe

POSITIONS = {"GPT2 eager": 5, "GPTNeoX eager": 5, "Llama eager": 5, "pictures": 1, "regression": 1, "cumulative": 1}
RECIPE = Recipe(batch_size=3, n_steps=1, lr=0.01, max_norm=0.5)  # a small step: few ReLUs open or close in it
each_loss = pytest.mark.parametrize("name", POSITIONS)


class Made(NamedTuple):
    """A step of training with a loss, and the mean loss without dropout of the data as a probe."""

    case: Case
    graph: Graph
    move: Move
    probe: probes.Probe


def graph_of(case: Case) -> Graph:
    return graph.of(case.loss, case.params, *batches.example(case.batch, 0))


@functools.lru_cache
def made(name: str) -> Made:
    case = (MODULES | OPERATIONS)[name]()
    own = graph_of(case)
    [move] = training.moves(own, case.params, case.batch, RECIPE, captured=units.EVERY)
    return Made(case, own, move, probes.loss(own, case.batch))


def deltas(made: Made) -> dict[str, torch.Tensor]:
    """Every datum's delta of every parameter, from the definition."""
    case, move = made.case, made.move
    masks = training.masks_of(made.graph, RECIPE, move.epoch, move.datum)
    taken = batches.take(case.batch, move.datum)
    given = taken if masks is None else (*taken, masks)
    loss = case.loss if masks is None else masked(case.loss)
    return optim.deltas(per_example.grads(loss)(move.before, *given), move.split)


def mean_loss(made: Made) -> Any:
    loss, n = without_dropout(made.case.loss), len(made.move.datum)
    return lambda params: sum(loss(params, *batches.example(made.case.batch, j)) for j in range(n)) / n


@each_loss
def test_credits_add_up_to_the_change_and_are_split_by_position_where_all_units_share_them(name):
    move, probe = made(name).move, made(name).probe
    assert list(move.factors) == list(move.before)
    found = credit.split_change(move, [probe], 4)
    assert found.credit.shape == (1, 3, POSITIONS[name])
    change = mean_loss(made(name))(move.after) - mean_loss(made(name))(move.before)
    torch.testing.assert_close(found.change()[0], change, rtol=1e-9, atol=1e-13)
    assert float(found.missed().abs()) < 1e-5 * float(change.abs())  # Llama's norms are float32 inside


@each_loss
def test_amounts_are_inner_products_with_the_definitions_deltas(name):
    move, probe = made(name).move, made(name).probe
    found = credit.split_change(move, [probe], 1, at_start=True)
    middle = credit._ledger.between(move.before, move.after, 0.5)
    for amounts, at in ((found.at_start, move.before), (found.marginal, move.after), (found.credit, middle)):
        gradient = grad(mean_loss(made(name)))(at)
        expected = sum(torch.einsum("...,n...->n", gradient[unit], d) for unit, d in deltas(made(name)).items())
        torch.testing.assert_close(amounts[0].sum(-1), expected, rtol=1e-6, atol=1e-9)


@each_loss
def test_leaving_a_datum_out_takes_its_delta_away(name):
    move, own = made(name).move, mean_loss(made(name))
    found = credit.leave_one_out(move, made(name).probe)
    for j, change in enumerate(found):
        without = {unit: w - deltas(made(name))[unit][j] for unit, w in move.after.items()}
        torch.testing.assert_close(change, own(move.after) - own(without), rtol=1e-6, atol=1e-10)


@each_loss
def test_the_losss_value_and_gradient_are_autograds(name):
    params, probe = made(name).move.after, made(name).probe
    value, gradient = probe.value_and_grad(params)
    torch.testing.assert_close(value, mean_loss(made(name))(params))
    torch.testing.assert_close(probe.value(params), value)
    assert_close(gradient, grad(mean_loss(made(name)))(params), 1e-6)


# ---- what a model has no name for


@pytest.mark.parametrize("name, unit", [("GPT2 eager", "transformer.wte.weight"), ("GPTNeoX eager", "")])
def test_a_bigram_reads_the_head_and_the_table_tied_or_not(name, unit):
    own = made(name).graph
    assert own.head is not None and own.embedding is not None
    assert (own.head.weight == own.embedding) == bool(unit)
    params = made(name).move.before
    expected = params[own.head.weight][3] @ params[own.embedding][6]
    value, gradient = probes.bigram(own, 3, 6).value_and_grad(params)
    assert value == expected
    if unit:  # of a tied table both rows
        assert torch.equal(gradient[unit][3], params[unit][6]) and torch.equal(gradient[unit][6], params[unit][3])


def two_widths(p, x, y):
    h = torch.nn.functional.embedding(x, p["table"]) @ p["up"]
    return torch.nn.functional.cross_entropy(h @ p["head"].T, y)


def test_what_a_loss_lacks_is_named():
    pictures, regression = made("pictures").graph, made("regression").graph
    tokens = torch.zeros(3, 4, dtype=torch.int64)
    narrow = graph_of(plain(two_widths, tokens, tokens, table=(7, 3), up=(3, 5), head=(7, 5))())
    neuron = credit.probes.Neuron("0.weight", 1)
    for make, message in (
        (lambda: probes.bigram(pictures, 1, 1), "looks its example's first tensor up in no table"),
        (lambda: probes.bigram(regression, 1, 1), "this loss has no head"),
        (lambda: probes.bigram(narrow, 1, 1), "table has 3 columns and head 5"),
        (lambda: probes.effect(regression, neuron, 1, made("regression").case.batch), "this loss has no head"),
        (lambda: probes.effect(pictures, neuron, 3, made("pictures").case.batch), r"ids are 0\.\.2"),
        (lambda: probes.log_probability(regression, tokens[0], 1), "this loss has no head"),
        (lambda: probes.log_probability(pictures, tokens[0], 1), r"first tensor of an example has shape \(2, 6, 5\)"),
        (
            lambda: probes.attention(pictures, (), torch.ones(3, 2, 2, dtype=torch.bool), 0, 0),
            "layer is 0; this model has none with attention",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def cnn_logits(p, x):
    h = torch.nn.functional.conv2d(x, p["conv"], padding=1).tanh().mean((1, 2))
    return torch.nn.functional.linear(h, p["head"], p["bias"])


def cnn_loss(p, x, y):
    return torch.nn.functional.cross_entropy(cnn_logits(p, x), y)


@pytest.mark.parametrize("axis", ["in", "out"])
def test_an_effect_of_a_filter_or_channel_is_that_of_all_its_weights(axis):
    x, y = torch.linspace(-1, 1, 120).double().view(3, 2, 5, 4), torch.tensor([0, 2, 1])
    case = plain(cnn_loss, x, y, conv=(4, 2, 3, 3), head=(3, 4), bias=(3,))()
    probe = probes.effect(graph_of(case), credit.probes.Neuron("conv", 1, axis), 2, (x,))
    kept = torch.ones(4, 2, 3, 3).double()
    kept[(slice(None), 1) if axis == "in" else 1] = 0

    def expected(params):
        without = {**params, "conv": params["conv"] * kept}
        return torch.stack([cnn_logits(params, one) - cnn_logits(without, one) for one in x])[:, 2].mean()

    value, gradient = probe.value_and_grad(case.params)
    torch.testing.assert_close(value, expected(case.params))
    assert_close(gradient, grad(expected)(case.params), 1e-9)


def test_a_vector_and_a_filter_are_no_matrices():
    vector = graph_of(OPERATIONS["x @ v"]())
    assert [use.kind for use in vector.uses if use.unit == "v"] == ["linear"]
    assert credit.linear_maps(vector, vector.shapes) == []
    pictures = made("pictures").graph
    assert credit.linear_maps(pictures, pictures.shapes) == ["10.weight"]


# ---- what follows a prompt


@pytest.mark.parametrize("name", ["GPT2 eager", "GPTNeoX eager", "Llama eager"])
@pytest.mark.parametrize("context", [1, 3, 5, 7])
def test_a_log_probability_is_the_loss_of_the_last_position_at_any_length(name, context):
    case = made(name).case
    loss = without_dropout(case.loss)
    prompts = torch.arange(2 * context).view(2, context) % 11

    def expected(params, prompt, token):
        """The losses of the last position alone: all positions' less those of the others."""
        targets = torch.full((context,), -100)
        targets[-1] = token
        return -loss(params, prompt, targets)

    for token in (0, 9):
        probe = probes.log_probability(made(name).graph, prompts[0], token)
        value, gradient = probe.value_and_grad(case.params)
        torch.testing.assert_close(value, expected(case.params, prompts[0], token))
        assert_close(gradient, grad(expected)(case.params, prompts[0], token), 1e-6)
        several = probes.log_probability(made(name).graph, prompts, token).value(case.params)
        each = [expected(case.params, prompt, token) for prompt in prompts]
        torch.testing.assert_close(several, (each[0] + each[1]) / 2)


def test_a_loss_whose_targets_are_moved_has_logits_after_the_last_token_all_the_same():
    moved, straight = ends["next token"](), ends["mean"]()
    for prompt in (moved.batch[0][0], moved.batch[0][1][:2]):
        found = probes.log_probability(graph_of(moved), prompt, 3).value(moved.params)
        assert found == probes.log_probability(graph_of(straight), prompt, 3).value(moved.params)


@pytest.mark.parametrize("end", ["last position", "mean position"])
def test_a_head_that_reads_no_place_for_each_token_is_refused(end):
    case = ends[end]()
    with pytest.raises(ValueError, match="the model has logits at 1 places of a prompt of 3 tokens"):
        probes.log_probability(graph_of(case), case.batch[0][0][:3], 1)
