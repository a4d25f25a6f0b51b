"""Present, past and decay over a training: means of what each step's record says, whatever the shards."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from devinterp_func import keys, records
from devinterp_func.optim import Sizes
from devinterp_func.per_example import Outliers
from devinterp_func.records import Shard

NONE = torch.zeros(1, 1)


def shard(first, size, along):
    """A shard of which only the split is looked at."""
    S = len(size)
    step, no = torch.arange(first, first + S), torch.zeros(S)
    datum = torch.zeros(S, 1, dtype=torch.int64)
    outliers = Outliers(datum[..., None], NONE.expand(S, 1)[..., None], datum[..., None], datum[..., None])
    split = Sizes(size.float(), along.float())
    law = NONE.expand(S, 1)
    return Shard(first, S, step, step, step, no, no, no, datum, datum.float(), split, law, law, outliers, {})


def course(values, cuts, n_bins, n_steps):
    edges = [0, *sorted(cuts), len(values[0])]
    parts = [shard(a, values[0][a:b], values[1][a:b]) for a, b in zip(edges, edges[1:], strict=False) if a < b]
    return records.split_course(parts, n_bins, n_steps)


@given(st.integers(1, 12), st.integers(1, 3), st.integers(1, 15), st.lists(st.integers(0, 12), max_size=3), st.data())
def test_a_bin_is_the_mean_of_its_steps(S, U, n_bins, cuts, data):
    n_steps = data.draw(st.integers(S, 14))
    size, along = (keys.uniform((S, U, 3), -1.0, 1.0, key=key).float() for key in (0, 1))
    found = course((size.abs(), along), [c for c in cuts if c < S], n_bins, n_steps)
    bins = min(n_bins, n_steps)
    assert found.edges.tolist() == [-(-b * n_steps // bins) for b in range(bins + 1)]
    for b, (start, stop) in enumerate(zip(found.edges.tolist(), found.edges.tolist()[1:], strict=False)):
        own = slice(start, min(stop, S))
        empty = start >= S
        mean = torch.zeros(U, 3, dtype=torch.float64) if empty else along[own].double().mean(0)
        squares = torch.zeros(U, 3, dtype=torch.float64) if empty else (size[own].double() ** 2).mean(0)
        torch.testing.assert_close(found.sizes.along[b], mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.sizes.size[b], squares.sqrt(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((0, 3), "n_bins is 0; it must be at least 1"),
        ((2, 2), "step 2 is out of range: n_steps is 2"),
    ],
)
def test_bins_and_steps_are_checked(given, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        course((torch.ones(3, 1, 3), torch.ones(3, 1, 3)), [], *given)


def test_a_stream_must_be_of_one_run():
    one, other = shard(0, torch.ones(2, 1, 3), torch.ones(2, 1, 3)), shard(2, torch.ones(2, 2, 3), torch.ones(2, 2, 3))
    with pytest.raises(ValueError, match="shard 2 has 2 units; those before have 1"):
        records.split_course([one, other], 2, 4)
    with pytest.raises(ValueError, match="there are no shards"):
        records.split_course([], 2, 4)
