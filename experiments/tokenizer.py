"""Train a byte-level BPE tokenizer on a corpus's training split: the same text gives the same file.

    python experiments/tokenizer.py --corpus python_docs --size 2000 --out runs/bpe.json
    python experiments/capture.py --corpus python_docs --tokenizer runs/bpe.json --out runs/bpe

The file is a ``tokenizer.json`` of the tokenizers library. A run keeps its tokenizer, so the file may go afterwards.
"""

from dataclasses import dataclass
from pathlib import Path

import stage

from devinterp_func import text
from devinterp_func.show import results


@dataclass(frozen=True)
class Settings:
    corpus: str = "python_docs"  # wikitext2, python_docs, planted, or the path of a UTF-8 text file
    size: int = 2000  # tokens, 256 of them the bytes
    out: Path = Path("runs/bpe.json")  # the file; an older one is replaced


def main(settings: Settings) -> Path:
    texts = text.texts(settings.corpus)
    vocab = text.train_bpe((document for _, document in texts.train), settings.size)
    written = results.write(settings.out, vocab.to_json().encode())
    name, held_out = texts.valid[0]
    ids, characters = vocab.encode(held_out), len(held_out)
    stage.say(f"{len(vocab):,} tokens from {len(texts.train):,} documents of {settings.corpus}, in {written}")
    stage.say(f"{name}, not trained on: {characters:,} characters in {len(ids):,} tokens. It begins")
    stage.say(" ".join(vocab.decode(ids[:30])))
    return written


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
