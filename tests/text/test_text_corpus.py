"""The corpus: what is packed comes back, and documents partition the training stream."""

import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import few

from devinterp_func import batches, text
from devinterp_func.text import Corpus, Documents, Texts

ODD = ["\n", "a\nb", "", " ", "\0", "\ud800", "\udc00", "\ud83d\ude00", "\U0001f600", '"', "\\n", "\u2028", "<unk>\n"]
words = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=4)
counts = st.dictionaries(words | st.just("<unk>"), st.integers(0, 9), max_size=12)
BPE = text.train_bpe(["The cat sat on the mat.\n", "= The dog =\n"] * 4, 270)
ONE = torch.tensor([0])
HELD_OUT = [("held out", "the cat")]
written = st.lists(st.tuples(st.text(max_size=3), st.text("at c.\n", max_size=9)), min_size=1, max_size=6)


@pytest.fixture(params=["basic_english", BPE], ids=["words", "subwords"])
def tokenizer(request):
    return request.param


# ---- streams, fingerprints, packing


def test_the_vocabulary_is_counted_on_train_alone(tmp_path):
    (tmp_path / "a.txt").write_text("b a c\nc\n\nnew c\nodd\n", encoding="utf-8")
    corpus = text.from_file(tmp_path / "a.txt")
    assert corpus.name == "a.txt"
    assert corpus.vocab.tokens == ("<unk>", "c", "a", "b")
    assert [stream.tolist() for stream in corpus[2:5]] == [[3, 2, 1, 1], [0, 1], [0]]


def test_fingerprint_by_hand():
    vocab = text.Vocab(("<unk>", "é", 'q"'))
    streams = [np.array(ids, dtype="<i8") for ids in ([1, 2, 2], [0], [2, 1])]
    parts = [json.dumps(vocab.tokens, ensure_ascii=False).encode()]
    for stream in streams:
        parts += [f"\n{len(stream)}\n".encode(), stream.tobytes()]
    train, valid, test = map(torch.from_numpy, streams)
    corpus = text.Corpus("x", vocab, train, valid, test)
    assert text.fingerprint(corpus) == hashlib.sha256(b"".join(parts)).hexdigest()


@given(st.integers(0, 3), st.integers(0, 3))
def test_fingerprint_tells_corpora_apart_but_not_names(i, j):
    vocab, other = text.Vocab(("<unk>", "a", "b")), text.Vocab(("<unk>", "b", "a"))
    one, two, empty = torch.tensor([1]), torch.tensor([1, 1]), torch.tensor([], dtype=torch.int64)
    corpora = [(vocab, one, two, one), (vocab, two, one, one), (other, one, two, one), (vocab, two, two, empty)]
    same = text.fingerprint(text.Corpus("x", *corpora[i])) == text.fingerprint(text.Corpus("y", *corpora[j]))
    assert same == (i == j)


def test_fingerprint_takes_any_string_and_any_stride():
    vocab = text.Vocab(("<unk>", "\ud800"))
    stream = torch.tensor([0, 9, 1, 9])[::2]
    strided, plain = (text.Corpus("x", vocab, s, s, s) for s in (stream, stream.contiguous()))
    assert text.fingerprint(strided) == text.fingerprint(plain)


@given(counts, st.data())
def test_unpack_inverts_pack(counted, data):
    vocab = text.build_vocab(counted)
    ids = st.lists(st.integers(0, len(vocab) - 1), max_size=8)
    train, valid, test = (torch.tensor(data.draw(ids), dtype=torch.int64) for _ in range(3))
    corpus = text.Corpus("x", vocab, train, valid, test)
    packed = text.pack(corpus)
    again = text.unpack("x", packed)
    assert {name: tensor.dtype for name, tensor in packed.items()} == (
        {"vocab": torch.uint8} | dict.fromkeys(("train", "valid", "test"), torch.int32)
    )
    assert again.name == "x" and again.vocab == vocab
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(corpus[2:5], again[2:5], strict=True))
    assert text.fingerprint(again) == text.fingerprint(corpus)


any_tokens = st.lists(st.text(st.characters(), max_size=3) | st.sampled_from(ODD), max_size=8, unique=True)


@given(any_tokens)
def test_any_strings_survive_being_packed(tokens):
    vocab = text.Vocab(("<unk>", *(token for token in tokens if token != "<unk>")))
    packed = text.pack(text.Corpus("x", vocab, ONE, ONE, ONE))
    assert text.unpack("x", packed).vocab.tokens == vocab.tokens


def test_odd_strings_survive_being_packed():
    vocab = text.Vocab(("<unk>", *ODD))
    assert text.unpack("x", text.pack(text.Corpus("x", vocab, ONE, ONE, ONE))).vocab == vocab


@pytest.mark.parametrize("documents", [None, Documents(torch.tensor([0, 2]), ("a\ud800", ""))])
def test_a_tokenizer_and_documents_survive_being_packed(documents):
    train = BPE.encode("the cat sat.")
    corpus = Corpus("x", BPE, train, train[:3], train[1:], documents)
    again = text.unpack("x", {name: tensor.clone() for name, tensor in text.pack(corpus).items()})
    assert again.vocab == BPE and again.vocab.encode("on the dog").tolist() == BPE.encode("on the dog").tolist()
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(corpus[2:5], again[2:5], strict=True))
    assert text.fingerprint(again) == text.fingerprint(corpus)
    if documents is None:
        assert again.documents is None and set(text.pack(corpus)) == {"vocab", "train", "valid", "test"}
    else:
        assert again.documents is not None and again.documents.names == documents.names
        assert torch.equal(again.documents.starts, documents.starts) and again.documents.starts.dtype == torch.int64


def test_the_fingerprint_has_all_of_the_tokenizer_and_nothing_of_its_file():
    stream, fields = torch.tensor([1, 2]), json.loads(BPE.spec)
    indented = text.Subwords(json.dumps(fields, indent=2))
    fields["pre_tokenizer"]["add_prefix_space"] = True
    other = text.Subwords(json.dumps(fields))
    assert other.tokens == BPE.tokens  # the same tokens, but texts are split into others
    marks = [text.fingerprint(Corpus("x", vocab, stream, stream, stream)) for vocab in (BPE, indented, other)]
    assert marks[0] == marks[1] != marks[2]


def test_documents_are_not_in_the_fingerprint():
    corpus = text.planted(key=0, n_tokens=200)
    assert corpus.documents is not None
    assert text.fingerprint(corpus) == text.fingerprint(corpus._replace(documents=None))


def test_a_corpus_of_subwords_is_the_encoded_documents():
    train = [("a", "The cat\n"), ("b", ""), ("c", "sat on\n")]
    corpus = text.from_texts(Texts("x", train, HELD_OUT, [("t", "dog")]), BPE)
    assert corpus.vocab is BPE and BPE.text_of(corpus.train) == "The cat\nsat on\n"
    assert torch.equal(corpus.valid, BPE.encode("the cat")) and torch.equal(corpus.test, BPE.encode("dog"))


@pytest.mark.parametrize("empty", ["train", "valid", "test"])
@pytest.mark.parametrize("documents", [[], [("a", "")]])
def test_every_split_needs_tokens(tokenizer, empty, documents):
    texts = Texts("x", HELD_OUT, HELD_OUT, HELD_OUT)._replace(**{empty: documents})
    with pytest.raises(ValueError, match=f"corpus 'x': the {empty} split has no tokens"):
        text.from_texts(texts, tokenizer)


# ---- documents


@few
@given(written, st.sampled_from(["basic_english", BPE]))
def test_documents_partition_the_stream(documents, way):
    assume(any(text.tokenize(part) for _, part in documents))
    corpus = text.from_texts(Texts("x", documents, HELD_OUT, HELD_OUT), way)
    found, each = corpus.documents, [(name, corpus.vocab.encode(part)) for name, part in documents]
    full = [(name, ids) for name, ids in each if len(ids)]
    assert found is not None and list(found.names) == [name for name, _ in full]
    parts = corpus.train.tensor_split(found.starts[1:])
    assert found.starts[0] == 0 and found.starts.dtype == torch.int64 and len(parts) == len(full)
    assert all(torch.equal(part, ids) for part, (_, ids) in zip(parts, full, strict=True))


@given(st.lists(st.integers(1, 7), min_size=1, max_size=8), st.integers(1, 6))
def test_document_of_equals_a_scan(lengths, context):
    owner = [i for i, length in enumerate(lengths) for _ in range(length)]
    starts = torch.tensor([owner.index(i) for i in range(len(lengths))])
    documents = Documents(starts, tuple(map(str, range(len(lengths)))))
    ids = torch.arange((len(owner) - 1) // context).flip(0)
    expected = [owner[int(datum) * context] for datum in ids]
    assert text.document_of(documents, context, ids).tolist() == expected
    assert text.document_of(documents, context, ids.int()[:, None]).tolist() == [[i] for i in expected]


def test_a_datum_begins_in_its_document():
    corpus = text.planted(key=0, n_tokens=3000)
    data, topics = batches.chunk(corpus.train, 10), text.planted_topics(corpus.vocab)
    assert corpus.documents is not None
    of = text.document_of(corpus.documents, 10, torch.arange(len(data.tokens)))
    for row, document in zip(data.tokens[:, 0].tolist(), of.tolist(), strict=True):
        topic = int(corpus.documents.names[document].rpartition(" ")[2])
        assert row in topics[topic] or row not in {id for ids in topics.values() for id in ids}


def test_document_of_refuses_negative_ids():
    with pytest.raises(ValueError, match="datum holds the id -1; ids are at least 0"):
        text.document_of(Documents(torch.tensor([0]), ("a",)), 3, torch.tensor([0, -1]))


def test_documents_print_short():
    assert repr(Documents(torch.arange(4000), tuple("abcd" * 1000))) == "Documents(4,000: a, b, c, ...)"
    assert repr(Documents(torch.arange(1), ("a",))) == "Documents(1: a)"
