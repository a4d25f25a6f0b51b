"""Laws of batches.py: data are a stream cut up or any pytree, an epoch's order a pure function of (key, epoch)."""

import math
from collections import UserDict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_structure

from devinterp_func import batches, keys, tree

streams = st.lists(st.integers(0, 9), min_size=2, max_size=60).map(torch.tensor)


@st.composite
def streams_and_contexts(draw):
    stream = draw(streams)
    return stream, draw(st.integers(1, len(stream) - 1))


@st.composite
def sizes(draw):
    n_data = draw(st.integers(1, 80))
    return n_data, draw(st.integers(1, n_data))


# ---- chunk


@given(streams_and_contexts())
def test_chunk_equals_the_loop(pair):
    stream, context = pair
    rows = [stream[i : i + context + 1] for i in range(0, len(stream) - context, context)]
    data = batches.chunk(stream, context)
    assert torch.equal(data.tokens, torch.stack([row[:-1] for row in rows]))
    assert torch.equal(data.targets, torch.stack([row[1:] for row in rows]))


@given(streams_and_contexts())
def test_concatenated_data_are_the_stream(pair):
    stream, context = pair
    data = batches.chunk(stream, context)
    n = data.tokens.numel()
    assert torch.equal(data.tokens.flatten(), stream[:n])
    assert torch.equal(data.targets.flatten(), stream[1 : n + 1])
    assert len(stream) - 1 - n < context  # what is dropped would not make another datum


def test_chunk_copies_nothing():
    stream = torch.arange(100)
    data = batches.chunk(stream, 7)
    storage = stream.untyped_storage().data_ptr()
    assert data.tokens.untyped_storage().data_ptr() == data.targets.untyped_storage().data_ptr() == storage
    assert data.tokens.dtype == data.targets.dtype == torch.int64


def test_chunk_refuses_a_context_below_one():
    with pytest.raises(ValueError, match="context is 0; it must be at least 1"):
        batches.chunk(torch.arange(5), 0)


@pytest.mark.parametrize("length", [0, 1, 35])
def test_chunk_refuses_a_short_stream_and_names_the_sizes(length):
    with pytest.raises(ValueError, match=f"stream of {length} tokens is too short for context 35; it takes 36"):
        batches.chunk(torch.zeros(length, dtype=torch.int64), 35)


def test_the_shortest_stream_makes_one_datum():
    assert batches.chunk(torch.arange(36), 35).tokens.shape == (1, 35)


def test_data_print_short():
    assert repr(batches.chunk(torch.arange(100_001), 10)) == "Data(10,000 data of 10 tokens)"


# ---- schedule


@given(sizes(), st.integers(0, 5), st.integers(0, 5))
def test_rows_are_disjoint_and_within_range(pair, epoch, seed):
    n_data, batch_size = pair
    rows = batches.schedule(n_data, batch_size, epoch=epoch, key=seed)
    assert rows.shape == (batches.n_batches(n_data, batch_size), batch_size)
    assert rows.dtype == torch.int64
    assert len(rows.unique()) == rows.numel()
    assert rows.min() >= 0 and rows.max() < n_data
    assert n_data - rows.numel() < batch_size  # only an incomplete batch is left out


@given(sizes(), st.integers(0, 5), st.integers(0, 5))
def test_schedule_is_a_pure_function_of_key_and_epoch(pair, epoch, seed):
    first = batches.schedule(*pair, epoch=epoch, key=seed)
    torch.manual_seed(seed + 1)  # nobody's business
    assert torch.equal(first, batches.schedule(*pair, epoch=epoch, key=keys.Key(seed)))


def test_epochs_and_keys_differ():
    orders = [batches.schedule(100, 10, epoch=epoch, key=seed) for epoch in range(5) for seed in range(5)]
    assert len({tuple(order.flatten().tolist()) for order in orders}) == 25


def test_the_order_does_not_depend_on_the_batch_size():
    small, large = (batches.schedule(60, size, epoch=3, key=1).flatten() for size in (4, 30))
    assert torch.equal(small, large)


def test_every_datum_is_left_out_now_and_then():
    rows = torch.stack([batches.schedule(7, 3, epoch=epoch, key=0) for epoch in range(60)])
    assert torch.bincount(rows.flatten(), minlength=7).min() > 0
    assert torch.bincount(rows.flatten(), minlength=7).max() < 60


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_schedule_refuses_impossible_batches(batch_size):
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}; with 10 data it must be in 1 to 10"):
        batches.schedule(10, batch_size, epoch=0, key=0)


def test_schedule_refuses_a_negative_epoch():
    with pytest.raises(ValueError, match="epoch is -1; epochs count from 0"):
        batches.schedule(10, 2, epoch=-1, key=0)


# ---- data as any pytree


class Pair(NamedTuple):
    image: Tensor
    rest: dict[str, Any]


@st.composite
def pytrees(draw):
    """Data of every kind of container, and the leaves."""
    n = draw(st.integers(1, 6))
    leaves: list[Tensor] = []

    def leaf():
        shape = (n, *draw(st.lists(st.integers(0, 3), max_size=2)))
        leaves.append(torch.arange(math.prod(shape)).view(shape) + 1000 * len(leaves))
        return leaves[-1]

    kinds = [
        leaf,
        lambda: (leaf(), leaf()),
        lambda: {"b": leaf(), "a": [leaf(), (leaf(),)]},
        lambda: Pair(leaf(), {"mask": leaf(), "more": Pair(leaf(), {})}),
        lambda: batches.Data(leaf(), leaf()),
    ]
    return n, draw(st.sampled_from(kinds))(), leaves


@given(pytrees(), st.data())
def test_take_equals_the_loop(made, draw):
    n, data, leaves = made
    ids = draw.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=9))
    taken = batches.take(data, torch.tensor(ids))
    assert type(taken) is type(data) and tree_structure(taken) == tree_structure(data)
    loop = tree.stack([batches.example(data, i) for i in ids])
    for found, stacked, leaf in zip(tree.leaves(taken), tree.leaves(loop), tree_leaves(data), strict=True):
        assert torch.equal(found, torch.stack([leaf[i] for i in ids])) and torch.equal(found, stacked)
    assert batches.n_data(data) == n and batches.n_data(taken) == len(ids)
    assert len(tree.leaves(taken)) == len(leaves)


def test_example_is_one_datum_of_the_same_kind():
    data = batches.chunk(torch.arange(91), 10)
    one = batches.example((data, {"label": torch.arange(9)}), 4)
    assert isinstance(one[0], batches.Data) and torch.equal(one[0].targets, torch.arange(41, 51))
    assert one[1]["label"].shape == () and int(one[1]["label"]) == 4


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            (torch.zeros(5, 2), {"y": torch.zeros(4)}),
            r"first lengths differ: 0 \[5, 2\], 1.y \[4\]; each must be the n",
        ),
        (batches.Data(torch.zeros(3, 2).long(), torch.zeros(2, 3).long()), r"tokens \[3, 2\], targets \[2, 3\]"),
        ([torch.zeros(3), torch.zeros(2)], r"first lengths differ: 0 \[3\], 1 \[2\]"),
        ((torch.zeros(5), torch.tensor(1.0)), r"a tensor without dimensions: 0 \[5\], 1 \[\]; the first one must be"),
        (torch.tensor(1.0), r"without dimensions: \[\];"),
        ((), "there are no data: no tensors at all"),
        ({"x": []}, "there are no data: no tensors at all"),
        ((torch.zeros(0, 3), torch.zeros(0)), r"there are no data: 0 \[0, 3\], 1 \[0\]"),
    ],
)
def test_data_without_one_number_of_data_are_refused(data, said):
    with pytest.raises(ValueError, match=said):
        batches.n_data(data)


@pytest.mark.parametrize(
    ("leaf", "kind"), [([1, 2], "int"), ({"x": np.zeros(2)}, "ndarray"), (None, "NoneType"), (UserDict(), "UserDict")]
)
def test_leaves_that_are_no_tensors_are_refused(leaf, kind):
    with pytest.raises(TypeError, match=f"the data hold a {kind}; they must be tensors whose first length is N"):
        batches.n_data((torch.zeros(2), leaf))


def test_an_epoch_shows_every_datum_once():
    data = batches.chunk(torch.arange(91), 10)
    rows = batches.schedule(9, 3, epoch=0, key=0)
    shown = torch.cat([batches.take(data, row).tokens for row in rows])
    assert torch.equal(shown.sort(dim=0).values, data.tokens)


# ---- the post's numbers


def test_the_posts_batches(wikitext2):
    data = batches.chunk(wikitext2.train, 35)
    assert data.tokens.shape == data.targets.shape == (58_571, 35)
    rows = batches.schedule(58_571, 20, epoch=0, key=0)
    assert rows.shape == (2_928, 20)
    assert 58_571 - rows.numel() == 11
    assert 5 * rows.numel() == 292_800
