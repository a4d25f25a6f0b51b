"""Vocabulary and tokenizer, corpora by name, WikiText-2, planted text."""

from devinterp_func.text._corpora import from_file, load, python_docs
from devinterp_func.text._planted import planted, planted_bigrams, planted_topics
from devinterp_func.text._vocabulary import (
    Corpus,
    UnknownToken,
    Vocab,
    build_vocab,
    fingerprint,
    pack,
    tokenize,
    unpack,
)
from devinterp_func.text._wikitext import WIKITEXT2_FILES, DownloadError, download_wikitext2, wikitext2

__all__ = [
    "Corpus",
    "DownloadError",
    "UnknownToken",
    "Vocab",
    "WIKITEXT2_FILES",
    "build_vocab",
    "download_wikitext2",
    "fingerprint",
    "from_file",
    "load",
    "pack",
    "planted",
    "planted_bigrams",
    "planted_topics",
    "python_docs",
    "tokenize",
    "unpack",
    "wikitext2",
]
