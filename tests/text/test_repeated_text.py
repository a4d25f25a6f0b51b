"""Texts that repeat themselves: so many, by a drawn length each, and all else as it was."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import few, some

from devinterp_func import batches, text

SPLITS = ("train", "valid", "test")
PLANTED = text.planted(key=0, n_tokens=3000)
CONTEXTS, SHARES = st.integers(2, 40), st.floats(0.01, 1.0)


@st.composite
def of_one_token_each(draw, context):
    """A corpus in which no token occurs twice, so that whatever repeats was made to."""
    lengths = [draw(st.integers(context + 1, 12 * context)) for _ in SPLITS]
    streams = torch.arange(sum(lengths)).split(lengths)
    return PLANTED._replace(**dict(zip(SPLITS, streams, strict=True)))


@some
@given(data=st.data(), context=CONTEXTS, share=SHARES, key=st.integers(0, 9))
def test_so_many_data_repeat_themselves_and_nothing_else_changes(data, context, share, key):
    before = data.draw(of_one_token_each(context))
    after = text.repeated(before, context, share, key=key)
    assert after.vocab is before.vocab and after.documents is before.documents
    for split in SPLITS:
        old, new = (getattr(corpus, split) for corpus in (before, after))
        assert len(old) == len(new)
        n = (len(old) - 1) // context
        cut = [stream[: n * context].view(n, context) for stream in (old, new)]
        changed = (cut[0] != cut[1]).any(1)
        assert int(changed.sum()) == round(share * n)
        assert torch.equal(old[n * context :], new[n * context :])
        for own, made in zip(cut[0][changed].tolist(), cut[1][changed].tolist(), strict=True):
            length = len(set(made))
            assert max(1, context // 4) <= length <= context // 2
            assert made == [own[i % length] for i in range(context)]
        assert torch.equal(text.period(cut[1]) > 0, changed)


@few
@given(data=st.data(), context=CONTEXTS, share=SHARES)
def test_it_is_a_pure_function_of_the_key(data, context, share):
    before = data.draw(of_one_token_each(context))
    kept = [getattr(before, split).clone() for split in SPLITS]
    one, two = (text.repeated(before, context, share, key=3) for _ in range(2))
    assert text.fingerprint(one) == text.fingerprint(two)
    assert all(torch.equal(getattr(before, split), old) for split, old in zip(SPLITS, kept, strict=True))


def test_keys_and_splits_draw_different_data_and_lengths():
    stream = torch.arange(4001)
    before = PLANTED._replace(train=stream, valid=stream, test=stream)
    one, two = (text.repeated(before, 20, 0.5, key=key) for key in (0, 1))
    periods = [text.period(batches.chunk(x, 20).tokens) for x in (one.train, one.valid, one.test, two.train)]
    assert len({tuple(x.tolist()) for x in periods}) == 4
    assert all(set(x.tolist()) == {0, 5, 6, 7, 8, 9, 10} for x in periods)


@some
@given(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=9))
def test_a_period_is_the_shortest_of_at_most_half(tokens):
    n = len(tokens)
    lengths = [p for p in range(1, n // 2 + 1) if all(tokens[i] == tokens[i - p] for i in range(p, n))]
    assert text.period(torch.tensor([tokens])).tolist() == [min(lengths, default=0)]


@pytest.mark.parametrize(
    ("context", "share", "said"),
    [
        (1, 0.5, "context is 1; to be repeated a datum must have at least 2 tokens"),
        (10, 0.0, "share is 0.0; it must be above 0 and at most 1"),
        (10, 1.5, "share is 1.5"),
        (10, float("nan"), "share is nan"),
    ],
)
def test_what_cannot_be_repeated_is_refused(context, share, said):
    with pytest.raises(ValueError, match=said):
        text.repeated(PLANTED, context, share, key=0)
