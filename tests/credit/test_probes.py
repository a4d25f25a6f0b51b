"""Values of probes by brute force, their gradients by finite differences, patterns by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_transformers import SMALL, batch, weights
from strategies import graph_of, some

from devinterp_func import graph, models, neurons, per_example
from devinterp_func.credit import patterns, probes
from devinterp_func.neurons import Neuron

PARAMS, (TOKENS, TARGETS), GRAPH = weights(SMALL), batch(SMALL, n=4), graph_of(SMALL)
PREVIOUS = patterns.previous_token(TOKENS)
COLUMN, ROW = Neuron("layers.0.linear2.weight", 2), Neuron("layers.1.linear1.weight", 3, "out")
ALL = [
    probes.loss(GRAPH, (TOKENS, TARGETS)),
    probes.log_probability(GRAPH, TOKENS[1], 7),
    probes.effect(GRAPH, COLUMN, 4, (TOKENS,)),
    probes.effect(GRAPH, ROW, 4, (TOKENS,)),
    probes.squared_norm(ROW),
    probes.bigram(GRAPH, 3, 6),
    probes.attention(GRAPH, (TOKENS,), PREVIOUS, 1, 0),
]


@pytest.mark.parametrize("probe", ALL, ids=lambda probe: probe.name)
def test_gradients_are_slopes(probe):
    value, gradient = probe.value_and_grad(PARAMS)
    assert (
        value.ndim == 0
        and gradient.keys() == PARAMS.keys()
        and float(probe.value(PARAMS)) == pytest.approx(float(value))
    )
    way = weights(SMALL, seed=9)
    slope = sum(float((gradient[name] * way[name]).sum()) for name in PARAMS)
    here, there = (
        float(probe.value({name: w + step * way[name] for name, w in PARAMS.items()})) for step in (-1e-5, 1e-5)
    )
    assert slope == pytest.approx((there - here) / 2e-5, rel=1e-4, abs=1e-8)


def test_values_are_the_models():
    logits = torch.stack([models.apply(PARAMS, text, SMALL) for text in TOKENS])
    pairs = zip(TOKENS, TARGETS, strict=True)
    each = torch.stack([models.loss(PARAMS, *pair, SMALL, training=False) for pair in pairs])
    values = {probe.name: probe.value(PARAMS) for probe in ALL}
    torch.testing.assert_close(values["loss"], each.mean())
    torch.testing.assert_close(values["log-probability of 7"], logits[1, -1].log_softmax(0)[7])
    for neuron in (COLUMN, ROW):
        weight = PARAMS[neuron.unit].clone()
        weight[(slice(None), neuron.index) if neuron.axis == "in" else neuron.index] = 0  # a row's bias stays
        without = torch.stack([models.apply({**PARAMS, neuron.unit: weight}, text, SMALL) for text in TOKENS])
        torch.testing.assert_close(values[f"effect of {neuron} on 4"], (logits - without)[..., 4].mean())
    torch.testing.assert_close(values["bigram 6 → 3"], PARAMS["decoder.weight"][3] @ PARAMS["embedding.weight"][6])
    torch.testing.assert_close(values[f"squared norm of {ROW}"], neurons.weights(PARAMS, ROW).norm() ** 2)


def test_the_loss_takes_the_fast_way_to_the_same_gradient():
    fast = probes.loss(GRAPH, (TOKENS, TARGETS)).value_and_grad(PARAMS)[1]

    def one(params, x, y):
        return models.loss(params, x, y, SMALL, training=False)

    each = per_example.grads(one)(PARAMS, TOKENS, TARGETS)
    for name, gradient in fast.items():
        torch.testing.assert_close(gradient, each[name].mean(0))


def test_attention_is_the_mean_over_queries_that_are_asked():
    pattern = torch.zeros(4, 5, 5, dtype=torch.bool)
    pattern[0, 3, 1] = pattern[2, 4, [0, 2]] = True
    found = graph.attention_patterns(GRAPH, PARAMS, (TOKENS,))[:, 1, 0]
    expected = (found[0][3, 1] + found[2][4, 0] + found[2][4, 2]) / 2
    torch.testing.assert_close(probes.attention(GRAPH, (TOKENS,), pattern, 1, 0).value(PARAMS), expected)


texts = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@some
@given(text=texts)
def test_patterns_are_what_their_names_say(text):
    tokens, C = torch.tensor([text]), len(text)
    pairs = [(q, k) for q in range(C) for k in range(q)]
    same = {(q, k) for q, k in pairs if text[q] == text[k]}
    after = {(q, k) for q, k in pairs if k and text[q] == text[k - 1]}
    for pattern, expected in (
        (patterns.previous_token(tokens), {(q, q - 1) for q in range(1, C)}),
        (patterns.same_token(tokens), same),
        (patterns.induction(tokens), after),
    ):
        assert pattern.shape == (1, C, C)
        assert set(map(tuple, pattern[0].nonzero().tolist())) == expected


@some
@given(text=texts)
def test_brackets_pair_as_a_parser_would(text):
    """Token 1 opens, 2 closes: removing innermost pairs until none is left finds the same pairs."""
    found = set(map(tuple, patterns.brackets(torch.tensor([text]), 1, 2)[0].nonzero().tolist()))
    left, expected = [(i, t) for i, t in enumerate(text) if t in (1, 2)], set()
    while inner := [i for i in range(len(left) - 1) if (left[i][1], left[i + 1][1]) == (1, 2)]:
        expected.add((left[inner[0] + 1][0], left[inner[0]][0]))
        del left[inner[0] : inner[0] + 2]
    assert found == expected


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: probes.log_probability(GRAPH, TOKENS[0], 11), r"token 11 is not in the vocabulary; ids are 0\.\.10"),
        (lambda: probes.effect(GRAPH, COLUMN, 11, (TOKENS,)), "token 11 is not in the vocabulary"),
        (lambda: probes.bigram(GRAPH, 3, -1), "input is -1; it must be at least 0"),
        (lambda: probes.bigram(GRAPH, -2, 1), "output is -2; it must be at least 0"),
        (lambda: probes.bigram(GRAPH, 11, 1), r"output is 11; the rows of decoder.weight are 0\.\.10"),
        (lambda: probes.bigram(GRAPH, 1, 11), r"input is 11; the rows of embedding.weight are 0\.\.10"),
        (lambda: probes.log_probability(GRAPH, TOKENS[0], -1), "token -1 is not in the vocabulary"),
        (lambda: probes.attention(GRAPH, (TOKENS,), PREVIOUS, 2, 0), r"layer is 2; it must be in 0\.\.1"),
        (lambda: probes.attention(GRAPH, (TOKENS,), PREVIOUS, 0, 5), r"head is 5; it must be in 0\.\.1"),
        (lambda: probes.attention(GRAPH, (TOKENS,), torch.zeros_like(PREVIOUS), 0, 0), "the pattern marks no key"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
