"""What digits.py finds out about a filter, as tables, and the page that shows it."""

from typing import Any, NamedTuple

import polars as pl
import torch
from markupsafe import Markup
from torch import Tensor

from devinterp_func import credit, neurons, per_example, records, stats, units
from devinterp_func.neurons import Neuron, Tally
from devinterp_func.records import Run
from devinterp_func.show import page, plots
from devinterp_func.show.page import Section

DIGITS, SHOWN = 10, 22  # images drawn of each kind
OF_FILTERS = {
    "digit": "most over-represented among the images behind its outliers",
    "times expected": "that digit's share of the outliers, against its share of the images",
    "flips": "validation images whose prediction changes when the filter's weights are 0",
}
OF_DIGITS = {
    "times expected": "share of the filter's outliers, against the share of the images",
    "activation": "mean over the places of the validation images",
    "flips": "validation images of the digit whose prediction changes without the filter",
    "other filters": "the same without another filter of the unit, on average",
    "loss without it": "how much higher the validation loss of the digit is, nats",
}


class Credits(NamedTuple):
    """What each training image did to the validation loss of a digit in the first steps."""

    digit: int
    stop: int
    before: float
    after: float
    credit: Tensor  # of each image; together they are the change

    def __repr__(self) -> str:
        change, missed = self.after - self.before, self.after - self.before - float(self.credit.sum())
        return (
            f"loss on {self.digit}s: {self.before:.3f} before step 0, {self.after:.3f} before step {self.stop}; "
            f"the credits miss {abs(missed / change):.2%} of the change"
        )


def table_of_filters(run: Run, tally: Tally, filters: list[Neuron]) -> pl.DataFrame:
    rows = [tally.row(neuron) for neuron in filters]
    over = stats.compare(tally.target[rows], run.data[1].bincount(minlength=DIGITS)).relative_frequency
    swept = neurons.sweep(run.graph, run.params(), run.split("valid")[:1], filters)
    names, flips = [str(neuron) for neuron in filters], swept.neuron.bincount(minlength=len(filters))
    columns = {
        "outliers": tally.outliers[rows],
        "digit": over.argmax(1),
        "times expected": over.amax(1),
        "flips": flips,
    }
    return frame({"filter": names, **columns}).sort("outliers", descending=True)


def table_of_digits(run: Run, tally: Tally, asked: Neuron) -> pl.DataFrame:
    graph, params, (x, y) = run.graph, run.params(), run.split("valid")
    over = stats.compare(tally.target[tally.row(asked)], run.data[1].bincount(minlength=DIGITS)).relative_frequency
    means = neurons.activations_by_token(graph, params, (x,), asked.unit, asked.axis, y[:, None]).mean
    unit = neurons.every(run.shapes, asked.axis, [asked.unit])
    swept = neurons.sweep(graph, params, (x,), unit)
    flips = torch.zeros(len(unit), DIGITS).index_put((swept.neuron, y[swept.position]), torch.ones(()), accumulate=True)
    own = flips[asked.index]
    risen = per_example.data_losses(graph, neurons.zero(params, asked), x, y)
    risen = risen - per_example.data_losses(graph, params, x, y)
    columns = {
        "digit": torch.arange(DIGITS),
        "times expected": over,
        "activation": means[:, asked.index],
        "flips": own.long(),
        "other filters": (flips.sum(0) - own) / (len(unit) - 1),
        "loss without it": torch.zeros(DIGITS).index_add(0, y, risen) / y.bincount(minlength=DIGITS),
    }
    return frame(columns)


def credits_of(run: Run, digit: int, stop: int) -> Credits:
    """Splits every step's change of the validation loss on a digit over the step's images."""
    x, y = run.split("valid")
    probe = credit.probes.loss(run.graph, (x[y == digit], y[y == digit]), f"loss on {digit}s")
    total, ends = torch.zeros(run.n_data, dtype=torch.float64), []
    for move in run.moves(0, stop, captured=units.EVERY):
        entries = credit.split_change(move, [probe])
        total.index_add_(0, entries.datum, entries.credit[0].sum(-1))
        ends += [float(entries.before[0]), float(entries.after[0])]
    return Credits(digit, stop, ends[0], ends[-1], total)


def page_of(
    run: Run, tally: Tally, asked: Neuron, filters: pl.DataFrame, digits: pl.DataFrame, credits: Credits
) -> str:
    events, y = tally.events[:, tally.row(asked)], run.data[1]
    often = events.argsort(descending=True, stable=True)[:SHOWN]
    down, up = credits.credit.argsort()[:SHOWN], credits.credit.argsort(descending=True)[:SHOWN]
    curve = plots.loss_curve(run.curve().loss, run.steps_per_epoch, records.read_evaluations(run))
    here, everywhere = (f"{float((y[i] == credits.digit).double().mean()):.0%}" for i in (down, slice(None)))
    said = {
        "behind": f"{int((events > 0).sum()):,} of {run.n_data:,} images have outliers in its weights.",
        "often": "Those that have some most often: digit, and in how many steps.",
        "made": f"{str(credits).capitalize()}. In the steps that saw it, an image lowered the loss where its credit is "
        f"negative. {here} of those that lowered it most are {credits.digit}s; of all images {everywhere} are.",
    }
    moved = drawn(run, often, [f"{y[i]}: {events[i]}" for i in often], said["often"])
    lowered = drawn(run, down, [f"{credits.credit[i]:+.3f}" for i in down], "Those that lowered it most.")
    raised = drawn(run, up, [f"{credits.credit[i]:+.3f}" for i in up], "Those that raised it most.")
    by_digit = page.table(digits, tips=OF_DIGITS, controls=["other filters"])
    sections = [
        Section("The filter", said["behind"], [moved, by_digit]),
        Section(f"Which images taught the digit {credits.digit}", said["made"], [lowered, raised]),
        Section("All filters", "Filters by their outliers.", [page.table(filters, tips=OF_FILTERS)]),
        Section("Training", f"{run.model}.", [page.figure(curve, "The loss in nats.", "loss by step")]),
    ]
    return page.page("Which images made a filter", f"`{asked}` of a small CNN on handwritten digits.", sections)


def drawn(run: Run, which: Tensor, captions: list[str], caption: str) -> Markup:
    images = run.data[0][which]
    return page.figure(plots.pictures(images, captions), caption, caption, plots.pictures(images, captions, width=3.7))


def frame(columns: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame({name: x.numpy() if isinstance(x, Tensor) else x for name, x in columns.items()})
