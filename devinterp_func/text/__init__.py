"""Vocabularies and tokenizers, corpora by name and their documents, WikiText-2, planted and repeated text."""

from devinterp_func.text._corpora import from_file, load, python_docs, python_help, texts
from devinterp_func.text._corpus import (
    Corpus,
    Documents,
    Texts,
    document_of,
    fingerprint,
    from_texts,
    pack,
    unpack,
)
from devinterp_func.text._planted import planted, planted_bigrams, planted_topics
from devinterp_func.text._repeated import period, repeated
from devinterp_func.text._subwords import Subwords, read_tokenizer, train_bpe
from devinterp_func.text._vocabulary import UnknownToken, Vocab, build_vocab, tokenize
from devinterp_func.text._wikitext import WIKITEXT2_FILES, DownloadError, download_wikitext2, wikitext2

__all__ = [
    "Corpus",
    "Documents",
    "DownloadError",
    "Subwords",
    "Texts",
    "UnknownToken",
    "Vocab",
    "WIKITEXT2_FILES",
    "build_vocab",
    "document_of",
    "download_wikitext2",
    "fingerprint",
    "from_file",
    "from_texts",
    "load",
    "pack",
    "period",
    "planted",
    "planted_bigrams",
    "planted_topics",
    "python_docs",
    "python_help",
    "read_tokenizer",
    "repeated",
    "texts",
    "tokenize",
    "train_bpe",
    "unpack",
    "wikitext2",
]
