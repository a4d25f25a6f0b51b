"""Does influence foretell what a small network of images becomes without one of its images? Retraining without each.

    python experiments/digits_influence.py --out experiments/results/influence     # some minutes, no download
    python experiments/digits_influence.py --out runs/few-digits --networks mlp --seeds 1 --draws 10 --epochs 2
    python experiments/digits_influence.py --recipe published --networks mlp --draws 10 --no-rivals --out runs/recipe

An MLP and a CNN are trained on scikit-learn's handwritten digits with AdamW from several seeds, and then again without
single images, in all their visits. The published recipe is that of arXiv 2605.18814 (digits_recipes.py), whose
SGD-influence is "sgd" and whose AdamW-influence is "fisher" here; what is given beside a recipe, such as --lr, takes
the place of its own value. Probes are the loss on held-out images, all together, and of a few alone. The
leave-one-out correlation is Pearson's or Spearman's of what a score foretells with what retraining shows, over images,
its mean over seeds (and over the single held-out images). Interrupted, the same command goes on.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import banks
import digits
import digits_recipes as recipes
import rival_networks
import rivals
import stage
import torch
from jaxtyping import Float
from torch import Tensor, nn

from devinterp_func import checks, credit, keys, models, optim, training, tree
from devinterp_func import graph as graphs
from devinterp_func.credit import Bank, Window, probes
from devinterp_func.credit.probes import Probe
from devinterp_func.show import results, terminal

Batch = tuple[Tensor, Tensor]
SCORES = ("influence", "sgd", "fisher", "lifetime", "credit", "at_start", "norm", "random")


@dataclass(frozen=True)
class Settings:
    out: Path = Path("runs/digits-influence")  # where tables and retrainings go
    networks: tuple[str, ...] = ("mlp", "cnn")
    recipe: Literal["own", "published"] = "own"
    seeds: int = 3  # of weights and order
    images: int | None = None  # of training; here and below by default the recipe's
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None  # at its highest
    eps: float | None = None  # of AdamW
    clip: float | None = None  # the largest gradient norm
    activation: recipes.Activation | None = None  # of the MLP
    visits: recipes.Visits | None = None  # of an image, that it is left out of
    double: bool = False  # everything in float64
    draws: int = 100  # images, each left out once
    held_out: int = 200  # images of the first probe
    singles: int = 5  # of them, each a probe of its own
    at_once: int = 51  # retrainings
    rivals: bool = True  # beside the scores of the steps those of other libraries


NETWORKS: dict[str, Callable[[recipes.Training], nn.Module]] = {"mlp": recipes.mlp, "cnn": lambda _: digits.CNN()}


def main(settings: Settings) -> Path:
    training_, words = of_settings(settings)
    for name in ("seeds", "draws", "held_out", "singles", "at_once"):
        checks.integer(f"--{name}", getattr(settings, name))
    for name in ("images", "epochs", "batch_size"):
        checks.integer(f"--{name}", getattr(training_, name))
    if strange := [name for name in settings.networks if name not in NETWORKS]:
        raise ValueError(f"--networks has {strange[0]!r}; there are {', '.join(NETWORKS)}")
    if "cnn" in settings.networks and (settings.recipe != "own" or settings.activation is not None):
        raise ValueError("the published recipe and --activation are of an MLP; give --networks mlp")
    for name in settings.networks:
        found = [of_seed(name, seed, settings) for seed in range(settings.seeds)]
        for kind, part in (("held-out images", slice(1)), ("single images", slice(1, None))):
            bank, scores = together(found, part)
            judged = credit.judge(bank, 1, scores, key=keys.Key(0, ("digits influence", name)))
            growth = float(torch.stack([scores["growth"][part] for _, scores in found]).median())
            setting = ", ".join([name, *([words] if words else []), kind])
            rows = banks.judged_frame(setting, judged, growth, training_.steps)
            table = results.add_rows(settings.out, "digits_influence", banks.JUDGED, rows)
    terminal.console().print(terminal.rich_table(table.select(SHOWN), banks.JUDGED.caption, 60))
    return settings.out


SHOWN = ("setting", "score", "rank", "rank low", "rank high", "linear", "linear low", "linear high", "slope", "growth")


def of_settings(settings: Settings) -> tuple[recipes.Training, str]:
    """The training, and the words that tell it from the own one."""
    found, words = recipes.chosen(settings.recipe, settings)
    return found, ", ".join([*([words] if words else []), *(["double"] if settings.double else [])])


def of_seed(name: str, seed: int, settings: Settings) -> tuple[Bank, dict[str, Tensor]]:
    """A training's bank, and its scores by visit."""
    made, words = of_settings(settings)
    window, followed, held_out = trained_from(name, seed, settings)
    datum, stem = credit.window_data(window), results.slug("-".join([name, *([words] if words else []), str(seed)]))
    seen = datum.unique()
    ids = seen[keys.permutation(len(seen), key=keys.Key(0, ("left out",)))[: settings.draws]]
    removed = recipes.left_out(datum, ids.tolist(), made.visits)
    bank = banks.fill(settings.out, f"bank-{stem}", window, followed, [window.stop], removed, settings.at_once)
    stage.say(f"{stem}: loss {float(bank.intact[0, 0]):.4g} on {settings.held_out} held-out images")

    def scored() -> dict[str, Tensor]:
        found = credit.window_scores(window, followed, SCORES[2:], m=1, key=seed)
        exact = credit.window_influences(window, followed)
        return {"influence": exact.scores(), "sgd": by_sgd(window, followed), **found, "growth": exact.growth()[0]}

    scores = banks.kept(settings.out, f"scores-{stem}", scored)
    if settings.rivals:
        maker = partial(rivals_of, NETWORKS[name](made), window, held_out)
        scores |= banks.kept(settings.out, f"rivals-{stem}", maker)
    return bank, scores


def trained_from(name: str, seed: int, settings: Settings) -> tuple[Window, list[Probe], list[Batch]]:
    """The whole training as a window, the probes, and their images."""
    made, (images, held) = of_settings(settings)[0], digits.images()
    dtype = torch.float64 if settings.double else torch.float32
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = models.module(NETWORKS[name](made).to(dtype), digits.loss)
    recipe = made.recipe(seed)
    data: Any = (images[0][: made.images].to(dtype), images[1][: made.images])
    params = training.initial(model, recipe)
    graph = graphs.of(model.loss, params, data[0][0], data[1][0])
    x, y, n = held[0].to(dtype), held[1], settings.held_out
    held_out = [(x[:n], y[:n]), *((x[[i]], y[[i]]) for i in range(settings.singles))]
    followed = [probes.loss(graph, batch, f"loss {i}") for i, batch in enumerate(held_out)]
    return Window(graph, params, recipe.optimizer.init(params), data, recipe, 0, made.steps), followed, held_out


def by_sgd(window: Window, followed: list[Probe]) -> Float[Tensor, "P S n"]:
    """Influences as if SGD had made the steps: back over the same weights, at the same rates, by its rule."""
    plain = replace(window.recipe, optimizer=optim.sgd(), max_norm=math.inf)
    graph, params, state, data, recipe, start, stop = window
    made = list(training.moves(graph, params, data, recipe, state=state, start=start, stop=stop))
    memory, rows = plain.optimizer.init(params), list[Tensor]()
    back = [credit.ending(probe.value_and_grad(made[-1].after)[1], memory) for probe in followed]
    for move in reversed(made):
        point = credit.point_of(move)._replace(state=memory._replace(steps=move.step))
        pulled = credit.pull_step(graph, data, plain, point, back)
        rows.append(torch.stack([one.influence.sum(-1) for one in pulled]).double())
        back = [one.covector for one in pulled]
    return torch.stack(rows[::-1], 1)


def rivals_of(module: nn.Module, window: Window, held_out: list[Batch]) -> dict[str, Tensor]:
    """Other libraries' scores of the trained network, spread over the visits."""
    single = [tree.map(lambda x: x.float() if x.is_floating_point() else x, own) for own in (window.data, *held_out)]
    data, datum = tuple(single[0]), credit.window_data(window)
    params = credit.retrain(window).params
    network = rival_networks.network(module, params, lambda call, x: call(x[:, None]))
    makers: Mapping[str, Callable[[], Tensor]] = {
        "EK-FAC": lambda: rivals.ekfac(network, data, single[1:]),
        "TRAK": lambda: rivals.trak(network, data, single[1:], size=min(256, len(data[0]) - 1)),
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
