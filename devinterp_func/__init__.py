"""Every training datum's own share of every parameter update, recorded and read back.

Rooms are imported when first used (PEP 562), so that ``import devinterp_func as dif`` is quick and silent.
"""

from importlib import import_module
from types import ModuleType

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


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"devinterp_func has no room {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
