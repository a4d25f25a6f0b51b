"""Vocabularies of the ``tokenizers`` library: byte-level BPE trained here, or any local ``tokenizer.json``.

A tokenizer is its JSON: that is what a run stores, so it needs no file beside it, and nothing is ever downloaded.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Int64
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from devinterp_func.text._vocabulary import UnknownToken, Vocab

SIGNS = {" ": "␣", "\n": "↵", "\t": "⇥"}
KEPT = (*range(33, 127), *range(161, 173), *range(174, 256))  # bytes that byte-level tokenizers write as themselves
MOVED = (byte for byte in range(256) if byte not in KEPT)  # the others are written as the characters from 256 on
BYTES = {chr(byte): byte for byte in KEPT} | {chr(256 + i): byte for i, byte in enumerate(MOVED)}


@dataclass(frozen=True, repr=False)
class Subwords(Vocab):
    """Tokens of a tokenizer of the ``tokenizers`` library; special tokens are never added.

    ``tokens`` are for the eye: a space is ``␣``, a newline ``↵``, a tab ``⇥``, and what cannot be printed, such as one
    byte of a character of several, an escape like ``\\xc3``. No two tokens look the same.

    Args:
        spec: the content of a ``tokenizer.json``. Padding, truncation and a BPE's dropout are left out of account.

    Raises:
        ValueError: it is none, or some id below the largest has no token.

    >>> vocab = train_bpe(["the cat sat on the mat\\n"] * 9, size=264)
    >>> vocab.decode(vocab.encode("the mat\\n")), vocab.text_of(vocab.encode("cats, the cat"))
    (['the', '␣', 'mat', '↵'], 'cats, the cat')
    """

    tokens: tuple[str, ...] = field(init=False)
    spec: str

    def __post_init__(self) -> None:
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        if gaps := set(range(max(ids.values(), default=0) + 1)) - set(ids.values()):
            raise ValueError(f"the tokenizer has no token with the id {min(gaps)}; ids must run from 0 without gaps")
        fields = json.loads(self.spec)
        added = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        in_bytes = "ByteLevel" in json.dumps(fields["decoder"])
        names = sorted(ids, key=ids.__getitem__)
        raw = (_bytes(name) if in_bytes and name not in added else name.encode() for name in names)
        object.__setattr__(self, "tokens", _distinct(map(_shown, raw)))
        object.__setattr__(self, "spec", json.dumps(fields, ensure_ascii=False, separators=(",", ":")))

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        try:
            tokenizer = Tokenizer.from_str(self.spec)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"not a tokenizer of the tokenizers library: {error}") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if getattr(tokenizer.model, "dropout", None):
            tokenizer.model.dropout = None
        return tokenizer

    def encode(self, words: str | Iterable[str]) -> Int64[Tensor, "n"]:
        """Ids of a text, or of tokens as they are shown.

        Raises:
            UnknownToken: one of the tokens is none.
            ValueError: the tokenizer has no token for a part of the text, and no unknown token.
        """
        if not isinstance(words, str):
            return torch.tensor([self.index(word) for word in words], dtype=torch.int64)
        try:
            ids = self._tokenizer.encode(words, add_special_tokens=False).ids
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"the tokenizer cannot encode this text: {error}") from error
        return torch.tensor(ids, dtype=torch.int64)

    def text_of(self, ids: Int64[Tensor, "n"] | Iterable[int]) -> str:
        """The text that ids stand for; of a byte-level tokenizer the very text that was encoded."""
        numbers: list[int] = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        self.decode(numbers)  # refuses what is no id
        return self._tokenizer.decode(numbers, skip_special_tokens=False)

    def to_json(self) -> str:
        """The tokenizer's JSON, in one line."""
        return self.spec

    def index(self, token: str) -> int:
        """Id of one token, given as it is shown or as text: ``␣the`` or a space and ``the``.

        Raises:
            UnknownToken: it is not one token; the message says how it is split.
        """
        if token in self:
            return self._ids[token]
        ids = self.encode(token).tolist()
        if len(ids) == 1:
            return ids[0]
        split = f"it is split into {' '.join(map(repr, self.decode(ids)))}" if ids else "nothing is left of it"
        hint = f"; {'␣' + token!r} is one" if token and "␣" + token in self else ""
        raise UnknownToken(f"{token!r} is not one of the {len(self):,} tokens of this vocabulary: {split}{hint}")


AnyTokenizer = str | Path | Subwords  # ``basic_english``, the path of a ``tokenizer.json``, or what is made of one


def train_bpe(texts: Iterable[str], size: int) -> Subwords:
    """Byte-level BPE (as GPT-2's): every text can be encoded and comes back as it was.

    The same texts give the same tokenizer, in whatever order they come.

    Args:
        texts: of the training split.
        size: number of tokens, 256 of them the bytes.

    Raises:
        ValueError: size is below 256, or more than the texts have pairs to merge for.
    """
    if size < 256:
        raise ValueError(f"size is {size}; it must be at least 256, as every byte is a token")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    if (most := tokenizer.get_vocab_size()) < size:
        raise ValueError(f"size is {size}; these texts give at most {most} tokens")
    return Subwords(tokenizer.to_str())


def read_tokenizer(path: str | Path) -> Subwords:
    """The tokenizer of a ``tokenizer.json``, or of a directory with one, such as that of a Hugging Face model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no tokenizer.
    """
    given = Path(path)
    file = given / "tokenizer.json" if given.is_dir() else given
    if not file.is_file():
        raise FileNotFoundError(f"no tokenizer {str(path)!r}: give basic_english or the path of a tokenizer.json")
    try:
        return Subwords(file.read_bytes().decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _bytes(name: str) -> bytes:
    """The bytes that a byte-level tokenizer's own name of a token stands for."""
    known = all(character in BYTES for character in name)
    return bytes(BYTES[character] for character in name) if known else name.encode()


def _shown(raw: bytes) -> str:
    """A token as readable text.

    >>> _shown(" é\\n".encode()), _shown(b"\\xc3"), _shown("\\u200b".encode())
    ('␣é↵', '\\\\xc3', '\\\\u200b')
    """
    text = raw.decode("utf-8", "surrogateescape")  # a byte that is no character becomes one of U+DC80 to U+DCFF
    return "".join(SIGNS.get(sign) or (sign if sign.isprintable() else _escape(ord(sign))) for sign in text)


def _escape(code: int) -> str:
    code -= 0xDC00 if 0xDC80 <= code <= 0xDCFF else 0
    return f"\\x{code:02x}" if code < 2**8 else f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}"


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Names by id, told apart by their ids where two look the same, as an added token of spaces and a learnt one."""
    seen: dict[str, int] = {}
    for id, name in enumerate(names):
        seen[f"{name}#{id}" if name in seen else name] = id
    return tuple(seen)
