"""Does influence foretell what a small GPT-2 becomes without some of its texts? Whole trainings, many times over.

    python experiments/gpt2_influence.py --out experiments/results/influence             # a quarter of an hour
    python experiments/gpt2_influence.py --out runs/few-texts --texts 60 --epochs 1 --draws 5 --queries 2

With --setting smooth --batch-size 40 --epochs 10 the training is smoother.

A tokenizer of its own, random chunks of the corpus' training text, AdamW from the first step on, some epochs. Each
retraining is without a random share of the texts, all their visits; queries are the losses of single held-out texts.
The linear datamodeling score is Spearman's correlation of what a score foretells with what retraining shows, over
retrainings, its mean over queries. Beside influence: what knows the steps alone, and other libraries' scores of the
trained model, where they are installed. Interrupted, the same command goes on. Needs transformers and tokenizers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import banks
import gpt2
import rival_networks
import rivals
import stage
import tokenizer
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devinterp_func import batches, checks, credit, keys, optim, text, training
from devinterp_func import graph as graphs
from devinterp_func.credit import Window, probes
from devinterp_func.credit.probes import Probe
from devinterp_func.models import Model
from devinterp_func.optim import Schedule
from devinterp_func.show import results, terminal
from devinterp_func.training import Recipe

RATE = {"plain": 1.0, "smooth": 0.3}  # of the settings' rate
EPS = {"plain": 1e-8, "smooth": 1e-6}
OTHERS = ("lifetime", "credit", "at_start", "norm", "random")


@dataclass(frozen=True)
class Settings:
    out: Path = Path("runs/gpt2-influence")  # where tables and retrainings go
    setting: Literal["plain", "smooth"] = "plain"  # smooth: 0.3 of the rate, and AdamW's eps 1e-6 for 1e-8
    corpus: str = "python_docs"  # wikitext2, python_docs, planted, or the path of a UTF-8 text file
    size: int = 500  # tokens of the byte-level BPE that is trained on its training split
    context: int = 20  # tokens of a text
    texts: int = 800  # of the training split, drawn at random
    epochs: int = 3  # over them
    batch_size: int = 10  # texts a step
    lr: float = 1e-3  # at its highest; a cosine after a twentieth of the steps
    width: int = 32  # of the model, of two layers
    draws: int = 100  # retrainings
    share: float = 0.05  # of the texts: what each is without
    queries: int = 20  # held-out texts
    at_once: int = 21  # retrainings
    judged: tuple[Literal["steps", "rivals", "fisher"], ...] = ("steps", "rivals", "fisher")  # beside influence
    seed: int = 0  # of weights, order and draws


def main(settings: Settings) -> Path:
    for name in ("size", "context", "texts", "epochs", "batch_size", "width", "draws", "queries", "at_once"):
        checks.integer(f"--{name}", getattr(settings, name))
    credit.require_share(settings.share)
    window, model, followed, held_out = trained_from(settings)
    removed = removals(credit.window_data(window), settings)
    horizons, stem = [window.stop], f"gpt2-{settings.setting}"
    bank = banks.fill(settings.out, f"bank-{stem}", window, followed, horizons, removed, settings.at_once)
    stage.say(f"{len(bank.removed)} retrainings; mean loss of the queries {float(bank.intact.mean()):.4g}")
    scores: dict[str, Tensor] = {}
    for name, make in makers_of(window, model, followed, held_out, settings).items():
        if name not in ("influence", *settings.judged):
            continue
        scores |= banks.kept(settings.out, f"scores-{stem}-{name}", make)
        stage.say(f"scores: {name}")
    growth = scores.pop("growth")
    judged = credit.judge(bank, window.stop, scores, key=keys.Key(settings.seed, ("judge",)))
    rows = banks.judged_frame(settings.setting, judged, float(growth.median()), window.stop)
    table = results.add_rows(settings.out, "gpt2_influence", banks.JUDGED, rows)
    terminal.console().print(terminal.rich_table(table, banks.JUDGED.caption, 60))
    return settings.out


def trained_from(settings: Settings) -> tuple[Window, Model, list[Probe], list[tuple[Any, ...]]]:
    """The whole training as a window, the model, and the queries with their texts."""
    own = settings.out / "bpe.json"
    if not own.exists():
        tokenizer.main(tokenizer.Settings(settings.corpus, settings.size, own))
    corpus, key = text.load(settings.corpus, own), keys.Key(settings.seed, ("gpt2 influence",))
    steps = settings.epochs * (settings.texts // settings.batch_size)
    recipe = Recipe(
        context=settings.context,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        lr=settings.lr * RATE[settings.setting],
        schedule=Schedule("cosine", warmup=steps // 20, end=0.1),
        optimizer=optim.adamw(betas=(0.9, 0.95), eps=EPS[settings.setting], weight_decay=0.1, matrices_only=True),
        max_norm=1.0,
        seed=settings.seed,
    )
    data, held_out = (
        batches.take(chunks, keys.permutation(len(chunks.tokens), key=keys.fold_in(key, name))[:n])
        for name, chunks, n in (
            ("train", batches.chunk(corpus.train, recipe.context), settings.texts),
            ("valid", batches.chunk(corpus.valid, recipe.context), settings.queries),
        )
    )
    model = gpt2.gpt2(len(corpus.vocab), recipe.context, n_embd=settings.width)
    params = training.initial(model, recipe)
    graph = graphs.of(model.loss, params, *batches.example(data, 0))
    asked = [batches.take(held_out, torch.tensor([i])) for i in range(settings.queries)]
    followed = [probes.loss(graph, tuple(one), f"loss of query {i}") for i, one in enumerate(asked)]
    window = Window(graph, params, recipe.optimizer.init(params), data, recipe, 0, steps)
    return window, model, followed, [tuple(one) for one in asked]


def removals(datum: Int[Tensor, "S n"], settings: Settings) -> Bool[Tensor, "D S n"]:
    """Each without a random share of the texts: all their visits."""
    n = settings.texts
    left_out = max(1, round(settings.share * n))
    drawn = torch.zeros(settings.draws, n, dtype=torch.bool)
    for draw in range(settings.draws):
        drawn[draw, keys.permutation(n, key=keys.Key(settings.seed, ("without", draw)))[:left_out]] = True
    return drawn[:, datum]


def makers_of(
    window: Window, model: Model, followed: list[Probe], held_out: list[Any], settings: Settings
) -> dict[str, Callable[[], dict[str, Float[Tensor, "P S n"]]]]:
    """What makes scores by visit: influences, other scores of the steps, rivals, influences by the empirical Fisher."""

    def influence() -> dict[str, Tensor]:
        found = credit.window_influences(window, followed)
        return {"influence": found.scores(), "growth": found.growth()[0]}

    def of_steps() -> dict[str, Tensor]:
        return credit.window_scores(window, followed, OTHERS, m=1, key=settings.seed)

    return {
        "influence": influence,
        "steps": of_steps,
        "rivals": lambda: rivals_of(window, model, held_out, settings),
        "fisher": lambda: credit.window_scores(window, followed, ("fisher",)),
    }


def rivals_of(
    window: Window, model: Model, held_out: list[Any], settings: Settings
) -> dict[str, Float[Tensor, "P S n"]]:
    """Other libraries' scores of the trained model, spread over the visits."""
    from transformers import GPT2Config

    data, datum = tuple(window.data), credit.window_data(window)
    network = rival_networks.gpt2(GPT2Config(**model.source["config"]), credit.retrain(window).params)
    makers: Mapping[str, Callable[[], Tensor]] = {
        "EK-FAC": lambda: rivals.ekfac(network, data, held_out),
        "TRAK": lambda: rivals.trak(network, data, held_out, size=settings.texts // 8),
        "BM25": lambda: rivals.bm25(data[0], [tokens for tokens, _ in held_out]),
    }
    found = {}
    for name, make in makers.items():
        try:
            found[name] = credit.by_visit(make(), torch.arange(settings.texts), datum)
        except (ImportError, torch.linalg.LinAlgError) as error:  # TRAK's moments may be singular
            stage.say(f"without {name}: {error}")
    return found


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
