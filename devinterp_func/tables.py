"""Results as rich tables and words, for a person at a terminal."""

import math
from collections.abc import Iterable, Iterator
from typing import TypeVar

import polars as pl
from jaxtyping import Float, Int
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

from devinterp_func.batches import Data
from devinterp_func.outliers import Outliers, locate
from devinterp_func.text import Vocab
from devinterp_func.training import Curve

Item = TypeVar("Item")


def loss_table(curve: Curve, evaluations: dict[int, dict[str, float]]) -> Table:
    """Training along a run, in steps of about √10.

    Args:
        curve: of ``training.curve``.
        evaluations: steps made -> split -> loss in nats, of ``records.read_evaluations``.
    """
    table = Table(
        "steps made", "training loss", "clip", "valid loss", "valid perplexity", "test loss", "test perplexity"
    )
    n = len(curve.loss)
    shown = {round(10 ** (i / 2)) for i in range(2 * int(math.log10(n)) + 1)} | {n} | evaluations.keys()
    for done in sorted(shown):
        window = slice(done - max(1, done // 20), done)  # one step's loss is noisy: the last 5 %
        row = [f"{done:,}", f"{curve.loss[window].mean():.3f}", f"{curve.clip[window].mean():.2f}"]
        for split in ("valid", "test"):
            loss = evaluations.get(done, {}).get(split)
            row += ["", ""] if loss is None else [f"{loss:.3f}", f"{math.exp(loss):.1f}"]
        table.add_row(*row)
    return table


def shift_table(
    largest: Outliers, datum: Int[Tensor, "n"], shapes: dict[str, tuple[int, ...]], data: Data, vocab: Vocab
) -> Table:
    """Shifts with the text that caused them.

    Args:
        largest: outliers of a step, shapes (k,).
        datum: ids of the step's data.
        shapes: the captured units.
        data, vocab: the training data.
    """
    table = Table(
        "parameter", "delta", "datum", "text: [bold](input → target)[/bold] at the position that moved it most"
    )
    for parameter, delta, position, row in zip(*(field.tolist() for field in largest), strict=True):
        place = locate(shapes, parameter)
        id = int(datum[row])
        words = excerpt(data.tokens[id], data.targets[id], position, vocab)
        table.add_row(f"{place.unit}{list(place.coordinates)}", f"{delta:+.5f}", str(id), words)
    return table


def excerpt(tokens: Int[Tensor, "C"], targets: Int[Tensor, "C"], position: int, vocab: Vocab, width: int = 7) -> str:
    """A datum's text around a position, marked up, the token there beside its target."""
    words = [escape(word) for word in vocab.decode(tokens)]
    marked = f"[bold]({words[position]} → {escape(vocab.decode(targets[position : position + 1])[0])})[/bold]"
    before, after = words[max(0, position - width) : position], words[position + 1 : position + 1 + width]
    return " ".join(["…", *before, marked, *after, "…"])


def sparkline(values: Float[Tensor, "T"], width: int = 60) -> str:
    """A curve in one line of block characters, lowest to highest value; each character is a mean.

    >>> import torch
    >>> sparkline(torch.tensor([3.0, 2.0, 1.0, 0.0]))
    '█▅▃▁'
    """
    parts = [part.mean().item() for part in values.double().tensor_split(min(width, len(values)))]
    low, high = min(parts), max(parts)
    return "".join("▁▂▃▄▅▆▇█"[int(7 * (part - low) / ((high - low) or 1))] for part in parts)


def rich_table(frame: pl.DataFrame, title: str = "", rows: int = 20, width: int = 40) -> Table:
    """A frame's first rows; the first column whole, other cells cut at ``width`` characters, numbers to the right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, (name, kind) in enumerate(frame.schema.items()):
        table.add_column(escape(name), justify="right" if kind.is_numeric() else "left", no_wrap=not number)
    for row in frame.head(rows).iter_rows():
        table.add_row(*(escape(_cell(value, width if number else 10**9)) for number, value in enumerate(row)))
    return table


def _cell(value: object, width: int) -> str:
    text = "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else text
    return text if len(text) <= width else f"{text[: width - 1].rstrip()}…"


def watched(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The items, with a progress bar on a terminal; silent elsewhere."""
    console = Console(stderr=True)
    return iter(track(items, what, total=total, console=console, transient=True, disable=not console.is_terminal))
