"""Benchmark rows of a recorded step: whole, by stages, and how its cost grows."""

import dataclasses
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_setup import Row, Setup, measure, peak_memory, setup_of

from devinterp_func import bigram, optim, per_example, records, text, training
from devinterp_func.graph import Graph
from devinterp_func.records import Progress
from devinterp_func.training import Move
from devinterp_func.tree import Params


def stages(setup: Setup) -> dict[str, Row]:
    """The parts of a recorded step, each on what the part before made."""
    recipe = setup.recipe

    def capture() -> per_example.Capture:
        batch = setup.tokens, setup.targets
        return per_example.capture(setup.graph, setup.params, *batch, masks=setup.masks, buffer=setup.logits)

    found, memory = capture(), recipe.optimizer.init(setup.params)

    def update() -> tuple[Params, optim.State, optim.Split]:
        return recipe.optimizer.update(setup.params, found.mean_grads, memory, recipe.lr, recipe.max_norm)

    _, _, split = update()
    factors = optim.delta_factors(found.factors, split, recipe.batch_size)
    buffer = records.delta_buffer(factors)
    flat = per_example.form_flat(factors, buffer)
    sizes = {name: per_example.size_of(factor) for name, factor in factors.items()}
    parameter, _ = per_example.select(flat, setup.recording.k)
    return {
        "dropout masks": lambda: training.masks_of(setup.graph, recipe, 0, setup.datum),
        "forward, backward, batch gradient": capture,
        "clip and update": update,
        "all per-datum deltas": lambda: per_example.form_flat(
            optim.delta_factors(found.factors, split, recipe.batch_size), buffer
        ),
        "exact top k": lambda: per_example.select(flat, setup.recording.k),
        "token positions": lambda: per_example.leading_positions(factors, sizes, parameter),
        "sizes of present, past and decay": split.sizes,
    }


def recorded_steps(setup: Setup, run: Path) -> Row:
    """A whole recorded step: a generator is advanced by one; shards are written as they fill."""
    recipe = dataclasses.replace(setup.recipe, n_steps=None, epochs=1000)
    records.create(run, {"n_steps": 10**6})
    moves, pending = training.moves(setup.graph, setup.params, setup.data, recipe), list[records.StepRecord]()
    buffer: list[torch.Tensor] = []

    def step() -> None:
        move = next(moves)
        buffer[:] = buffer or [records.delta_buffer(move.factors)]
        pending.append(records.to_record(move, setup.recording, buffer[0]))
        if len(pending) == 8:  # smaller shards than a run's: each costs, so this errs on the safe side
            records.write_shard(run, pending)
            pending.clear()

    return step


def shard_written(setup: Setup, run: Path) -> Row:
    """A shard of 64 steps, each time the run's next."""
    records.create(run, {"n_steps": 10**6})
    move = next(training.moves(setup.graph, setup.params, setup.data, setup.recipe, stop=1))
    made = records.to_record(move, setup.recording)
    return lambda: records.write_shard(run, [made._replace(step=records.n_steps(run) + i) for i in range(64)])


def top_shifts(setup: Setup) -> Row:
    """Exact top-100 shifts of the bigram decoder in one step."""
    moves = training.moves(setup.graph, setup.params, setup.data, setup.recipe, stop=30)
    matrices = decoder_step(setup.graph, deque(moves, maxlen=1).pop())
    return lambda: bigram.top_shifts(*matrices, k=100)


def decoder_step(graph: Graph, move: Move) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unembedding and embedding before a step, and its updates of them."""
    assert graph.head is not None and graph.embedding is not None
    U, E = graph.head.weight, graph.embedding
    return move.before[U], move.before[E], move.after[U] - move.before[U], move.after[E] - move.before[E]


def stage_lines(setup: Setup, rounds: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        rows = stages(setup)
        rows["record written"] = shard_written(setup, Path(folder) / "shards")
        rows["exact top-100 bigram shifts (not part of a step)"] = top_shifts(setup)
        fast = measure(rows, rounds)
    fast["record written"] /= 64
    lines = ["| stage of a recorded step | ms |", "|---|---|", *(f"| {n} | {t * 1e3:.1f} |" for n, t in fast.items())]
    return [*lines, "", f"Once a run, the loss is written down as a graph, in {setup.tracing:.1f} s."]


def growth_lines(setup: Setup, rounds: int) -> list[str]:
    """Seconds of a recorded step against one quantity at a time, and the exponent of its growth."""
    lines = ["| varied | values | ms a recorded step | growth exponent |", "|---|---|---|---|"]
    owners: dict[str, Any] = {"batch_size": setup.recipe, "context": setup.recipe}
    owners |= {"d_model": setup.config, "k": setup.recording}
    for name, owner in owners.items():
        middle, wider = getattr(owner, name), 4 if name == "k" else 2
        values, seconds = [middle // wider, middle, wider * middle], []
        for value in values:
            both = {"d_model": value, "d_hidden": value} if name == "d_model" else {name: value}
            parts: Any = [dataclasses.replace(x, **both) if x is owner else x for x in setup[1:4]]
            changed = setup_of(setup.kind, parts[0], parts[1], parts[2], setup.device)
            with tempfile.TemporaryDirectory() as folder:
                row = {"step": recorded_steps(changed, Path(folder) / "run")}
                seconds.append(measure(row, max(1, rounds // 2))["step"])
        exponent = np.polyfit(np.log(values), np.log(seconds), 1)[0]
        times = ", ".join(f"{t * 1e3:.0f}" for t in seconds)
        lines.append(f"| {name} | {', '.join(map(str, values))} | {times} | {exponent:.2f} |")
    return lines


def record_some(setup: Setup) -> str:
    """Records steps as a capture does; says peak memory and the share of time spent writing."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for now in recorded(setup, Path(folder) / "run"):
            writing = now.writing
        share = writing / (time.perf_counter() - began)
    return f"{peak_memory():.2f} GB at most, {share:.2%} of the time spent writing"


def recorded(
    setup: Setup, run: Path, n_steps: int | None = None, every: int | None = None, **how: Any
) -> Iterator[Progress]:
    """Trains on text of Zipf's law into a run directory, ``n_steps`` with a snapshot every so many."""
    stream = setup.data.tokens.flatten()
    words = ("<unk>", *(f"w{i}" for i in range(1, setup.config.vocab_size)))
    corpus = text.Corpus("zipf", text.Vocab(words), stream, stream[:2000], stream[:2000])
    recipe = setup.recipe if n_steps is None else dataclasses.replace(setup.recipe, n_steps=n_steps)
    recording = setup.recording if every is None else dataclasses.replace(setup.recording, snapshot_every=every)
    return records.record(run, corpus, setup.model, recipe, recording, device=setup.device, **how)
