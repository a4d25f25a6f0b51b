"""What a recording would cost, as tables: what a run leaves on the disk, and what other settings would leave."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import polars as pl

from devinterp_func import graph as graphs
from devinterp_func import records, units
from devinterp_func.graph import Graph
from devinterp_func.records import Memory, Recording, RunBytes
from devinterp_func.show._written import Format, n_bytes
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table, frame
from devinterp_func.training import Recipe

PLAN_COSTS = Table(
    "What recording would leave on the disk, by model.",
    "plan.py",
    {
        "model": Column(NAME),
        "parameters": Column(INT, "numbers that are trained"),
        "captured": Column(INT, "of these in the captured units"),
        "batch": Column(INT, "data a step"),
        "steps": Column(INT, "of the run"),
        "step, k a datum": Column(INT, "bytes of a step record with k outliers of each datum"),
        "step, k a step": Column(INT, "... of the step as a whole"),
        "run, k a datum": Column(FLOAT, "bytes of all step records"),
        "run, k a step": Column(FLOAT, "... with k of each step as a whole"),
        "snapshot": Column(INT, "bytes of weights and optimizer state at a step"),
        "full log": Column(FLOAT, "bytes of every update that every datum made to every captured number, in float32"),
    },
    ("model",),
)
PLAN_CHANGES = Table(
    "What other settings would leave on the disk: step records, snapshots and optimizer state.",
    "plan.py",
    {
        "setting": Column(NAME, "what is other than planned"),
        "captured": Column(INT, "numbers in the captured units"),
        "a step": Column(INT, "bytes of a step record"),
        "the run": Column(FLOAT, "bytes of the run's files"),
        "of the plan": Column(FLOAT, "the run's bytes as a multiple of the plan's", format=".3g"),
    },
    ("setting",),
)
PLAN_SIZES = Table(
    "What the run would leave on the disk and hold in memory.",
    "capture.py",
    {"where": Column(NAME, "disk or memory"), "what": Column(NAME), "bytes": Column(INT, "in memory an estimate")},
    ("where", "what"),
)
FILES = {
    "steps": "step records",
    "params": "weights at the snapshots",
    "state": "optimizer state at the snapshots",
    "evaluation": "losses on held-out data",
    "data": "the data themselves",
    "headers": "headers of {files:,} files",
}
HELD = {
    "weights": "weights, before and after a step",
    "state": "optimizer state, the same",
    "gradients": "gradients",
    "activations": "activations",
    "logits": "logits",
    "factors": "factors of gradients and deltas",
    "deltas": "deltas formed at once",
    "records": "records not yet written",
}
KS = (10, 100, 1000)
MEGA, GIGA = 10**6, 10**9
PLAN_FORMATS: Mapping[str, Format] = {
    "parameters": lambda n: f"{n / GIGA:.2f} B" if n >= GIGA else f"{n / MEGA:.2f} M",
    **dict.fromkeys((name for name in PLAN_COSTS.columns if "," in name or name in ("snapshot", "full log")), n_bytes),
    **dict.fromkeys(("a step", "the run", "bytes"), n_bytes),
}
"""How the columns of bytes are written."""


def plan_size_frame(files: RunBytes, memory: Memory) -> pl.DataFrame:
    """What a run would take, part by part, those of 0 bytes left out.

    Args:
        files: of ``records.run_bytes``.
        memory: of ``records.memory``.
    """
    said = {name: text.format(files=files.files) for name, text in FILES.items()}
    rows = [("disk", said[name], getattr(files, name)) for name in FILES] + [("disk", "in all", files.total)]
    rows += [("memory", HELD[name], size) for name, size in memory._asdict().items()]
    rows.append(("memory", "at most at once, about", memory.total))
    return frame(PLAN_SIZES, [dict(zip(PLAN_SIZES.columns, row, strict=True)) for row in rows if row[2]])


def plan_cost_row(name: str, graph: Graph, recipe: Recipe, recording: Recording, n_steps: int) -> dict[str, object]:
    """A row of ``PLAN_COSTS``.

    Args:
        name: of the model.
        graph: of its loss; one traced with stand-ins will do.
        recipe, recording: how it is trained and recorded; both kinds of outliers are counted.
        n_steps: of the run.
    """
    captured = _captured(graph, recording)
    steps = {f"k a {per}": records.step_bytes(graph, recipe, replace(recording, per=per)) for per in ("datum", "step")}
    state = records.run_bytes(graph, recipe, replace(recording, snapshot_every=1), n_steps=1)
    return {
        "model": name,
        "parameters": units.n_parameters(graph.shapes),
        "captured": captured,
        "batch": recipe.batch_size,
        "steps": n_steps,
        **{f"step, {which}": size for which, size in steps.items()},
        **{f"run, {which}": float(size * n_steps) for which, size in steps.items()},
        "snapshot": (state.params + state.state) // 2,  # of those before and after the one step
        "full log": float(records.full_log_bytes(captured, n_steps * recipe.batch_size)),
    }


def plan_change_frame(graph: Graph, recipe: Recipe, recording: Recording, n_steps: int) -> pl.DataFrame:
    """What changes with one setting at a time; the plan itself comes first.

    Args:
        graph, recipe, recording, n_steps: as for ``plan_cost_row``.
    """
    rows, sizes = list[dict[str, object]](), list[float]()
    for setting, changed, half in _changes(graph, recording, n_steps):
        step = records.step_bytes(graph, recipe, changed, half=half)
        run = records.run_bytes(graph, recipe, changed, n_steps=n_steps)
        size = float(run.total - run.steps + n_steps * step)
        sizes.append(size)
        row = {"setting": setting, "captured": _captured(graph, changed), "a step": step, "the run": size}
        rows.append(row | {"of the plan": size / sizes[0]})
    return frame(PLAN_CHANGES, rows)


def _changes(graph: Graph, recording: Recording, n_steps: int) -> Iterator[tuple[str, Recording, bool]]:
    """A setting, the recording with it, and whether its factors are of half precision."""
    P = _captured(graph, recording)
    yield "as planned", recording, False
    yield from ((f"k {k}", replace(recording, k=k), False) for k in KS if k != recording.k and k <= P)
    yield from ((f"k a {per}", replace(recording, per=per), False) for per in ("datum", "step") if per != recording.per)
    for said, chosen in _parts(graph).items():
        captured = replace(recording, units=tuple(chosen))
        if chosen and graphs.choose(graph, captured.units) != graphs.choose(graph, recording.units):
            yield said, replace(captured, k=min(recording.k, _captured(graph, captured))), False
    if not recording.factors:
        yield "with factors", replace(recording, factors=True), False
    yield "with factors, in bfloat16", replace(recording, factors=True), True
    yield "snapshots 10 times farther apart", replace(recording, snapshot_every=10 * recording.snapshot_every), False
    yield "first and last snapshot only", replace(recording, snapshot_every=max(1, n_steps)), False


def _parts(graph: Graph) -> dict[str, list[str]]:
    """Choices of units by what they are called."""
    maps = [name for name in graphs.choose(graph) if units.is_in_layer(name)]
    last = max(map(units.layer, maps), default=0)
    return {
        "linear maps": graphs.choose(graph),
        "attention only": [name for name in maps if not units.is_mlp_weight(name)],
        "MLP only": [name for name in maps if units.is_mlp_weight(name)],
        "last layer only": [name for name in maps if units.layer(name) == last],
        "everything": list(graph.shapes),
    }


def _captured(graph: Graph, recording: Recording) -> int:
    """How many numbers are in the captured units."""
    return units.n_parameters({name: graph.shapes[name] for name in graphs.choose(graph, recording.units)})
