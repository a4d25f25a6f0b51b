"""Explicit randomness: a key is a seed and the path of what was folded into it; nothing is global.

Numbers come from NumPy's Philox, a counter-based generator (Salmon et al. 2011, *Parallel random numbers: as easy
as 1, 2, 3*), so they are the same on every platform and device and depend on nothing but the key.
"""

from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor


class Key(NamedTuple):
    """A source of randomness. ``Key(0)`` is the usual start; ``fold_in`` derives the others."""

    seed: int
    path: tuple[int | str, ...] = ()


def fold_in(key: Key | int, *data: int | str) -> Key:
    """The key derived from ``key`` by ``data``: equal paths give equal keys, different paths independent streams.

    Args:
        key: a key, or a seed.
        data: integers and words, in order, such as ``epoch, datum, "layers.0.dropout"``.

    >>> fold_in(Key(0), "masks", 3) == fold_in(fold_in(0, "masks"), 3)
    True
    """
    seed, path = key if isinstance(key, Key) else Key(int(key))
    return Key(seed, (*path, *(part if isinstance(part, str) else int(part) for part in data)))


def generator(key: Key | int) -> np.random.Generator:
    """NumPy's Philox generator at ``key``."""
    return np.random.Generator(np.random.Philox(key=_philox_key(key)))


def uniform(shape: tuple[int, ...], low: float, high: float, *, key: Key | int) -> Float[Tensor, "..."]:
    """float32 tensor of ``shape``, uniform on [low, high)."""
    unit = torch.from_numpy(generator(key).random(shape, dtype=np.float32))
    return unit * (high - low) + low  # not in place: NumPy aligns memory less, and matrix products round by alignment


def permutation(n: int, *, key: Key | int) -> Int[Tensor, "n"]:
    """A permutation of 0..n-1 (int64)."""
    return torch.from_numpy(generator(key).permutation(n))


def random_bits(n: int, *, key: Key | int) -> npt.NDArray[np.uint16]:
    """n times 16 random bits."""
    raw = np.random.Philox(key=_philox_key(key)).random_raw(-(-n // 4))
    return raw.astype("<u8", copy=False).view("<u2")[:n]


def _philox_key(key: Key | int) -> int:
    """Philox's 128-bit key: the BLAKE2b digest of seed and path."""
    return int.from_bytes(blake2b(repr(tuple(fold_in(key))).encode(), digest_size=16).digest(), "little")
