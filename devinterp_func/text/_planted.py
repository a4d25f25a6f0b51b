"""Synthetic text with planted structure: topics, bigrams and brackets, and the truth about them.

The names of the words carry that truth, so a vocabulary is all that ``planted_topics`` and ``planted_bigrams`` need.
"""

import re
from collections.abc import Iterator
from itertools import chain

import numpy as np

from devinterp_func import keys
from devinterp_func.text._corpus import Corpus, Texts, from_texts
from devinterp_func.text._vocabulary import Vocab

PLANTED_PAIRS = 4  # in every planted topic, word 2i is always followed by word 2i + 1, for i below this
PLANTED_SENTENCES = 6  # sentences in a planted document


def planted(
    *, key: keys.Key | int, n_topics: int = 5, n_words: int = 20, n_common: int = 46, n_tokens: int = 60_000
) -> Corpus:
    """Synthetic text whose structure is known, for tests with a ground truth.

    A document is six sentences on one topic; a sentence is 8 to 14 items and a full stop; an item is, evenly, a common
    word (``c00``, ``c01``, ...: Zipf-distributed) or a word of the topic (``t3w07``: word 7 of topic 3; evenly drawn).
    Bigrams: after ``t3w00``, ``t3w02``, ``t3w04`` and ``t3w06`` always comes the word with the next number, which also
    occurs without them. Brackets: half of the sentences have one span of 2 to 5 items in ``( ... )``.
    ``planted_topics`` and ``planted_bigrams`` read the truth back from the names.

    Args:
        key: source of all randomness.
        n_topics: topics, evenly likely.
        n_words: words of each topic, at least 8.
        n_common: common words.
        n_tokens: length of train, up to a document more; valid and test have an eighteenth of it each.

    >>> planted(key=0)
    Corpus('planted': 150 types; tokens: train 60,..., valid 3,..., test 3,...)
    """
    return from_texts(planted_texts(key, n_topics, n_words, n_common, n_tokens))


def planted_texts(
    key: keys.Key | int = 0, n_topics: int = 5, n_words: int = 20, n_common: int = 46, n_tokens: int = 60_000
) -> Texts:
    """The documents of ``planted``, named by number and topic."""
    least = {"n_topics": 1, "n_words": 2 * PLANTED_PAIRS, "n_common": 1, "n_tokens": 1}
    for (name, minimum), value in zip(least.items(), (n_topics, n_words, n_common, n_tokens), strict=True):
        if value < minimum:
            raise ValueError(f"planted: {name} is {value}; it must be at least {minimum}")
    sizes = {"train": n_tokens, "valid": n_tokens // 18, "test": n_tokens // 18}
    shape = n_topics, n_words, n_common
    drawn = (_planted_documents(keys.fold_in(key, "planted", split), size, *shape) for split, size in sizes.items())
    train, valid, test = (
        [(f"{i}: topic {topic}", text) for i, (topic, text) in enumerate(documents)] for documents in drawn
    )
    return Texts("planted", train, valid, test)


def planted_topics(vocab: Vocab) -> dict[int, list[int]]:
    """Topic -> ids of its own words, by word number; read from the names that ``planted`` gives."""
    words = sorted((int(m[1]), int(m[2]), i) for i, token in enumerate(vocab.tokens) if (m := _planted_name(token)))
    return {topic: [i for owner, _, i in words if owner == topic] for topic in sorted({topic for topic, *_ in words})}


def planted_bigrams(vocab: Vocab) -> dict[int, int]:
    """Id of each word with a planted follower -> id of that follower; read from the names that ``planted`` gives."""
    ids = {(int(m[1]), int(m[2])): i for i, token in enumerate(vocab.tokens) if (m := _planted_name(token))}
    leaders = sorted((t, w) for t, w in ids if w % 2 == 0 and w < 2 * PLANTED_PAIRS and (t, w + 1) in ids)
    return {ids[t, w]: ids[t, w + 1] for t, w in leaders}


def _planted_name(token: str) -> re.Match[str] | None:
    return re.fullmatch(r"t(\d+)w(\d+)", token)


def _planted_documents(
    key: keys.Key, n_tokens: int, n_topics: int, n_words: int, n_common: int
) -> Iterator[tuple[int, str]]:
    """As many documents as n_tokens take, at least one, with their topics."""
    rng = keys.generator(key)
    length = 0
    while length < max(1, n_tokens):
        topic = int(rng.integers(n_topics))
        sentences = [_planted_sentence(rng, topic, n_words, n_common) for _ in range(PLANTED_SENTENCES)]
        length += sum(map(len, sentences))
        yield topic, " ".join(chain.from_iterable(sentences)) + "\n"


def _planted_sentence(rng: np.random.Generator, topic: int, n_words: int, n_common: int) -> list[str]:
    length = int(rng.integers(8, 15))
    zipf = 1 / np.arange(1, n_common + 1)
    common = [[f"c{word:02d}"] for word in rng.choice(n_common, length, p=zipf / zipf.sum())]
    own = [_planted_item(topic, word) for word in rng.integers(n_words, size=length).tolist()]
    items = [mine if pick else shared for pick, mine, shared in zip(rng.random(length) < 0.5, own, common, strict=True)]
    if rng.random() < 0.5:
        start, span = int(rng.integers(length - 5)), int(rng.integers(2, 6))
        items[start : start + span] = [["("], *items[start : start + span], [")"]]
    return [*chain.from_iterable(items), "."]


def _planted_item(topic: int, word: int) -> list[str]:
    """A word of the topic, with its planted follower if it has one, so that nothing comes between the two."""
    led = word % 2 == 0 and word < 2 * PLANTED_PAIRS
    return [f"t{topic}w{number:02d}" for number in ((word, word + 1) if led else (word,))]
