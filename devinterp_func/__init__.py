"""Every training datum's own share of every parameter update, recorded and read back.

Rooms are imported when first used (PEP 562), so that ``import devinterp_func as dif`` is quick and silent. Where
IPython runs, it is told how a notebook shows the library's objects (``show.notebook``), which is imported at the first.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.2.0"

__all__ = [
    "batches",
    "bigram",
    "checks",
    "credit",
    "graph",
    "keys",
    "models",
    "neurons",
    "optim",
    "per_example",
    "records",
    "show",
    "stats",
    "text",
    "training",
    "tree",
    "units",
]

SHOWN = {  # where the types are defined that ``show.notebook`` knows
    "credit._carried": ("Books", "Lifetimes"),
    "credit._influence": ("Influences",),
    "credit._ledger": ("Entries",),
    "credit.patterns": ("HeadAttention",),
    "graph._graph": ("Graph",),
    "neurons._card": ("Card",),
    "neurons._flips": ("Excerpt",),
    "neurons._tally": ("Tally",),
    "per_example._outliers": ("Outliers",),
    "records._run": ("Curve", "Run"),
    "records._step": ("StepRecord",),
    "show.words": ("Excerpt",),
    "training._moves": ("Move",),
}


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"devinterp_func has no room {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def load_ipython_extension(shell: Any) -> None:
    """Tells an IPython shell how the library's objects look in a notebook; nothing is imported for it.

    Args:
        shell: of ``get_ipython()``.
    """
    formatter = shell.display_formatter.formatters["text/html"]
    for module, names in SHOWN.items():
        for name in names:
            formatter.for_type_by_name(f"{__name__}.{module}", name, _html)


def _html(value: Any) -> str:
    return str(import_module(f"{__name__}.show.notebook").html(value))


if "IPython" in sys.modules and (_shell := sys.modules["IPython"].get_ipython()) is not None:
    load_ipython_extension(_shell)
