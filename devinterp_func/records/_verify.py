"""Every bit of a run held against what its files say of themselves and of each other."""

from pathlib import Path
from typing import Any, NamedTuple

from devinterp_func import optim
from devinterp_func.records._directory import file_path, numbers, shards, unfinished
from devinterp_func.records._manifest import RunPath, manifest
from devinterp_func.records._sealed import RecordError
from devinterp_func.records._store import led_to, load

BESIDE = ("params", "state", "evaluation")


class Verified(NamedTuple):
    """What `verify` found whole."""

    steps: int
    shards: int
    snapshots: int
    files: int
    bytes: int
    complete: bool  # all the manifest's n_steps are there, and the weights after the last
    unfinished: tuple[str, ...]  # temporary files a crash left; the next writer removes them

    def __repr__(self) -> str:
        state = "complete" if self.complete else "cut short or still growing"
        unfinished = f", {len(self.unfinished)} unfinished temporary files" if self.unfinished else ""
        counts = f"{self.steps} steps in {self.shards} shards, {self.snapshots} snapshots, {self.files} files"
        return f"Verified({counts}, {self.bytes / 1e6:.1f} MB, {state}{unfinished})"


def verify(run: RunPath) -> Verified:
    """Recomputes every digest of the run and follows the chain. A run cut short is whole, though not complete.

    Raises:
        RecordError: the first fault found: a file damaged, missing, out of order, foreign or of another format.
    """
    body = manifest(run)
    # What is written first is listed last, as a writer may be adding to it: shards, then states, then weights.
    listed = [(kind, step) for kind in (*BESIDE, "steps") for step in numbers(run, kind)]
    listed += [("data", 0)] if file_path(run, "data", 0).exists() else []
    headers = {entry: load(run, *entry)[0] for entry in listed}
    n_shards = len(shards(run))
    for (kind, step), header in headers.items():
        if kind in BESIDE and header.previous != led_to(run, kind, step).digest:
            raise RecordError(f"{file_path(run, kind, step)}: does not follow from the steps recorded before it")
    _require_pairs(run, body, *({step for kind, step in listed if kind == own} for own in ("params", "state")))
    steps = sum(header.count for header in headers.values())
    files = [Path(run) / "manifest.json", *(file_path(run, *entry) for entry in listed)]
    return Verified(
        steps=steps,
        shards=n_shards,
        snapshots=sum(kind == "params" for kind, _ in listed),
        files=len(files),
        bytes=sum(file.stat().st_size for file in files),
        complete=steps == body.get("n_steps") and ("params", steps) in headers,
        unfinished=tuple(str(file.relative_to(run)) for file in unfinished(run)),
    )


def _require_pairs(run: RunPath, body: dict[str, Any], weights: set[int], states: set[int]) -> None:
    """Weights have their state beside them; so has a state its weights, but for a last one, which a crash may leave."""
    if states and not _remembers(body):
        where = file_path(run, "state", min(states))
        raise RecordError(f"{where}: not a file of this run, whose optimizer remembers nothing")
    for step in sorted(weights - states) if _remembers(body) else ():
        raise RecordError(f"{file_path(run, 'state', step)} is missing: the state of the weights before step {step}")
    for step in sorted(states - weights):
        if step < max(weights, default=0):
            raise RecordError(
                f"{file_path(run, 'params', step)} is missing: the weights of the state before step {step}"
            )


def _remembers(body: dict[str, Any]) -> bool:
    """Whether a manifest is that of a training whose optimizer remembers anything."""
    return "recipe" in body and optim.from_dict(body["recipe"]["optimizer"]).remembers
