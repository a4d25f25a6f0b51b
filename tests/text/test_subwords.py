"""Tokenizers of the tokenizers library: what is encoded comes back, and every token can be read."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import few
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from devinterp_func import text
from devinterp_func.text import _subwords

TEXTS = ["The cat sat on the mat.\n", "\tCafé, naïve 字 字 字\n\n", "the the the"] * 5
BPE = text.train_bpe(TEXTS, 280)
ids = st.lists(st.integers(0, 279), max_size=9)


def changed(**fields):
    return text.Subwords(json.dumps(json.loads(BPE.spec) | fields))


def word_level(vocabulary, **options):
    made = Tokenizer(models.WordLevel(vocabulary, **options))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made.to_str()


# ---- encoding


@given(st.text() | st.text("the cat字é \n\t", max_size=40))
def test_a_byte_level_text_comes_back(some):
    encoded = BPE.encode(some)
    assert BPE.text_of(encoded) == BPE.text_of(encoded.tolist()) == some
    assert encoded.dtype == torch.int64 and encoded.ndim == 1


@given(ids)
def test_encode_inverts_decode(some):
    assert BPE.encode(BPE.decode(some)).tolist() == some


@pytest.mark.parametrize("wrong", [-1, 280])
def test_ids_out_of_range_are_refused(wrong):
    for read in (BPE.decode, BPE.text_of):
        with pytest.raises(IndexError, match=f"token id {wrong} is out of range; this vocabulary has ids 0 to 279"):
            read([0, wrong])


def test_nothing_is_added_cut_off_padded_or_left_to_chance():
    loose = Tokenizer.from_str(BPE.spec)
    loose.add_special_tokens(["<s>", "<pad>"])
    loose.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 280)])
    loose.enable_padding(length=50, pad_id=281, pad_token="<pad>")
    loose.enable_truncation(2)
    loose.model.dropout = 0.9
    vocab, written = text.Subwords(loose.to_str()), "the cat sat on the mat"
    assert vocab.encode(written).tolist() == BPE.encode(written).tolist()
    assert vocab.tokens == (*BPE.tokens, "<s>", "<pad>")
    assert vocab.text_of(vocab.encode("<s>the")) == "<s>the" and vocab.encode("<s>the").tolist()[0] == 280


def test_a_tokenizer_of_words_is_taken_too():
    vocab = text.Subwords(word_level({"[UNK]": 0, "the": 1, "é": 2}, unk_token="[UNK]"))
    assert vocab.tokens == ("[UNK]", "the", "é")
    assert vocab.encode("the cat é").tolist() == [1, 0, 2] and len(vocab) == 3


def test_a_text_that_a_tokenizer_has_no_token_for():
    with pytest.raises(ValueError, match="the tokenizer cannot encode this text: .*[Uu][Nn][Kk]"):
        text.Subwords(word_level({"the": 0}, unk_token="[UNK]")).encode("the cat")


# ---- tokens for the eye


@given(st.lists(st.binary(min_size=1, max_size=4) | st.sampled_from([b" ", b"\n", "␣".encode(), b"\\xc3", b"\xc3"])))
def test_every_token_is_one_readable_word_of_its_own(raw):
    names = _subwords._distinct(map(_subwords._shown, raw))
    assert len(names) == len(set(names)) == len(raw)
    assert all(name.isprintable() and name.split() == [name] for name in names)


def test_tokens_by_hand():
    assert {"␣the", "the", "␣cat", "↵", "⇥", "␣字", "\\xc3", "\\x00"} <= set(BPE.tokens)
    assert BPE.decode(BPE.encode("the the\n\u200b\x07")) == ["the", "␣the", "↵", "\\xe2", "\\x80", "\\x8b", "\\x07"]


def test_names_that_look_alike_are_told_apart():
    assert _subwords._distinct(["a", "a", "b", "a#1", "a#1"]) == ("a", "a#1", "b", "a#1#3", "a#1#4")


def test_added_tokens_are_shown_as_they_are():
    spaced = Tokenizer.from_str(BPE.spec)
    spaced.add_tokens([AddedToken("  é"), AddedToken(" the"), AddedToken("ñandú")])
    vocab = text.Subwords(spaced.to_str())
    assert vocab.tokens[280:] == ("␣␣é", "␣the#281", "ñandú")
    assert [vocab.index(token) for token in vocab.tokens] == list(range(283))


@given(st.text())
def test_names_in_bytes_are_the_libraries(some):
    tokens = Tokenizer.from_str(BPE.spec).encode(some).tokens
    assert b"".join(map(_subwords._bytes, tokens)) == some.encode()
    assert set(_subwords.BYTES) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(_subwords.BYTES.values()) == list(range(256))


# ---- index


def test_index_takes_a_token_as_shown_or_as_text():
    assert [BPE.index(token) for token in BPE.tokens] == list(range(280))
    assert BPE.index(" the") == BPE.index("␣the") and BPE.index("\n") == BPE.index("↵") and BPE.index(" 字")


def test_index_says_how_a_word_is_split():
    with pytest.raises(text.UnknownToken) as info:
        BPE.index("the mats")
    assert str(info.value) == (
        "'the mats' is not one of the 280 tokens of this vocabulary: it is split into 'the' '␣mat' 's'"
    )
    with pytest.raises(KeyError, match=r"is split into '\\\\xe5\\\\xad' '\\\\x97'; '␣字' is one$"):
        BPE.index("字")
    with pytest.raises(KeyError, match="nothing is left of it$"):
        BPE.index("")
    with pytest.raises(text.UnknownToken, match="'the mats' is not one"):
        BPE.encode(["␣the", "the mats"])


# ---- training


@few
@given(st.permutations(TEXTS))
def test_the_same_texts_give_the_same_tokenizer(order):
    assert text.train_bpe(iter(order), 280) == BPE


def test_another_process_gives_the_same_tokenizer():
    code = f"from devinterp_func import text; print(text.train_bpe({TEXTS!r}, 280).spec.encode().hex())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"RAYON_NUM_THREADS": "3"})
    assert (ran.stdout.strip(), ran.stderr) == (BPE.spec.encode().hex(), "")


def test_training_refuses_sizes_that_cannot_be():
    with pytest.raises(ValueError, match="size is 255; it must be at least 256, as every byte is a token"):
        text.train_bpe(TEXTS, 255)
    with pytest.raises(ValueError, match="size is 258; these texts give at most 257 tokens"):
        text.train_bpe(["aa"], 258)
    assert len(text.train_bpe([], 256)) == 256


# ---- files


def test_a_file_and_a_directory_with_one_are_read(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(BPE.spec), indent=1), encoding="utf-8")
    for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        found = text.read_tokenizer(path)
        assert found == BPE and hash(found) == hash(BPE)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"no JSON", b"\xff\xfe", b'{"model": 3}'])
def test_what_is_no_tokenizer_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"bad.json: (not a tokenizer of the tokenizers library|.* can't decode)"
    ) as info:
        text.read_tokenizer(tmp_path / "bad.json")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", ["absent.json", "gpt2", "", "."])
def test_a_missing_tokenizer_is_never_looked_for_elsewhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Tokenizer, "from_pretrained", None, raising=False)
    with pytest.raises(FileNotFoundError, match=f"no tokenizer '{name}': give basic_english or the path of a tokeniz"):
        text.read_tokenizer(name)


def test_ids_without_a_token_are_refused():
    with pytest.raises(ValueError, match="no token with the id 1; ids must run from 0 without gaps"):
        text.Subwords(word_level({"a": 0, "b": 2}))
    with pytest.raises(ValueError, match="no token with the id 0"):
        text.Subwords(word_level({}))


def test_the_decoder_says_whether_names_are_in_bytes():
    assert "Ġthe" in changed(decoder=None).tokens and "Ġthe" not in BPE.tokens
    both = {"type": "Sequence", "decoders": [json.loads(BPE.spec)["decoder"]]}
    assert changed(decoder=both).tokens == BPE.tokens


def test_subwords_are_frozen_and_print_short():
    with pytest.raises(AttributeError):
        BPE.spec = ""  # type: ignore[misc]
    assert repr(BPE).startswith("Subwords(280 tokens: ! ") and len(repr(BPE)) < 60
