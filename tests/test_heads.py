"""Laws of heads.py: attention on a pattern against loops over heads, queries and keys."""

import pytest
import torch
from strategies import SMALL, batch, weights

from devinterp_func import heads, probes

PARAMS, (TOKENS, _) = weights(SMALL), batch(SMALL, n=70, context=6)


def test_values_and_controls_are_those_of_the_definition():
    pattern = probes.same_token(TOKENS)
    found = heads.attention(PARAMS, TOKENS, pattern, SMALL)
    every = [probes.heads(PARAMS, text, SMALL) for text in TOKENS]
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
    probe = probes.attention(TOKENS, pattern, 1, 0, SMALL)
    torch.testing.assert_close(found.value[1, 0], probe.value(PARAMS))


def test_a_head_that_goes_by_distance_alone_is_its_own_control():
    params = {name: torch.zeros_like(w) if "in_proj" in name else w for name, w in PARAMS.items()}  # evenly to the past
    pattern = probes.previous_token(TOKENS).clone()
    pattern[:, ::2] = False
    found = heads.attention(params, TOKENS, pattern, SMALL)
    assert repr(found).startswith("Attention of 4 heads over 210 queries")
    expected = sum(1 / (q + 1) for q in (1, 3, 5)) / 3  # even attention falls with the query's place
    torch.testing.assert_close(found.value, torch.full((2, 2), expected, dtype=torch.float64))
    torch.testing.assert_close(found.control, torch.full((2, 2), (1 / 3 + 1 / 5) / 2, dtype=torch.float64))


def test_where_every_query_has_a_key_there_is_no_control():
    found = heads.attention(PARAMS, TOKENS[:, :2], probes.previous_token(TOKENS[:, :2]), SMALL)
    assert torch.isnan(found.control).all() and not torch.isnan(found.value).any()


def test_a_pattern_without_keys_is_an_error():
    with pytest.raises(ValueError, match="the pattern marks no key"):
        heads.attention(PARAMS, TOKENS, torch.zeros(70, 6, 6, dtype=torch.bool), SMALL)
