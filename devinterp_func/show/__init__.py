"""What a person sees: tables, words, terminal, figures, the page. Only these know polars, rich, matplotlib and HTML.

Its parts are modules, imported when first used: the terminal needs no matplotlib. ``report`` is a run's whole page,
``summary`` what it begins with.
"""

from importlib import import_module
from typing import Any

__all__ = [
    "comparison",
    "drawing",
    "explore",
    "explorer",
    "notebook",
    "page",
    "plots",
    "report",
    "results",
    "schema",
    "summary",
    "tables",
    "terminal",
    "words",
]


def __getattr__(name: str) -> Any:
    if name == "explore":
        return import_module(f"{__name__}.explorer").serve
    if name == "report":
        return import_module(f"{__name__}._report").report
    if name == "summary":
        return import_module(f"{__name__}._summary").summary
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"devinterp_func.show has no part {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
