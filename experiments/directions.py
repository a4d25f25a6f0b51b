"""Can layers be read in other directions than the neurons'? Singular directions of each unit's change, and tokens.

    python experiments/directions.py runs/demo                                # over the whole run
    python experiments/directions.py runs/demo --start 100 --stop 200         # between two snapshots

For every unit of the layers: its leading singular pairs, the single weights that changed most, and random rotations as
the control. What the data of the steps did to each one is split over target and input tokens, and how far these are
from the usual tokens is compared. Past and decay, where the optimizer remembers or decays, are no token's.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import polars as pl
import stage
import tyro

from devinterp_func import credit, keys, records, units
from devinterp_func.show import tables, terminal


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""
    out: Path | None = None
    """Where the results go; by default beside the run, RUN-results."""
    start: int = 0
    """First step."""
    stop: int | None = None
    """Step to stop before; by default as far as the run is recorded."""
    pairs: int = 8
    """Pairs of directions of each kind in each unit."""
    units: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A pattern of units, captured or not; may be repeated. By default those that the run captured."""
    seed: int = 0
    """Of the rotations."""


def main(settings: Settings) -> Path:
    run = records.open(settings.run)
    start, stop = run.span(settings.start, settings.stop)
    span = "" if (start, stop) == (0, run.n_steps) else f"-{start}-{stop}"
    work = stage.start(f"directions{span}", replace(settings, start=start, stop=stop), run=run, family="directions")
    shapes = run.graph.shapes
    chosen = units.choose(shapes, settings.units) if settings.units else list(run.shapes)
    maps = credit.linear_maps(run.graph, chosen)
    if not maps:
        raise ValueError(
            f"none of {', '.join(chosen)} is the matrix of a linear map; any unit of the model can be looked at: "
            "--units '*weight'"
        )
    credit.require_pairs({name: shapes[name] for name in maps}, settings.pairs)
    if work.done:
        return work.folder
    if skipped := [name for name in chosen if name not in maps]:
        work.say(f"left out, no matrices of linear maps: {', '.join(skipped)}")
    before, after = run.params(start), run.params(stop)
    change = {name: (after[name] - before[name]).cpu() for name in maps}
    pairs, names = credit.choose_directions(change, settings.pairs, key=keys.Key(settings.seed, ("directions",)))
    *_, (_, amounts) = terminal.watched(credit.directions(run, pairs, start, stop), stop - start, "replaying")
    table = tables.direction_frame(amounts, names, start, stop)
    summary, tokens = tables.direction_unit_frame(table), tables.direction_token_frame(amounts, names, start, stop)
    work.add("directions", tables.DIRECTIONS, table)
    work.add("directions_units", tables.DIRECTION_UNITS, summary)
    work.add("directions_tokens", tables.DIRECTION_TOKENS, tokens)
    for side in tables.SIDES:
        columns = {c: c.removeprefix(f"{side}: ") for c in summary.columns if c.startswith(side)}
        shown = summary.select("unit", *columns).rename(columns)
        work.show(shown, f"divergence of {side} tokens from the usual, nats: medians over pairs")
    leading = (pl.col("kind") == "singular") & (pl.col("rank") == 0) & (pl.col("reading") == "total")
    leading_tokens = tokens.filter(leading).select("unit", "side", "up", "down")
    work.show(leading_tokens, "the leading singular pair's tokens", kind=tables.DIRECTION_TOKENS)
    return work.finish()


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
