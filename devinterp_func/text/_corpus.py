"""The corpus: three token streams over one vocabulary, and where the documents of the first begin.

Every corpus is made the same way, by ``from_texts``: the documents of three splits are tokenised one by one and
concatenated. A vocabulary of words is counted on train alone, and what valid and test have beyond it becomes
``<unk>``; a tokenizer of the ``tokenizers`` library is taken as it is.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from devinterp_func.text._subwords import AnyTokenizer, Subwords, read_tokenizer
from devinterp_func.text._vocabulary import Vocab, build_vocab, tokenize

BASIC_ENGLISH = "basic_english"
SPLITS = "train", "valid", "test"
NONE = np.array([], dtype=np.int64)


class Texts(NamedTuple):
    """A corpus before any tokenizer: each split's documents as (name, text)."""

    name: str
    train: list[tuple[str, str]]
    valid: list[tuple[str, str]]
    test: list[tuple[str, str]]
    min_count: int = 1  # rarer words are ``<unk>``


class Documents(NamedTuple):
    """Where the documents of a stream begin; each goes on to where the next one begins, the first begins at 0."""

    starts: Int64[Tensor, "D"]
    names: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Documents({len(self.names):,}: {', '.join(self.names[:3])}{', ...' if len(self.names) > 3 else ''})"


class Corpus(NamedTuple):
    """Three token streams over one vocabulary.

    Args:
        name: for people; not part of the fingerprint.
        vocab: words counted on train, or a tokenizer's.
        train, valid, test: token ids, each split's documents one after the other.
        documents: of train; None where nobody knows them.
    """

    name: str
    vocab: Vocab
    train: Int64[Tensor, "n_train"]
    valid: Int64[Tensor, "n_valid"]
    test: Int64[Tensor, "n_test"]
    documents: Documents | None = None

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {len(getattr(self, split)):,}" for split in SPLITS)
        return f"Corpus({self.name!r}: {len(self.vocab):,} types; tokens: {sizes})"


def from_texts(texts: Texts, tokenizer: AnyTokenizer = BASIC_ENGLISH) -> Corpus:
    """The corpus of three lists of documents.

    Args:
        texts: names and texts.
        tokenizer: ``basic_english``, the path of a ``tokenizer.json``, or what ``train_bpe`` gave.

    Raises:
        FileNotFoundError: no tokenizer is there.
        ValueError: it is none, or a split has no tokens.

    >>> from_texts(Texts("mine", [("a", "the cat"), ("b", "the dog")], [("c", "the")], [("d", "the")])).documents
    Documents(2: a, b)
    """
    if tokenizer == BASIC_ENGLISH:
        vocab, splits = _in_words(texts)
    else:
        vocab = tokenizer if isinstance(tokenizer, Subwords) else read_tokenizer(tokenizer)
        splits = [[vocab.encode(text).numpy() for _, text in getattr(texts, split)] for split in SPLITS]
    for split, parts in zip(SPLITS, splits, strict=True):
        if not sum(map(len, parts)):
            raise ValueError(f"corpus {texts.name!r}: the {split} split has no tokens")
    train, valid, test = (torch.from_numpy(np.concatenate(parts)) for parts in splits)
    documents = _documents([name for name, _ in texts.train], splits[0])
    return Corpus(texts.name, vocab, train, valid, test, documents)


def document_of(documents: Documents, context: int, datum: Int[Tensor, "*n"]) -> Int64[Tensor, "*n"]:
    """The document of each datum's first token, by number.

    Args:
        documents: of the stream.
        context: C, with which ``batches.chunk`` cut it.
        datum: ids of data.

    Raises:
        ValueError: a negative id.

    >>> document_of(Documents(torch.tensor([0, 5]), ("a", "b")), 3, torch.tensor([0, 1, 2]))
    tensor([0, 0, 1])
    """
    if datum.numel() and int(datum.min()) < 0:
        raise ValueError(f"datum holds the id {int(datum.min())}; ids are at least 0")
    return torch.searchsorted(documents.starts, datum.long() * context, right=True) - 1


def fingerprint(corpus: Corpus) -> str:
    """SHA-256 (hex) of the vocabulary and the three streams: equal for equal data, whatever its name or source.

    The whole tokenizer is part of it; documents, which no training sees, are not.
    """
    # surrogatepass: a token may be any str, also one that has no UTF-8
    digest = hashlib.sha256(corpus.vocab.to_json().encode("utf-8", "surrogatepass"))
    for split in SPLITS:
        stream = getattr(corpus, split)
        digest.update(f"\n{len(stream)}\n".encode())
        digest.update(stream.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def pack(corpus: Corpus) -> dict[str, Tensor]:
    """The corpus as tensors, token ids in 32 bits: a run directory holds its text, tokenizer and documents."""
    packed = {"vocab": _as_bytes(corpus.vocab.to_json())} | {split: getattr(corpus, split).int() for split in SPLITS}
    if corpus.documents is not None:
        starts, names = corpus.documents
        packed |= {"document_starts": starts.int(), "document_names": _as_bytes(json.dumps(names, ensure_ascii=False))}
    return packed


def unpack(name: str, tensors: dict[str, Tensor]) -> Corpus:
    """The corpus that ``pack`` packed."""
    written, documents = _as_text(tensors["vocab"]), None
    vocab = Subwords(written) if written.startswith("{") else Vocab(tuple(json.loads(written)))
    if "document_starts" in tensors:
        names = json.loads(_as_text(tensors["document_names"]))
        documents = Documents(tensors["document_starts"].long(), tuple(names))
    train, valid, test = (tensors[split].long() for split in SPLITS)
    return Corpus(name, vocab, train, valid, test, documents)


def _as_bytes(text: str) -> Tensor:
    # surrogatepass: a token may be any str, also one that has no UTF-8
    return torch.frombuffer(bytearray(text.encode("utf-8", "surrogatepass")), dtype=torch.uint8)


def _as_text(tensor: Tensor) -> str:
    return tensor.numpy().tobytes().decode("utf-8", "surrogatepass")


def _in_words(texts: Texts) -> tuple[Vocab, list[list[np.ndarray]]]:
    """The vocabulary of train's words, and each document's ids, by split."""
    table: defaultdict[str, int] = defaultdict()
    table.default_factory = table.__len__  # numbers words as they first occur, at the speed of a dict look-up
    splits = [
        [np.fromiter(map(table.__getitem__, tokenize(text)), dtype=np.int64) for _, text in getattr(texts, split)]
        for split in SPLITS
    ]
    # 0 for words that only valid and test have
    counts = np.bincount(np.concatenate([*splits[0], NONE]), minlength=len(table))
    vocab = build_vocab(dict(zip(table, counts.tolist(), strict=True)), texts.min_count)
    ids = vocab.encode(list(table)).numpy()
    return vocab, [[ids[part] for part in parts] for parts in splits]


def _documents(names: Iterable[str], parts: list[np.ndarray]) -> Documents:
    """Of a stream's parts; those without a token are left out."""
    starts = accumulate(map(len, parts), initial=0)
    found = [(start, name) for start, name, part in zip(starts, names, parts, strict=False) if len(part)]
    return Documents(torch.tensor([start for start, _ in found]), tuple(name for _, name in found))
