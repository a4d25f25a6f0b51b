"""Does the ledger find a cause that is known? Planted bigrams, and the data that contain them, ranked by their credits.

    python experiments/planted_cause.py --out runs/planted-cause

For each seed: planted text, a small model trained on it for an epoch, and for each of some bigrams the log-probability
of its second word after the first. The precision is the share of the k highest data that contain the bigram.
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
import tyro
from rich.console import Console

from devinterp_func import causes, keys, ledger, results, retrain, skill, tables, text
from devinterp_func.training import Recipe
from devinterp_func.transformer import Config


@dataclass(frozen=True)
class Settings:
    out: Path = Path("runs/planted-cause")
    """Where the table goes."""
    seeds: int = 3
    """Texts and models."""
    bigrams: int = 10
    """Probes of each, at most 20."""
    steps: int = 85
    """Of training; 85 are an epoch."""
    at: tuple[int, ...] = (10, 20, 50, 100)
    """Numbers of highest data."""


def main(settings: Settings) -> Path:
    studies = []
    for seed in tables.watched(range(settings.seeds), settings.seeds, "seeds"):
        corpus = text.planted(key=seed)
        config = Config(len(corpus.vocab), d_model=32, d_hidden=32, n_layers=1)
        recipe = Recipe(n_steps=settings.steps, epochs=100, seed=seed, units=ledger.UNITS)
        studies.append(causes.study(corpus, config, recipe, n=settings.bigrams))
    rows = []
    for score in studies[0].scores:
        precision = torch.cat([retrain.precision_at(s.scores[score], s.truth, settings.at) for s in studies])
        average = torch.cat([skill.average_precision(s.scores[score], s.truth) for s in studies])
        columns = {f"precision at {k}": precision[:, i] for i, k in enumerate(settings.at)}
        for measure, each in (columns | {"average precision": average}).items():
            found = skill.mean_average_precision(each, key=keys.Key(0, ("planted cause",)))
            row = {"score": score, "measure": measure, "mean": found.value, "low": found.low, "high": found.high}
            base = torch.cat([s.truth.double().mean(1) for s in studies]).mean()
            rows.append(row | {"base rate": float(base), "probes": found.neurons})
    results.write_table(settings.out, "planted_cause", table := pl.DataFrame(rows))
    title = "planted causes found; 95 % bootstrap intervals over probes"
    Console().print(tables.rich_table(table, title, 40))
    return settings.out


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
