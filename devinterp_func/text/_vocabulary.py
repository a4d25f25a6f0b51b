"""The post's tokenizer, and the frozen vocabulary of the words it gives."""

import difflib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from jaxtyping import Int64
from torch import Tensor

UNK = "<unk>"


class UnknownToken(KeyError):
    """A token that the vocabulary does not have, in a look-up that must not fall back to ``<unk>``."""

    def __str__(self) -> str:  # KeyError shows the repr of its message
        return str(self.args[0])


@dataclass(frozen=True, repr=False)
class Vocab:
    """Words by id, ``<unk>`` first. ``build_vocab`` makes one from text.

    ``Subwords`` has the same interface: ``tokens`` for the eye, ``encode``, ``decode``, ``text_of`` and ``index``.

    >>> vocab = Vocab(("<unk>", "the", "cat"))
    >>> vocab.encode("The dog, the cat")
    tensor([1, 0, 0, 1, 2])
    >>> vocab.decode([1, 2]), "cat" in vocab, len(vocab)
    (['the', 'cat'], True, 3)
    """

    tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        if strange := [token for token in self.tokens if not isinstance(token, str)]:
            raise TypeError(f"Vocab.tokens holds {strange[0]!r}; tokens must be strings")
        if not self.tokens or self.tokens[0] != UNK:
            raise ValueError(f"Vocab.tokens starts with {list(self.tokens[:1])}; it must start with {UNK!r}")
        if len(self._ids) < len(self.tokens):
            twice = next(token for token, count in Counter(self.tokens).items() if count > 1)
            raise ValueError(f"Vocab.tokens has {twice!r} more than once")

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def __repr__(self) -> str:
        shown = " ".join(self.tokens[:8]) + (" ..." if len(self) > 8 else "")
        return f"{type(self).__name__}({len(self):,} tokens: {shown})"

    def encode(self, words: str | Iterable[str]) -> Int64[Tensor, "n"]:
        """Ids of words, or of a text, which is tokenised first; unknown words get the id of ``<unk>``, 0."""
        words = tokenize(words) if isinstance(words, str) else words
        return torch.tensor([self._ids.get(word, 0) for word in words], dtype=torch.int64)

    def decode(self, ids: Int64[Tensor, "n"] | Iterable[int]) -> list[str]:
        """Token strings of ids.

        Raises:
            IndexError: an id is not in [0, len).
        """
        numbers: list[int] = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        for number in numbers:
            if not 0 <= number < len(self):
                raise IndexError(f"token id {number} is out of range; this vocabulary has ids 0 to {len(self) - 1}")
        return [self.tokens[number] for number in numbers]

    def text_of(self, ids: Int64[Tensor, "n"] | Iterable[int]) -> str:
        """The text that ids stand for: here the words with spaces between them."""
        return " ".join(self.decode(ids))

    def to_json(self) -> str:
        """All that the vocabulary is, as JSON; a corpus is packed with it."""
        return json.dumps(self.tokens, ensure_ascii=False)

    def index(self, token: str) -> int:
        """Id of a token that must be there.

        Raises:
            UnknownToken: it is not; the message names the nearest tokens that are.
        """
        if token in self:
            return self._ids[token]
        near = difflib.get_close_matches(token.lower(), self.tokens, n=5)
        hint = f"the nearest are {', '.join(map(repr, near))}" if near else "none resembles it"
        raise UnknownToken(f"{token!r} is not among the {len(self):,} tokens of this vocabulary; {hint}")


def tokenize(line: str) -> list[str]:
    """torchtext 0.6.0's ``basic_english``, the post's tokenizer: lower case, punctuation apart, quotes dropped.

    Newlines are white space like any other, so a text gives the tokens of its lines, one after the other.

    >>> tokenize('He said: "It\\'s done."')
    ['he', 'said', 'it', "'", 's', 'done', '.']
    """
    return _basic_english()(line)


def build_vocab(tokens: Iterable[str] | Mapping[str, int], min_count: int = 1) -> Vocab:
    """The vocabulary of tokens: ``<unk>``, then by descending count, ties in alphabetical (code point) order.

    Args:
        tokens: tokens, or their counts.
        min_count: rarer ones are left out.

    >>> build_vocab(["b", "a", "c", "c"]).tokens
    ('<unk>', 'c', 'a', 'b')
    """
    if min_count < 1:
        raise ValueError(f"min_count is {min_count}; it must be at least 1")
    counts = Counter(tokens)
    known = (token for token, count in counts.items() if count >= min_count and token != UNK)
    return Vocab((UNK, *sorted(known, key=lambda token: (-counts[token], token))))


@cache
def _basic_english() -> Callable[[str], list[str]]:
    with warnings.catch_warnings():  # an archived package: escapes and SWIG types that newer Pythons complain about
        warnings.simplefilter("ignore")
        from torchtext.data.utils import get_tokenizer  # slow to import, hence not at the top
    return get_tokenizer("basic_english")
