"""Attention as it is drawn: a text in which a query's weights are backgrounds, and a grid of all queries and keys.

What a script needs to draw other snapshots and queries is beside it, a byte a weight.
"""

import base64
import json
import struct
import zlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from markupsafe import Markup
from torch import Tensor

from devinterp_func.show.explorer._types import Links

POSITIONS = 128  # of a text that are drawn, at most
BYTES = 300_000  # of all snapshots together, at most
BLUE = (0, 114, 178)


def levels(weights: Float[Tensor, "*any"]) -> UInt8[Tensor, "*any"]:
    """Weights as depths of colour: 255 times their square roots, so that small ones are seen.

    >>> import torch
    >>> levels(torch.tensor([0.0, 0.25, 1.0])).tolist()
    [0, 128, 255]
    """
    return (weights.clamp(0, 1).sqrt() * 255).round().to(torch.uint8)


def thinned(n: int, C: int) -> list[int]:
    """Which of n snapshots can be drawn within ``BYTES``: as even as they can be, first and last among them."""
    most = max(2, BYTES // C**2)
    return list(range(n)) if n <= most else sorted({round(i * (n - 1) / (most - 1)) for i in range(most)})


def block(
    weights: Float[Tensor, "S C C"],
    steps: Sequence[int],
    words: Sequence[str],
    at: int,
    query: int,
    head: str,
    links: Links,
    asked: dict[str, object],
) -> Markup:
    """A head's attention on a text.

    Args:
        weights: at each snapshot: query, key.
        steps: before which the snapshots are.
        words: of the text.
        at: the snapshot that is drawn at first, by its place among ``steps``.
        query: the word whose attention is drawn at first.
        head: its name.
        links: of the page.
        asked: what an address of this page says of the text.
    """
    C = min(len(words), POSITIONS)
    kept = [i for i in thinned(len(steps), C) if i != at] + [at]
    kept.sort()
    drawn = levels(weights[kept, :C, :C])
    data = {"steps": [steps[i] for i in kept], "size": C, "at": kept.index(at), "query": query}
    coded = base64.b64encode(drawn.contiguous().numpy().tobytes()).decode()
    here = levels(weights[at, :C, :C])
    text = Markup(" ").join(
        _word(word, i, int(here[query, i]), i == query, links("head", head, **asked, snapshot=steps[at], query=i))
        for i, word in enumerate(words[:C])
    )
    others = Markup(" ").join(
        Markup("<b>{}</b>").format(f"{step:,}")
        if i == at
        else links.a(f"{step:,}", "head", head, **asked, snapshot=step, query=query)
        for i, step in enumerate(steps)
    )
    alt = f"Attention of head {head} before step {steps[at]:,}: queries are rows, keys columns."
    return Markup(
        '<div class="attention" data-attention="{}" data-levels="{}"><div class="slider" hidden></div>'
        '<div><p class="words">{}</p><p class="told" aria-live="polite">{}</p>'
        '<p class="snapshots">before step {}</p></div>'
        '<figure class="grid"><img src="data:image/png;base64,{}" alt="{}" width="{size}" height="{size}">'
        "<figcaption>Queries are rows, keys columns, from the top left.</figcaption></figure></div>"
    ).format(json.dumps(data), coded, text, _told(weights[at], words[:C], query), others, _png(here), alt, size=C)


def _word(word: str, place: int, level: int, chosen: bool, address: str) -> Markup:
    """A word; a click makes it the query."""
    look = Markup(' class="plus query"') if chosen else Markup(' class="plus"')
    share = f"{(level / 255) ** 2:.1%}"
    return Markup('<span{} data-place="{}" style="--v:{:.2f}" title="{}"><a href="{}">{}</a></span>').format(
        look, place, level / 255, share, address, word
    )


def _told(weights: Float[Tensor, "C C"], words: Sequence[str], query: int) -> str:
    """Where a query's attention goes, in words."""
    row = weights[query, : len(words)]
    top = row.argsort(descending=True, stable=True)[:3].tolist()
    places = ", ".join(f"“{words[i]}” {float(row[i]):.0%}" for i in top)
    return f"From “{words[query]}”, word {query + 1}: {places}"


def _png(level: UInt8[Tensor, "C C"]) -> str:
    """An image of depths of one colour, base64."""
    C = level.shape[0]
    pixels = torch.cat([torch.tensor(BLUE, dtype=torch.uint8).expand(C, C, 3), level[..., None]], -1).contiguous()
    rows = b"".join(b"\0" + bytes(row.flatten().tolist()) for row in pixels)
    parts = {b"IHDR": struct.pack(">IIBBBBB", C, C, 8, 6, 0, 0, 0), b"IDAT": zlib.compress(rows, 9), b"IEND": b""}
    body = b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in parts.items()
    )
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()
