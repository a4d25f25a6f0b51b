"""The planted text has the structure it says it has."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from devinterp_func import keys, text


@pytest.fixture(scope="module", params=[{}, {"n_topics": 6, "n_words": 8, "n_common": 3, "n_tokens": 5000}])
def planted(request):
    return text.planted(key=7, **request.param)


def sentences(corpus):
    for stream in corpus[2:5]:
        tokens = corpus.vocab.decode(stream)
        ends = [i + 1 for i, token in enumerate(tokens) if token == "."]
        assert ends[-1] == len(tokens)  # a split ends with a whole document
        yield from (tokens[start:end] for start, end in zip([0, *ends], ends, strict=False))


def test_planted_sizes():
    corpus = text.planted(key=3)
    assert len(corpus.vocab) == 150
    assert 60_000 <= len(corpus.train) < 60_200
    assert 3_333 <= len(corpus.valid) < 3_533 and 3_333 <= len(corpus.test) < 3_533
    assert not any((stream == 0).any() for stream in corpus[2:5])


def test_planted_text_survives_the_tokenizer(planted):
    assert text.tokenize(" ".join(planted.vocab.tokens)) == list(planted.vocab.tokens)


def test_a_leader_is_always_followed_by_its_follower(planted):
    followers = text.planted_bigrams(planted.vocab)
    assert len(followers) == 4 * len(text.planted_topics(planted.vocab))
    for stream in planted[2:5]:
        for before, after in zip(stream.tolist(), stream.tolist()[1:] + [-1], strict=True):
            assert followers.get(before, after) == after


def test_followers_also_occur_alone(planted):
    leaders = {after: before for before, after in text.planted_bigrams(planted.vocab).items()}
    train = planted.train.tolist()
    alone = Counter(b for a, b in zip(train, train[1:], strict=False) if leaders.get(b, a) != a)
    assert set(alone) == set(leaders)


def test_a_sentence_has_one_topic_and_a_document_six_sentences_of_it(planted):
    topic_of = {planted.vocab.tokens[i]: t for t, ids in text.planted_topics(planted.vocab).items() for i in ids}
    topics = [{topic_of[token] for token in sentence if token in topic_of} for sentence in sentences(planted)]
    assert len(topics) % 6 == 0
    for start in range(0, len(topics), 6):
        assert len(set().union(*topics[start : start + 6])) == 1


def test_brackets_pair_up_inside_a_sentence(planted):
    bracketed = 0
    for sentence in sentences(planted):
        assert "".join(token for token in sentence if token in "()") in ("", "()")
        if "(" in sentence:
            bracketed += 1
            assert 2 <= sentence.index(")") - sentence.index("(") - 1 <= 10  # 2 to 5 items, a pair being one
    total = sum(1 for _ in sentences(planted))
    assert abs(bracketed / total - 0.5) < 4 * 0.5 / math.sqrt(total)


def test_topics_partition_the_topic_words(planted):
    topics = text.planted_topics(planted.vocab)
    assert list(topics) == list(range(len(topics)))
    for topic, ids in topics.items():
        assert planted.vocab.decode(ids) == [f"t{topic}w{word:02d}" for word in range(len(ids))]


def test_common_words_follow_zipfs_law():
    corpus = text.planted(key=1)
    numbers = Counter(token for token in corpus.vocab.decode(corpus.train) if token.startswith("c"))
    observed = np.array([numbers[f"c{i:02d}"] for i in range(46)])
    expected = observed.sum() / np.arange(1, 47) / sum(1 / i for i in range(1, 47))
    assert ((observed - expected) ** 2 / expected).sum() < 100  # chi-squared, 45 degrees of freedom: p < 1e-5


def test_planted_is_a_pure_function_of_key():
    first = text.planted(key=5, n_tokens=500)
    torch.manual_seed(1)
    assert text.fingerprint(first) == text.fingerprint(text.planted(key=keys.Key(5), n_tokens=500))
    assert text.fingerprint(first) != text.fingerprint(text.planted(key=6, n_tokens=500))
    assert not torch.equal(first.valid, first.test)


def test_more_planted_text_begins_with_the_same_text():
    less, more = (text.planted(key=5, n_tokens=n) for n in (500, 2000))
    assert less.vocab.decode(less.train) == more.vocab.decode(more.train)[: len(less.train)]


@pytest.mark.parametrize(("name", "value"), [("n_topics", 0), ("n_words", 7), ("n_common", 0), ("n_tokens", 0)])
def test_planted_refuses_impossible_sizes(name, value):
    with pytest.raises(ValueError, match=f"planted: {name} is {value}; it must be at least [18]"):
        text.planted(key=0, **{name: value})
