"""Speed and memory, as ratios to a plain ``nn.Module`` training step in the same process, on text of Zipf's law.

    python experiments/benchmark.py --toy                                      # a small model, to see that it runs
    python experiments/benchmark.py --part optimizers --model post             # SGD, AdamW and Muon: five minutes
    python experiments/benchmark.py --out experiments/results/benchmark.md     # half an hour on two quiet cores

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import benchmark_analysis
import benchmark_parts
import benchmark_rivals
import benchmark_steps
import benchmark_walks
import stage
import torch
from benchmark_optimizers import NAMES, Name
from benchmark_setup import Row, Setup, Size, measure, peak_above, plain_step, stepped_by, toy_or_post
from presets import Kind

from devinterp_func import records
from devinterp_func.show import results

ALLOCATORS: dict[str, dict[str, str]] = {
    "goes back to the system (glibc's default)": {},
    "is kept by the allocator": {"MALLOC_MMAP_THRESHOLD_": str(2**31 - 1), "MALLOC_TRIM_THRESHOLD_": str(2**40)},
}

Part = Literal[
    "all",
    "pair",
    "plain",
    "recorded",
    "optimizers",
    "rivals",
    "memory",
    "walks",
    "parts",
    "shared",
    "gpt2-small",
    "analysis",
]


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
    size: Size = "post"
    """Of a part: the post's sizes, or those of GPT-2 small, 124 M parameters, on four texts of 256 tokens."""
    model: Kind = "post"
    """Of a part: the post's transformer, or one of Hugging Face's of its sizes."""
    optimizer: Name = "sgd"
    """Of a part: what steps the weights; torch's own of the same settings steps the plain module's."""
    sweep: bool = True
    """Also measure how cost grows with batch size, context, width and k."""
    run: Path | None = None
    """Also measure what reads this run: tallies, ablation sweeps, bigram shifts, the ledger."""
    out: Path | None = None
    """Write the tables there (Markdown)."""
    part: Part = "all"
    """pair: seconds of the plain and the recorded step, of SGD's first; plain, recorded: how much memory it takes;
    optimizers: these as tables, for each optimizer; rivals: other ways; memory: record some steps and say how much
    memory that took; walks: ledger and lifetimes of a few steps recorded for it; parts: batches in micro-batches, and
    shared by processes; shared: seconds of a step, under torchrun or not; gpt2-small: time and memory of the plain and
    the recorded step of GPT-2 small, by --optimizer; analysis: only what --run adds."""


def main(settings: Settings) -> None:
    if settings.part == "analysis" and settings.run is None:
        raise ValueError("--part analysis needs a run: give it as --run RUN")
    torch.set_num_threads(settings.threads)
    rounds = 1 if settings.toy else settings.rounds
    if settings.part == "analysis":
        return print("\n\n".join(analysis(settings)))
    if settings.part == "gpt2-small":
        return print("\n".join(gpt2_small_lines(settings)))
    if settings.part == "optimizers":
        return print("\n".join(optimizer_lines(settings)))
    clipped_sgd = toy_or_post(settings.model, settings.toy, settings.device, settings.size)
    setup = stepped_by(settings.optimizer, clipped_sgd)
    match settings.part:
        case "memory":
            return print(benchmark_steps.record_some(setup))
        case "pair":
            setups = [clipped_sgd] if settings.optimizer == "sgd" else [clipped_sgd, setup]
            return print(json.dumps(pairs(setups, 2 * rounds)))
        case "plain" | "recorded":
            return print(json.dumps(memory_of(setup, settings.part)))
        case "rivals":
            return print("\n".join(benchmark_rivals.rival_lines(setup, max(1, rounds // 3))))
        case "shared":
            seconds = benchmark_parts.shared(setup, 4 + 3 * rounds)
            return print(json.dumps(seconds)) if int(os.environ.get("RANK", 0)) == 0 else None
        case "parts":
            few = max(1, rounds // 3)
            lines = benchmark_parts.process_lines(command_of(settings, "shared", but=("threads", "run")), few)
            return print("\n".join([*lines, "", *benchmark_parts.micro_batch_lines(setup, few)]))
        case "walks":
            return print("\n".join(benchmark_walks.walk_lines(setup, max(1, rounds // 3))))
    where = torch.cuda.get_device_name() if settings.device != "cpu" else f"CPU, {settings.threads} threads"
    lines = [f"# Benchmark\n\n`{' '.join(['python', *sys.argv])}`: torch {torch.__version__}, {where}, float32.\n"]
    shape = f"batch {setup.recipe.batch_size}, context {setup.recipe.context}, k {setup.recording.k}"
    lines += [f"{setup.config}, {shape}.\n", *pair_lines(settings), "", *optimizer_lines(settings), ""]
    lines += benchmark_steps.stage_lines(setup, rounds)
    memory = myself(settings, "memory")
    lines += ["", myself(settings, "parts")]
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


def pairs(setups: Sequence[Setup], rounds: int) -> list[tuple[float, float]]:
    """Seconds of the plain and the recorded step of each setup, all in this process."""
    with tempfile.TemporaryDirectory() as folder:
        rows: dict[str, Row] = {}
        for i, setup in enumerate(setups):
            rows[f"plain {i}"] = plain_step(setup)
            rows[f"recorded {i}"] = benchmark_steps.recorded_steps(setup, Path(folder) / str(i))
        taken = measure(rows, rounds)
        return [(taken[f"plain {i}"], taken[f"recorded {i}"]) for i in range(len(setups))]


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
    spent = ["| model | plain nn.Module step takes at most, GB | recorded step, GB |", "|---|---|---|"]
    for kind in kinds():
        own = dataclasses.replace(settings, model=kind)
        for what, environment in ALLOCATORS.items():
            *_, (plain, recorded) = json.loads(myself(own, "pair", environment))
            lines.append(f"| {kind} | {what} | {_times(plain, recorded)} |")
        spent.append(f"| {kind} | {_peaks(own)} |")
    return [*lines, "", *spent]


def gpt2_small_lines(settings: Settings) -> list[str]:
    """The pair of GPT-2 small, and the memory of each in a process of its own."""
    own = dataclasses.replace(settings, model="gpt2", size="small", rounds=max(1, settings.rounds // 4))
    *_, (plain, recorded) = json.loads(myself(own, "pair"))
    plain_gb, recorded_gb = (float(myself(own, part)) for part in ("plain", "recorded"))
    return [
        f"| GPT-2 small, {settings.optimizer}, batch 4, context 256 | plain nn.Module step | recorded step | ratio |",
        "|---|---|---|---|",
        f"| ms | {_times(plain, recorded)} |",
        f"| GB at most | {plain_gb:.2f} | {recorded_gb:.2f} | **{recorded_gb / plain_gb:.2f}** |",
    ]


def optimizer_lines(settings: Settings) -> list[str]:
    """The pair for each optimizer, in a process with SGD's: what its recorded step takes more than SGD's."""
    lines = ["| optimizer | memory freed by a step | plain step by torch's own, ms | recorded step, ms "]
    lines[0] += "| recorded ÷ plain | recorded, less SGD's recorded, in SGD's plain steps |"
    lines += ["|---|---|---|---|---|---|"]
    spent = ["| optimizer | plain step by torch's own takes at most, GB | recorded step, GB |", "|---|---|---|"]
    for name in NAMES:
        own = dataclasses.replace(settings, optimizer=name)
        for what, environment in ALLOCATORS.items():
            found = json.loads(myself(own, "pair", environment))
            (base, least), (plain, recorded) = found[0], found[-1]
            more = "" if name == "sgd" else f"**{(recorded - least) / base:.2f}**"
            lines.append(f"| {name} | {what} | {_times(plain, recorded)} | {more} |")
        spent.append(f"| {name} | {_peaks(own)} |")
    return [*lines, "", *spent]


def _times(plain: float, recorded: float) -> str:
    return f"{plain * 1e3:.0f} | {recorded * 1e3:.0f} | **{recorded / plain:.2f}**"


def _peaks(settings: Settings) -> str:
    return " | ".join(f"{float(myself(settings, part)):.2f}" for part in ("plain", "recorded"))


def myself(settings: Settings, part: str, environment: Mapping[str, str] = MappingProxyType({})) -> str:
    """Another part of the benchmark in a process of its own."""
    command = [sys.executable, *command_of(settings, part)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
    return done.stdout.strip()


def command_of(settings: Settings, part: str, but: Sequence[str] = ()) -> list[str]:
    """This script and the options of a part."""
    command = [__file__, "--part", part]
    for name in ("threads", "rounds", "device", "size", "model", "optimizer", "run"):
        if name not in but and (value := getattr(settings, name)) is not None:
            command += [f"--{name}", str(value)]
    return command + (["--toy"] if settings.toy else [])


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
