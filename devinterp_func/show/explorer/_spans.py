"""A span of steps that an address asks for, and numbers of a run's steps in bins."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from devinterp_func.show.explorer._charts import POINTS
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._types import NotThere, Query


def span(site: Site, query: Query) -> tuple[int, int]:
    """The steps start to stop − 1 that are asked for; by default all that are indexed.

    Raises:
        NotThere: they are none, or no numbers.
    """
    try:
        start, stop = int(query.get("start") or 0), int(query.get("stop") or site.n_steps)
    except ValueError:
        asked = f"steps {query.get('start')!r} to {query.get('stop')!r}"
        raise NotThere(f"{asked} are no numbers", [("all", "run", None)]) from None
    if not 0 <= start < stop <= site.n_steps:
        raise NotThere(f"there are no steps {start} to {stop}; steps are 0 to {site.n_steps}", [("all", "run", None)])
    return start, stop


def number(site: Site, text: str, what: str, stop: int) -> int:
    """The number of a datum, step or token that an address names.

    Raises:
        NotThere: it is none, or there is no such; the nearest is named.
    """
    digits = text.isascii() and text.isdigit() and len(text) < 18 and str(int(text)) == text
    if digits and int(text) < stop:
        return int(text)
    near = min(int(text), stop - 1) if digits else 0
    raise NotThere(f"there is no {what} {text!r}; they are 0 to {stop - 1:,}", [(f"{what} {near:,}", what, near)])


def binned(values: Float[Tensor, "T"], start: int = 0) -> tuple[Int64[Tensor, "b"], Float[Tensor, "b"]]:
    """Means over bins of steps as even as they can be, at most ``POINTS``: where each begins, and its mean.

    >>> import torch
    >>> binned(torch.tensor([1.0, 3.0]), start=7)
    (tensor([7, 8]), tensor([1., 3.], dtype=torch.float64))
    """
    parts = values.double().tensor_split(min(POINTS, len(values)))
    sizes = torch.tensor([len(part) for part in parts])
    return start + sizes.cumsum(0) - sizes, torch.stack([part.mean() for part in parts])
