"""A network of your own: a small CNN learns handwritten digits. Which images made a filter, and what is it for?

    python experiments/digits.py                                     # half a minute on two cores, no download
    python experiments/digits.py --filter conv2.weight:3:out --stop 64

Ends in RUN-results/digits.html. The images come with scikit-learn: pip install "devinterp_func[examples]".
"""

from dataclasses import dataclass
from pathlib import Path

import digits_views as views
import polars as pl
import stage
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from devinterp_func import checks, models, neurons, records
from devinterp_func.models import Model
from devinterp_func.records import Dataset, Recording, Run
from devinterp_func.show import results, terminal
from devinterp_func.training import Recipe


@dataclass(frozen=True)
class Settings:
    run: Path = Path("runs/digits")  # the run directory: new, or one that the same command began
    out: Path | None = None  # where the page goes; by default beside the run, RUN-results
    steps: int = 320  # of training; 64 are an epoch
    lr: float = 0.5  # the learning rate in the first epoch
    k: int = 50  # outliers recorded for each image
    filter: str = ""  # such as conv2.weight:3:out; by default a frequent one whose outliers are mostly of one digit
    stop: int = 64  # credits are of the steps before this one
    seed: int = 0  # of the first weights and of the order of the images


class CNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.conv2, self.norm2 = nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32)
        self.digits = nn.Linear(32 * 2 * 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.norm1(self.conv1(x)).relu(), 2)
        x = F.max_pool2d(self.norm2(self.conv2(x)).relu(), 2)
        return self.digits(x.flatten(1))


def loss(model: CNN, image: Tensor, digit: Tensor) -> Tensor:
    return F.cross_entropy(model(image[None, None])[0], digit)


def main(settings: Settings) -> Path:
    checks.integer("stop", settings.stop)
    model = cnn(settings.seed)
    if settings.filter:
        neurons.require(model.shapes, neurons.parse(settings.filter))
    run = trained(model, settings)
    tally = neurons.tally(run.shards(), run.data, neurons.groups(run.shapes, "out"), 10, run.data[1])
    filters = views.table_of_filters(run, tally, neurons.every(run.shapes, "out"))
    asked = neurons.require(run.shapes, neurons.parse(settings.filter or one_sided(filters)))
    digits = views.table_of_digits(run, tally, asked)
    credits = views.credits_of(run, int(digits["times expected"].arg_max() or 0), min(settings.stop, run.n_steps))
    for title, table in (("filters by outliers", filters.head(8)), (f"{asked}, digit by digit", digits)):
        terminal.console().print(terminal.rich_table(table, title))
    stage.say(credits)
    path = results.beside(run, settings.out) / "digits.html"
    results.write(path, views.page_of(run, tally, asked, filters, digits, credits).encode())
    stage.say(f"digits: {path}")
    return path


def one_sided(filters: pl.DataFrame) -> str:
    """Of the filters of the second layer with many outliers the one with most of them of one digit."""
    many = filters.filter(pl.col("filter").str.starts_with("conv2"), pl.col("outliers") >= pl.col("outliers").mean())
    return many.sort("times expected")["filter"][-1]


def cnn(seed: int) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return models.module(CNN(), loss)


def trained(model: Model, settings: Settings) -> Run:
    """The recorded run; the last 500 images, most of them by other writers, are for validation."""
    data = Dataset(*images(), name="digits")
    recipe = Recipe(n_steps=settings.steps, epochs=settings.steps, lr=settings.lr, seed=settings.seed)
    steps = records.record(settings.run, data, model, recipe, Recording(k=settings.k, snapshot_every=64))
    for _ in terminal.watched(steps, settings.steps, "training"):
        pass
    return records.open(settings.run, model=model)


def images() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images and digits: for training, and the last 500 for validation."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError('the images come with scikit-learn: pip install "devinterp_func[examples]"') from error
    bunch = load_digits()
    x, y = torch.tensor(bunch.images / 16, dtype=torch.float32), torch.tensor(bunch.target).long()
    return (x[:-500], y[:-500]), (x[-500:], y[-500:])


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
