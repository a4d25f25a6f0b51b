"""Speed and memory, as ratios to a plain ``nn.Module`` training step, all in one process on text of Zipf's law.

    python experiments/benchmark.py --out experiments/results/benchmark.md     # ten minutes on two quiet cores
    python experiments/benchmark.py --toy                                      # a small model, to see that it runs

A number is the median over rounds; every round measures every row once, so that a slow spell of the machine hits all.
"""

import dataclasses
import math
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from rich.console import Console

from devinterp_func import (
    batches,
    bigram,
    outliers,
    per_example,
    recording,
    records,
    sgd,
    text,
    training,
    transformer,
    tree,
)
from devinterp_func.training import Recipe
from devinterp_func.transformer import Config
from devinterp_func.tree import Params


@dataclass(frozen=True)
class Settings:
    toy: bool = False
    """A small model and one round."""
    rounds: int = 9
    threads: int = 2
    device: str = "cpu"
    sweep: bool = True
    """Also measure how cost grows with batch size, context, width and k."""
    out: Path | None = None
    """Write the tables there (Markdown)."""
    memory_of: Path | None = None
    """Used by the benchmark itself: record a few steps there and print this process's peak memory."""


class Setup(NamedTuple):
    """One batch of the post's setting and everything that the rows share."""

    config: Config
    recipe: Recipe
    device: str
    data: batches.Data
    params: Params
    datum: torch.Tensor
    tokens: torch.Tensor
    targets: torch.Tensor
    masks: transformer.Masks | None
    logits: torch.Tensor


def setup_of(config: Config, recipe: Recipe, device: str) -> Setup:
    n = 40 * recipe.batch_size * recipe.context + 1
    stream = np.minimum(np.random.default_rng(0).zipf(1.3, n), config.vocab_size) - 1
    data = batches.chunk(torch.from_numpy(stream), recipe.context)
    params = {name: w.to(device) for name, w in training.initial(config, recipe).items()}
    datum = torch.arange(recipe.batch_size)
    tokens, targets = (x[datum].to(device) for x in data)
    masks = tree.map(lambda mask: mask.to(device), training.masks_of(config, recipe, 0, datum))
    logits = torch.empty(config.vocab_size, tokens.numel(), device=device)
    return Setup(config, recipe, device, data, params, datum, tokens, targets, masks, logits)


class Plain(torch.nn.Module):
    """The same model as a person would write it with torch's own modules."""

    def __init__(self, config: Config, context: int, causal: bool = True) -> None:
        super().__init__()
        self.causal = causal
        d = config.d_model
        layer = torch.nn.TransformerEncoderLayer(d, config.n_heads, config.d_hidden, config.dropout, batch_first=True)
        self.embedding = torch.nn.Embedding(config.vocab_size, d)
        self.layers = torch.nn.TransformerEncoder(layer, config.n_layers, enable_nested_tensor=False)
        self.decoder, self.drop = torch.nn.Linear(d, config.vocab_size), torch.nn.Dropout(config.dropout)
        self.register_buffer("positions", transformer.positions(config, context).float())
        self.register_buffer("mask", torch.nn.Transformer.generate_square_subsequent_mask(context))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim) + self.positions)
        mask = self.mask if self.causal else None
        return self.decoder(self.layers(x, mask=mask, is_causal=self.causal))


def plain_step(setup: Setup) -> Callable[[], object]:
    model = Plain(setup.config, setup.recipe.context).to(setup.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=setup.recipe.lr)

    def step() -> None:
        optimizer.zero_grad()
        logits = model(setup.tokens)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), setup.targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), setup.recipe.max_norm)
        optimizer.step()

    return step


def backward_pass(setup: Setup) -> Callable[[], object]:
    """One of the n·C backward passes that the post made each step."""
    model = Plain(setup.config, setup.recipe.context).to(setup.device)
    losses = torch.nn.functional.cross_entropy(
        model(setup.tokens).flatten(0, 1), setup.targets.flatten(), reduction="none"
    )
    return lambda: torch.autograd.grad(losses[0], list(model.parameters()), retain_graph=True)


def definition(setup: Setup, captured_only: bool) -> Callable[[], object]:
    chosen = {n: w for n, w in setup.params.items() if not captured_only or per_example.default_units(n)}
    rest = {name: w for name, w in setup.params.items() if name not in chosen}

    def loss(params: dict, tokens: torch.Tensor, targets: torch.Tensor, masks: dict | None) -> torch.Tensor:
        return transformer.loss({**rest, **params}, tokens, targets, setup.config, masks)

    return lambda: per_example.grads(loss)(chosen, setup.tokens, setup.targets, setup.masks)


def opacus_step(setup: Setup) -> Callable[[], object] | None:
    """Forward and backward of Opacus' GradSampleModule, which forms per-sample gradients of all parameters.

    Without the causal mask, which Opacus' attention refuses where the batch comes first; the work is the same.
    """
    try:
        from opacus.grad_sample import GradSampleModule
        from opacus.validators import ModuleValidator
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = GradSampleModule(
            ModuleValidator.fix(Plain(setup.config, setup.recipe.context, False)), loss_reduction="mean"
        )

    def step() -> None:
        model.zero_grad(set_to_none=True)
        logits = model(setup.tokens)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), setup.targets.flatten()).backward()

    return step


def stages(setup: Setup) -> dict[str, Callable[[], object]]:
    """The parts of a recorded step, each on what the part before made."""
    config, recipe = setup.config, setup.recipe
    captured = per_example.capture(setup.params, setup.tokens, setup.targets, config, setup.masks, buffer=setup.logits)
    _, info = sgd.update(setup.params, captured.mean_grads, lr=recipe.lr, max_norm=recipe.max_norm)
    factors = per_example.scale(captured.factors, sgd.share(info, recipe.batch_size))
    buffer = training.delta_buffer(factors)
    flat = outliers.form_flat(factors, buffer)
    sizes = {name: per_example.size(factor) for name, factor in factors.items()}
    parameter, _ = outliers.select(flat, recipe.k)
    return {
        "dropout masks": lambda: training.masks_of(config, recipe, 0, setup.datum),
        "forward, backward, batch gradient": lambda: per_example.capture(
            setup.params, setup.tokens, setup.targets, config, setup.masks, buffer=setup.logits
        ),
        "clip and update": lambda: sgd.update(
            setup.params, captured.mean_grads, lr=recipe.lr, max_norm=recipe.max_norm
        ),
        "all per-datum deltas": lambda: outliers.form_flat(
            per_example.scale(captured.factors, sgd.share(info, recipe.batch_size)), buffer
        ),
        "exact top k": lambda: outliers.select(flat, recipe.k),
        "token positions": lambda: outliers.positions(factors, sizes, parameter),
    }


def recorded_steps(setup: Setup, run: Path) -> Callable[[], object]:
    """A whole recorded step: a generator is advanced by one; shards are written as they fill."""
    config, recipe = setup.config, dataclasses.replace(setup.recipe, n_steps=None, epochs=1000, snapshot_every=10**6)
    records.create(run, {"n_steps": 10**6})
    steps, pending = training.steps(setup.params, setup.data, config, recipe), []

    def step() -> None:
        pending.append(next(steps)[1])
        if (
            len(pending) == 8
        ):  # smaller shards than a real run's: each more of them costs, so this errs on the safe side
            records.write_shard(run, pending)
            pending.clear()

    return step


def shard_written(setup: Setup, run: Path) -> Callable[[], object]:
    """A shard of 64 steps, each time the run's next."""
    records.create(run, {"n_steps": 10**6})
    (_, made), *_ = training.steps(setup.params, setup.data, setup.config, setup.recipe, stop=1)

    def write() -> None:
        first = records.n_steps(run)
        records.write_shard(run, [made._replace(step=first + i) for i in range(64)])

    return write


def top_shifts(setup: Setup) -> Callable[[], object]:
    """Exact top-100 shifts of the bigram decoder in one step."""
    *_, move = training.moves(setup.params, setup.data, setup.config, setup.recipe, stop=30)
    W_U, W_E = move.before["decoder.weight"], move.before["embedding.weight"]
    dW_U, dW_E = move.after["decoder.weight"] - W_U, move.after["embedding.weight"] - W_E
    return lambda: bigram.top_shifts(W_U, W_E, dW_U, dW_E, k=100)


def measure(rows: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each row, over rounds that go through all rows."""
    taken: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(rounds + 1):
        for name, row in rows.items():
            began = time.perf_counter()
            row()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:  # the first round warms up
                taken[name].append(time.perf_counter() - began)
    return {name: float(np.median(times)) for name, times in taken.items()}


def main_table(setup: Setup, rounds: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        rows = {"plain nn.Module step": plain_step(setup), "recorded step": recorded_steps(setup, Path(folder) / "run")}
        rows |= {f"— {name}": row for name, row in stages(setup).items()}
        rows["— record written"] = shard_written(setup, Path(folder) / "shards")
        rows["exact top-100 bigram shifts"] = top_shifts(setup)
        fast = measure(rows, rounds)
    fast["— record written"] /= 64
    slow_rows = {"vmap(grad), captured units only, no update": definition(setup, True)}
    slow_rows |= {"vmap(grad), all parameters, no update": definition(setup, False)}
    if opacus := opacus_step(setup):
        slow_rows["Opacus GradSampleModule, all parameters, no update"] = opacus
    slow = measure({"plain nn.Module step": plain_step(setup), **slow_rows}, max(1, rounds // 3))
    one = measure({"plain": plain_step(setup), "backward": backward_pass(setup)}, max(1, rounds // 3))
    lines = ["| what | ms | ÷ plain step |", "|---|---|---|"]
    lines += [f"| {name} | {t * 1e3:.1f} | {t / fast['plain nn.Module step']:.3f} |" for name, t in fast.items()]
    lines += [f"| {n} | {slow[n] * 1e3:.1f} | {slow[n] / slow['plain nn.Module step']:.2f} |" for n in slow_rows]
    passes, each = setup.tokens.numel(), one["backward"]
    row = f"the post's way: {passes} backward passes, extrapolated from one"
    return [*lines, f"| {row} | {each * passes * 1e3:.0f} | {each * passes / one['plain']:.0f} |"]


def sweep_table(settings: Settings, config: Config, recipe: Recipe) -> list[str]:
    """Seconds of a recorded step against one quantity at a time, and the exponent of its growth."""
    lines = ["| varied | values | ms a recorded step | growth exponent |", "|---|---|---|---|"]
    for name, values in {
        "batch_size": [recipe.batch_size // 2, recipe.batch_size, 2 * recipe.batch_size],
        "context": [recipe.context // 2, recipe.context, 2 * recipe.context],
        "d_model": [config.d_model // 2, config.d_model, 2 * config.d_model],
        "k": [recipe.k // 4, recipe.k, 4 * recipe.k],
    }.items():
        seconds = []
        for value in values:
            wide = dataclasses.replace(config, d_model=value, d_hidden=value) if name == "d_model" else config
            other: dict[str, Any] = {} if name == "d_model" else {name: value}
            setup = setup_of(wide, dataclasses.replace(recipe, **other), settings.device)
            with tempfile.TemporaryDirectory() as folder:
                row = {"step": recorded_steps(setup, Path(folder) / "run")}
                seconds.append(measure(row, max(1, settings.rounds // 2))["step"])
        exponent = np.polyfit(np.log(values), np.log(seconds), 1)[0]
        times = ", ".join(f"{t * 1e3:.0f}" for t in seconds)
        lines.append(f"| {name} | {', '.join(map(str, values))} | {times} | {exponent:.2f} |")
    return lines


def record_some(settings: Settings, config: Config, recipe: Recipe, run: Path) -> None:
    """Records steps as a capture does and prints peak memory and the share of time spent writing."""
    stream = setup_of(config, recipe, "cpu").data.tokens.flatten()
    words = ("<unk>", *(f"w{i}" for i in range(1, config.vocab_size)))
    corpus = text.Corpus("zipf", text.Vocab(words), stream, stream[:2000], stream[:2000])
    began = time.perf_counter()
    *_, now = recording.record(run, corpus, config, recipe, device=settings.device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{peak:.2f} GB at most, {now.writing / (time.perf_counter() - began):.2%} of the time spent writing")


def memory_lines(settings: Settings) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--memory-of", f"{folder}/run", "--threads", str(settings.threads)]
        command += ["--toy"] if settings.toy else []
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return [f"A capture in a process of its own, with snapshots and evaluation: {said}."]


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    config, recipe = Config(28_782), Recipe(n_steps=200, epochs=5)
    if settings.toy:
        settings = dataclasses.replace(settings, rounds=1)
        config = Config(500, d_model=16, d_hidden=16, n_layers=2)
        recipe = Recipe(context=8, batch_size=4, k=10, n_steps=20)
    if settings.memory_of:
        return record_some(settings, config, recipe, settings.memory_of)
    where = torch.cuda.get_device_name() if settings.device != "cpu" else f"CPU, {settings.threads} threads"
    lines = [f"# Benchmark\n\n`{' '.join(['python', *sys.argv])}`: torch {torch.__version__}, {where}, float32.\n"]
    lines += [f"{config}, batch {recipe.batch_size}, context {recipe.context}, k {recipe.k}.\n"]
    lines += main_table(setup_of(config, recipe, settings.device), settings.rounds)
    lines += ["", *memory_lines(settings), ""]
    lines += sweep_table(settings, config, recipe) if settings.sweep else []
    Console().print("\n".join(lines), markup=False, soft_wrap=True)
    if settings.out:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        settings.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
