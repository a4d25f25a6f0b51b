"""What to test with: Hypothesis strategies for small, bounded arrays, and small models and batches from seeds.

Strategies give plain tensors; what the library builds is built in the tests, outside Hypothesis' drawing.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from small_transformers import SMALL, batch, weights
from torch import Tensor

from devinterp_func import graph, keys, models, per_example
from devinterp_func.graph import Graph, Masks
from devinterp_func.models import Config
from devinterp_func.per_example import Bias, Capture, Dense, Factor, Gain, Lookup, Outer, Scaled, Sum
from devinterp_func.tree import Params

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


# ---- models and batches


@functools.lru_cache
def graph_of(config: Config, dtype: torch.dtype = torch.float64, context: int = 5) -> Graph:
    """The transformer's graph for data of some length."""
    x, y = torch.zeros(2, context, dtype=torch.int64)
    return graph.of(models.transformer(config).loss, weights(config, dtype), x, y)


def masks_of(config: Config, n: int = 3, context: int = 5, seed: int = 0) -> Masks | None:
    """Dropout masks of n data; None for a model without dropout."""
    return graph.draw_masks(graph_of(config, context=context), [keys.fold_in(seed, j) for j in range(n)])


def drawn_masks(made: Graph, each: Sequence[keys.Key | int]) -> Masks:
    """Dropout masks from a graph that has sites."""
    masks = graph.draw_masks(made, each)
    assert masks is not None
    return masks


class Small(NamedTuple):
    """A small transformer and a batch."""

    graph: Graph
    params: Params
    tokens: Tensor
    targets: Tensor
    masks: Masks | None
    config: Config

    def capture(self, units: tuple[str, ...] = ("*",), **options: Any) -> Capture:
        """``per_example.capture`` of it."""
        batch = self.tokens, self.targets
        return per_example.capture(self.graph, self.params, *batch, masks=self.masks, units=units, **options)


def small(
    dtype: torch.dtype = torch.float64,
    masked: bool = True,
    config: Config = SMALL,
    n: int = 3,
    context: int = 5,
    seed: int = 0,
) -> Small:
    """A small transformer and a batch, with dropout masks or without."""
    masks = masks_of(config, n, context, seed) if masked else None
    made = graph_of(config, dtype, context)
    return Small(made, weights(config, dtype, seed), *batch(config, n, context, seed), masks, config)


# ---- factors


@st.composite
def factor_arrays(draw: st.DrawFn) -> dict[str, Any]:
    """What ``factors_of`` makes factors of: small integers, so that all arithmetic is exact and ties abound."""
    n, context, wide, narrow, rows = (draw(st.integers(1, most)) for most in (4, 4, 4, 3, 4))
    integers = st.integers(-2, 2)
    inputs = {"outer.a": wide, "gain.a": narrow, "outer.b": narrow, "bias.b": wide, "gain.b": narrow, "lookup.b": wide}
    drawn = {name: draw(arrays(np.float64, (n, context, width), elements=integers)) for name, width in inputs.items()}
    tokens = draw(arrays(np.int64, (n, context), elements=st.integers(0, rows - 1)))
    return {name: torch.from_numpy(a) for name, a in (drawn | {"tokens": tokens}).items()} | {"rows": rows}


def factors_of(drawn: dict[str, Any], dtype: torch.dtype = torch.float64) -> dict[str, Factor]:
    """A factor of every kind that a transformer has."""
    a = {name: x.to(dtype) if name not in ("tokens", "rows") else x for name, x in drawn.items()}
    return {
        "outer": Outer(a["outer.a"], a["outer.b"]),
        "bias": Bias(a["bias.b"]),
        "gain": Gain(a["gain.a"], a["gain.b"]),
        "lookup": Lookup(a["tokens"], a["lookup.b"], a["rows"]),
    }


Part = tuple[Any, Any]  # a kind of factor with its fields, or Sum with its parts
SHAPES = [(), (3,), (2, 1, 1), (3, 2), (2, 5), (2, 1, 2), (2, 2, 1, 2)]


@st.composite
def mixed_arrays(draw: st.DrawFn, depth: int = 2) -> dict[str, Part]:
    """What ``mixture`` makes factors of: units of any shape with uses of any kind, small integers as above."""
    n = draw(st.integers(1, 3))
    return {f"unit{i}": draw(uses(n, draw(st.sampled_from(SHAPES)), depth)) for i in range(draw(st.integers(1, 3)))}


@st.composite
def uses(draw: st.DrawFn, n: int, shape: tuple[int, ...], depth: int = 0, positions: int | None = None) -> Part:
    """A use of a unit, or several of them ``depth`` sums deep."""
    kind = draw(st.sampled_from([Outer, Bias, Gain, Lookup, Dense, Scaled] + [Sum] * 2 * min(depth, 1)))
    if kind is Sum:
        return Sum, [draw(uses(n, shape, depth - 1)) for _ in range(draw(st.integers(1, 3)))]
    if kind is Dense:
        return Dense, {"gradients": draw(integers((n, *shape)))}
    context = positions or draw(st.sampled_from([1, 2, 2, 3]))
    if kind is Scaled:
        return Scaled, {"factor": draw(fields_of(Outer, n, shape, context)), "gain": draw(integers(shape))}
    return kind, draw(fields_of(kind, n, shape, context))


@st.composite
def fields_of(draw: st.DrawFn, kind: Any, n: int, shape: tuple[int, ...], context: int) -> dict[str, Any]:
    """The fields of an ``Outer``, ``Bias``, ``Gain`` or ``Lookup`` of a unit; its shape too, where that is needed."""
    size, rows = math.prod(shape), shape[0] if shape else 1
    flat = (rows, size // rows) if kind in (Outer, Lookup) else (size,)
    fields: dict[str, Any] = {"signals": draw(integers((n, context, flat[1 if kind is Lookup else 0])))}
    if kind in (Outer, Gain):
        fields["inputs"] = draw(integers((n, context, flat[-1])))
    if kind is Lookup:
        differ = draw(st.booleans())
        tokens = draw(arrays(np.int64, (n if differ else 1, context), elements=st.integers(0, rows - 1)))
        fields |= {"tokens": torch.from_numpy(tokens).expand(n, context), "rows": rows}
    return fields if flat == shape and draw(st.booleans()) else fields | {"shape": shape}


def integers(shape: tuple[int, ...]) -> st.SearchStrategy[Tensor]:
    """float64 integers from -2 to 2."""
    return arrays(np.float64, shape, elements=st.integers(-2, 2)).map(torch.from_numpy)


def factor_of(part: Part, dtype: torch.dtype = torch.float64) -> Factor:
    """The factor of what ``uses`` drew."""
    kind, fields = part
    if kind is Sum:
        return Sum(tuple(factor_of(part, dtype) for part in fields))
    if kind is Scaled:
        outer = factor_of((Outer, fields["factor"]), dtype)
        assert isinstance(outer, Outer)
        return Scaled(outer, fields["gain"].to(dtype))
    floating = {name: x.to(dtype) for name, x in fields.items() if isinstance(x, Tensor) and x.is_floating_point()}
    return kind(**fields | floating)


def mixture(drawn: dict[str, Part], dtype: torch.dtype = torch.float64) -> dict[str, Factor]:
    """The factors of what ``mixed_arrays`` drew."""
    return {name: factor_of(part, dtype) for name, part in drawn.items()}
