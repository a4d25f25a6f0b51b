"""A small GPT-2 of transformers: a tokenizer of its own, training recorded, and the post's questions, to the report.

    python experiments/gpt2.py                                       # a few minutes, no download
    python experiments/gpt2.py --corpus planted --size 300 --steps 100 --run runs/planted-gpt2   # or a text file's path

Ends in RUN-results/report.html. Needs transformers and tokenizers: pip install "devinterp_func[hf]".
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ablate
import attribute
import heads
import ledger
import report
import stage
import tokenizer

from devinterp_func import models, records, text
from devinterp_func.models import Model
from devinterp_func.records import Recording
from devinterp_func.show import terminal
from devinterp_func.training import Recipe

SIZES = {"n_embd": 64, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


@dataclass(frozen=True)
class Settings:
    corpus: str = "python_docs"  # wikitext2, python_docs, planted, or the path of a UTF-8 text file
    size: int = 1000  # tokens of the byte-level BPE that is trained on its training split
    run: Path = Path("runs/gpt2")  # the run directory: new, or one that the same command began
    out: Path | None = None  # where the results go; by default beside the run, RUN-results
    steps: int = 600  # of training
    lr: float = 1.0  # the learning rate in the first epoch
    stop: int = 60  # the ledger of the loss is of the steps before this one
    data: int = 300  # at most so many data that neurons are ablated on
    seed: int = 0


def main(settings: Settings) -> Path:
    own = settings.run.with_name(f"{settings.run.name}-bpe.json")
    tokenizer.main(tokenizer.Settings(settings.corpus, settings.size, own))
    corpus, recipe = text.load(settings.corpus, own), Recipe(n_steps=settings.steps, lr=settings.lr, seed=settings.seed)
    model = gpt2(len(corpus.vocab), recipe.context)
    stage.say(f"{corpus}\n{model}")
    steps = records.record(settings.run, corpus, model, recipe, Recording(k=100, snapshot_every=100))
    for _ in terminal.watched(steps, settings.steps, "training"):
        pass
    run = records.open(settings.run)
    stage.say(run.graph)
    where: dict[str, Any] = {"run": settings.run, "out": settings.out}
    attribute.main(attribute.Settings(**where, parameters=50, neurons=3))
    ablate.main(ablate.Settings(**where, data=settings.data))
    ledger.main(ledger.Settings(**where, stop=min(settings.stop, run.n_steps)))
    heads.main(heads.Settings(**where))
    return report.main(report.Settings(**where))


def gpt2(vocab_size: int, context: int, **sizes: int) -> Model:
    """Two layers, tied embeddings; other sizes by their names in transformers' config."""
    try:
        from transformers import GPT2Config
    except ImportError as error:
        raise ValueError('this example needs transformers: pip install "devinterp_func[hf]"') from error
    special = {"bos_token_id": None, "eos_token_id": None}
    return models.causal_lm(GPT2Config(vocab_size=vocab_size, n_positions=context, **(SIZES | sizes), **special))


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
