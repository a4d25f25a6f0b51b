"""Laws of the weights' correlations with the corpus: against scipy and the model token by token, and their controls."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from small_transformers import SMALL, batch, weights
from strategies import graph_of, some

from devinterp_func import bigram, graph, keys, models, stats
from devinterp_func.bigram import Pairs, _correlations

STREAM = torch.randint(0, SMALL.vocab_size**2, (400,), generator=torch.Generator().manual_seed(2)).sqrt().long()
COUNTS = bigram.count_pairs(STREAM.clamp(min=1), SMALL.vocab_size)  # token 0 does not occur


def test_centred_rows_have_no_mean_in_the_corpus():
    x, n = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(6)
    centred = _correlations.centre(x, n)
    assert (n.double() @ centred).abs().max() < 1e-12
    torch.testing.assert_close(centred[1:] - centred[:-1], x[1:] - x[:-1])  # nothing but a shift


def test_one_token_and_mean_logit_are_the_models():
    params, (tokens, _) = weights(SMALL), batch(SMALL, n=70)
    W_U, bias = params["decoder.weight"], params["decoder.bias"]
    read = _correlations.one_token(graph_of(SMALL), params)
    for token in range(SMALL.vocab_size):
        logits = models.apply(params, torch.tensor([token]), SMALL)[0]
        torch.testing.assert_close(W_U @ read[token] + bias, logits)
    logits = torch.cat([models.apply(params, one, SMALL) for one in tokens])
    torch.testing.assert_close(_correlations.mean_logit(graph_of(SMALL), params, tokens), logits.mean(0))


@some
@given(x=st.lists(st.integers(-3, 3), min_size=3, max_size=20), y=st.lists(st.floats(-3, 3), min_size=20, max_size=20))
def test_correlations_are_scipys(x, y):
    a, b = torch.tensor(x, dtype=torch.float64), torch.tensor(y[: len(x)], dtype=torch.float64)
    assume(a.std() > 1e-6 and b.std() > 1e-6)
    assert stats.correlation(a, b) == pytest.approx(scipy_stats.pearsonr(a, b).statistic, abs=1e-6)
    assert stats.rank_correlation(a, b) == pytest.approx(scipy_stats.spearmanr(a, b).statistic, abs=1e-6)


def test_weights_that_hold_the_log_odds_fit_and_their_shuffle_does_not():
    stream = torch.randint(0, 30, (20_000,), generator=torch.Generator().manual_seed(1)).sqrt().long()
    stream[1::2] = (stream[::2] + 1) % 6
    counts, size = bigram.count_pairs(stream, 6), 6
    every = Pairs(torch.arange(36) % 6, torch.arange(36) // 6)
    odds = bigram.pair_log_odds(counts, every)
    held = 3 * odds.view(size, size)  # input by output
    fit = _correlations.fit_pairs(torch.eye(6, dtype=torch.float64), held, every, odds, key=0)
    assert fit.pearson == pytest.approx(1) and fit.spearman == pytest.approx(1) and fit.slope == pytest.approx(3)
    assert abs(fit.shuffled_pearson) < 0.5 and fit.shuffled_largest < 0.9
    other = _correlations.fit_pairs(torch.eye(6, dtype=torch.float64), -held, every, odds, key=0)
    assert other.pearson == pytest.approx(-1) and other.slope == pytest.approx(-3)
    assert other.shuffled_pearson == pytest.approx(-fit.shuffled_pearson)
    assert other.shuffled_largest == pytest.approx(fit.shuffled_largest) and fit.shuffled_largest > 0


def test_controls_are_means_over_each_shuffle():
    pairs = Pairs(torch.tensor([0, 1, 2, 3, 1]), torch.tensor([3, 2, 0, 1, 1]))
    generator = torch.Generator().manual_seed(0)
    U, E, y = (torch.randn(*shape, generator=generator).double() for shape in ((4, 3), (4, 3), (5,)))
    fit = _correlations.fit_pairs(U, E, pairs, y, key=5, draws=4)
    pearson, spearman = [], []
    for draw in range(4):
        one = _correlations.fit_pairs(U, E, bigram.shuffled_pairs(pairs, key=keys.fold_in(5, draw)), y, key=0)
        pearson.append(one.pearson)
        spearman.append(one.spearman)
    expected = (sum(pearson) / 4, sum(spearman) / 4, max(map(abs, pearson)))
    assert fit[3:] == pytest.approx(expected, abs=1e-6)


def test_a_bias_that_is_the_log_frequency_fits_unigrams():
    n = torch.tensor([9, 0, 3, 100, 5, 1, 17])
    x = n.clamp(min=1).log() + 2
    x[1] = 1e6  # a token that does not occur takes no part
    fit = _correlations.fit_tokens(x, n, key=0)
    assert fit.pearson == pytest.approx(1) and fit.slope == pytest.approx(1) and fit.shuffled_largest < 1


def test_every_correlation_is_that_of_its_measure_by_hand():
    """Each published number against loops over tokens and pairs."""
    params, (tokens, _) = weights(SMALL), batch(SMALL, n=4)
    V, d = SMALL.vocab_size, SMALL.d_model
    sets = bigram.pair_sets(COUNTS, 2, 30, key=1)
    every = bigram.correlations(graph_of(SMALL), params, COUNTS, sets, tokens, key=0)
    found = {(c.measure, c.among): c for c in every}
    U, E, bias = params["decoder.weight"], params["embedding.weight"] * math.sqrt(d), params["decoder.bias"]
    logits = torch.cat([models.apply(params, one, SMALL) for one in tokens]).mean(0)
    after = [sum(int(COUNTS.first[a]) * float(U[b] @ E[a]) for a in range(V)) for b in range(V)]
    occurs = COUNTS.second > 0
    frequency = COUNTS.second[occurs].double().log()
    for measure, x in (
        ("unembedding bias", bias),
        ("mean logit", logits),
        ("mean of the direct path", torch.tensor(after) / float(COUNTS.first.sum())),
    ):
        one, x = found.pop((measure, "tokens that occur")), x[occurs]
        assert one.n == V - 1
        assert one.fit.pearson == pytest.approx(scipy_stats.pearsonr(x, frequency).statistic, abs=1e-6)
        assert one.fit.spearman == pytest.approx(scipy_stats.spearmanr(x, frequency).statistic, abs=1e-6)
        assert one.fit.slope == pytest.approx(scipy_stats.linregress(frequency, x).slope, abs=1e-6)

    def less_mean(x, n):
        return x - sum(int(n[v]) * x[v] for v in range(V)) / int(n.sum())

    single = graph_of(SMALL, context=1)
    alone = torch.stack([graph.streams(single, params, (torch.tensor([[v]]),))[0, 0] for v in range(V)])
    ways = {
        "direct path": (U, E),
        "direct path, centred": (less_mean(U, COUNTS.second), less_mean(E, COUNTS.first)),
        "whole model, centred": (less_mean(U, COUNTS.second), less_mean(alone, COUNTS.first)),
    }
    for measure, (left, right) in ways.items():
        for among, pairs in sets.items():
            entry = [float(left[b] @ right[a]) for b, a in zip(*(x.tolist() for x in pairs), strict=True)]
            one, odds = found.pop((measure, among)), bigram.pair_log_odds(COUNTS, pairs)
            assert one.n == len(entry)
            assert one.fit.spearman == pytest.approx(scipy_stats.spearmanr(entry, odds).statistic, abs=1e-6)
            assert one.fit.slope == pytest.approx(scipy_stats.linregress(odds, entry).slope, abs=1e-6)
    assert not found


def test_the_sets_are_the_corpus_pairs_and_these_with_unseen_ones():
    seen, both = bigram.pair_sets(COUNTS, 2, 30, key=1).values()
    n = bigram.pair_counts(COUNTS, both)
    assert bool((bigram.pair_counts(COUNTS, seen) >= 2).all()) and len(seen.output) == int((COUNTS.times >= 2).sum())
    assert torch.equal(n[: len(seen.output)], bigram.pair_counts(COUNTS, seen))
    assert 0 < len(both.output) - len(seen.output) <= 30 and not n[len(seen.output) :].any()


def test_too_few_pairs_are_named():
    two = Pairs(torch.tensor([0, 1]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="there are 2 pairs or tokens to correlate; there must be at least 3"):
        _correlations.fit_pairs(torch.eye(5), torch.eye(5), two, torch.ones(2), key=0)
