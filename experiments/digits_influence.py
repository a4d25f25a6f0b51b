"""Does influence foretell what a small network of images becomes without one of its images? Retraining without each.

    python experiments/digits_influence.py --out experiments/results/influence     # some minutes, no download
    python experiments/digits_influence.py --out runs/few-digits --networks mlp --seeds 1 --draws 10 --epochs 2

An MLP and a CNN are trained on scikit-learn's handwritten digits with AdamW from several seeds, and then again without
single images, in all their visits. Probes are the loss on held-out images, all together, and of a few alone. The
leave-one-out correlation is Pearson's or Spearman's of what a score foretells with what retraining shows, over images,
its mean over seeds (and over the single held-out images). Interrupted, the same command goes on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import banks
import digits
import rival_networks
import rivals
import stage
import torch
from torch import Tensor, nn

from devinterp_func import checks, credit, keys, models, optim, training
from devinterp_func import graph as graphs
from devinterp_func.credit import Bank, Window, probes
from devinterp_func.credit.probes import Probe
from devinterp_func.optim import Schedule
from devinterp_func.show import results, terminal
from devinterp_func.training import Recipe

Batch = tuple[Tensor, Tensor]
SCORES = ("influence", "fisher", "lifetime", "credit", "at_start", "norm", "random")


@dataclass(frozen=True)
class Settings:
    out: Path = Path("runs/digits-influence")  # where tables and retrainings go
    networks: tuple[str, ...] = ("mlp", "cnn")
    seeds: int = 3  # of weights and order
    images: int = 500  # of training
    epochs: int = 10
    batch_size: int = 50
    lr: float = 3e-3  # at its highest; a cosine after a twentieth of the steps
    draws: int = 100  # images, each left out once
    held_out: int = 200  # images of the first probe
    singles: int = 5  # of them, each a probe of its own
    at_once: int = 51  # retrainings


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.digits = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.digits(self.hidden(x.flatten(1)).relu())


NETWORKS: dict[str, Callable[[], nn.Module]] = {"mlp": MLP, "cnn": digits.CNN}


def main(settings: Settings) -> Path:
    for name in ("seeds", "images", "epochs", "batch_size", "draws", "held_out", "singles", "at_once"):
        checks.integer(f"--{name}", getattr(settings, name))
    if strange := [name for name in settings.networks if name not in NETWORKS]:
        raise ValueError(f"--networks has {strange[0]!r}; there are {', '.join(NETWORKS)}")
    for name in settings.networks:
        found = [of_seed(name, seed, settings) for seed in range(settings.seeds)]
        for kind, part in (("held-out images", slice(1)), ("single images", slice(1, None))):
            bank, scores = together(found, part)
            judged = credit.judge(bank, 1, scores, key=keys.Key(0, ("digits influence", name)))
            growth = float(torch.stack([scores["growth"][part] for _, scores in found]).median())
            steps = settings.epochs * (settings.images // settings.batch_size)
            rows = banks.judged_frame(f"{name}, {kind}", judged, growth, steps)
            table = results.add_rows(settings.out, "digits_influence", banks.JUDGED, rows)
    terminal.console().print(terminal.rich_table(table.select(SHOWN), banks.JUDGED.caption, 60))
    return settings.out


SHOWN = ("setting", "score", "rank", "rank low", "rank high", "linear", "linear low", "linear high", "slope", "growth")


def of_seed(name: str, seed: int, settings: Settings) -> tuple[Bank, dict[str, Tensor]]:
    """A training's bank, and its scores by visit."""
    window, followed, held_out = trained_from(name, seed, settings)
    datum, stem = credit.window_data(window), f"{name}-{seed}"
    left_out = keys.permutation(settings.images, key=keys.Key(0, ("left out",)))[: settings.draws]
    removed = datum == left_out[:, None, None]
    bank = banks.fill(settings.out, f"bank-{stem}", window, followed, [window.stop], removed, settings.at_once)
    stage.say(f"{stem}: loss {float(bank.intact[0, 0]):.4g} on {settings.held_out} held-out images")

    def made() -> dict[str, Tensor]:
        found = credit.window_scores(window, followed, SCORES[1:], m=1, key=seed)
        exact = credit.window_influences(window, followed)
        return {"influence": exact.scores(), **found, "growth": exact.growth()[0]}

    own = banks.kept(settings.out, f"scores-{stem}", made)
    others = banks.kept(settings.out, f"rivals-{stem}", lambda: rivals_of(name, window, held_out))
    return bank, {**own, **others}


def trained_from(name: str, seed: int, settings: Settings) -> tuple[Window, list[Probe], list[Batch]]:
    """The whole training as a window, the probes, and their images."""
    (x, y), (held_x, held_y) = digits.images()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = models.module(NETWORKS[name](), digits.loss)
    steps = settings.epochs * (settings.images // settings.batch_size)
    recipe = Recipe(
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        lr=settings.lr,
        schedule=Schedule("cosine", warmup=steps // 20, end=0.1),
        optimizer=optim.adamw(weight_decay=0.01),
        max_norm=1.0,
        seed=seed,
    )
    data: Any = (x[: settings.images], y[: settings.images])
    params = training.initial(model, recipe)
    graph = graphs.of(model.loss, params, data[0][0], data[1][0])
    n = settings.held_out
    held_out = [(held_x[:n], held_y[:n]), *((held_x[[i]], held_y[[i]]) for i in range(settings.singles))]
    followed = [probes.loss(graph, batch, f"loss {i}") for i, batch in enumerate(held_out)]
    return Window(graph, params, recipe.optimizer.init(params), data, recipe, 0, steps), followed, held_out


def rivals_of(name: str, window: Window, held_out: list[Batch]) -> dict[str, Tensor]:
    """Other libraries' scores of the trained network, spread over the visits."""
    data, datum = tuple(window.data), credit.window_data(window)
    params = credit.retrain(window).params
    network = rival_networks.network(NETWORKS[name](), params, lambda call, x: call(x[:, None]))
    makers: Mapping[str, Callable[[], Tensor]] = {
        "EK-FAC": lambda: rivals.ekfac(network, data, held_out),
        "TRAK": lambda: rivals.trak(network, data, held_out, size=min(256, len(data[0]) - 1)),
    }
    found = {}
    for rival, make in makers.items():
        try:
            found[rival] = credit.by_visit(make(), torch.arange(len(data[0])), datum)
        except ImportError as error:
            stage.say(f"without {rival}: {error}")
    return found


def together(found: list[tuple[Bank, dict[str, Tensor]]], part: slice) -> tuple[Bank, dict[str, Tensor]]:
    """All seeds' trainings as one bank: a removal is one of D images, and each seed has probes of its own."""
    n = len(found[0][0].removed)
    alone = torch.eye(n, dtype=torch.bool)[:, None]
    effects = torch.cat([bank.effect[..., part] for bank, _ in found], -1)
    intact = torch.cat([bank.intact[:, part] for bank, _ in found], -1)
    names = [name for name in found[0][1] if name != "growth"]
    scores = {
        name: torch.cat(
            [-credit.predicted_effects(own[name][part], bank.removed, bank.horizons[0]).T for bank, own in found]
        )
        for name in names
    }
    return Bank((1,), alone, intact, effects), {name: own[:, None] for name, own in scores.items()}


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
