"""What walks over the run found, which are in the results: ledgers, lifetimes, influences; and a datum's part of it."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor

from devinterp_func import credit, records
from devinterp_func.credit import Entries, Influences, Lifetimes
from devinterp_func.show import results
from devinterp_func.show.explorer._site import Site

KINDS: dict[str, tuple[type[Any], dict[str, str]]] = {  # of a walk -> what it finds: field -> what a page calls it
    "ledger": (Entries, {"credit": "credit"}),
    "lifetime": (Lifetimes, {"present": "present credit", "lifetime": "lifetime credit"}),
    "influence": (Influences, {"influence": "influence"}),
}
SCRIPTS = {kind: f"{kind}.py" for kind in KINDS}


class Walk(NamedTuple):
    """A walk in the results' folder."""

    folder: str  # its name
    kind: str  # of KINDS
    probes: tuple[str, ...]
    start: int  # first step that is there
    stop: int  # step after the last


class Credited(NamedTuple):
    """What a walk says of a datum and a probe."""

    folder: str
    what: str
    probe: str
    step: Int64[Tensor, "v"]  # of its visits in the walk
    amounts: Float[Tensor, "v C"]  # of each visit, by position


def walks(site: Site) -> list[Walk]:
    """All walks of the run in its results, by the names of their folders."""
    found = []
    for path in sorted(site.folder.glob("*/manifest.json")):
        about = records.manifest(path.parent)
        if about.get("walk") not in KINDS or about.get("run") != site.run.manifest["digest"]:
            continue
        if records.n_steps(path.parent):
            step = _found(site, path.parent.name).step
            probes = tuple(str(name) for name in about["probes"])
            found.append(Walk(path.parent.name, about["walk"], probes, int(step[0]), int(step[-1]) + 1))
    return found


def credited(site: Site, datum: int, probe: str | None = None) -> tuple[Credited, ...]:
    """What all walks that saw a datum say of it.

    Args:
        site: with its results.
        datum: which.
        probe: only of probes with this name, as a part of a file name; None for all.
    """
    return tuple(one for walk in walks(site) for one in _of(site, walk, datum, probe))


def _of(site: Site, walk: Walk, datum: int, probe: str | None) -> Iterator[Credited]:
    found = _found(site, walk.folder)
    for i, name in enumerate(walk.probes):
        if probe is not None and results.slug(name) != probe:
            continue
        for field, what in KINDS[walk.kind][1].items():
            at, amounts = credit.of_datum(getattr(found, field)[:, i], found.datum, datum)
            if len(at):
                yield Credited(walk.folder, what, name, found.step[at].long(), amounts)


def _found(site: Site, folder: str) -> Any:
    path = site.folder / folder
    return _read(path, records.manifest(path)["digest"], records.n_steps(path))


@lru_cache(maxsize=4)
def _read(path: Path, digest: str, n_steps: int) -> Any:
    """A walk's findings; they change with its number of steps alone."""
    kind = records.manifest(path)["walk"]
    read = records.read_walk_back if kind == "influence" else records.read_walk
    return read(path, KINDS[kind][0])
