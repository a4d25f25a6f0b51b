"""Results as tables and lines for a person at a terminal, or for a file that a person reads."""

import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from jaxtyping import Float, Int
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from torch import Tensor

from devinterp_func.per_example import Outliers
from devinterp_func.records import Curve
from devinterp_func.show._columns import Columns, rich_table
from devinterp_func.show._written import literal
from devinterp_func.show.words import excerpt
from devinterp_func.text import Vocab
from devinterp_func.units import locate

__all__ = [
    "Columns",
    "PROGRESS",
    "console",
    "loss_table",
    "perplexity",
    "plain",
    "rich_table",
    "say",
    "shift_table",
    "sparkline",
    "watched",
]

Item = TypeVar("Item")
PROGRESS = "DEVINTERP_PROGRESS"  # in the environment: the file that ``watched`` writes to how far it is
TOLD_EVERY = 0.5  # seconds from one line there to the next


def loss_table(
    curve: Curve, evaluations: Mapping[int, Mapping[str, float]], rates: Sequence[float] | None = None
) -> Table:
    """Training along a run, in steps of about √10.

    Args:
        curve: of ``records.open(run).curve()``.
        evaluations: steps made -> split -> loss in nats, of ``records.read_evaluations``.
        rates: the learning rate of each step, where it is to be shown.
    """
    held_out = ("valid loss", "valid perplexity", "test loss", "test perplexity")
    headers, rows = ("steps made", "training loss", *(("rate",) if rates else ()), "clip", *held_out), []
    n = len(curve.loss)
    steps = {round(10 ** (i / 2)) for i in range(2 * int(math.log10(n)) + 1)} | {n} | evaluations.keys()
    for done in sorted(steps):
        window = slice(max(0, done - max(1, done // 20)), max(1, done))  # one step's loss is noisy: the last 5 %
        row = [f"{done:,}", f"{curve.loss[window].mean():.3f}"]
        row += [f"{rates[max(0, done - 1)]:.2g}"] if rates else []
        row.append(f"{curve.clip[window].mean():.2f}")
        for split in ("valid", "test"):
            loss = evaluations.get(done, {}).get(split)
            row += ["", ""] if loss is None else [f"{loss:.3f}", perplexity(loss)]
        rows.append(row)
    table = Table(pad_edge=False, show_edge=False)
    for header, cells in zip(headers, zip(*rows, strict=True), strict=True):
        table.add_column(header, width=max(map(len, [*header.split(), *cells])))  # 80 characters hold them all
    for row in rows:
        table.add_row(*row)
    return table


def perplexity(loss: float) -> str:
    """exp(loss) as a person reads it.

    >>> perplexity(0.0), perplexity(5.0), perplexity(750.0), perplexity(float("nan"))
    ('1.0', '148.4', 'inf', 'nan')
    """
    try:
        value = math.exp(loss)
    except OverflowError:
        return "inf"
    return f"{value:,.1f}" if value < 1e6 or math.isnan(value) else f"{value:.2g}"


def shift_table(
    largest: Outliers, datum: Int[Tensor, "n"], shapes: Mapping[str, tuple[int, ...]], data: Any, vocab: Vocab | None
) -> Table:
    """Shifts with the text that caused them, or with the position where there is no text.

    Args:
        largest: outliers of a step, shapes (k,).
        datum: ids of the step's data.
        shapes: the captured units.
        data: to train on; of a text, its tokens and targets.
        vocab: of the text; None if the data are none.
    """
    cause = "position" if vocab is None else "text: (input → target) at the position that moved it most"
    table = Table()
    table.add_column("parameter", overflow="fold", min_width=20)  # a weight's name is never cut
    table.add_column("delta", no_wrap=True)
    table.add_column("datum", no_wrap=True)
    table.add_column(cause, overflow="fold")
    for parameter, delta, position, row in zip(*(field.tolist() for field in largest), strict=True):
        place = locate(shapes, parameter)
        id = int(datum[row])
        said = position if vocab is None else excerpt(data.tokens[id], data.targets[id], position, vocab)
        name = f"{place.unit}{list(place.coordinates)}"
        table.add_row(*(Text(literal(cell)) for cell in (name, f"{delta:+.5f}", id, said)))
    return table


def sparkline(values: Float[Tensor, "T"], width: int = 60) -> str:
    """A curve in one line of block characters, lowest to highest value; each is a mean, a gap where it is not finite.

    >>> import torch
    >>> sparkline(torch.tensor([3.0, 2.0, torch.nan, 1.0, 0.0]))
    '█▅ ▃▁'
    """
    parts = [part.mean().item() for part in values.double().tensor_split(max(1, min(width, len(values))))]
    finite = [part for part in parts if math.isfinite(part)] or [0.0]
    low, high = min(finite), max(finite)
    heights = [(part - low) / ((high - low) or 1) for part in parts]
    return "".join("▁▂▃▄▅▆▇█"[int(7 * height)] if math.isfinite(height) else " " for height in heights)


def plain(text: object) -> str:
    """A text as rich prints it literally: no markup, no emoji, and no control characters a terminal would obey."""
    return escape(literal(text))


def console(error: bool = False) -> Console:
    """The console that scripts print to; characters that the stream cannot take are replaced."""
    stream = sys.stderr if error else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return Console(stderr=error, emoji=False)


def say(text: object, to: Console) -> None:
    """A line, whatever characters are in it; it is not folded, so that a path in it can be copied."""
    to.print(Text(literal(text)), soft_wrap=True)


def watched(
    items: Iterable[Item],
    total: int,
    doing: str | Callable[[Item], str],
    every: float | int = 30,
    first: int = 0,
) -> Iterator[Item]:
    """The items, with a progress bar on a terminal; elsewhere a line every half minute.

    Where the environment's DEVINTERP_PROGRESS names a file, it is added to for a program that waits: lines of JSON with
    ``done``, ``total`` and ``doing``.

    Args:
        items: any iterable.
        total: how many there are, those done before included.
        doing: what is done to each, for the person who waits; or a function that says it of an item.
        every: seconds from one line to the next.
        first: how many were done before.
    """
    tell = doing if callable(doing) else lambda item: doing
    screen, note = console(error=True), _noted(total)
    began = said = time.monotonic()
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("", total=total, completed=first)
        for done, item in enumerate(items):
            now = time.monotonic()
            if screen.is_terminal:
                bar.update(task, description=plain(tell(item)))
            elif done and now - said >= every:
                left = _duration((now - began) / done * (total - first - done))
                say(f"{tell(item)}: {first + done:,} of {total:,}, about {left} to go", screen)
                said = now
            note(first + done, tell(item))
            yield item
            bar.advance(task)
            note(first + done + 1, tell(item))


def _noted(total: int) -> Callable[[int, str], None]:
    """What writes to the file for programs, if there is one: the first and the last of all, others now and then."""
    path, last = os.environ.get(PROGRESS), -math.inf

    def note(done: int, doing: str) -> None:
        nonlocal last
        if path and (done == total or time.monotonic() - last >= TOLD_EVERY):
            last = time.monotonic()
            with open(path, "a") as file:
                file.write(json.dumps({"done": done, "total": total, "doing": doing}) + "\n")

    return note


def _duration(seconds: float) -> str:
    """A time to wait.

    >>> _duration(29.6), _duration(600.0)
    ('30 s', '10 min')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
