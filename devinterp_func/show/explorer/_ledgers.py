"""Ledgers in a run's results: which data did what to a probe in a span of steps."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor

from devinterp_func import records
from devinterp_func.credit import Entries
from devinterp_func.show.explorer._site import Site


class CreditedVisits(NamedTuple):
    """What data did to a probe in the steps of a ledger that lie in a span, the largest credits first."""

    start: int  # first of these steps
    stop: int  # step after the last
    change: float  # of the probe in these steps
    raised: float  # sum of the positive credits of single data
    lowered: float  # ... and of the negative ones
    step: Int64[Tensor, "m"]
    datum: Int64[Tensor, "m"]
    credit: Float[Tensor, "m C"]  # by position


def credited_visits(site: Site, probe: str, start: int, stop: int, most: int = 8) -> CreditedVisits | None:
    """The visits of data that moved a probe most, either way, in steps start to stop − 1; None if no ledger has any.

    Args:
        site: with its results.
        probe: as the ledger names it, such as ``"head:0.1 bracket"``.
        start, stop: of the span; of the ledgers that have steps of it, the one that has the most is read.
        most: so many visits.
    """
    found = [part for path in _ledgers(site, probe) if len((part := _part(path, probe, start, stop))[0].step)]
    if not found:
        return None
    entries, i = max(found, key=lambda part: len(part[0].step))
    each = entries.credit[:, i].sum(-1)  # (S, n)
    order = each.abs().flatten().argsort(descending=True, stable=True)[:most]
    at, row = order // each.shape[1], order % each.shape[1]
    return CreditedVisits(
        start=int(entries.step[0]),
        stop=int(entries.step[-1]) + 1,
        change=float(entries.change()[:, i].sum()),
        raised=float(each.clamp(min=0).sum()),
        lowered=float(each.clamp(max=0).sum()),
        step=entries.step[at].long(),
        datum=entries.datum[at, row].long(),
        credit=entries.credit[at, i, row],
    )


def _ledgers(site: Site, probe: str) -> list[Path]:
    """Folders of ledgers of the run that follow a probe and have steps."""
    found = []
    for path in sorted(file.parent for file in site.folder.glob("ledger-*/manifest.json")):
        about = records.manifest(path)
        if about["run"] == site.run.manifest["digest"] and probe in about["probes"] and records.n_steps(path):
            found.append(path)
    return found


def _part(path: Path, probe: str, start: int, stop: int) -> tuple[Entries, int]:
    """The steps of a ledger that lie in a span, and the probe's place in it."""
    about = records.manifest(path)
    entries = _read(path, about["digest"], records.n_steps(path))
    inside = (entries.step >= start) & (entries.step < stop)
    return Entries(*(field[inside] for field in entries)), about["probes"].index(probe)


@lru_cache(maxsize=4)
def _read(path: Path, digest: str, n_steps: int) -> Entries:
    """A ledger; it changes with its number of steps alone."""
    return records.read_walk(path, Entries)
