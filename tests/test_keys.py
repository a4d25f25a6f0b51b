"""Laws of keys.py: a stream is a function of seed and path, and of nothing else in the world."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import few, paths, seeds, some

from devinterp_func import keys
from devinterp_func.keys import Key, fold_in


def start(key):
    """The beginning of a key's stream."""
    return tuple(keys.random_bits(16, key=key).tolist())


DRAWS = [
    lambda key: keys.uniform((3, 2), -1.0, 1.0, key=key),
    lambda key: keys.permutation(20, key=key),
    lambda key: torch.from_numpy(keys.random_bits(9, key=key).astype(np.int64)),
    lambda key: torch.from_numpy(keys.generator(key).standard_normal(5)),
]


@given(seeds, paths, paths)
@some
def test_fold_in_is_associative(seed, first, second):
    key = Key(seed)
    assert fold_in(fold_in(key, *first), *second) == fold_in(key, *first, *second) == fold_in(seed, *first, *second)


@given(seeds, seeds, paths, paths)
@some
def test_streams_are_equal_exactly_for_equal_seeds_and_paths(seed, other, first, second):
    same = (seed, first) == (other, second)
    assert (start(fold_in(seed, *first)) == start(fold_in(other, *second))) == same


@pytest.mark.parametrize(
    ("a", "b"),
    [((1,), ("1",)), (("a", "b"), ("ab",)), (("a", "b"), ("b", "a")), ((), ("",)), ((1, 2), (12,)), ((0,), (0, 0))],
)
def test_lookalike_paths_give_different_streams(a, b):
    assert start(fold_in(0, *a)) != start(fold_in(0, *b))


def test_seed_and_first_datum_do_not_mix():
    assert start(fold_in(1, 2)) != start(fold_in(2, 1))
    assert start(0) != start(fold_in(0, 0))


def test_streams_of_neighbouring_keys_are_independent():
    bits = np.array([keys.random_bits(4000, key=fold_in(0, i)) for i in range(4)]) / 2**16 - 0.5
    correlation = np.asarray(np.corrcoef(bits))[np.triu_indices(4, 1)]
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)  # five standard deviations


@pytest.mark.parametrize("draw", DRAWS)
def test_draws_repeat_whatever_the_global_generators_do(draw):
    first = draw(Key(0))
    with torch.random.fork_rng():
        torch.manual_seed(1), torch.rand(3)
        assert torch.equal(draw(Key(0)), first)


@pytest.mark.parametrize("draw", DRAWS)
def test_draws_leave_the_global_generators_alone(draw):
    before = torch.get_rng_state(), repr(np.random.get_state())
    draw(Key(0))
    assert torch.equal(torch.get_rng_state(), before[0]) and repr(np.random.get_state()) == before[1]


def test_the_stream_is_pinned():
    # whatever changes it changes the meaning of every run recorded so far
    assert start(fold_in(0, "masks", 3))[:4] == (48790, 37051, 15778, 27100)


@given(seeds, st.floats(-10, 10, width=32), st.floats(0, 10, width=32))
@few
def test_uniform_is_within_bounds(seed, low, width):
    drawn = keys.uniform((4, 50), low, low + width, key=seed)
    assert drawn.shape == (4, 50) and drawn.dtype == torch.float32
    slack = 1e-6 * (abs(low) + width)  # of rounding low + width · u in float32
    assert drawn.min() >= low - slack and drawn.max() <= low + width + slack


def test_uniform_fills_its_range_evenly():
    counts = torch.histc(keys.uniform((8000,), -0.1, 0.1, key=0), bins=8, min=-0.1, max=0.1)
    assert counts.sum() == 8000
    assert (counts - 1000).abs().max() < 5 * 30  # five standard deviations


@given(st.integers(0, 40), seeds)
@few
def test_permutation_holds_every_number_once(n, seed):
    drawn = keys.permutation(n, key=seed)
    assert drawn.dtype == torch.int64 and drawn.sort().values.tolist() == list(range(n))


@given(st.integers(0, 40), st.integers(0, 40), seeds)
@few
def test_fewer_random_bits_are_a_prefix_of_more(n, more, seed):
    assert np.array_equal(keys.random_bits(n, key=seed), keys.random_bits(n + more, key=seed)[:n])


def test_random_bits_are_uniform_on_16_bits():
    drawn = keys.random_bits(64_000, key=0)
    assert drawn.dtype == np.uint16 and drawn.shape == (64_000,)
    ones = (drawn[:, None] >> np.arange(16) & 1).mean(0)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / np.sqrt(64_000)  # five standard deviations, every bit


def test_keys_are_values():
    assert {Key(0), fold_in(0)} == {Key(0, ())}
    assert start(0) == start(Key(0)) == start(Key(seed=0, path=()))


@given(paths, paths)
@few
def test_extending_a_path_changes_the_stream(path, more):
    assume(more)
    assert start(fold_in(0, *path)) != start(fold_in(0, *path, *more))
