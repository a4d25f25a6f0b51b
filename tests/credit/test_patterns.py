"""Attention on a pattern and its control, against loops over heads, queries and keys."""

import pytest
import torch
from small_transformers import SMALL, batch, weights
from strategies import graph_of

from devinterp_func import graph
from devinterp_func.credit import patterns, probes

PARAMS, (TOKENS, _), GRAPH = weights(SMALL), batch(SMALL, n=70, context=6), graph_of(SMALL, context=6)


def test_values_and_controls_are_those_of_the_definition():
    pattern = patterns.same_token(TOKENS)
    found = patterns.attention(GRAPH, PARAMS, (TOKENS,), pattern)
    every = graph.attention_patterns(GRAPH, PARAMS, (TOKENS,))
    asked = [(t, q) for t in range(70) for q in range(6) if pattern[t, q].any()]
    assert found.queries == len(asked)
    for layer in range(2):
        for head in range(2):
            marked = [float(every[t][layer, head, q, k]) for t, q in asked for k in range(6) if pattern[t, q, k]]
            assert float(found.value[layer, head]) == pytest.approx(sum(marked) / len(asked))
            at: dict[int, list[float]] = {d: [] for d in range(1, 6)}  # from queries without a marked key
            for t in range(70):
                for q in range(6):
                    for d in range(1, q + 1):
                        if (t, q) not in asked:
                            at[d].append(float(every[t][layer, head, q, q - d]))
            keys = [(q - k) for t, q in asked for k in range(6) if pattern[t, q, k]]
            control = sum(sum(at[d]) / len(at[d]) for d in keys) / len(asked)
            assert float(found.control[layer, head]) == pytest.approx(control)
            above = float(found.value[layer, head]) - control
            assert float(found.above()[layer, head]) == pytest.approx(above)
    probe = probes.attention(GRAPH, (TOKENS,), pattern, 1, 0)
    torch.testing.assert_close(found.value[1, 0], probe.value(PARAMS))


def test_a_head_that_goes_by_distance_alone_is_its_own_control():
    params = {name: torch.zeros_like(w) if "in_proj" in name else w for name, w in PARAMS.items()}  # evenly to the past
    pattern = patterns.previous_token(TOKENS).clone()
    pattern[:, ::2] = False
    found = patterns.attention(GRAPH, params, (TOKENS,), pattern)
    assert repr(found).startswith("HeadAttention of 4 heads over 210 queries; best ")
    expected = sum(1 / (q + 1) for q in (1, 3, 5)) / 3  # even attention falls with the query's place
    torch.testing.assert_close(found.value, torch.full((2, 2), expected, dtype=torch.float64))
    torch.testing.assert_close(found.control, torch.full((2, 2), (1 / 3 + 1 / 5) / 2, dtype=torch.float64))


def test_where_every_query_has_a_key_there_is_no_control():
    short = TOKENS[:, :2]
    found = patterns.attention(graph_of(SMALL, context=2), PARAMS, (short,), patterns.previous_token(short))
    assert torch.isnan(found.control).all() and not torch.isnan(found.value).any()
    assert torch.equal(found.above(), found.value)


def test_a_pattern_without_keys_is_an_error():
    with pytest.raises(ValueError, match="the pattern marks no key"):
        patterns.attention(GRAPH, PARAMS, (TOKENS,), torch.zeros(70, 6, 6, dtype=torch.bool))


@pytest.mark.parametrize("name", patterns.NAMES)
def test_names_are_those_of_the_functions(name):
    ids = {"(": 3, ")": 7}
    expected = {
        "previous": patterns.previous_token(TOKENS),
        "same": patterns.same_token(TOKENS),
        "induction": patterns.induction(TOKENS),
        "bracket": patterns.brackets(TOKENS, 3, 7),
    }
    assert torch.equal(patterns.by_name(name, TOKENS, ids.__getitem__), expected[name])


def test_unknown_patterns_are_named():
    with pytest.raises(ValueError, match="'sideways' is no pattern; there are previous, same, induction, bracket"):
        patterns.by_name("sideways", TOKENS, int)
