"""What a caller gives, checked at the door: one clear sentence before any work is done.

Each check returns the value in the one form that the library keeps, or raises with its name and what would be right.
"""

import math
import operator
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def integer(name: str, value: Any, least: int = 1) -> int:
    """A Python int of at least ``least``; NumPy's and torch's integers are taken, floats and bools are not.

    >>> integer("k", torch.tensor(5))
    5

    Raises:
        TypeError: it is no integer.
        ValueError: it is too small.
    """
    try:
        if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; it must be an integer of at least {least}") from None
    if found < least:
        raise ValueError(f"{name} is {found}; it must be at least {least}")
    return found


def number(name: str, value: Any) -> float:
    """A Python float; Python's, NumPy's and torch's numbers are taken, bools and strings are not.

    Raises:
        TypeError: it is no number.
    """
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is {value!r}; it must be a number") from None


def numbers(name: str, values: Any, n: int) -> tuple[float, ...]:
    """So many Python floats, of any sequence.

    >>> numbers("betas", [0, 0.5], 2)
    (0.0, 0.5)

    Raises:
        TypeError: it is no sequence, or of what are no numbers.
        ValueError: it has another length.
    """
    try:
        found = tuple(number(name, value) for value in values)
    except TypeError:
        raise TypeError(f"{name} is {values!r}; it must be {n} numbers") from None
    if len(found) != n:
        raise ValueError(f"{name} is {values!r}; it must be {n} numbers")
    return found


def flag(name: str, value: Any) -> bool:
    """True or False; NumPy's is taken, numbers and strings are not.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r}; it must be True or False")
    return bool(value)


def positive(name: str, value: Any, infinite: bool = False) -> float:
    """A Python float above 0, finite unless infinity has a meaning.

    Raises:
        TypeError: it is no number.
        ValueError: it is NaN, not above 0, or infinite where that means nothing.
    """
    found = number(name, value)
    if not (0 < found < math.inf or (infinite and found == math.inf)):
        raise ValueError(f"{name} is {found}; it must be positive{'' if infinite else ' and finite'}")
    return found


def token_ids(name: str, ids: Int[Tensor, "*n"], vocab_size: int) -> None:
    """All ids in 0 to V − 1.

    Raises:
        ValueError: one is not, such as the −100 that pads targets elsewhere, or the ids are not integers.
    """
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"{name} are {ids.dtype}; token ids must be integers")
    if ids.numel():
        low, high = (int(x) for x in ids.aminmax())
        if low < 0 or high >= vocab_size:
            wrong = low if low < 0 else high
            raise ValueError(f"{name} hold the id {wrong}; ids must be in 0..{vocab_size - 1}, and nothing is padded")


def non_negative(name: str, value: Any) -> float:
    """A finite Python float of at least 0.

    Raises:
        TypeError: it is no number.
        ValueError: it is NaN, infinite or negative.
    """
    found = number(name, value)
    if not 0 <= found < math.inf:
        raise ValueError(f"{name} is {found}; it must be at least 0 and finite")
    return found


def gradients_allowed() -> None:
    """Refuses torch's inference mode, in which gradients come out as zeros.

    Raises:
        RuntimeError: it is switched on.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "inside torch.inference_mode() torch makes no gradients; leave it, or use torch.no_grad() instead"
        )
