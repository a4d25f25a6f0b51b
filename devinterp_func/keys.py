"""Explicit randomness: a key is a seed and the path of what was folded into it; nothing is global.

Numbers come from NumPy's Philox, a counter-based generator (Salmon et al. 2011, *Parallel random numbers: as easy
as 1, 2, 3*), so they are the same on every platform and device and depend on nothing but the key.
"""

from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
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
    """NumPy's Philox generator at ``key``. Its 128-bit Philox key is the BLAKE2b digest of seed and path."""
    digest = blake2b(repr(tuple(fold_in(key))).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def uniform(shape: tuple[int, ...], low: float, high: float, *, key: Key | int) -> Float[Tensor, "..."]:
    """float32 tensor of ``shape``, uniform on [low, high)."""
    return torch.from_numpy(generator(key).random(shape, dtype=np.float32)).mul_(high - low).add_(low)


def permutation(n: int, *, key: Key | int) -> Int[Tensor, "n"]:
    """A permutation of 0..n-1 (int64)."""
    return torch.from_numpy(generator(key).permutation(n))


def keep_mask(shape: tuple[int, ...], drop: float, *, key: Key | int) -> Bool[Tensor, "..."]:
    """True with probability ``1 - drop``, rounded to a multiple of 2⁻¹⁶: 16 random bits decide each entry."""
    n = int(np.prod(shape))
    bits = generator(key).bit_generator.random_raw(-(-n // 4)).astype("<u8", copy=False).view("<u2")[:n]
    return torch.from_numpy(bits >= round(drop * 2**16)).reshape(shape)
