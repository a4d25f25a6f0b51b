"""Benchmark rows of what walks over a run of any optimizer: ledger, lifetimes and influences of loss probes."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmark_analysis import followed_lines
from benchmark_setup import Setup, measure, peak_memory, plain_step, resident_memory, restart_peak
from benchmark_steps import recorded

from devinterp_func import credit, records
from devinterp_func.records import Run

EVERY = 8  # steps between snapshots of the run that is recorded for it; a cube, as a block's is of the post's
BLOCKS = 2, 8  # steps of a block: every step is replayed three times, as a rule; or once


def walk_lines(setup: Setup, rounds: int) -> list[str]:
    """Some steps are recorded; those from the second snapshot on, when there is a memory, are walked over."""
    with tempfile.TemporaryDirectory() as folder:
        for _ in recorded(setup, Path(folder) / "run", 2 * EVERY, EVERY):
            pass
        run = records.open(Path(folder) / "run")
        lines = followed_lines(run, EVERY, {"the loss on 20 texts": ["loss"]}, setup)
        lines += ["", *lifetime_lines(run, setup, Path(folder), rounds)]
        return [*lines, "", *influence_lines(run, setup, Path(folder), rounds)]


def lifetime_lines(run: Run, setup: Setup, folder: Path, rounds: int) -> list[str]:
    """Lifetimes of the loss on 20 texts: what a step takes, beside plain steps before and after it, and memory."""
    probe = credit.parse_probe("loss", run, key=0)
    lines = ["| lifetimes of the loss on 20 texts, m = 3 | ms a step | plain steps | GB at most above what was there |"]
    lines += ["|---|---|---|---|"]
    for block in BLOCKS:
        walk = credit.lifetime(run, folder / f"lifetime{block}", [probe], start=EVERY, stop=2 * EVERY, block=block)
        lines.append(f"| {EVERY} steps in blocks of {block} | {_walked(walk, setup, rounds)} |")
    return lines


def influence_lines(run: Run, setup: Setup, folder: Path, rounds: int) -> list[str]:
    """Influences on the loss on 20 texts, and on eight such losses: the same."""
    probes = [credit.parse_probe("loss", run, key=i)._replace(name=f"loss {i}") for i in range(8)]
    lines = ["| influences on losses on 20 texts each | ms a step | plain steps | GB at most above what was there |"]
    lines += ["|---|---|---|---|"]
    for n, block in ((1, 2), (1, 4), (8, 2)):
        own = probes[:n], folder / f"influence{n}-{block}"
        walk = credit.influence(run, own[1], own[0], start=EVERY, stop=2 * EVERY, block=block)
        what = f"{n} probe{'s' * (n > 1)}, {EVERY} steps in blocks of {block}"
        lines.append(f"| {what} | {_walked(walk, setup, rounds)} |")
    return lines


def _walked(walk: Iterator[int], setup: Setup, rounds: int) -> str:
    """What a walk takes a step: milliseconds, plain steps, and memory above what was there."""
    plain = plain_step(setup)
    before = measure({"plain": plain}, rounds)["plain"]
    there = resident_memory()
    restart_peak()
    began = time.perf_counter()
    n = len(list(walk))
    spent = (time.perf_counter() - began) / n
    memory = peak_memory() - there
    after = measure({"plain": plain}, rounds)["plain"]
    return f"{spent * 1e3:.0f} | **{2 * spent / (before + after):.2f}** | {memory:.2f}"
