"""The phases of a run, from the tables that ``phases.py`` makes."""

import polars as pl

from devinterp_func.show import tables
from devinterp_func.show._phase_sections import label_of
from devinterp_func.show.explorer._site import Site


def phase_table(site: Site, name: str) -> pl.DataFrame | None:
    """A table of phases, its rows of this run; None if no script has made it.

    Args:
        site: with its results.
        name: of ``tables.PHASE_TABLES``, such as ``"segments"``.

    Raises:
        ValueError: there is no table of this name.
    """
    if name not in tables.PHASE_TABLES:
        raise ValueError(f"there is no table {name!r} of phases; there are {', '.join(tables.PHASE_TABLES)}")
    table = site.table(f"phases_{name}", tables.PHASE_TABLES[name])
    if table is None or not len(table):
        return None
    chosen = label_of(site.run, table["run"].unique(maintain_order=True).to_list())
    return table.filter(pl.col("run") == chosen)
