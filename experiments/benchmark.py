"""Speed and memory, as ratios to a plain ``nn.Module`` training step in the same process, on text of Zipf's law.

    python experiments/benchmark.py --toy                                      # a small model, to see that it runs
    python experiments/benchmark.py --out experiments/results/benchmark.md     # twenty minutes on two quiet cores

A number is the median over rounds; every round measures every row once, so that a slow spell of the machine hits all.
How long the plain step takes depends on whether the C library gives its three 80 MB arrays back to the system after
every step, as it does by default, or keeps them; so the first pair is measured in a fresh process of each kind.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import benchmark_analysis
import benchmark_rivals
import benchmark_steps
import stage
import torch
from benchmark_setup import Row, Setup, measure, peak_above, plain_step, toy_or_post
from presets import Kind

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
    model: Kind = "post"
    """Of a part: the post's transformer, or one of Hugging Face's of its sizes."""
    sweep: bool = True
    """Also measure how cost grows with batch size, context, width and k."""
    run: Path | None = None
    """Also measure what reads this run: tallies, ablation sweeps, bigram shifts, the ledger."""
    out: Path | None = None
    """Write the tables there (Markdown)."""
    part: Literal["all", "pair", "plain", "recorded", "rivals", "memory", "analysis"] = "all"
    """pair: only the plain and the recorded step; plain, recorded: how much memory it takes; rivals: other ways;
    memory: record some steps and say how much memory that took; analysis: only what --run adds."""


def main(settings: Settings) -> None:
    if settings.part == "analysis" and settings.run is None:
        raise ValueError("--part analysis needs a run: give it as --run RUN")
    torch.set_num_threads(settings.threads)
    rounds = 1 if settings.toy else settings.rounds
    if settings.part == "analysis":
        return print("\n\n".join(analysis(settings)))
    setup = toy_or_post(settings.model, settings.toy, settings.device)
    match settings.part:
        case "memory":
            return print(benchmark_steps.record_some(setup))
        case "pair":
            return print(json.dumps(list(pair(setup, 2 * rounds).values())))
        case "plain" | "recorded":
            return print(json.dumps(memory_of(setup, settings.part)))
        case "rivals":
            return print("\n".join(benchmark_rivals.rival_lines(setup, max(1, rounds // 3))))
    where = torch.cuda.get_device_name() if settings.device != "cpu" else f"CPU, {settings.threads} threads"
    lines = [f"# Benchmark\n\n`{' '.join(['python', *sys.argv])}`: torch {torch.__version__}, {where}, float32.\n"]
    shape = f"batch {setup.recipe.batch_size}, context {setup.recipe.context}, k {setup.recording.k}"
    lines += [f"{setup.config}, {shape}.\n", *pair_lines(settings), "", *benchmark_steps.stage_lines(setup, rounds)]
    memory = myself(settings, "memory")
    lines += ["", f"A capture in a process of its own, with snapshots and evaluation: {memory}."]
    for kind in kinds():
        lines += ["", myself(dataclasses.replace(settings, model=kind), "rivals")]
    lines += ["", *benchmark_steps.growth_lines(setup, rounds)] if settings.sweep else []
    lines += ["", myself(settings, "analysis")] if settings.run else []
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


def memory_of(setup: Setup, part: str) -> float:
    """How much memory the plain or the recorded step takes at most, its weights included, GB."""
    if part == "plain":
        return peak_above(lambda: plain_step(setup))
    with tempfile.TemporaryDirectory() as folder:

        def make() -> Row:
            own = {name: w.clone() for name, w in setup.params.items()}
            return benchmark_steps.recorded_steps(setup._replace(params=own), Path(folder) / "run")

        return peak_above(make)


def kinds() -> tuple[Kind, ...]:
    """The models that can be measured here."""
    return ("post", "gpt2", "neox") if importlib.util.find_spec("transformers") else ("post",)


def pair_lines(settings: Settings) -> list[str]:
    """The pair in a fresh process for each model, with the allocator as it is and made to keep what is freed."""
    lines = ["| model | memory freed by a step | plain nn.Module step, ms | recorded step, ms | recorded ÷ plain |"]
    lines += ["|---|---|---|---|---|"]
    keep = {"MALLOC_MMAP_THRESHOLD_": str(2**31 - 1), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    modes = {"goes back to the system (glibc's default)": {}, "is kept by the allocator": keep}
    spent = ["| model | plain nn.Module step takes at most, GB | recorded step, GB |", "|---|---|---|"]
    for kind in kinds():
        own = dataclasses.replace(settings, model=kind)
        for what, environment in modes.items():
            plain, recorded = json.loads(myself(own, "pair", environment))
            times = f"{plain * 1e3:.0f} | {recorded * 1e3:.0f} | **{recorded / plain:.2f}**"
            lines.append(f"| {kind} | {what} | {times} |")
        spent.append(f"| {kind} | {float(myself(own, 'plain')):.2f} | {float(myself(own, 'recorded')):.2f} |")
    return [*lines, "", *spent]


def myself(settings: Settings, part: str, environment: Mapping[str, str] = MappingProxyType({})) -> str:
    """Another part of the benchmark in a process of its own."""
    command = [sys.executable, __file__, "--part", part]
    for field in dataclasses.fields(Settings):
        if field.name in ("threads", "rounds", "device", "model", "run") and getattr(settings, field.name) is not None:
            command += [f"--{field.name}", str(getattr(settings, field.name))]
    command += ["--toy"] if settings.toy else []
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
    return done.stdout.strip()


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
