"""All that fixes a training besides model and text, and which data each of its steps takes."""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from devinterp_func import batches, checks, keys
from devinterp_func.optim import Optimizer, Schedule, sgd


@dataclass(frozen=True)
class Recipe:
    """What fixes a training besides model and text; defaults are the post's.

    Raises:
        TypeError, ValueError: a value of another type, or out of range; it is named.
    """

    context: int = 35  # tokens a datum
    batch_size: int = 20
    epochs: int = 5
    lr: float = 5.0
    schedule: Schedule = Schedule("step", gamma=0.9)  # noqa: RUF009  (immutable; the post's published code: 0.95)
    optimizer: Optimizer = sgd()  # noqa: RUF009  (immutable)
    max_norm: float = 0.5  # the largest gradient norm left unclipped; math.inf clips none
    seed: int = 0
    n_steps: int | None = None  # stop there, if that is before the last epoch's end
    processes: int = 1  # that share each batch: they and the next decide in which order gradients are added
    micro_batch: int | None = None  # data that a process captures at once; None for all its share of a batch

    def __post_init__(self) -> None:
        found: dict[str, int | float | None] = {
            name: checks.integer(name, getattr(self, name)) for name in ("context", "batch_size", "epochs", "processes")
        }
        found["lr"] = checks.positive("lr", self.lr)
        for name, kind in (("schedule", Schedule), ("optimizer", Optimizer)):
            if not isinstance(value := getattr(self, name), kind):
                raise TypeError(f"{name} is {value!r}; it must be a devinterp_func.optim.{kind.__name__}")
        found["max_norm"] = checks.positive("max_norm", self.max_norm, infinite=True)
        found["seed"] = checks.integer("seed", self.seed, least=0)
        found["n_steps"] = None if self.n_steps is None else checks.integer("n_steps", self.n_steps)
        found["micro_batch"] = None if self.micro_batch is None else checks.integer("micro_batch", self.micro_batch)
        if self.processes > self.batch_size:
            raise ValueError(
                f"batch_size is {self.batch_size}; {self.processes} processes need at least one datum each: take a "
                "larger batch, or fewer processes"
            )
        for name, value in found.items():
            object.__setattr__(self, name, value)


def total_steps(recipe: Recipe, n_data: int) -> int:
    """Steps of the whole training: epochs of full batches, or ``Recipe.n_steps`` if fewer."""
    whole = recipe.epochs * steps_per_epoch(recipe, n_data)
    return whole if recipe.n_steps is None else min(whole, recipe.n_steps)


def learning_rate(recipe: Recipe, n_data: int, step: int) -> float:
    """The learning rate of a step."""
    epoch = step // steps_per_epoch(recipe, n_data)
    return recipe.lr * recipe.schedule.factor(step, epoch, total_steps(recipe, n_data))


def steps_per_epoch(recipe: Recipe, n_data: int) -> int:
    """Steps of an epoch: its full batches."""
    return batches.n_batches(n_data, recipe.batch_size)


def order(recipe: Recipe, n_data: int, start: int, stop: int) -> Iterator[tuple[int, int, int, Int[Tensor, "n"]]]:
    """Each step from start on, its epoch, its batch in the epoch, and the ids of the batch's data."""
    per_epoch = steps_per_epoch(recipe, n_data)
    for step in range(start, stop):
        epoch, batch = divmod(step, per_epoch)
        if step == start or batch == 0:
            ids = batches.schedule(n_data, recipe.batch_size, epoch=epoch, key=keys.Key(recipe.seed))
        yield step, epoch, batch, ids[batch]
