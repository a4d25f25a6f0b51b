"""Laws of token classes: what the corpus' statistics predict, by loops; losses of each class, position by position."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_builders import PLANTED
from small_transformers import SMALL, weights
from strategies import graph_of, some

from devinterp_func import batches, bigram, keys, models
from devinterp_func.bigram import CLASSES, _classes

V = 6
STREAM = torch.tensor([0, 1] * 30 + [2, 3] * 8 + [2, 0, 4, 5, 4, 5, 4, 5, 4, 5] + [0] * 20)


def class_by_hand(input, output, words, common):
    """The class of a target, from the definition."""
    second = Counter(words[1:])
    commonest = sorted(range(V), key=lambda v: (-second[v], v))[:common]
    if output in commonest:
        return CLASSES.index("unigram")
    n = list(zip(words[:-1], words[1:], strict=True)).count((input, output))
    before = words[:-1].count(input)
    often = before and n / before >= 10 * second[output] / (len(words) - 1) - 1e-12
    return CLASSES.index("bigram" if n >= 5 and often else "neither")


@some
@given(st.lists(st.tuples(st.integers(0, V - 1), st.integers(0, V - 1)), min_size=1, max_size=12), st.integers(1, 3))
def test_classes_are_their_definition(drawn, common):
    columns = torch.tensor(drawn).T[:, None]  # one text
    kinds = bigram.token_classes(columns[0], columns[1], bigram.count_pairs(STREAM, V), common)
    assert kinds.tolist() == [[class_by_hand(a, b, STREAM.tolist(), common) for a, b in drawn]]


def test_a_bigram_occurs_five_times_and_ten_times_as_often_as_by_chance():
    """3 follows 2 in 8 of 9 cases and makes a twelfth of the text; 5 follows 4 always, but four times only."""
    counts = bigram.count_pairs(STREAM, V)
    kinds = bigram.token_classes(torch.tensor([[2, 4, 0, 1]]), torch.tensor([[3, 5, 1, 0]]), counts, 2)
    assert [CLASSES[kind] for kind in kinds[0].tolist()] == ["bigram", "neither", "unigram", "unigram"]
    few = bigram.count_pairs(torch.tensor([2, 3] * 4 + [0] * 90), 4)  # seen four times
    assert bigram.token_classes(torch.tensor([[2]]), torch.tensor([[3]]), few, 1).tolist() == [[2]]
    lifted = bigram.count_pairs(torch.tensor([2, 3] * 5 + [0] * 90), 4)
    assert bigram.token_classes(torch.tensor([[2]]), torch.tensor([[3]]), lifted, 1).tolist() == [[1]]
    common = bigram.count_pairs(torch.tensor([2, 3] * 5 + [0] * 40), 4)  # as often as by chance times nine
    assert bigram.token_classes(torch.tensor([[2]]), torch.tensor([[3]]), common, 1).tolist() == [[2]]


def test_texts_are_drawn_from_the_held_out_ones_with_their_classes():
    data = batches.chunk(PLANTED.valid, 5)
    size = len(PLANTED.vocab)
    texts = bigram.class_texts(data, PLANTED.train, size, m=7, common=10, key=3)
    assert texts.datum.tolist() == keys.permutation(len(data.tokens), key=3)[:7].tolist()
    assert torch.equal(texts.tokens, data.tokens[texts.datum]) and torch.equal(texts.targets, data.targets[texts.datum])
    counts = bigram.count_pairs(PLANTED.train, size)
    assert torch.equal(texts.kind, bigram.token_classes(texts.tokens, texts.targets, counts, 10)) and texts.common == 10
    shares = [sum(kind == i for kind in texts.kind.flatten().tolist()) / texts.kind.numel() for i in range(3)]
    assert texts.share().tolist() == pytest.approx(shares)
    assert repr(texts) == f"7 texts: unigram {shares[0]:.0%}, bigram {shares[1]:.0%}, neither {shares[2]:.0%}"


@pytest.mark.parametrize("at_once", [2, 20])
def test_losses_are_means_over_each_classs_positions(monkeypatch, at_once):
    monkeypatch.setattr(_classes, "AT_ONCE", at_once)
    params, generator = weights(SMALL), torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(0, SMALL.vocab_size, (2, 5, 4), generator=generator)
    kind = torch.randint(0, 2, (5, 4), generator=generator)  # none is of the third class
    texts = bigram.ClassTexts(torch.arange(5), tokens, targets, kind, 10)
    each: dict[int, list[float]] = {0: [], 1: []}
    for j in range(5):
        logits = models.apply(params, tokens[j], SMALL)
        for c in range(4):
            each[int(kind[j, c])].append(float(logits[c].logsumexp(0) - logits[c, targets[j, c]]))
    found = bigram.class_losses(graph_of(SMALL, context=4), params, texts).tolist()
    assert found[:2] == pytest.approx([sum(each[i]) / len(each[i]) for i in range(2)]) and math.isnan(found[2])


@pytest.mark.parametrize("common", [0, V + 1])
def test_common_out_of_range_is_named(common):
    tokens = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"common is {common}; it must be from 1 to V = {V}"):
        bigram.token_classes(tokens, tokens, bigram.count_pairs(STREAM, V), common)
