"""The post's tokenizer and the vocabulary of words."""

import re
import subprocess
import sys
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from devinterp_func import text

words = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=4)
counts = st.dictionaries(words | st.just("<unk>"), st.integers(0, 9), max_size=12)


# ---- tokenizer


@given(st.lists(st.text(), max_size=5))
def test_tokens_of_a_text_are_the_tokens_of_its_lines(lines):
    assert text.tokenize("\n".join(lines)) == [token for line in lines for token in text.tokenize(line)]


@given(st.text())
def test_tokenize_is_torchtexts_basic_english(line):
    from torchtext.data.utils import get_tokenizer

    assert text.tokenize(line) == get_tokenizer("basic_english")(line)


def test_tokenize_by_hand():
    line = ' = Valkyria Chronicles III = \n He said: "Don\'t (really) go; now!"<br />OK? U.S. 12,000 <unk> @-@ '
    assert " ".join(text.tokenize(line)) == (
        "= valkyria chronicles iii = he said don ' t ( really ) go now ! ok ? u . s . 12 , 000 <unk> @-@"
    )


def test_import_is_light_and_tokenizing_silent(tmp_path):
    code = (
        "import sys; from devinterp_func import text;"
        "assert not {'torchtext', 'requests', 'rich', 'platformdirs'} & set(sys.modules), sys.modules;"
        f"sys.pycache_prefix = {str(tmp_path)!r};"  # compiled afresh, as on its first import ever
        "assert text.tokenize('A.') == ['a', '.']"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---- Vocab


@given(counts, st.data())
def test_decode_inverts_encode(counted, data):
    vocab = text.build_vocab(counted)
    ids = data.draw(st.lists(st.integers(0, len(vocab) - 1), max_size=8))
    encoded = vocab.encode(vocab.decode(ids))
    assert encoded.tolist() == ids and encoded.dtype == torch.int64 and encoded.ndim == 1
    assert vocab.decode(encoded) == vocab.decode(ids)
    assert vocab.text_of(encoded) == vocab.text_of(ids) == " ".join(vocab.tokens[i] for i in ids)


@given(counts, st.lists(words))
def test_encode_falls_back_to_unk(counted, some):
    vocab = text.build_vocab(counted)
    expected = [vocab.tokens.index(word) if word in vocab.tokens else 0 for word in some]
    assert vocab.encode(some).tolist() == expected
    assert [word in vocab for word in some] == [word in vocab.tokens for word in some]


def test_encode_tokenizes_a_text():
    vocab = text.Vocab(("<unk>", "the", "cat", "."))
    assert vocab.encode("The cat. A cat").tolist() == [1, 2, 3, 0, 2]
    assert vocab.encode("").shape == (0,)


@given(counts, st.integers())
def test_decode_refuses_ids_out_of_range(counted, number):
    vocab = text.build_vocab(counted)
    if 0 <= number < len(vocab):
        assert vocab.decode([number]) == [vocab.tokens[number]]
    else:
        with pytest.raises(IndexError, match=f"token id {number} is out of range.* ids 0 to {len(vocab) - 1}"):
            vocab.decode([0, number])


@given(counts, words)
def test_index_never_falls_back(counted, word):
    vocab = text.build_vocab(counted)
    if word in vocab:
        assert vocab.tokens[vocab.index(word)] == word
    else:
        with pytest.raises(text.UnknownToken):
            vocab.index(word)


def test_index_names_the_nearest_tokens():
    vocab = text.build_vocab(["season", "seasons", "reason", "football"])
    with pytest.raises(KeyError) as info:
        vocab.index("Seasn")
    assert str(info.value) == (
        "'Seasn' is not among the 5 tokens of this vocabulary; the nearest are 'season', 'seasons', 'reason'"
    )
    with pytest.raises(KeyError, match="none resembles it"):
        vocab.index("zzzz")


@given(counts, st.integers(1, 4))
def test_vocabulary_order(counted, min_count):
    tokens = text.build_vocab(counted, min_count).tokens
    assert tokens[0] == "<unk>"
    ranks = [(-counted[token], token) for token in tokens[1:]]
    assert ranks == sorted(ranks)
    assert set(tokens[1:]) == {token for token in counted if counted[token] >= min_count} - {"<unk>"}


@given(counts)
def test_vocabulary_order_is_torchtexts(counted):
    from torchtext.vocab import Vocab

    theirs = Vocab(Counter(counted), specials=["<unk>"], specials_first=True, min_freq=1)
    assert list(text.build_vocab(counted).tokens) == theirs.itos


@given(st.lists(words, max_size=20))
def test_tokens_and_their_counts_give_the_same_vocabulary(some):
    assert text.build_vocab(some) == text.build_vocab(Counter(some)) == text.build_vocab(iter(some))


def test_vocab_is_frozen_and_checked():
    vocab = text.build_vocab(["a"])
    with pytest.raises(AttributeError):
        vocab.tokens = ("<unk>",)  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"starts with \['a'\]; it must start with '<unk>'"):
        text.Vocab(("a", "<unk>"))
    with pytest.raises(ValueError, match="has 'b' more than once"):
        text.Vocab(("<unk>", "a", "b", "b"))
    with pytest.raises(ValueError, match="min_count is 0; it must be at least 1"):
        text.build_vocab(["a"], min_count=0)


def test_vocab_and_corpus_print_short():
    corpus = text.planted(key=0)
    assert re.fullmatch(r"Vocab\(150 tokens: <unk> ( ?\S+){7} \.\.\.\)", repr(corpus.vocab))
    assert re.fullmatch(r"Corpus\('planted': 150 types; tokens: train 60,\d+, valid 3,\d+, test 3,\d+\)", repr(corpus))
    assert repr(text.Vocab(("<unk>", "a"))) == "Vocab(2 tokens: <unk> a)"


@pytest.mark.parametrize("wrong", [5, None, b"a", 1.0])
def test_tokens_are_strings(unchecked, wrong):
    with pytest.raises(TypeError, match=f"Vocab.tokens holds {wrong!r}; tokens must be strings"):
        text.Vocab(("<unk>", "a", wrong))


def test_a_list_of_tokens_is_frozen(unchecked):
    vocab = text.Vocab(["<unk>", "a"])  # type: ignore[arg-type]
    assert vocab == text.Vocab(("<unk>", "a")) and hash(vocab) == hash(text.Vocab(("<unk>", "a")))
