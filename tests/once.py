"""What the library works out anew for each run, worked out once for a process of tests: it follows from what is given.

So a script that opens a run is tested without the second of tracing that torch.export takes. That a graph traced again
is the same graph is a law of tests/graph/test_running.py, and of the scripts that CI runs one after the other.
"""

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_flatten

from devinterp_func.records import _recorder, _run
from devinterp_func.text import _corpora


def patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's graph by what its model computes and by shapes; planted texts by key and length."""
    graph = once(
        _run.traced, lambda model, params, data, device: (loss_of(model), forms(params), forms(data.train), device)
    )
    for module in (_recorder, _run):
        monkeypatch.setattr(module, "traced", graph)
    monkeypatch.setattr(
        _corpora, "planted_texts", once(_corpora.planted_texts, lambda *given, **named: (given, str(named)))
    )


def once(function: Callable[..., Any], key: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called once for each key."""
    known: dict[Any, Any] = {}

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        own = key(*args, **kwargs), torch.get_default_dtype(), torch.is_inference_mode_enabled()
        if own not in known:
            known[own] = function(*args, **kwargs)
        return known[own]

    return call


def loss_of(model: Any) -> Any:
    """What tells a model's loss from others: a module of the caller's by itself, other models by their settings."""
    if isinstance(model.loss, partial):
        return model.loss.func, model.loss.args, tuple(model.loss.keywords.items())
    return (
        (inspect.unwrap(model.loss).__code__, repr(model.source)) if model.source["kind"] == "causal_lm" else model.loss
    )


def forms(tree: Any) -> Any:
    """Shapes and dtypes of a tree's tensors."""
    leaves, spec = tree_flatten(tree)
    return spec, tuple((tuple(x.shape), x.dtype) for x in leaves)
