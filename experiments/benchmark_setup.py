"""What the benchmark's rows share: one batch of the post's setting, the plain step, and how rows are measured."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import benchmark_optimizers
import numpy as np
import torch
from presets import PRE_NORM_LR, Kind, model_of

from devinterp_func import batches, models, training
from devinterp_func import graph as graphs
from devinterp_func.graph import Graph, Masks
from devinterp_func.models import Config
from devinterp_func.records import Recording
from devinterp_func.training import Recipe
from devinterp_func.tree import Params

Row = Callable[[], object]


class Setup(NamedTuple):
    """One batch of text of Zipf's law and everything that the rows share."""

    kind: Kind
    config: Config
    recipe: Recipe
    recording: Recording
    device: str
    model: models.Model
    data: batches.Data
    graph: Graph
    tracing: float  # seconds that writing the loss down as a graph took
    params: Params
    datum: torch.Tensor
    tokens: torch.Tensor
    targets: torch.Tensor
    masks: Masks | None
    logits: torch.Tensor


def setup_of(
    kind: Kind, config: Config, recipe: Recipe, recording: Recording, device: str, bfloat16: bool = False
) -> Setup:
    """Data, weights, graph and masks of one batch."""
    n = 40 * recipe.batch_size * recipe.context + 1
    stream = np.minimum(np.random.default_rng(0).zipf(1.3, n), config.vocab_size) - 1
    data = batches.chunk(torch.from_numpy(stream), recipe.context)
    model = model_of(kind, config, recipe.context)
    model = models.autocast(model) if bfloat16 else model
    params = {name: w.to(device) for name, w in training.initial(model, recipe).items()}
    datum = torch.arange(recipe.batch_size)
    tokens, targets = (x[datum].to(device) for x in data)
    began = time.perf_counter()
    graph = graphs.of(model.loss, params, tokens[0], targets[0])
    tracing = time.perf_counter() - began
    masks = training.masks_of(graph, recipe, 0, datum)
    masks = None if masks is None else {site: mask.to(device) for site, mask in masks.items()}
    logits = torch.empty(config.vocab_size, tokens.numel(), device=device)
    shared = kind, config, recipe, recording, device, model
    return Setup(*shared, data, graph, tracing, params, datum, tokens, targets, masks, logits)


Size = Literal["post", "small"]
GPT2_SMALL = Config(50_257, d_model=768, n_heads=12, d_hidden=3072, n_layers=12, dropout=0.1)  # 124 M parameters


def toy_or_post(kind: Kind, toy: bool, device: str, size: Size = "post") -> Setup:
    """The post's setting, that of GPT-2 small on four texts of 256 tokens, or a small one."""
    config, recipe, recording = Config(28_782), Recipe(n_steps=200, epochs=5), Recording()
    if size == "small":
        config, recipe = GPT2_SMALL, dataclasses.replace(recipe, context=256, batch_size=4)
    if toy:
        config, recording = Config(500, d_model=16, n_heads=4, d_hidden=16, n_layers=2), Recording(k=10)
        recipe = Recipe(context=8, batch_size=4, n_steps=20)
    if kind != "post":
        recipe = dataclasses.replace(recipe, lr=PRE_NORM_LR)
    return setup_of(kind, config, recipe, recording, device)


def stepped_by(optimizer: benchmark_optimizers.Name, setup: Setup) -> Setup:
    """The setup of SGD with another optimizer instead."""
    return setup._replace(recipe=benchmark_optimizers.recipe_with(optimizer, setup.recipe, setup.graph))


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
        self.register_buffer("positions", models.position_encoding(config, context).float())
        self.register_buffer("mask", torch.nn.Transformer.generate_square_subsequent_mask(context))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim) + self.positions)
        mask = self.mask if self.causal else None
        return self.decoder(self.layers(x, mask=mask, is_causal=self.causal))


class Logits(torch.nn.Module):
    """A language model of transformers, of which only the logits are asked; as it comes, so with fused attention."""

    def __init__(self, source: dict[str, Any]) -> None:
        import transformers

        super().__init__()
        config = transformers.AutoConfig.for_model(**source["config"])
        self.model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens, use_cache=False).logits


def plain_module(setup: Setup, causal: bool = True) -> torch.nn.Module:
    """The same model as an ordinary module from tokens to logits; the post's also without its causal mask."""
    if setup.kind == "post":
        return Plain(setup.config, setup.recipe.context, causal).to(setup.device)
    source = setup.model.source
    return Logits(source.get("of", source)).to(setup.device)  # "of": what is under autocast


def plain_step(setup: Setup, compiled: bool = False, bfloat16: bool = False) -> Row:
    """Forward, backward, clipping and update of the plain module by torch's own optimizers.

    Args:
        setup: the batch, the model and how it is stepped.
        compiled: its forward and backward pass by ``torch.compile``.
        bfloat16: under ``torch.autocast``.
    """
    model = plain_module(setup)
    optimizers = benchmark_optimizers.torch_optimizers(setup.recipe, named_as_units(model, setup))

    forward: Any = torch.compile(model) if compiled else model

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        with torch.autocast(torch.device(setup.device).type, torch.bfloat16, enabled=bfloat16):
            loss = cross_entropy(forward, setup)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), setup.recipe.max_norm)
        for optimizer in optimizers:
            optimizer.step()

    return step


def named_as_units(model: torch.nn.Module, setup: Setup) -> list[tuple[str, torch.nn.Parameter]]:
    """The plain module's weights by the names of the units that they are: some have a container's in front of it.

    Raises:
        ValueError: they are not the model's.
    """
    container = "layers." if setup.kind == "post" else "model."
    found = [(name.removeprefix(container), weight) for name, weight in model.named_parameters()]
    if {name: weight.shape for name, weight in found} != {name: w.shape for name, w in setup.params.items()}:
        raise ValueError(f"the plain module of {setup.kind} has not the weights of {setup.model.name}")
    return found


def cross_entropy(model: torch.nn.Module, setup: Setup) -> torch.Tensor:
    """The batch's mean loss."""
    return torch.nn.functional.cross_entropy(model(setup.tokens).flatten(0, 1), setup.targets.flatten())


def measure(rows: dict[str, Row], rounds: int) -> dict[str, float]:
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


def peak_memory() -> float:
    """Of this process, in GB. Not from getrusage: a child's maximum there starts at its parent's."""
    return _status("VmHWM")


def peak_above(make: Callable[[], Row]) -> float:
    """How much more memory a row takes at most, GB, than the process had before it was made."""
    before = resident_memory()
    restart_peak()
    row = make()
    for _ in range(3):
        row()
    return peak_memory() - before


def restart_peak() -> None:
    """``peak_memory`` is that from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def resident_memory() -> float:
    """Of this process now, in GB."""
    return _status("VmRSS")


def _status(what: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if what in line)
    return int(line.split()[1]) / 1e6
