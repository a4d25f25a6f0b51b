"""Average precision against random tokens of like frequency, held against every set there is."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from devinterp_func import keys, stats

DRAWS = 400


def every_p(scores, relevant, strata):
    """The exact p-value, over all sets of as many tokens of each stratum."""
    rank = torch.empty(len(scores), dtype=torch.int64)
    rank[scores.argsort(descending=True, stable=True)] = torch.arange(1, len(scores) + 1)
    parts = []
    for label in strata.unique():
        tokens = (strata == label).nonzero()[:, 0].tolist()
        parts.append(list(combinations(tokens, int(relevant[tokens].sum()))))

    def precision(tokens):
        ranks = sorted(int(rank[token]) for token in tokens)
        return sum((i + 1) / r for i, r in enumerate(ranks)) / len(ranks)

    sets = [()]
    for part in parts:
        sets = [one + other for one in sets for other in part]
    observed = precision(relevant.nonzero()[:, 0].tolist())
    return sum(precision(tokens) >= observed - 1e-12 for tokens in sets) / len(sets)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(3, 9))
def test_it_is_the_share_of_all_sets_that_are_as_precise(seed, n):
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.permutation(n)).double()
    strata = torch.from_numpy(rng.integers(0, 3, n))
    relevant = torch.from_numpy(rng.random(n) < 0.4)
    p = stats.matched_p_values(scores[None], relevant[None], strata, DRAWS, key=seed)
    if not relevant.any():
        assert bool(p.isnan().all())
        return
    exact = every_p(scores, relevant, strata)
    spread = (exact * (1 - exact) / DRAWS) ** 0.5
    assert abs(float(p) - exact) <= 5 * spread + 2 / DRAWS
    assert 0 < float(p) <= 1


def test_frequency_alone_is_no_finding_and_a_better_ranking_is():
    V, G = 300, 40
    rng = np.random.default_rng(0)
    reference = torch.from_numpy(rng.integers(1, 5000, V))
    strata = (1 + reference).log2().long()
    relevant = torch.from_numpy(rng.random((G, V)) < reference.numpy() / 40_000)
    by_frequency = reference.double().expand(G, V)
    told = by_frequency + 1e6 * (relevant & torch.from_numpy(rng.random((G, V)) < 0.5))
    p_frequency = stats.matched_p_values(by_frequency, relevant, strata, DRAWS, key=1)
    p_told = stats.matched_p_values(told, relevant, strata, DRAWS, key=1)
    there = ~p_told.isnan()
    assert float((p_frequency[there] <= 0.05).double().mean()) < 0.2
    assert float((p_told[there] <= 0.05).double().mean()) > 0.8


@pytest.mark.parametrize(("n", "m"), [(5, 5), (5, 3), (5, 2), (40, 19), (400, 3), (400, 19)])
def test_drawn_tokens_are_different_and_all_as_likely(n, m):
    from devinterp_func.stats._matched import _distinct

    drawn = _distinct(keys.generator(3), np.arange(n) + 7, m, 3000)
    assert drawn.shape == (3000, m) and all(len(set(row)) == m for row in drawn.tolist())
    often = np.bincount(drawn.ravel() - 7, minlength=n) / 3000
    assert np.abs(often - m / n).max() < 6 * (m / n * (1 - m / n) / 3000) ** 0.5 + 1e-9


def test_ties_are_broken_the_same_for_both():
    scores = torch.zeros(200, 6)
    relevant = torch.zeros(200, 6, dtype=torch.bool)
    relevant[:, 2] = True
    p = stats.matched_p_values(scores, relevant, torch.zeros(6, dtype=torch.int64), DRAWS, key=0)
    assert 0.35 < float(p.mean()) < 0.8  # uniform on the sixths


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.lists(st.booleans(), min_size=1, max_size=300), st.integers(1, 30))
def test_draws_end_where_enough_are_as_precise(seed, hits, enough):
    from devinterp_func.stats._matched import _p_value, _sizes

    draws = len(hits)
    parts = torch.tensor(hits).split(list(_sizes(draws, 2**16)))
    found = _p_value(iter(parts), draws, enough)
    where = [d for d in range(draws) if hits[d]]
    expected = enough / (where[enough - 1] + 1) if len(where) >= enough else (1 + len(where)) / (1 + draws)
    assert found == expected
    assert _p_value(iter(parts), draws, None) == (1 + len(where)) / (1 + draws)


def test_an_early_end_leaves_p_values_uniform():
    V, G = 60, 400
    rng = np.random.default_rng(0)
    scores, strata = torch.from_numpy(rng.random((G, V))), torch.arange(V) % 2
    relevant = torch.from_numpy(rng.random((G, V)) < 0.1)
    p = stats.matched_p_values(scores, relevant, strata, 2000, key=1, enough=10)
    p = p[~p.isnan()]
    for level in (0.02, 0.1, 0.5):
        share = float((p <= level).double().mean())
        assert abs(share - level) < 4 * (level / len(p)) ** 0.5
