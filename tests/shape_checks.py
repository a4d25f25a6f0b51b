"""The test run's checks of shapes and types: jaxtyping's where there are shapes, beartype's own where there are none.

``--jaxtyping-packages`` puts ``jaxtyping.jaxtyped`` on every function. It binds the dimensions of a call's arrays to
each other, which costs 20 times what beartype's check of the same call costs; a function that names no shape has none
to bind. And it makes a check anew each time that a function within a function is made; here it is made once.
"""

import functools
import inspect
import threading
from collections.abc import Callable
from types import CodeType
from typing import Any, get_args

import jaxtyping
from beartype import beartype

Function = Callable[..., Any]
_shaped = jaxtyping.jaxtyped


def install() -> None:
    """From here on, what ``--jaxtyping-packages`` imports is checked by ``checked``."""
    jaxtyping.jaxtyped = checked  # type: ignore[assignment]


def checked(function: Any = None, **options: Any) -> Any:
    """``jaxtyping.jaxtyped`` of classes and of functions of arrays; of other functions the same checks without it."""
    if function is None:
        return functools.partial(checked, **options)
    if not inspect.isfunction(function):
        return _shaped(function, **options)
    if not function.__annotations__:
        return function
    return _inner(function, options) if "<locals>" in function.__qualname__ else _outer(function, options)


def _outer(function: Function, options: dict[str, Any]) -> Function:
    if any(map(_names_a_shape, function.__annotations__.values())) or inspect.isgeneratorfunction(function):
        return _shaped(function, **options)
    typed = beartype(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (function if jaxtyping.config.jaxtyping_disable else typed)(*args, **kwargs)

    return call


class _Called(threading.local):
    """Of the functions made by one ``def``, those whose arguments are being checked."""

    def __init__(self) -> None:
        self.stack: list[Function] = []


_made: dict[CodeType, tuple[Function, _Called]] = {}


def _inner(function: Function, options: dict[str, Any]) -> Function:
    if function.__code__ not in _made:
        called = _Called()

        @functools.wraps(function)
        def latest(*args: Any, **kwargs: Any) -> Any:
            return called.stack[-1](*args, **kwargs)

        _made[function.__code__] = _outer(latest, options), called
    check, called = _made[function.__code__]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        called.stack.append(function)
        try:
            return check(*args, **kwargs)
        finally:
            called.stack.pop()

    return call


def _names_a_shape(annotation: Any) -> bool:
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    parts = annotation if isinstance(annotation, list | tuple) else get_args(annotation)
    return isinstance(annotation, str) or any(map(_names_a_shape, parts))
