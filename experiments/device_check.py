"""Speed and memory of recording on a device: one table, with the card's name. What fails or is slow says so in its row.

    python experiments/device_check.py --device cuda       # a few minutes on a card of the size of an H100
    python experiments/device_check.py --toy               # the same rows at toy size on the CPU, to see that it runs

Each row is a process of its own with a time limit, so that one cannot take the others along. The plain step is the
model's own module with torch's optimizer; "compiled" is that step under ``torch.compile``.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import benchmark_setup
import stage
import torch
from benchmark_setup import GPT2_SMALL, Row, Setup, plain_step, setup_of, stepped_by
from benchmark_steps import recorded, recorded_steps
from presets import Kind

from devinterp_func import credit, records
from devinterp_func.models import Config
from devinterp_func.records import Recording
from devinterp_func.training import Recipe

SIZES: dict[str, tuple[Kind, Config, int, int]] = {  # kind, sizes, context, batch
    "the post's model": ("post", Config(28_782), 35, 20),
    "GPT-2 small": ("gpt2", replace(GPT2_SMALL, dropout=0.0), 1024, 8),
    "Pythia-160M": ("neox", replace(GPT2_SMALL, dropout=0.0, vocab_size=50_304), 1024, 8),
}
TOY = Config(100, d_model=16, n_heads=4, d_hidden=16, n_layers=2, dropout=0.0)
LEDGER = "the post's model"  # which the ledger and the influence are measured on
HEAD = ["what", "plain step, ms", "compiled, ms", "recorded, ms", "recorded ÷ plain", "÷ compiled", "GB plain"]
HEAD += ["GB recorded", "kB recorded a step"]


@dataclass(frozen=True)
class Settings:
    device: str = "cpu"  # cpu, or cuda
    toy: bool = False  # small models, few steps
    seconds: int = 420  # for all rows together
    each: int = 120  # for one row at most
    compiled: bool = True  # measure the compiled plain step, too
    row: str | None = None  # measure this one alone, and print it as JSON
    rounds: int = 10  # steps that a median is over


def main(settings: Settings) -> None:
    if settings.device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"device is {settings.device!r}; torch finds no CUDA device here: --toy runs on the CPU")
    if settings.row is not None:
        return print(json.dumps(measured(settings)))
    until = time.monotonic() + settings.seconds
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for name in rows():
        left = min(settings.each, until - time.monotonic())
        lines.append(f"| {' | '.join(line(name, settings, left))} |")
        print(lines[-1], file=sys.stderr, flush=True)
    what = f"{where(settings.device)}, torch {torch.__version__}, deterministic kernels"
    print("\n".join([f"{what}; float32 where a row says nothing else\n", *lines]))


def rows() -> list[str]:
    """Their names, the surest first."""
    made = [f"{name}, {optimizer}" for name in SIZES for optimizer in ("sgd", "adamw")]
    narrow = [f"{name}, adamw, bfloat16" for name in ("GPT-2 small", LEDGER)]
    return [*made[:2], "ledger", "influence", made[3], *narrow, *made[4:], made[2]]


def where(device: str) -> str:
    """The device, by the name of the card."""
    return "CPU" if device == "cpu" else torch.cuda.get_device_name(device)


def line(name: str, settings: Settings, seconds: float) -> list[str]:
    """A row of the table, measured in a process of its own; what went wrong stands in the place of numbers."""
    if seconds < 1:
        return [name, "no time left", *[""] * (len(HEAD) - 2)]
    command = [sys.executable, __file__, "--row", name, "--device", settings.device, "--rounds", str(settings.rounds)]
    command += ["--toy"] if settings.toy else []
    command += [] if settings.compiled else ["--no-compiled"]
    try:
        if settings.toy and not name.startswith(LEDGER):  # a process for each would take longer than what it does
            return found_row(name, measured(replace(settings, row=name)))
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return [name, f"not done in {seconds:.0f} s", *[""] * (len(HEAD) - 2)]
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        return [name, f"failed: {said.replace('|', '/')[:200]}", *[""] * (len(HEAD) - 2)]
    return found_row(name, json.loads(done.stdout.strip().splitlines()[-1]))


def found_row(name: str, found: dict[str, Any]) -> list[str]:
    """The cells of a row."""
    return [name, *(cell(found.get(column)) for column in HEAD[1:])]


def cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.3g}"


def measured(settings: Settings) -> dict[str, Any]:
    """The numbers of a row."""
    name = str(settings.row)
    if settings.device != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    else:
        torch.set_num_threads(1 if settings.toy else 2)
    if name in ("ledger", "influence"):
        return walked(name, setup(LEDGER, "sgd", settings), settings)
    model, optimizer, *narrow = name.split(", ")
    return stepped(setup(model, optimizer, settings, bool(narrow)), settings, bool(narrow))


def setup(model: str, optimizer: str, settings: Settings, bfloat16: bool = False) -> Setup:
    """A batch of a model, on the device."""
    kind, config, context, batch = SIZES[model]
    if settings.toy:
        config, context, batch = TOY, 8, 4
    recipe = Recipe(context=context, batch_size=batch, n_steps=30, lr=0.1, max_norm=1.0)
    made = setup_of(kind, config, recipe, Recording(k=10 if settings.toy else 1000), settings.device, bfloat16)
    return stepped_by("adamw" if optimizer == "adamw" else "sgd", made)


def stepped(setup: Setup, settings: Settings, bfloat16: bool) -> dict[str, Any]:
    """The plain step, compiled and not, and the recorded step; each is made, measured and let go."""
    plain, plain_gb = timed(lambda: plain_step(setup, bfloat16=bfloat16), settings)
    found: dict[str, Any] = {HEAD[1]: plain * 1e3, HEAD[6]: plain_gb}
    with tempfile.TemporaryDirectory() as folder:
        taken, gb = timed(lambda: recorded_steps(setup, Path(folder) / "run"), settings)
        header = records.shards(Path(folder) / "run")
        made = records.read(Path(folder) / "run", 0) if header else None
    found |= {HEAD[3]: taken * 1e3, HEAD[4]: taken / plain, HEAD[7]: gb}
    found[HEAD[8]] = None if made is None else records.n_bytes(made) / 1e3
    if settings.compiled:
        try:
            fast, _ = timed(lambda: plain_step(setup, compiled=True, bfloat16=bfloat16), settings)
            found |= {HEAD[2]: fast * 1e3, HEAD[5]: taken / fast}
        except Exception as error:  # whatever the compiler meets: the other numbers stand
            found[HEAD[2]] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return found


def timed(make: Callable[[], Row], settings: Settings) -> tuple[float, float]:
    """Median seconds of a row, and how much memory of the device it takes at most, GB."""
    if settings.device == "cpu":
        before = benchmark_setup.resident_memory()
        benchmark_setup.restart_peak()
    else:
        torch.cuda.reset_peak_memory_stats()
    row = make()
    for _ in range(2):
        row()
    seconds = benchmark_setup.measure({"": row}, settings.rounds)[""]
    if settings.device == "cpu":
        return seconds, benchmark_setup.peak_memory() - before
    return seconds, torch.cuda.max_memory_allocated() / 1e9


def walked(what: str, setup: Setup, settings: Settings) -> dict[str, Any]:
    """What a ledger or an influence of one loss probe takes a step, beside the plain step."""
    plain, _ = timed(lambda: plain_step(setup), settings)
    n = 4 if settings.toy else 16
    with tempfile.TemporaryDirectory() as folder:
        for _ in recorded(setup, Path(folder) / "run", n, n // 2):
            pass
        run = records.open(Path(folder) / "run")
        probe = credit.parse_probe("loss", run, key=0, n=20 if run.n_data > 40 else 5)
        own: Any = credit.ledger if what == "ledger" else credit.influence
        if settings.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        steps = len(list(own(run, Path(folder) / "walk", [probe], start=n // 2, stop=n)))
        if settings.device != "cpu":
            torch.cuda.synchronize()
        taken = (time.perf_counter() - began) / steps
        gb = None if settings.device == "cpu" else torch.cuda.max_memory_allocated() / 1e9
    return {HEAD[1]: plain * 1e3, HEAD[3]: taken * 1e3, HEAD[4]: taken / plain, HEAD[7]: gb}


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
