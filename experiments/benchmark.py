"""Speed and memory, as ratios to a plain ``nn.Module`` training step in the same process, on text of Zipf's law.

    python experiments/benchmark.py --toy                                      # a small model, to see that it runs
    python experiments/benchmark.py --out experiments/results/benchmark.md     # ten minutes on two quiet cores

A number is the median over rounds; every round measures every row once, so that a slow spell of the machine hits all.
How long the plain step takes depends on whether the C library gives its three 80 MB arrays back to the system after
every step, as it does by default, or keeps them; so the first pair is measured in a fresh process of each kind.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import benchmark_analysis
import benchmark_rivals
import benchmark_steps
import stage
import torch
from benchmark_setup import Setup, measure, plain_step, toy_or_post

from devinterp_func import records
from devinterp_func.show import results


@dataclass(frozen=True)
class Settings:
    toy: bool = False
    """A small model and one round."""
    rounds: int = 9
    """Rounds measured; more for the first pair, fewer for slow rows."""
    threads: int = 2
    """CPU threads."""
    device: str = "cpu"
    """cpu, or cuda."""
    sweep: bool = True
    """Also measure how cost grows with batch size, context, width and k."""
    run: Path | None = None
    """Also measure what reads this run: tallies, ablation sweeps, bigram shifts, the ledger."""
    out: Path | None = None
    """Write the tables there (Markdown)."""
    part: Literal["all", "pair", "memory", "analysis"] = "all"
    """pair: only the plain and the recorded step; memory: record some steps and say how much memory that took;
    analysis: only what --run adds."""


def main(settings: Settings) -> None:
    if settings.part == "analysis" and settings.run is None:
        raise ValueError("--part analysis needs a run: give it as --run RUN")
    torch.set_num_threads(settings.threads)
    rounds = 1 if settings.toy else settings.rounds
    setup = toy_or_post(settings.toy, settings.device)
    if settings.part == "analysis":
        return print("\n\n".join(analysis(settings)))
    if settings.part == "memory":
        return print(benchmark_steps.record_some(setup))
    if settings.part == "pair":
        return print(json.dumps(list(pair(setup, 2 * rounds).values())))
    where = torch.cuda.get_device_name() if settings.device != "cpu" else f"CPU, {settings.threads} threads"
    lines = [f"# Benchmark\n\n`{' '.join(['python', *sys.argv])}`: torch {torch.__version__}, {where}, float32.\n"]
    shape = f"batch {setup.recipe.batch_size}, context {setup.recipe.context}, k {setup.recording.k}"
    lines += [f"{setup.config}, {shape}.\n", *pair_lines(settings), "", *benchmark_steps.stage_lines(setup, rounds)]
    memory = myself(settings, "memory", {})
    lines += ["", f"A capture in a process of its own, with snapshots and evaluation: {memory}.", ""]
    lines += benchmark_rivals.rival_lines(setup, max(1, rounds // 3))
    lines += ["", *benchmark_steps.growth_lines(setup, rounds)] if settings.sweep else []
    lines += ["", myself(settings, "analysis", {})] if settings.run else []
    print("\n".join(lines))
    if settings.out:
        results.write(settings.out, ("\n".join(lines) + "\n").encode())


def analysis(settings: Settings) -> list[str]:
    """What reads a run, a table each."""
    run = records.open(settings.run or Path())
    parts = ("tally_lines", "ablation_lines", "bigram_lines", "ledger_lines")
    return ["\n".join(getattr(benchmark_analysis, part)(run)) for part in parts]


def pair(setup: Setup, rounds: int) -> dict[str, float]:
    """The plain and the recorded step."""
    with tempfile.TemporaryDirectory() as folder:
        recorded = benchmark_steps.recorded_steps(setup, Path(folder) / "run")
        return measure({"plain nn.Module step": plain_step(setup), "recorded step": recorded}, rounds)


def pair_lines(settings: Settings) -> list[str]:
    """The pair in a fresh process, with the allocator as it is and made to keep what is freed."""
    lines = ["| memory freed by a step | plain nn.Module step, ms | recorded step, ms | recorded ÷ plain |"]
    lines += ["|---|---|---|---|"]
    keep = {"MALLOC_MMAP_THRESHOLD_": str(2**31 - 1), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    for what, environment in (("goes back to the system (glibc's default)", {}), ("is kept by the allocator", keep)):
        plain, recorded = json.loads(myself(settings, "pair", environment))
        lines.append(f"| {what} | {plain * 1e3:.0f} | {recorded * 1e3:.0f} | **{recorded / plain:.2f}** |")
    return lines


def myself(settings: Settings, part: str, environment: dict[str, str]) -> str:
    """Another part of the benchmark in a process of its own."""
    command = [sys.executable, __file__, "--part", part]
    for field in dataclasses.fields(Settings):
        if field.name in ("threads", "rounds", "device", "run") and getattr(settings, field.name) is not None:
            command += [f"--{field.name}", str(getattr(settings, field.name))]
    command += ["--toy"] if settings.toy else []
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | environment)
    return done.stdout.strip()


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
