"""The trainings of digits_influence.py: this project's own, and one that others published.

The published one is that of the MLP of Deng et al. 2026, *How Faithful Is Trajectory-Based Data Attribution?* (arXiv
2605.18814, appendix D.1): two hidden layers of 16, one epoch in batches of 64, AdamW with betas 0.9 and 0.95 and no
weight decay, a constant rate of 1e-3, 1e-4 or 1e-5, nothing clipped; an image is left out of one batch, its last, and
Spearman's correlation is taken for each test image. There the images are 6,000 of MNIST's; here, of scikit-learn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from devinterp_func import optim, training
from devinterp_func.optim import Schedule
from devinterp_func.training import Recipe

Activation = Literal["relu", "tanh", "gelu"]
Visits = Literal["all", "last"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


@dataclass(frozen=True)
class Training:
    """What fixes a training besides its network and seed; defaults are this project's own."""

    images: int = 500  # of training
    epochs: int = 10
    batch_size: int = 50
    lr: float = 3e-3  # at its highest
    eps: float = 1e-8
    clip: float = 1.0
    activation: Activation = "relu"  # of the MLP
    visits: Visits = "all"  # of an image, that it is left out of
    widths: tuple[int, ...] = (64,)  # of the MLP's hidden layers
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    cosine: bool = True  # after a twentieth of the steps; otherwise the rate is constant

    @property
    def steps(self) -> int:
        return self.epochs * (self.images // self.batch_size)

    def recipe(self, seed: int) -> Recipe:
        return Recipe(
            batch_size=self.batch_size,
            epochs=self.epochs,
            lr=self.lr,
            schedule=Schedule("cosine", warmup=self.steps // 20, end=0.1) if self.cosine else Schedule(),
            optimizer=optim.adamw(betas=self.betas, eps=self.eps, weight_decay=self.weight_decay),
            max_norm=self.clip,
            seed=seed,
        )


TRAININGS = {
    "own": Training(),
    "published": Training(
        images=1280,
        epochs=1,
        batch_size=64,
        lr=1e-3,
        clip=math.inf,
        visits="last",
        widths=(16, 16),
        betas=(0.9, 0.95),
        weight_decay=0.0,
        cosine=False,
    ),
}


def chosen(recipe: str, settings: Any) -> tuple[Training, str]:
    """A recipe's training with what the settings change of it, and the words that tell it from the own one.

    Args:
        recipe: of ``TRAININGS``.
        settings: with attributes of some of a training's names; None leaves the recipe's value.
    """
    base = TRAININGS[recipe]
    given = {field.name: getattr(settings, field.name, None) for field in fields(Training)}
    changed = {name: value for name, value in given.items() if value not in (None, getattr(base, name))}
    words = [f"{name.replace('_', ' ')} {value}" for name, value in changed.items()]
    return replace(base, **changed), ", ".join([*([recipe] if recipe != "own" else []), *words])


def mlp(training: Training) -> nn.Module:
    """64 pixels, hidden layers, ten digits."""
    parts: list[nn.Module] = [nn.Flatten()]
    for wide, next_wide in zip((64, *training.widths), (*training.widths, 10), strict=True):
        parts += [nn.Linear(wide, next_wide), ACTIVATIONS[training.activation]()]
    return nn.Sequential(*parts[:-1])


def order(recipe: Recipe, n_data: int, steps: int) -> Int[Tensor, "S n"]:
    """The images of each step."""
    return torch.stack([ids for *_, ids in training.order(recipe, n_data, 0, steps)])


def left_out(datum: Int[Tensor, "S n"], ids: Sequence[int], visits: Visits) -> Bool[Tensor, "D S n"]:
    """Places of images in the steps: all of each, or those of the last step that it is in."""
    places = datum == torch.tensor(ids)[:, None, None]
    if visits == "all":
        return places
    steps = torch.arange(1, len(datum) + 1) * places.any(-1)
    return places & (steps == steps.amax(-1, keepdim=True))[..., None]
