"""Benchmark rows of batches in parts: by micro-batch, and shared by processes."""

import dataclasses
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_setup import Row, Setup, peak_above, setup_of
from benchmark_steps import recorded

from devinterp_func import training

WIDER = 10  # times as many data as usual, so that it is the batch that takes the memory
PARTS = 1, 10, 50  # micro-batches of a batch
PAGES: dict[str, dict[str, str]] = {
    "small pages": {},
    "huge pages (THP_MEM_ALLOC_ENABLE=1)": {"THP_MEM_ALLOC_ENABLE": "1"},
}


def micro_batch_lines(setup: Setup, rounds: int) -> list[str]:
    """A large batch in micro-batches: milliseconds and memory of a recorded step, factors held, and formed again."""
    n = WIDER * setup.recipe.batch_size
    lines = [f"| batch of {n} in micro-batches of | factors | ms a recorded step | ÷ in one piece | GB at most |"]
    lines += ["|---|---|---|---|---|"]
    whole = math.nan
    for parts in PARTS:
        recipe = dataclasses.replace(setup.recipe, batch_size=n, micro_batch=-(-n // parts), n_steps=None, epochs=9)
        for what, held in (("held", math.inf), ("formed again", 0.0))[: 1 if parts == 1 else 2]:
            own = setup.kind, setup.config, recipe, setup.recording, setup.device
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                seconds, memory = alone.submit(_measured, own, torch.get_num_threads(), rounds, held).result()
            whole = seconds if parts == 1 else whole
            times = f"{seconds * 1e3:.0f} | **{seconds / whole:.2f}**"
            lines.append(f"| {recipe.micro_batch} | {what} | {times} | {memory:.2f} |")
    return lines


def _measured(own: tuple[Any, ...], threads: int, rounds: int, held: float) -> tuple[float, float]:
    """Seconds of a recorded step, the median, and the memory that recording takes at most; in a process of its own."""
    torch.set_num_threads(threads)
    setup, taken = setup_of(*own), list[float]()

    def record() -> Row:
        with tempfile.TemporaryDirectory() as folder:
            steps = recorded(setup, Path(folder) / "run", every=10**6, held_factors=held)
            for _ in range(rounds + 1):
                began = time.perf_counter()
                next(steps)
                taken.append(time.perf_counter() - began)
            steps.close()  # type: ignore[attr-defined]
        return lambda: None

    memory = peak_above(record)
    return float(np.median(taken[1:])), memory  # the first has the run's beginning in it


def shared(setup: Setup, n_steps: int) -> float:
    """Seconds of a recorded step, the median, in a world of as many processes as torchrun started."""
    with training.joined(setup.device) as world, tempfile.TemporaryDirectory() as own:
        folder = Path(training.share(world, lambda: own)) / "run"
        recipe = dataclasses.replace(setup.recipe, processes=world.size)
        times = [time.perf_counter()]
        for _ in recorded(setup._replace(recipe=recipe), folder, n_steps, every=10**6, world=world):
            times.append(time.perf_counter())
        training.share(world, lambda: None)  # the folder is there until all are done
    return float(np.median(np.diff(times)[2:-1]))  # the last has the evaluation in it


def process_lines(command: list[str], rounds: int) -> list[str]:
    """Two processes of one thread beside one of two threads, in turn; what comes of one as of the other.

    Args:
        command: of the benchmark for ``shared``, but for its threads; without --run, which torchrun takes for its own.
        rounds: how often each.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    kinds = {"1 process of 2 threads": ([sys.executable], 2), "2 processes of 1 thread": (torchrun, 1)}
    lines = ["| memory comes in | a recorded step by | ms | steps a second, of one process's |", "|---|---|---|---|"]
    for pages, switch in PAGES.items():
        taken: dict[str, list[float]] = {name: [] for name in kinds}
        for name, (start, threads) in list(kinds.items()) * rounds:
            own = [*start, *command, "--threads", str(threads)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **switch}
            done = subprocess.run(own, check=True, capture_output=True, text=True, env=environment)
            taken[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
        found = {name: float(np.median(times)) for name, times in taken.items()}
        first = next(iter(found.values()))
        lines += [f"| {pages} | {name} | {t * 1e3:.0f} | **{first / t:.2f}** |" for name, t in found.items()]
    return lines
