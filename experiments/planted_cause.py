"""Does the ledger recover a known cause? Planted bigrams, and the data that contain them, ranked by their credits.

    python experiments/planted_cause.py --seeds 1 --bigrams 3 --steps 20

For each seed: planted text, a small model trained on it, and for each of some bigrams the log-probability of its second
word after the first, in texts not trained on. The precision is the share of the k highest data that contain the bigram.
With --out RUN-results the table is shown in that run's report.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import stage

from devinterp_func import batches, checks, credit, keys, models, text, training
from devinterp_func import graph as graphs
from devinterp_func.credit import CauseStudy
from devinterp_func.models import Config
from devinterp_func.show import results, tables, terminal
from devinterp_func.training import Recipe


@dataclass(frozen=True)
class Settings:
    out: Path = Path("runs/planted-cause")  # where the table goes
    seeds: int = 3  # texts and models
    bigrams: int = 10  # probes of each, at most 20
    steps: int = 85  # of training; 85 are an epoch
    at: tuple[int, ...] = (10, 20, 50, 100)  # numbers of highest data


def main(settings: Settings) -> Path:
    check(settings)
    seeds = terminal.watched(range(settings.seeds), settings.seeds, "training on planted text")
    studies = [study(seed, settings) for seed in seeds]
    found = credit.cause_precision(studies, settings.at, key=keys.Key(0, ("planted cause",)))
    base_rate = sum(float(one.truth.double().mean()) for one in studies) / len(studies)
    table = tables.planted_cause_frame(found, base_rate)
    results.write_table(settings.out, "planted_cause", table)
    title = "planted causes found; 95 % bootstrap intervals over probes"
    terminal.console().print(terminal.rich_table(table, title, 40))
    return settings.out


def study(seed: int, settings: Settings) -> CauseStudy:
    """Planted text, a small model of it, and how the data it was trained on are ranked."""
    corpus, recipe = text.planted(key=seed), Recipe(n_steps=settings.steps, epochs=100, seed=seed)
    model = models.transformer(Config(len(corpus.vocab), d_model=32, d_hidden=32, n_layers=1))
    data = batches.chunk(corpus.train, recipe.context)
    pairs = dict(islice(text.planted_bigrams(corpus.vocab).items(), settings.bigrams))
    params = training.initial(model, recipe)
    graph = graphs.of(model.loss, params, *batches.example(data, 0))
    return credit.planted_causes(graph, params, data, corpus.valid, pairs, recipe)


def check(settings: Settings) -> None:
    """Refuses what would fail after the training."""
    for name in ("seeds", "bigrams", "steps"):
        checks.integer(name, getattr(settings, name))
    if settings.bigrams > 20:
        raise ValueError(f"bigrams is {settings.bigrams}; planted text has 20")
    if not settings.at:
        raise ValueError("at is empty; give at least one number of highest data, such as --at 10")
    trained = settings.steps * Recipe().batch_size  # at most so many data; an epoch has them all
    for k in settings.at:
        if checks.integer("at", k) > trained:
            raise ValueError(
                f"at is {k}, but training reads {trained} data at most; give more --steps or a smaller --at"
            )


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
