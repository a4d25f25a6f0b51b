"""Laws of bigram_corpus.py: counts and log-odds against brute force, correlations against scipy, and their controls."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from strategies import SMALL, batch, some, weights

from devinterp_func import bigram_corpus, transformer
from devinterp_func.bigram_corpus import Pairs

V = 5
streams = st.lists(st.integers(0, V - 1), min_size=2, max_size=60).map(torch.tensor)
EVERY = Pairs(torch.arange(V * V) % V, torch.arange(V * V) // V)


@some
@given(stream=streams)
def test_counts_are_those_of_the_neighbours(stream):
    found, words = bigram_corpus.counts(stream, V), stream.tolist()
    expected = Counter(zip(words[:-1], words[1:], strict=True))
    assert bigram_corpus.look_up(found, EVERY).tolist() == [expected[a, b] for a in range(V) for b in range(V)]
    assert found.first.tolist() == [words[:-1].count(v) for v in range(V)]
    assert found.second.tolist() == [words[1:].count(v) for v in range(V)]


@some
@given(stream=streams, alpha=st.floats(0.1, 5))
def test_log_odds_are_the_formula_and_their_probabilities_add_up(stream, alpha):
    found = bigram_corpus.counts(stream, V)
    odds = bigram_corpus.log_odds(found, EVERY, alpha).view(V, V)
    n, total = bigram_corpus.look_up(found, EVERY).view(V, V), len(stream) - 1
    for a in range(V):
        for b in (found.second > 0).nonzero()[:, 0].tolist():
            q = int(found.second[b]) / total
            expected = math.log((int(n[a, b]) + alpha * q) / (int(found.first[a]) + alpha) / q)
            assert float(odds[a, b]) == pytest.approx(expected, abs=1e-9)
    p = found.second.double() / found.second.sum()
    assert (odds.exp() * p).sum(1).tolist() == pytest.approx([1.0] * V)  # p(b | a), over b


@some
@given(stream=streams, least=st.integers(1, 4), m=st.integers(1, 8), key=st.integers(0, 99))
def test_chosen_pairs_occur_or_never_do(stream, least, m, key):
    found = bigram_corpus.counts(stream, V)
    counts = bigram_corpus.look_up(found, EVERY)
    common = bigram_corpus.seen(found, least)
    assert sorted(bigram_corpus.look_up(found, common).tolist()) == sorted(counts[counts >= least].tolist())
    never = bigram_corpus.unseen(found, m, key=key)
    assert len(never.output) <= m and not bigram_corpus.look_up(found, never).any()
    assert len(set(zip(*(x.tolist() for x in never), strict=True))) == len(never.output)
    top = bigram_corpus.characteristic(found, m, least)
    share = bigram_corpus.look_up(found, top) * bigram_corpus.log_odds(found, top)
    assert share.tolist() == sorted(share.tolist(), reverse=True)
    other = bigram_corpus.exchanged(common, key=key)
    assert torch.equal(other.output, common.output)
    assert sorted(other.input.tolist()) == sorted(common.input.tolist())


def test_centred_rows_have_no_mean_in_the_corpus():
    x, n = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(6)
    assert (n.double() @ bigram_corpus.centre(x, n)).abs().max() < 1e-12


def test_one_token_and_mean_logit_are_the_models():
    params, (tokens, _) = weights(SMALL), batch(SMALL, n=70)
    W_U, bias = params["decoder.weight"], params["decoder.bias"]
    read = bigram_corpus.one_token(params, SMALL)
    for token in range(SMALL.vocab_size):
        logits = transformer.apply(params, torch.tensor([token]), SMALL)[0]
        torch.testing.assert_close(W_U @ read[token] + bias, logits)
    logits = torch.cat([transformer.apply(params, one, SMALL) for one in tokens])
    torch.testing.assert_close(bigram_corpus.mean_logit(params, tokens, SMALL), logits.mean(0))


@some
@given(x=st.lists(st.integers(-3, 3), min_size=3, max_size=20), y=st.lists(st.floats(-3, 3), min_size=20, max_size=20))
def test_correlations_are_scipys(x, y):
    a, b = torch.tensor(x, dtype=torch.float64), torch.tensor(y[: len(x)], dtype=torch.float64)
    if a.std() < 1e-6 or b.std() < 1e-6:
        return
    assert bigram_corpus.correlation(a, b) == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-6)
    assert bigram_corpus.rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-6)


def test_weights_that_hold_the_log_odds_fit_and_their_exchange_does_not():
    stream = torch.randint(0, 30, (20_000,), generator=torch.Generator().manual_seed(1)).sqrt().long()
    stream[1::2] = (stream[::2] + 1) % 6
    found, size = bigram_corpus.counts(stream, 6), 6
    every = Pairs(torch.arange(36) % 6, torch.arange(36) // 6)
    odds = bigram_corpus.log_odds(found, every)
    held = 3 * odds.view(size, size)  # input by output
    fit = bigram_corpus.fit_pairs(torch.eye(6, dtype=torch.float64), held, every, odds, key=0)
    assert fit.pearson == pytest.approx(1) and fit.spearman == pytest.approx(1) and fit.slope == pytest.approx(3)
    assert abs(fit.null_pearson) < 0.5 and fit.null_largest < 0.9


def test_a_bias_that_is_the_log_frequency_fits_unigrams():
    n = torch.tensor([9, 0, 3, 100, 5, 1, 17])
    fit = bigram_corpus.fit_tokens(n.clamp(min=1).log() + 2, n, key=0)
    assert fit.pearson == pytest.approx(1) and fit.slope == pytest.approx(1)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda found: bigram_corpus.counts(torch.tensor([0]), V), "the stream has 1 tokens; it must be at least 2"),
        (lambda found: bigram_corpus.counts(torch.tensor([0, 7]), V), r"all in 0\.\.4"),
        (lambda found: bigram_corpus.log_odds(found, EVERY, 0.0), "alpha is 0.0; it must be positive"),
        (lambda found: bigram_corpus.seen(found, 0), "least is 0; it must be at least 1"),
        (
            lambda found: bigram_corpus.fit_pairs(
                torch.eye(V), torch.eye(V), Pairs(EVERY.output[:2], EVERY.input[:2]), torch.ones(2), key=0
            ),
            "there are 2 pairs or tokens to correlate",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(bigram_corpus.counts(torch.tensor([0, 1, 2]), V))
