"""Laws of the corpus' pairs: counts and log-odds against brute force, and the pairs that are chosen by them."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import some

from devinterp_func import bigram
from devinterp_func.bigram import Pairs, _follow

V = 5
streams = st.lists(st.integers(0, V - 1), min_size=2, max_size=60).map(torch.tensor)
EVERY = Pairs(torch.arange(V * V) % V, torch.arange(V * V) // V)


def listed(pairs):
    """Pairs as (input, output)."""
    return list(zip(pairs.input.tolist(), pairs.output.tolist(), strict=True))


@some
@given(stream=streams)
def test_counts_are_those_of_the_neighbours(stream):
    counts, words = bigram.count_pairs(stream, V), stream.tolist()
    expected = Counter(zip(words[:-1], words[1:], strict=True))
    assert bigram.pair_counts(counts, EVERY).tolist() == [expected[a, b] for a in range(V) for b in range(V)]
    assert counts.first.tolist() == [words[:-1].count(v) for v in range(V)]
    assert counts.second.tolist() == [words[1:].count(v) for v in range(V)]
    assert repr(counts) == f"PairCounts of {len(words) - 1} pairs, {len(expected)} of them different"


@some
@given(stream=streams, alpha=st.floats(0.1, 5))
def test_log_odds_are_the_formula_and_their_probabilities_add_up(stream, alpha):
    counts = bigram.count_pairs(stream, V)
    odds = bigram.pair_log_odds(counts, EVERY, alpha).view(V, V)
    n, total = bigram.pair_counts(counts, EVERY).view(V, V), len(stream) - 1
    for a in range(V):
        for b in (counts.second > 0).nonzero()[:, 0].tolist():
            q = int(counts.second[b]) / total
            expected = math.log((int(n[a, b]) + alpha * q) / (int(counts.first[a]) + alpha) / q)
            assert float(odds[a, b]) == pytest.approx(expected, abs=1e-9)
    p = counts.second.double() / counts.second.sum()
    assert (odds.exp() * p).sum(1).tolist() == pytest.approx([1.0] * V)  # p(b | a), over b


@some
@given(stream=streams, least=st.integers(1, 4))
def test_seen_pairs_are_those_that_occur_so_often_in_order(stream, least):
    expected = Counter(zip(stream.tolist()[:-1], stream.tolist()[1:], strict=True))
    seen = bigram.seen_pairs(bigram.count_pairs(stream, V), least)
    assert listed(seen) == sorted(pair for pair, n in expected.items() if n >= least)


@some
@given(stream=streams, m=st.integers(1, 8), key=st.integers(0, 99))
def test_unseen_pairs_never_occur_and_none_is_there_twice(stream, m, key):
    counts = bigram.count_pairs(stream, V)
    never = listed(bigram.unseen_pairs(counts, m, key=key))
    there = set(zip(stream.tolist()[:-1], stream.tolist()[1:], strict=True))
    assert len(never) <= m and not there & {*never} and len({*never}) == len(never)
    assert all(counts.first[a] > 0 and counts.second[b] > 0 for a, b in never)


@some
@given(stream=streams, least=st.integers(1, 4), m=st.integers(1, 8))
def test_characteristic_pairs_have_the_largest_shares_of_mutual_information(stream, least, m):
    words = stream.tolist()
    n, total = Counter(zip(words[:-1], words[1:], strict=True)), len(words) - 1
    first, second = Counter(words[:-1]), Counter(words[1:])

    def share(pair):
        a, b = pair
        q = second[b] / total
        return n[pair] * math.log((n[pair] + q) / (first[a] + 1) / q)

    top = listed(bigram.characteristic_pairs(bigram.count_pairs(stream, V), m, least))
    expected = sorted((share(pair) for pair in n if n[pair] >= least), reverse=True)[:m]
    assert [share(pair) for pair in top] == pytest.approx(expected)
    assert all(n[pair] >= least for pair in top) and len({*top}) == len(top)


def test_a_frequent_pair_is_more_characteristic_than_a_rare_one_with_larger_odds():
    """0 -> 1 nine times with log-odds of about 0.7; 2 -> 3 once with about 1.5."""
    counts = bigram.count_pairs(torch.tensor([0, 1] * 9 + [2, 3]), 4)
    odds = bigram.pair_log_odds(counts, Pairs(torch.tensor([1, 3]), torch.tensor([0, 2])))
    assert odds[1] > odds[0]
    assert listed(bigram.characteristic_pairs(counts, 1, 1)) == [(0, 1)]


@some
@given(stream=streams, key=st.integers(0, 99))
def test_shuffled_pairs_keep_both_tokens_frequencies(stream, key):
    pairs = Pairs(stream[1:], stream[:-1])
    shuffled = bigram.shuffled_pairs(pairs, key=key)
    assert torch.equal(shuffled.output, pairs.output)
    assert sorted(shuffled.input.tolist()) == sorted(pairs.input.tolist())
    long = Pairs(torch.arange(100), torch.arange(100))
    assert not torch.equal(bigram.shuffled_pairs(long, key=key).input, long.input)


# ---- what a walk follows


@some
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4))), st.integers(0, 8), st.integers(1, 3))
def test_spaced_pairs_stand_once_and_each_token_so_many_times(drawn, most, each):
    pairs = Pairs(
        *(torch.tensor(column, dtype=torch.int64) for column in ([b for _, b in drawn], [a for a, _ in drawn]))
    )
    places = _follow.spaced(pairs, most, each)
    kept = [drawn[i] for i in places]
    assert places == sorted(places) and len(places) <= most and len({*kept}) == len(kept)
    for i, (a, b) in enumerate(drawn):  # each that is left out has a reason among those before it
        before = [drawn[j] for j in places if j < i]
        full = [x for x, _ in before].count(a) >= each or [y for _, y in before].count(b) >= each
        assert (i in places) != ((a, b) in before or full or len(before) >= most)


def test_a_walk_follows_characteristic_pairs_the_same_shuffled_and_single_ones():
    stream = torch.tensor([0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 4, 0, 2, 4])
    counts = bigram.count_pairs(stream, V)
    followed = bigram.follow(counts, group=3, least=2, key=0)
    top = bigram.characteristic_pairs(counts, 3, 2)
    assert listed(followed.pairs.take(followed.group())) == listed(top)
    shuffled = followed.pairs.take(followed.shuffled())
    assert shuffled.output.tolist() == top.output.tolist()
    assert sorted(shuffled.input.tolist()) == sorted(top.input.tolist())
    single = [listed(followed.pairs)[i] for i in followed.single()]
    tokens = [a for a, _ in single], [b for _, b in single]
    assert single[0] == listed(top)[0] and all(len({*column}) == len(column) for column in tokens)
    named = bigram.follow(counts, [(4, 1), (0, 0)], group=0, least=2, key=0)
    assert listed(named.pairs) == [(4, 1), (0, 0)] and list(named.single()) == [0, 1]
    with pytest.raises(ValueError, match="no pair of tokens occurs 9 times; the commonest 3 times"):
        bigram.follow(counts, least=9, key=0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda counts: bigram.count_pairs(torch.tensor([0]), V), "the stream has 1 tokens; it must have at least 2"),
        (lambda counts: bigram.count_pairs(torch.tensor([0, 7]), V), r"hold the id 7; ids must be in 0\.\.4"),
        (lambda counts: bigram.pair_log_odds(counts, EVERY, 0.0), "alpha is 0.0; it must be positive"),
        (lambda counts: bigram.seen_pairs(counts, 0), "least is 0; it must be at least 1"),
        (
            lambda counts: bigram.pair_counts(counts, Pairs(EVERY.output + 1, EVERY.input)),
            "output has tokens from 1 to 5",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(bigram.count_pairs(torch.tensor([0, 1, 2]), V))
