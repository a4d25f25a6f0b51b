"""What do texts that repeat themselves teach? The loss where a text says again what it has said, and credits by place.

    python experiments/repeats.py runs/demo-repeated
    python experiments/repeats.py runs/demo-repeated --start 40 --stop 50 --probe "head:1.0 induction" --probe loss

The run is one of capture.py --repeated. At every snapshot, on validation texts: the loss where the token stood before
in the same text and the same token came next, where others did, and where it is new, in texts that say their beginning
again and again and in others. With a probe, named as for ledger.py: what each of these kinds of text and place has of
its credits, beside what it has of all positions.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import ledger
import polars as pl
import stage
import torch
import tyro
from torch import Tensor

from devinterp_func import batches, checks, credit, keys, text
from devinterp_func.records import Run
from devinterp_func.show import plots, results, tables, terminal


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]  # the run directory
    out: Path | None = None  # where the results go; by default beside the run, RUN-results
    probe: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A number whose credits are split by place; may be repeated. Ledgers that ledger.py made are read."""
    start: int = 0  # first step of the credits
    stop: int | None = None  # step to stop before; by default as far as the run is recorded
    nodes: int = 3  # of the quadrature: gradients of each probe a step, besides that at its end
    texts: int = 20  # of each probe that takes texts
    held_out: int = 100  # validation texts of each kind, at most, on which losses are taken
    seed: int = 0  # of the draws of texts, and of the bootstrap


def main(settings: Settings) -> Path:
    work = stage.start("repeats", settings)
    run, key = work.run, keys.Key(settings.seed, ("repeats",))
    checks.integer("held-out", settings.held_out)
    span, repeating = run.span(settings.start, settings.stop), repeats(run, "train")
    if work.done:
        return work.folder
    frame = tables.repeat_loss_frame(losses(run, settings, key))
    work.add("repeat_losses", tables.REPEAT_LOSSES, frame)
    again = {name: rows.filter(pl.col("place") == "again") for (name,), rows in frame.group_by("text")}
    series = {f"again, {name}": (rows["step"].to_torch(), rows["loss"].to_torch()) for name, rows in again.items()}
    figure = plots.lines(series, "loss, nats", run.steps_per_epoch, True)
    results.write_figure(work.folder, "repeat_losses", figure)
    last = frame.filter(pl.col("step") == frame["step"].max())
    work.show(last, tables.REPEAT_LOSSES.caption, kind=tables.REPEAT_LOSSES)
    if settings.probe:
        names = list(dict.fromkeys(settings.probe))
        of = tables.LedgerKey(*span, settings.nodes, settings.texts, settings.seed)
        found = ledger.walked(work, names, *of)
        tokens, targets = (x[found.datum] for x in run.data)
        kinds = credit.place_kinds(tokens.flatten(0, 1), targets.flatten(0, 1)).view(tokens.shape)
        shown = tables.repeat_credit_frame(found, names, of, repeating[found.datum], kinds, key=key)
        work.add("repeat_credits", tables.REPEAT_CREDITS, shown)
        shown = shown.drop("start", "stop", "nodes", "texts", "seed")
        work.show(shown, tables.REPEAT_CREDITS.caption, 60)
    return work.finish()


def losses(run: Run, settings: Settings, key: keys.Key) -> list[dict[str, Any]]:
    """Rows of the losses at every snapshot, on validation texts that repeat themselves and on others."""
    held_out, repeating = run.split("valid"), repeats(run, "valid")
    order = keys.permutation(len(repeating), key=key)
    some = [order[repeating[order] == kind][: settings.held_out] for kind in (True, False)]
    chosen = torch.cat(some)
    tokens, targets = (x.to(run.device) for x in batches.take(held_out, chosen))
    kinds, rows = credit.place_kinds(tokens, targets).cpu(), []
    for step in terminal.watched(run.snapshots, len(run.snapshots), "losses at snapshots"):
        found = credit.position_losses(run.graph, run.params(step), tokens, targets).cpu()
        rows += tables.repeat_loss_rows(step, found, repeating[chosen], kinds, key=key)
    return rows


def repeats(run: Run, split: Literal["train", "valid"]) -> Tensor:
    """Which texts of a split repeat themselves.

    Raises:
        ValueError: none does.
    """
    found = text.period(run.split(split).tokens) > 0
    if not bool(found.any()):
        raise ValueError(f"no {split} text repeats itself; record a run with capture.py --repeated 0.25")
    return found


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
