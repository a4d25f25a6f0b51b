"""Laws of the exact top k where every row moves, as with memory and weight decay: bounds hold, nothing is missed."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from strategies import seeds, some
from torch import Tensor

from devinterp_func import bigram, keys
from devinterp_func.bigram import _search, _sides

Matrices = tuple[Tensor, Tensor, Tensor, Tensor]  # W_U, W_E, dW_U, dW_E
DTYPES = [torch.float32, torch.float64]


def a_step(V: int, d: int, dtype: torch.dtype, decay: float = 1e-4, seed: int = 0) -> Matrices:
    """Made to look like a step of AdamW: most rows of dW_U alike, those of dW_E by when a token was last seen."""
    rng = keys.generator(keys.fold_in(seed, "adamw"))
    W_U, W_E = rng.uniform(-0.1, 0.1, (2, V, d))
    seen = rng.geometric(1 / np.arange(2, V + 2))  # steps since
    dW_E = 3e-3 * 0.9 ** np.minimum(seen, 2000)[:, None] * rng.standard_normal((V, d)) - decay * W_E
    size = rng.uniform(0.1, 1, (V, 1))
    dW_U = 1e-3 * size * (np.sign(rng.standard_normal(d)) + 0.2 * rng.standard_normal((V, d))) - decay * W_U
    return of_numpy(dtype, W_U, W_E, dW_U, dW_E)


def of_numpy(dtype: torch.dtype, W_U: Any, W_E: Any, dW_U: Any, dW_E: Any) -> Matrices:
    each = [torch.from_numpy(x).to(dtype) for x in (W_U, W_E, dW_U, dW_E)]
    return each[0], each[1], each[2], each[3]


def exact(matrices: Matrices) -> Tensor:
    W_U, W_E, dW_U, dW_E = (x.double() for x in matrices)
    return W_U @ dW_E.T + dW_U @ (W_E + dW_E).T


def sides(matrices: Matrices) -> tuple[_sides.Side, _sides.Side]:
    named = dict(zip(("W_U", "W_E", "dW_U", "dW_E"), matrices, strict=True))
    return _sides.dense_sides(named, {name: _sides.row_norms(name, x) for name, x in named.items()})


@st.composite
def any_step(draw: st.DrawFn) -> Matrices:
    """Any small numbers, updates that are in part a multiple of the weights, some rows zero, some huge or tiny."""
    V, d = draw(st.integers(1, 9)), draw(st.integers(1, 12))
    x = draw(arrays(np.float64, (4, V, d), elements=st.floats(-2, 2)))
    x[2:] -= draw(st.sampled_from([0.0, 1e-4, 0.3, -0.2, 0.7])) * x[:2]
    x *= draw(arrays(np.int8, (4, V, 1), elements=st.integers(0, 3))) > 0
    x *= 2.0 ** draw(arrays(np.int64, (4, 1, 1), elements=st.sampled_from([-100, -20, 0, 0, 30])))
    dtype = draw(st.sampled_from(DTYPES))
    return of_numpy(dtype, *x)


@some
@given(any_step())
def test_no_entry_is_larger_than_its_bound_nor_farther_from_its_sketch(matrices: Matrices) -> None:
    rows, columns = sides(matrices)
    W_U, W_E, dW_U, dW_E = (x.double() for x in matrices)
    entry = exact(matrices)
    computing = 1e-13 * ((W_U.abs() + dW_U.abs()) @ (W_E.abs() + dW_E.abs()).T + 1e-300)  # of the entry itself
    assert bool((entry.abs() <= rows.parts.T @ columns.parts + computing).all())
    assert rows.sketch is not None and columns.sketch is not None
    assert rows.rests is not None and columns.rests is not None
    sketch = rows.sketch.double() @ columns.sketch.double().T
    longest = rows.lengths.T @ columns.lengths
    rounding = 40 * torch.finfo(matrices[0].dtype).eps * longest + 1e-36
    assert bool(((entry - sketch).abs() <= rows.rests.T @ columns.rests + rounding + computing).all())
    factors = sum(x.double() @ y.double().T for x, y in zip(rows.factors, columns.factors, strict=True))
    assert bool(((entry - factors).abs() <= rounding + computing).all())


@some
@given(any_step(), st.data())
def test_the_dense_search_finds_the_head_of_a_full_sort(matrices: Matrices, data: st.DataObject) -> None:
    V = len(matrices[0])
    k = data.draw(st.integers(1, V * V))
    top, dense = bigram.top_shifts(*matrices, k=k), exact(matrices).flatten()
    flat = top.output * V + top.input
    slack = 1e-13 * float(max(1e-300, *(a.double().norm() * b.double().norm() for a in matrices for b in matrices)))
    assert flat.unique().numel() == k
    torch.testing.assert_close(top.value, dense[flat], rtol=0, atol=slack)
    torch.testing.assert_close(top.value.abs(), dense.abs().sort(descending=True).values[:k], rtol=0, atol=slack)
    assert top.certificate.bound <= float(top.value[-1].abs())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", [0.0, 1e-4])
@pytest.mark.parametrize("k", [1, 100, 5000])
def test_a_step_of_adamw_is_searched_without_most_products(dtype: torch.dtype, decay: float, k: int) -> None:
    V, matrices = 1500, a_step(1500, 48, dtype, decay)
    top, dense = bigram.top_shifts(*matrices, k=k), exact(matrices).flatten()
    order = dense.abs().argsort(descending=True, stable=True)[:k]
    assert torch.equal(top.output * V + top.input, order)
    torch.testing.assert_close(top.value, dense[order], rtol=1e-9, atol=0)
    beyond = dense.abs().index_fill(0, order, 0).max()
    assert float(beyond) <= top.certificate.bound <= float(top.value[-1].abs())
    assert top.certificate.pairs < 0.5 * V * V


@settings(max_examples=10, deadline=None)
@given(seeds, st.sampled_from([1, 7, 300]))
def test_both_searches_find_the_same_bits(seed: int, k: int) -> None:
    W_U, W_E, dW_U, dW_E = a_step(80, 9, torch.float32, seed=seed)
    dW_E = dW_E * (torch.arange(80) % 5 == 0)[:, None]  # few move: the other search is taken
    found = bigram.top_shifts(W_U, W_E, dW_U, dW_E, k=k)
    before, _search.SPARSE = _search.SPARSE, V_ALL
    try:
        dense = bigram.top_shifts(W_U, W_E, dW_U, dW_E, k=k)
    finally:
        _search.SPARSE = before
    assert torch.equal(found.output, dense.output) and torch.equal(found.input, dense.input)
    assert torch.equal(found.value, dense.value)


V_ALL = 10**6  # no step moves so few embeddings


def test_what_all_rows_share_is_taken_off_whatever_it_is() -> None:
    _, W_E, _, _ = a_step(100, 5, torch.float32)
    assert _sides._shared_decay(W_E, -0.25 * W_E) == 0.25
    assert _sides._shared_decay(W_E, 0 * W_E) == 0 and _sides._shared_decay(0 * W_E, W_E) == 0
    assert _sides._shared_decay(W_E, -3 * W_E) == 0


def test_a_step_that_only_decays_is_the_decoder_itself() -> None:
    W_U, W_E, _, _ = a_step(300, 8, torch.float64)
    top = bigram.top_shifts(W_U, W_E, -1e-3 * W_U, -1e-3 * W_E, k=20)
    dense = bigram.decoder(W_U, W_E).flatten() * (0.999**2 - 1)
    torch.testing.assert_close(top.value, dense[top.output * 300 + top.input])
    torch.testing.assert_close(top.value.abs(), dense.abs().sort(descending=True).values[:20])
