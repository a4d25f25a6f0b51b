"""What a notebook's views are made of: short tables, ids in words, a course as a small drawing."""

from collections.abc import Mapping

import polars as pl
from jaxtyping import Float, Int
from markupsafe import Markup
from torch import Tensor

from devinterp_func import optim
from devinterp_func.show import page
from devinterp_func.text import Vocab

ROWS = 10  # of a table


def table(frame: pl.DataFrame, caption: str, rows: int = ROWS, controls: tuple[str, ...] = ()) -> Markup:
    """The first rows; how many there are is said where that is not all."""
    left_out = "" if len(frame) <= rows else f" ({rows} of {len(frame):,})"
    return page.table(frame.head(rows), caption + left_out, controls=controls, fold=None)


def by_probe(amounts: Mapping[str, Float[Tensor, "P"]], caption: str) -> Markup:
    """A row for each probe."""
    n = len(next(iter(amounts.values())))
    return table(pl.DataFrame({"probe": range(n)} | {name: x.tolist() for name, x in amounts.items()}), caption)


def most(
    amounts: Float[Tensor, "S P n C"], steps: Int[Tensor, "S"], data: Int[Tensor, "S n"], name: str
) -> list[Markup]:
    """Of each probe, the visits of data with the largest amounts, and the position with the largest in each."""
    found = []
    for probe in range(amounts.shape[1]):
        own = amounts[:, probe]
        visits = own.sum(-1).flatten()
        order = visits.abs().argsort(descending=True, stable=True)[:ROWS]
        at = order // own.shape[1]
        position = own.flatten(0, 1)[order].abs().argmax(-1)
        columns = {"step": steps[at].tolist(), "datum": data.flatten()[order].tolist(), name: visits[order].tolist()}
        caption = f"Probe {probe}: the visits of data with the largest {name}"
        found.append(table(pl.DataFrame(columns | {"most at position": position.tolist()}), caption))
    return found


def parts(sizes: optim.Sizes, names: list[str]) -> Markup:
    """How much of each unit's change is present, past and decay."""
    shares = sizes.shares()
    columns = {part: [None if x != x else x for x in shares[:, i].tolist()] for i, part in enumerate(optim.PARTS)}
    caption = "What each unit's change is made of: shares along it"
    return table(pl.DataFrame({"unit": names} | columns, strict=False), caption, 2 * ROWS)


def largest(counts: Int[Tensor, "V"]) -> Int[Tensor, "m"]:
    """The ids with the largest counts, none with 0."""
    return counts.argsort(descending=True, stable=True)[: min(ROWS, int((counts > 0).sum()))]


def names(ids: Int[Tensor, "m"] | tuple[int, ...], vocab: Vocab | None) -> tuple[str, ...]:
    """Ids in words, or as they are."""
    listed = [int(i) for i in ids]
    found = map(str, listed) if vocab is None else vocab.decode(listed)
    return tuple(word.encode("utf-8", "replace").decode() for word in found)  # polars takes no half surrogate pairs


def line(values: Float[Tensor, "T"], what: str, width: int = 480, height: int = 60) -> Markup:
    """A course as a small drawing in the colour of the text; its least and largest value are said."""
    known = values[values.isfinite()]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    stride = max(1, len(values) // width)
    across, up = width / max(1, len(values) - 1), height / ((high - low) or 1.0)
    points = [
        f"{i * across:.1f},{height - (float(values[i]) - low) * up:.1f}"
        for i in range(0, len(values), stride)
        if bool(values[i].isfinite())
    ]
    drawn = Markup(
        '<svg role="img" aria-label="{}" viewBox="0 -2 {} {}" width="{}" height="{}"><polyline points="{}" '
        'fill="none" stroke="currentColor" stroke-width="1.5"/></svg><small>{}</small>'
    )
    said = f"{what}: {low:.4g} to {high:.4g}"
    return drawn.format(what, width, height + 4, width, height + 4, " ".join(points), said)
