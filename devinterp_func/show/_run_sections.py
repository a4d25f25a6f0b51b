"""The run itself as a section of its report: what was trained, how it went, and what the record holds."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from devinterp_func import records, units
from devinterp_func.records import Run
from devinterp_func.show import page, plots, terminal, words
from devinterp_func.show.drawing import NARROW, WIDE
from devinterp_func.show.page import Section, counted, n_bytes, shown

LEAD = "What was trained and recorded. Every datum's share of every update is in the record, or derivable from it."


def sections(run: Run, folder: Path) -> list[Section]:
    """One section: facts, the loss, and the settings."""
    curve, evaluations, per_epoch = run.curve(), records.read_evaluations(run), run.steps_per_epoch
    wide, narrow = (plots.loss_curve(curve.loss, per_epoch, evaluations, curve.clip, width) for width in (WIDE, NARROW))
    caption = (
        "Training loss (the band holds the middle 80 % of a bin's steps), evaluations as dots, and the clip "
        "coefficient, by which each step's gradient was multiplied. Epochs are numbered on top."
    )
    alt = "Training loss by step, evaluations, and the clip coefficient"
    settings = page.details("Settings", page.table(settings_frame(run), fold=None))
    return [
        Section(
            "The run",
            LEAD,
            [page.facts(facts(run, curve, evaluations)), page.figure(wide, caption, alt, narrow), settings],
        )
    ]


def facts(run: Run, curve: records.Curve, evaluations: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """What there is to know of a run at a glance: name -> value, or value and remark.

    Args:
        run: the run.
        curve, evaluations: its training, which takes reading the whole record.
    """
    updates = run.n_steps * run.recipe.batch_size
    clip = [shown(float(bound)) for bound in (curve.clip.min(), curve.clip.max())]
    captured, verified = units.n_parameters(run.shapes), records.verify(run)
    late = curve.loss[-max(1, run.steps_per_epoch // 10) :]
    how = words.in_full(run.manifest["recipe"])
    found = {
        "optimizer": (
            words.optimizer_name(how["optimizer"]),
            f"rate {how['lr']:g}, {words.schedule_words(how['schedule'])}",
        ),
        "per-datum updates recorded": updates,
        "captured weights": (captured, f"in {counted(len(run.shapes), 'unit')}"),
        "training loss at the end": (float(late.mean()), f"nats, mean of {counted(len(late), 'step')}"),
        "clip coefficient": (" – ".join(clip), "least and largest"),
        "on disk": (n_bytes(verified.bytes), "verified" if verified.complete else "verified; not complete"),
        "full logging would take": _full_log(run, records.full_log_bytes(captured, updates)),
    }
    if (missed := law(run)) is not None:
        found["the law"] = (f"{missed:.1e}", "of a step, replayed, is missed by the sum of present, past and decay")
    last = evaluations.get(run.n_steps, {})
    if run.is_text:
        return found | {f"{split} perplexity": terminal.perplexity(loss) for split, loss in last.items()}
    return found | {f"{split} loss": (loss, "nats") for split, loss in last.items()}


def law(run: Run) -> float | None:
    """How far the last step that begins at a snapshot misses the law; None where it cannot be replayed here."""
    starts = [step for step in run.snapshots if step < run.n_steps]
    try:
        return records.replay(run, max(starts)).worst if starts else None
    except records.RecordError:  # another machine, or a model that the run does not hold
        return None


def settings_frame(run: Run) -> pl.DataFrame:
    """Model, training and recording, a setting a row."""
    how = words.in_full(run.manifest["recipe"])
    said = {"optimizer": words.optimizer_words(how["optimizer"]), "schedule": words.schedule_words(how["schedule"])}
    parts = {"model": _model(run), "training": vars(run.recipe) | said, "recording": asdict(run.recording)}
    rows = [(part, name, _said(value)) for part, of in parts.items() for name, value in of.items()]
    rows += [("machine", "device", run.device), ("machine", "threads", _said(run.manifest["threads"]))]
    rows += [("versions", name, number) for name, number in run.manifest["versions"].items()]
    return pl.DataFrame(rows, {"of": pl.String, "setting": pl.String, "value": pl.String}, orient="row")


def _model(run: Run) -> dict[str, Any]:
    """What the manifest says of the model; of its configuration, a name an entry."""
    said = {name: value for name, value in run.manifest["model"].items() if name != "graph"}
    config = said.pop("config", {})
    return said | (config if isinstance(config, dict) else {"config": config})


def _full_log(run: Run, size: int) -> tuple[str, str]:
    return n_bytes(size), "the post: 882 GB" if words.is_posts(run) else "of every delta"


def _said(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
