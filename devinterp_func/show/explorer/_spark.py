"""Small courses: a line and its control, drawn without axes, for many beside each other."""

from collections.abc import Sequence

from markupsafe import Markup

WIDTH, HEIGHT = 100, 30


def spark(
    steps: Sequence[int | float],
    values: Sequence[float | None],
    beside: Sequence[float | None] = (),
    low: float = 0.0,
    high: float = 1.0,
    alt: str = "",
) -> Markup:
    """A course, dashed its control; as wide and high as its place is.

    Args:
        steps: where the values are, ascending.
        values: of the course; None leaves a gap.
        beside: its control, if it has one.
        low, high: what the height stands for.
        alt: what it shows.
    """
    inner = Markup('<line x1="0" x2="{}" y1="{y}" y2="{y}"/>').format(WIDTH, y=_y(0.0, low, high))
    for look, course in (("beside", beside), ("value", values)):
        for points in _pieces(steps, course, low, high):
            inner += Markup('<polyline class="{}" points="{}"/>').format(look, points)
    start = Markup('<svg class="spark" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">')
    return start.format(WIDTH, HEIGHT, alt) + inner + Markup("</svg>")


def _pieces(steps: Sequence[int | float], values: Sequence[float | None], low: float, high: float) -> list[str]:
    """Points of a line; several where values lack."""
    first, wide = min(steps, default=0), (max(steps, default=0) - min(steps, default=0)) or 1
    pieces: list[list[str]] = [[]]
    for step, value in zip(steps, values, strict=False):
        if value is None or value != value:
            pieces.append([])
        else:
            pieces[-1].append(f"{WIDTH * (step - first) / wide:.1f},{_y(value, low, high)}")
    return [" ".join(piece) for piece in pieces if piece]


def _y(value: float, low: float, high: float) -> str:
    return f"{HEIGHT * (1 - (value - low) / ((high - low) or 1)):.1f}"
