"""Is a cause found that lies far back? Pairs of words planted in a few texts, 200 steps before the probe is read.

    python experiments/planted_distance.py --out experiments/results/influence     # some minutes
    python experiments/planted_distance.py --out runs/few --seeds 1 --pairs 3 --start 50 --distance 20

Some pairs of words never meet in the text. Each is put into some texts of a few early steps, of one epoch; 200 steps
after these the probe is read: the log-probability of its second word after the first in held-out texts. All texts since
are ranked by what each score says they did to it; the cause are the texts that the pair was put into. Beside it, what
each score foretells of a training without the cause, and what that training shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import banks
import horizons
import polars as pl
import stage
import torch
from jaxtyping import Bool
from torch import Tensor

from devinterp_func import batches, checks, credit, keys, models, text, training
from devinterp_func import graph as graphs
from devinterp_func.batches import Data
from devinterp_func.credit import CauseStudy, Window
from devinterp_func.credit.probes import Probe
from devinterp_func.models import Config
from devinterp_func.show import results, tables, terminal
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table, frame
from devinterp_func.training import Recipe

SCORES = ("influence", "lifetime", "credit", "at_start", "norm", "random")
SIZED = ("influence", "lifetime", "credit", "at_start")  # scores in the probe's unit
FOUND = Table(
    "Precision of each score in finding a cause far back, with 95 % bootstrap intervals over probes.",
    "planted_distance.py",
    {"recipe": Column(NAME, "optimizer and learning rate"), **tables.PLANTED_CAUSE.columns},
    ("recipe", "score", "measure", "at"),
)
REMOVED = Table(
    "What a training without the cause shows, and what scores foretell of it.",
    "planted_distance.py",
    {
        "recipe": Column(NAME, "optimizer and learning rate"),
        "seed": Column(INT, "of text, weights and order"),
        "pair": Column(NAME, "the words"),
        "log-probability": Column(FLOAT, "of the second after the first, at the end, nats"),
        "effect": Column(FLOAT, "on it of leaving out the texts with the pair"),
        **{score: Column(FLOAT, f"what {score} foretells of the effect") for score in SIZED},
    },
    ("recipe", "seed", "pair"),
)


@dataclass(frozen=True)
class Settings:
    out: Path = Path("runs/planted-distance")  # where tables go
    recipes: tuple[str, ...] = ("adamw 0.001", "sgd 1")  # optimizer and learning rate
    seeds: int = 3  # texts and models
    pairs: int = 8  # of each, at most 20
    texts: int = 10  # that each pair is put into
    start: int = 100  # the first step that texts with pairs may be in; all scores are of the steps from here on
    planting: int = 20  # so many steps may have them
    distance: int = 200  # steps from the last of these to where the probes are read
    width: int = 32  # of the model, of two layers
    at: tuple[int, ...] = (5, 10, 20)  # numbers of highest texts


class Planted(NamedTuple):
    """A training with pairs in it, from the step on from which texts are ranked."""

    window: Window
    probes: list[Probe]
    pairs: list[str]
    truth: Bool[Tensor, "P S n"]  # visits of the texts that each pair was put into


def main(settings: Settings) -> Path:
    check(settings)
    for name in settings.recipes:
        found = [of_seed(name, seed, settings) for seed in range(settings.seeds)]
        studies = [study for study, _ in found]
        precise = credit.cause_precision(studies, settings.at, key=keys.Key(0, ("planted distance",)))
        share = float(torch.stack([study.truth.double().mean() for study in studies]).mean())
        table = tables.planted_cause_frame(precise, share).with_columns(recipe=pl.lit(name))
        precision = results.add_rows(settings.out, "planted_distance", FOUND, table.select(list(FOUND.columns)))
        effects = frame(REMOVED, [row for _, rows in found for row in rows])
        removed = results.add_rows(settings.out, "planted_distance_removed", REMOVED, effects)
    for shown, kind in ((precision, FOUND), (removed, REMOVED)):
        terminal.console().print(terminal.rich_table(shown, kind.caption, 60))
    return settings.out


def of_seed(name: str, seed: int, settings: Settings) -> tuple[CauseStudy, list[dict[str, Any]]]:
    """How the texts of a training are ranked for each pair, and the rows of ``REMOVED``."""
    one = planted(name, seed, settings)
    window, stem = one.window, f"{results.slug(name)}-{seed}"
    length = window.stop - window.start

    def made() -> dict[str, Tensor]:
        return credit.window_scores(window, one.probes, SCORES, m=1, key=seed)

    scores = banks.kept(settings.out, f"scores-{stem}", made)
    bank = banks.fill(settings.out, f"bank-{stem}", window, one.probes, [length], one.truth, len(one.truth) + 1)
    rows = []
    for p, pair in enumerate(one.pairs):
        row = {"recipe": name, "seed": seed, "pair": pair, "log-probability": float(bank.intact[0, p])}
        row |= {"effect": float(bank.effect[p, 0, p])}
        rows.append(row | {kind: -float(scores[kind][p][one.truth[p]].sum()) for kind in SIZED})
    ranked = {kind: scores[kind].flatten(1) for kind in SCORES}  # in one epoch each text is there once
    return CauseStudy(ranked, one.truth.flatten(1)), rows


def planted(name: str, seed: int, settings: Settings) -> Planted:
    """Text with pairs put into it, and a small model trained on it up to where they begin."""
    steps = settings.start + settings.planting + settings.distance
    recipe = horizons.recipe_of(name, Recipe(epochs=1, n_steps=steps, seed=seed))
    tokens = (steps + 1) * recipe.batch_size * recipe.context  # one epoch
    corpus = text.planted(key=seed, n_tokens=max(60_000, tokens))
    pairs = unseen_pairs(text.planted_topics(corpus.vocab), settings.pairs)
    plain = batches.chunk(corpus.train, recipe.context)
    order = training.order(recipe, batches.n_data(plain), settings.start, settings.start + settings.planting)
    early = torch.cat([ids for *_, ids in order])
    chosen = early[keys.permutation(len(early), key=keys.Key(seed, ("planted in",)))]
    chosen = chosen[: settings.pairs * settings.texts].view(settings.pairs, settings.texts)
    data = put(plain, pairs, chosen, keys.Key(seed, ("place",)))
    model = models.transformer(
        Config(len(corpus.vocab), d_model=settings.width, d_hidden=settings.width, n_heads=2, n_layers=2)
    )
    params = training.initial(model, recipe)
    graph = graphs.of(model.loss, params, *batches.example(data, 0))
    state = recipe.optimizer.init(params)
    for move in training.moves(graph, params, data, recipe, stop=settings.start):
        params, state = move.after, move.state
    followed = [
        credit.follower_probe(graph, corpus.valid, *pair)._replace(name=f"pair {i}") for i, pair in enumerate(pairs)
    ]
    window = Window(graph, params, state, data, recipe, settings.start, steps)
    truth = (credit.window_data(window) == chosen[..., None, None]).any(1)
    words = [" ".join(corpus.vocab.tokens[token] for token in pair) for pair in pairs]
    return Planted(window, followed, words, truth)


def unseen_pairs(topics: dict[int, list[int]], n: int) -> list[tuple[int, int]]:
    """Words of different topics, which no document has both of, each in one pair only."""
    first_free = 8  # the words before lead or follow in the bigrams that the text has anyway
    pairs = []
    for i in range(n):
        row, topic = divmod(i, len(topics))
        after = (topic + 1) % len(topics)
        pairs.append((topics[topic][first_free + 2 * row], topics[after][first_free + 2 * row + 1]))
    return pairs


def put(data: Data, pairs: Sequence[tuple[int, int]], chosen: Tensor, key: keys.Key) -> Data:
    """The data with each pair once in each of the texts that are chosen for it, in place of two tokens."""
    tokens, targets = data.tokens.clone(), data.targets.clone()
    context = tokens.shape[1]
    for (first, second), texts in zip(pairs, chosen, strict=True):
        for datum in texts.tolist():
            place = int(keys.permutation(context - 2, key=keys.fold_in(key, datum))[0]) + 1
            tokens[datum, place], tokens[datum, place + 1] = first, second
            targets[datum, place - 1], targets[datum, place] = first, second
    return Data(tokens, targets)


def check(settings: Settings) -> None:
    """Refuses what would fail after the training."""
    for name in ("seeds", "pairs", "texts", "planting", "distance", "width"):
        checks.integer(f"--{name}", getattr(settings, name))
    checks.integer("--start", settings.start, least=0)
    if settings.pairs > 20:
        raise ValueError(f"--pairs is {settings.pairs}; the text has words for 20")
    there = settings.planting * Recipe().batch_size
    if (wanted := settings.pairs * settings.texts) > there:
        raise ValueError(f"--pairs times --texts is {wanted}; {settings.planting} steps have {there} texts")


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
