"""Benchmark rows of what reads a run of the post's model: tallies, ablation sweeps, bigram shifts, the ledger."""

import time
from collections.abc import Callable
from functools import partial
from itertools import islice

import numpy as np
import torch
from benchmark_setup import Setup, measure, peak_memory, plain_step, restart_peak, setup_of
from benchmark_steps import decoder_step

from devinterp_func import bigram, credit, models, neurons, stats, units
from devinterp_func import graph as graphs
from devinterp_func.credit import probes
from devinterp_func.records import Run


def setup_like(run: Run) -> Setup:
    """A batch of the sizes of a run of the post's model."""
    config = models.Config(**run.model.source["config"])
    return setup_of("post", config, run.recipe, run.recording, "cpu")


def tally_lines(run: Run, n_shards: int = 6) -> list[str]:
    """Counts, token tallies and notable tokens of the columns of all units, extrapolated to the whole record."""
    reference = stats.token_counts(run.corpus.train, run.graph.vocab_size)
    n = len(list(run.shards()))
    began = time.perf_counter()
    neurons.outlier_counts(islice(run.shards(), n_shards), units.n_parameters(run.shapes))
    counted = time.perf_counter()
    tally = neurons.tally(islice(run.shards(), n_shards), run.data, run.shapes, run.graph.vocab_size)
    tallied = time.perf_counter()
    for row in neurons.distribution(tally, run.data):
        stats.univariate_heuristic(row, reference)
    done = time.perf_counter()
    spent = (counted - began) * n / n_shards, (tallied - counted) * n / n_shards, done - tallied
    return [
        f"Outliers counted in {spent[0]:.0f} s, {len(tally.outliers):,} neurons' data and tokens tallied in "
        f"{spent[1]:.0f} s (both extrapolated from {n_shards} shards), their notable tokens found in {spent[2]:.0f} s: "
        f"{sum(spent):.0f} s for all {run.n_steps:,} steps, {peak_memory():.2f} GB at most."
    ]


def ablation_lines(run: Run, n_data: int = 16, n_naive: int = 4) -> list[str]:
    """The sweep of all neurons of the MLPs against a forward pass for each of a few, in one process."""
    params, tokens = run.params(), run.split("valid").tokens[:n_data]
    shapes = {name: tuple(w.shape) for name, w in params.items() if units.is_mlp_weight(name)}
    rows: dict[str, Callable[[], object]] = {}
    for unit in shapes:
        every = neurons.every({unit: shapes[unit]})
        rows[unit] = partial(neurons.sweep, run.graph, params, (tokens,), every)
        rows[f"{unit}, naive"] = partial(neurons.sweep_naive, run.graph, params, (tokens,), every[:n_naive])
    taken = measure(rows, 3)
    lines = [f"| ablating every column over {n_data} data | sweep, s | naive, s, extrapolated | naive ÷ sweep |"]
    lines += ["|---|---|---|---|"]
    fast, slow = 0.0, 0.0
    for unit, shape in shapes.items():
        naive = taken[f"{unit}, naive"] * shape[1] / (n_naive + 1)  # the intact model is one more pass
        fast, slow = fast + taken[unit], slow + naive
        lines.append(f"| {unit} | {taken[unit]:.2f} | {naive:.1f} | **{naive / taken[unit]:.1f}** |")
    return [*lines, f"| all | {fast:.2f} | {slow:.1f} | **{slow / fast:.1f}** |"]


def bigram_lines(run: Run, n_steps: int = 10, n_places: int = 4) -> list[str]:
    """Exact top-100 shifts of real steps, some after each of a few snapshots, against the plain step between them."""
    plain = plain_step(setup_like(run))
    plain()
    snapshots = run.snapshots[:-1]
    chosen = dict.fromkeys(snapshots[round(i * (len(snapshots) - 1) / (n_places - 1))] for i in range(n_places))
    taken: list[tuple[int, float, float]] = []
    extra = 0.0
    for place in chosen:
        for move in run.moves(place, min(place + n_steps, run.n_steps)):
            matrices = decoder_step(run.graph, move)
            restart_peak()
            memory, began = peak_memory(), time.perf_counter()
            bigram.top_shifts(*matrices, k=min(100, run.graph.vocab_size**2))
            between = time.perf_counter()
            extra = max(extra, peak_memory() - memory)
            plain()
            taken.append((place, between - began, time.perf_counter() - between))
    lines = [f"| exact top-100 bigram shifts of {n_steps} real steps from | ms | ÷ plain step |", "|---|---|---|"]
    for place in chosen:
        own = np.array([times for at, *times in taken if at == place])
        lines.append(f"| step {place:,} | {own[:, 0].mean() * 1e3:.1f} | {own[:, 0].sum() / own[:, 1].sum():.3f} |")
    whole = np.array([times for _, *times in taken])
    lines.append(f"| all | {whole[:, 0].mean() * 1e3:.1f} | **{whole[:, 0].sum() / whole[:, 1].sum():.3f}** |")
    return [*lines, "", f"They take {extra * 1e3:.0f} MB at most above weights and updates."]


def ledger_lines(run: Run) -> list[str]:
    """Following probes at a real step, in extra plain steps: what it costs more than replaying the step."""
    step = run.snapshots[len(run.snapshots) // 2]
    last, words = len(run.graph.attention) - 1, run.corpus.vocab.decode(run.corpus.valid[:8])
    projections = [name for name in run.params() if units.is_mlp_weight(name) and graphs.writes_stream(run.graph, name)]
    small = [f"head:{last}.{head} previous" for head in (0, 1)] + [f"head:{layer}.0 same" for layer in range(2)]
    small += [f"effect:{unit}:0 {words[0]}" for unit in projections[:2]]
    small += [f"next:{' '.join(words[:-1])} => {words[-1]}", f"bigram:{words[0]} {words[1]}"]
    sets = {"the loss on 20 texts": ["loss"], "eight small probes, those of texts on the same 20": small}
    return followed_lines(run, step, sets, setup_like(run))


def followed_lines(run: Run, step: int, sets: dict[str, list[str]], setup: Setup) -> list[str]:
    """A table of what following each set of probes costs at a step that begins with a snapshot."""

    def replayed(captured: units.Patterns, followed: list[probes.Probe]) -> None:
        (move,) = run.moves(step, step + 1, captured)
        if followed:  # a walk knows the probes' values from the step before
            credit.split_change(move, followed, 3, before=torch.zeros(len(followed)))

    rows: dict[str, Callable[[], object]] = {"plain": plain_step(setup), "replayed": partial(replayed, (), [])}
    for what, forms in sets.items():
        followed = [credit.parse_probe(form, run, key=0) for form in forms]
        rows[what] = partial(replayed, units.EVERY, followed)
    taken = measure(rows, 5)
    lines = ["| a step with the ledger of, m = 3 | ms | extra plain steps |", "|---|---|---|"]
    extra = {what: (taken[what] - taken["replayed"]) / taken["plain"] for what in sets}
    return lines + [f"| {what} | {taken[what] * 1e3:.0f} | **{extra[what]:.2f}** |" for what in sets]
