"""Hypothesis strategies: small, bounded arrays. Library objects are built in the tests, from what these give."""

from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

few = settings(max_examples=25, deadline=None)  # for laws that take milliseconds
some = settings(max_examples=100, deadline=None)  # for laws that take less

seeds = st.integers(0, 2**16)
words = st.text("ab.", max_size=3)
paths = st.lists(st.integers(-2, 3) | words, max_size=4).map(tuple)


@st.composite
def trees(draw: st.DrawFn, examples: int | None = None, max_value: int = 100) -> dict[str, Tensor]:
    """One to four float64 leaves of up to three dimensions; all with a leading ``examples`` if given."""
    shapes = st.lists(array_shapes(min_dims=1, max_dims=3, max_side=3), min_size=1, max_size=4)
    leading = () if examples is None else (examples,)
    return {f"unit{i}": draw(floats((*leading, *shape), max_value)) for i, shape in enumerate(draw(shapes))}


def floats(shape: tuple[int, ...], max_value: int = 100) -> st.SearchStrategy[Tensor]:
    """float64 in [-max_value, max_value], many of them small integers."""
    elements = st.floats(-max_value, max_value, allow_subnormal=False)
    return arrays(np.float64, shape, elements=elements).map(torch.from_numpy)


@st.composite
def like(draw: st.DrawFn, tree: dict[str, Tensor], examples: int | None = None) -> dict[str, Tensor]:
    """A tree of the same shapes; with a leading ``examples`` if given."""
    leading = () if examples is None else (examples,)
    return {name: draw(floats((*leading, *leaf.shape))) for name, leaf in tree.items()}


@st.composite
def tied_matrices(draw: st.DrawFn, widths: tuple[int, ...]) -> Tensor:
    """float32 (n, P) of few distinct values, so that ties abound: zeros of both signs, ±ties, runs, subnormals."""
    shape = (draw(st.integers(1, 3)), draw(st.sampled_from(widths)))
    palette: list[float] = draw(st.lists(st.sampled_from(_VALUES), min_size=1, max_size=4))
    chosen = draw(arrays(np.int8, shape, elements=st.integers(0, len(palette) - 1), fill=st.integers(0, 0)))
    run = draw(st.sampled_from([1, 1, 16, 64]))  # neighbours that are equal
    return torch.tensor(palette)[torch.from_numpy(np.repeat(chosen, run, axis=1)[:, : shape[1]]).long()]


_VALUES: Any = [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 1e-45, -1e-45, 3e38, -3e38]


@st.composite
def distinct_matrices(draw: st.DrawFn, widths: tuple[int, ...]) -> Tensor:
    """float32 (n, P) from a normal distribution."""
    shape = (draw(st.integers(1, 3)), draw(st.sampled_from(widths)))
    noise = np.random.Generator(np.random.Philox(draw(seeds))).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(noise)
