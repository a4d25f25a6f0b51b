"""The lines that give a panel's numbers at the REPL, and what they give."""

from typing import Any

from devinterp_func.show import results
from devinterp_func.show.explorer._site import Site


def python(site: Site, *lines: str) -> str:
    """Lines for the REPL, of which the last is an expression.

    Args:
        site: opened as ``site`` in the first line.
        lines: those after it.
    """
    opened = f"site = dif.show.explorer.open({str(site.run.path)!r}{_rest(site)})"
    return "\n".join(["import devinterp_func as dif", opened, *lines])


def given(lines: str) -> Any:
    """What the last of some lines gives."""
    *before, last = lines.split("\n")
    known: dict[str, Any] = {}
    exec("\n".join(before), known)
    return eval(last, known)


def _rest(site: Site) -> str:
    parts = "" if site.folder == results.beside(site.run) else f", out={str(site.folder)!r}"
    return parts + (f", others={tuple(str(run.path) for run in site.others)!r}" if site.others else "")
