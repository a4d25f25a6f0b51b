"""Speed and memory, as ratios to a plain ``nn.Module`` training step in the same process, on text of Zipf's law.

    python experiments/benchmark.py --out experiments/results/benchmark.md     # ten minutes on two quiet cores
    python experiments/benchmark.py --toy                                      # a small model, to see that it runs

A number is the median over rounds; every round measures every row once, so that a slow spell of the machine hits all.
How long the plain step takes depends on whether the C library gives its three 80 MB arrays back to the system after
every step, as it does by default, or keeps them; so the first pair is measured in a fresh process of each kind.
"""

import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from rich.console import Console

from devinterp_func import (
    accounts,
    attribution,
    batches,
    bigram,
    keyness,
    ledger,
    neurons,
    outliers,
    per_example,
    probes,
    recording,
    records,
    sgd,
    sweeps,
    text,
    training,
    transformer,
    tree,
    walks,
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
    run: Path | None = None
    """Also measure the analysis on this run's weights, text and record: ablation sweeps, counts and tallies."""
    out: Path | None = None
    """Write the tables there (Markdown)."""
    part: Literal["all", "pair", "memory", "analysis"] = "all"
    """pair: only the plain and the recorded step; memory: record some steps and say how much memory that took;
    analysis: only what --run adds."""


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
    move = deque(training.moves(setup.params, setup.data, setup.config, setup.recipe, stop=30), maxlen=1).pop()
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


def pair(setup: Setup, rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        rows = {"plain nn.Module step": plain_step(setup), "recorded step": recorded_steps(setup, Path(folder) / "run")}
        return measure(rows, rounds)


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
    command = [sys.executable, __file__, "--part", part, "--threads", str(settings.threads)]
    command += ["--rounds", str(settings.rounds), "--device", settings.device] + (["--toy"] if settings.toy else [])
    command += ["--run", str(settings.run)] if settings.run else []
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | environment)
    return done.stdout.strip()


def stage_lines(setup: Setup, rounds: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        rows = stages(setup)
        rows["record written"] = shard_written(setup, Path(folder) / "shards")
        rows["exact top-100 bigram shifts (not part of a step)"] = top_shifts(setup)
        fast = measure(rows, rounds)
    fast["record written"] /= 64
    return ["| stage of a recorded step | ms |", "|---|---|", *(f"| {n} | {t * 1e3:.1f} |" for n, t in fast.items())]


def rival_lines(setup: Setup, rounds: int) -> list[str]:
    rows = {"plain nn.Module step": plain_step(setup), "one backward pass for one token": backward_pass(setup)}
    rows |= {"vmap(grad), captured units only, no update": definition(setup, True)}
    rows |= {"vmap(grad), all parameters, no update": definition(setup, False)}
    if opacus := opacus_step(setup):
        rows["Opacus GradSampleModule, all parameters, no update"] = opacus
    taken = measure(rows, rounds)
    passes = setup.tokens.numel()
    taken[f"the post's way: {passes} backward passes, extrapolated"] = taken["one backward pass for one token"] * passes
    plain = taken["plain nn.Module step"]
    lines = ["| other ways, in one process | ms | ÷ plain step there |", "|---|---|---|"]
    return lines + [f"| {name} | {t * 1e3:.0f} | {t / plain:.2f} |" for name, t in taken.items()]


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


def ablation_lines(run: Path, n_data: int = 16, n_naive: int = 4) -> list[str]:
    """The sweep of all neurons of the MLPs against a forward pass for each of a few, in one process."""
    config, recipe, corpus = training.load(run)
    params = records.read_params(run, max(records.snapshots(run)))
    tokens = batches.chunk(corpus.valid, recipe.context).tokens[:n_data]
    units = {name: tuple(w.shape) for name, w in params.items() if ".linear" in name and w.ndim == 2}
    rows: dict[str, Callable[[], object]] = {}
    for unit in units:
        every = neurons.every({unit: units[unit]})
        rows[unit] = partial(sweeps.sweep, params, tokens, config, every)
        rows[f"{unit}, naive"] = partial(sweeps.sweep_naive, params, tokens, config, every[:n_naive])
    taken = measure(rows, 3)
    lines = [f"| ablating every column over {n_data} data | sweep, s | naive, s, extrapolated | naive ÷ sweep |"]
    lines += ["|---|---|---|---|"]
    fast, slow = 0.0, 0.0
    for unit, shape in units.items():
        naive = taken[f"{unit}, naive"] * shape[1] / (n_naive + 1)  # the intact model is one more pass
        fast, slow = fast + taken[unit], slow + naive
        lines.append(f"| {unit} | {taken[unit]:.2f} | {naive:.1f} | **{naive / taken[unit]:.1f}** |")
    return [*lines, f"| all | {fast:.2f} | {slow:.1f} | **{slow / fast:.1f}** |"]


def tally_lines(run: Path, n_shards: int = 6) -> list[str]:
    """Counts, token tallies and notable tokens of the columns of all units, extrapolated to the whole record."""
    config, recipe, corpus = training.load(run)
    data, shapes = batches.chunk(corpus.train, recipe.context), training.shapes(run)
    everyone, groups = neurons.groups(shapes)
    reference, share = attribution.reference(corpus.train, config.vocab_size), len(records.shards(run)) / n_shards
    began = time.perf_counter()
    attribution.counts(islice(records.scan_shards(run), n_shards), len(groups))
    counted = time.perf_counter()
    some = islice(records.scan_shards(run), n_shards)
    tally = attribution.tally(some, data, groups, len(everyone), config.vocab_size)
    tallied = time.perf_counter()
    bags = attribution.distribution(tally, data, config.vocab_size)
    for row in bags:
        keyness.univariate_heuristic(row, reference)
    done = time.perf_counter()
    spent = (counted - began) * share, (tallied - counted) * share, done - tallied
    whole = f"{sum(spent):.0f} s for all {records.n_steps(run):,} steps"
    return [
        f"Outliers counted in {spent[0]:.0f} s, {len(everyone):,} neurons' data and tokens tallied in {spent[1]:.0f} s "
        f"(both extrapolated from {n_shards} shards), their notable tokens found in {spent[2]:.0f} s: {whole}, "
        f"{peak_memory():.2f} GB at most."
    ]


def bigram_lines(run: Path, n_steps: int = 10, n_places: int = 4) -> list[str]:
    """Exact top-100 shifts of real steps, some after each of a few snapshots, against the plain step between them."""
    config, recipe, _ = training.load(run)
    plain = plain_step(setup_of(config, recipe, "cpu"))
    plain()
    snapshots = records.snapshots(run)[:-1]
    places = [snapshots[round(i * (len(snapshots) - 1) / (n_places - 1))] for i in range(n_places)]
    taken: list[tuple[int, float, float]] = []
    extra = 0.0
    for place in dict.fromkeys(places):
        for move in walks.roll(run, place, min(place + n_steps, records.n_steps(run))):
            W_U, W_E = move.before["decoder.weight"], move.before["embedding.weight"]
            dW_U, dW_E = move.after["decoder.weight"] - W_U, move.after["embedding.weight"] - W_E
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
            before, began = peak_memory(), time.perf_counter()
            bigram.top_shifts(W_U, W_E, dW_U, dW_E, k=min(100, config.vocab_size**2))
            between = time.perf_counter()
            extra = max(extra, peak_memory() - before)
            plain()
            taken.append((place, between - began, time.perf_counter() - between))
    lines = [f"| exact top-100 bigram shifts of {n_steps} real steps from | ms | ÷ plain step |", "|---|---|---|"]
    for place in dict.fromkeys(places):
        own = np.array([times for at, *times in taken if at == place])
        lines.append(f"| step {place:,} | {own[:, 0].mean() * 1e3:.1f} | {own[:, 0].sum() / own[:, 1].sum():.3f} |")
    whole = np.array([times for _, *times in taken])
    lines.append(f"| all | {whole[:, 0].mean() * 1e3:.1f} | **{whole[:, 0].sum() / whole[:, 1].sum():.3f}** |")
    return [*lines, "", f"They take {extra * 1e3:.0f} MB at most above weights and updates."]


def ledger_lines(run: Path, step: int | None = None) -> list[str]:
    """Following probes at a real step, in extra plain steps: what it costs more than making the step again."""
    config, recipe, corpus = training.load(run)
    step = records.snapshots(run)[len(records.snapshots(run)) // 2] if step is None else step
    params, data = records.read_params(run, step), batches.chunk(corpus.train, recipe.context)
    last, words = config.n_layers - 1, corpus.vocab.decode(corpus.valid[:8])
    small = [f"head:{last}.{head} previous" for head in (0, 1)] + [f"head:{layer}.0 same" for layer in range(2)]
    small += [f"effect:layers.{layer}.linear2.weight:0 {words[0]}" for layer in range(2)]
    small += [f"next:{' '.join(words[:-1])} => {words[-1]}", f"bigram:{words[0]} {words[1]}"]
    sets = {"the loss on 20 texts": ["loss"], "eight small probes, those of texts on the same 20": small}

    def made(units: tuple[str, ...], followed: list[probes.Probe]) -> None:
        chosen = dataclasses.replace(recipe, units=units)
        (move,) = training.moves(params, data, config, chosen, start=step, stop=step + 1)
        if followed:  # a walk knows the probes' values from the step before
            ledger.of_move(move, followed, 3, before=torch.zeros(len(followed)))

    rows: dict[str, Callable[[], object]] = {"plain": plain_step(setup_of(config, recipe, "cpu"))}
    rows["again"] = partial(made, (), [])
    for what, forms in sets.items():
        followed = [accounts.parse(form, corpus, config, recipe, key=0) for form in forms]
        rows[what] = partial(made, ledger.UNITS, followed)
    taken = measure(rows, 5)
    lines = ["| a step with the ledger of, m = 3 | ms | extra plain steps |", "|---|---|---|"]
    extra = {what: (taken[what] - taken["again"]) / taken["plain"] for what in sets}
    return lines + [f"| {what} | {taken[what] * 1e3:.0f} | **{extra[what]:.2f}** |" for what in sets]


def record_some(settings: Settings, config: Config, recipe: Recipe) -> str:
    """Records steps as a capture does; says peak memory and the share of time spent writing."""
    stream = setup_of(config, recipe, "cpu").data.tokens.flatten()
    words = ("<unk>", *(f"w{i}" for i in range(1, config.vocab_size)))
    corpus = text.Corpus("zipf", text.Vocab(words), stream, stream[:2000], stream[:2000])
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for now in recording.record(Path(folder) / "run", corpus, config, recipe, device=settings.device):
            writing = now.writing
        share = writing / (time.perf_counter() - began)
    return f"{peak_memory():.2f} GB at most, {share:.2%} of the time spent writing"


def peak_memory() -> float:
    """Of this process, in GB. Not from getrusage: a child's maximum there starts at its parent's."""
    peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(peak) / 1e6


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    config, recipe = Config(28_782), Recipe(n_steps=200, epochs=5)
    if settings.toy:
        settings = dataclasses.replace(settings, rounds=1)
        config = Config(500, d_model=16, d_hidden=16, n_layers=2)
        recipe = Recipe(context=8, batch_size=4, k=10, n_steps=20)
    if settings.part == "analysis" and settings.run:
        return print(
            "\n\n".join(
                "\n".join(part(settings.run)) for part in (tally_lines, ablation_lines, bigram_lines, ledger_lines)
            )
        )
    if settings.part == "memory":
        return print(record_some(settings, config, recipe))
    setup = setup_of(config, recipe, settings.device)
    if settings.part == "pair":
        return print(json.dumps(list(pair(setup, 2 * settings.rounds).values())))
    where = torch.cuda.get_device_name() if settings.device != "cpu" else f"CPU, {settings.threads} threads"
    lines = [f"# Benchmark\n\n`{' '.join(['python', *sys.argv])}`: torch {torch.__version__}, {where}, float32.\n"]
    lines += [f"{config}, batch {recipe.batch_size}, context {recipe.context}, k {recipe.k}.\n"]
    lines += [*pair_lines(settings), "", *stage_lines(setup, settings.rounds), ""]
    lines += [
        f"A capture in a process of its own, with snapshots and evaluation: {myself(settings, 'memory', {})}.",
        "",
    ]
    lines += [*rival_lines(setup, max(1, settings.rounds // 3)), ""]
    lines += sweep_table(settings, config, recipe) if settings.sweep else []
    if settings.run:
        lines += ["", myself(settings, "analysis", {})]
    Console().print("\n".join(lines), markup=False, soft_wrap=True)
    if settings.out:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        settings.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
