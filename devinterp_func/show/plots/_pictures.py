"""Data that are pictures, in a grid."""

from collections.abc import Sequence

from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from devinterp_func.show import drawing
from devinterp_func.show.drawing import MUTED, RULE, WIDE

EACH = 0.62  # inches of a picture


def pictures(
    values: Float[Tensor, "n H W"], captions: Sequence[str], title: str = "", width: float | int = WIDE
) -> Figure:
    """Pictures of one channel in rows, each with a caption below; dark is high.

    Args:
        values: of any range; the darkest of all pictures is their highest value.
        captions: one each.
        title: above them.
        width: inches.

    Raises:
        ValueError: there is no picture, or not a caption for each.
    """
    if not len(values) or len(values) != len(captions):
        raise ValueError(f"there are {len(values)} pictures and {len(captions)} captions; give at least one of each")
    columns = min(len(values), int(width / EACH))
    lines = -(-len(values) // columns)
    with drawing.sheet(columns * EACH, lines * (EACH + 0.2) + (0.25 if title else 0)) as figure:
        if title:
            figure.suptitle(drawing.plain(title, 90), x=0, ha="left", fontsize=9, color=MUTED)
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes in grid.flat[len(values) :]:
            axes.remove()
        ends = {"vmin": float(values.min()), "vmax": float(values.max())}
        for axes, picture, caption in zip(grid.flat, values.tolist(), captions, strict=False):
            axes.imshow(picture, cmap="gray_r", interpolation="nearest", **ends)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, color=RULE)
            axes.set_xlabel(drawing.plain(caption, 12), fontsize=7, color=MUTED, labelpad=2)
    return figure
