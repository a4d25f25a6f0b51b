"""Rows of the results' tables about probes: ledgers, lifetimes, influences."""

import polars as pl

from devinterp_func.show import results, tables
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.schema import Table

TABLES: dict[str, Table] = tables.LEDGER_TABLES | tables.LIFETIME_TABLES | tables.INFLUENCE_TABLES
TABLES = {**TABLES, "retrain": tables.REMOVALS}


def probe_frame(site: Site, table: str, **key: object) -> pl.DataFrame:
    """Rows of a table about probes; none where no script has made it.

    Args:
        site: with its results.
        table: of ledgers, lifetimes, influences or retrainings, such as ``"ledger_courses"``.
        key: what its columns must be, such as ``probe="loss"``.

    Raises:
        ValueError: no such table or column.
    """
    if table not in TABLES:
        raise ValueError(f"there is no table {table!r} of probes; there are {', '.join(TABLES)}")
    kind = TABLES[table]
    if wrong := key.keys() - kind.columns.keys():
        raise ValueError(f"{table} has no column {min(wrong)!r}; it has {', '.join(kind.columns)}")
    found = site.table(table, kind)
    if found is None:
        return pl.DataFrame(schema={name: column.dtype for name, column in kind.columns.items()})
    return found.filter([pl.col(name) == value for name, value in key.items()]) if key else found


def probe_rows(site: Site, table: str, **key: object) -> dict[str, list[object]]:
    """``probe_frame`` as columns of plain values."""
    return probe_frame(site, table, **key).to_dict(as_series=False)


def ledgers(site: Site) -> dict[str, list[object]]:
    """Every ledger: its probe and span, the probe's values at both ends, what raised and lowered it, what is missed."""
    return ledger_frame(site).to_dict(as_series=False)


def ledger_frame(site: Site) -> pl.DataFrame:
    """``ledgers`` as a frame; of those that were followed to several stops, the farthest."""
    return tables.ledger_summary(tables.longest(probe_frame(site, "ledger_courses")))


def probes(site: Site) -> dict[str, list[str]]:
    """Every probe of the results, by its name as a part of a file name; several names may be the same as that."""
    found: dict[str, list[str]] = {}
    for table in ("ledger_courses", "lifetimes", "influences"):
        for name in probe_frame(site, table)["probe"].unique(maintain_order=True):
            names = found.setdefault(results.slug(name), [])
            names += [] if name in names else [name]
    return dict(sorted(found.items()))
