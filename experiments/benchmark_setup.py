"""What the benchmark's rows share: one batch of the post's setting, the plain step, and how rows are measured."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from devinterp_func import batches, models, training, tree
from devinterp_func.models import Config
from devinterp_func.records import Recording
from devinterp_func.training import Recipe
from devinterp_func.tree import Params

Row = Callable[[], object]


class Setup(NamedTuple):
    """One batch of text of Zipf's law and everything that the rows share."""

    config: Config
    recipe: Recipe
    recording: Recording
    device: str
    data: batches.Data
    params: Params
    datum: torch.Tensor
    tokens: torch.Tensor
    targets: torch.Tensor
    masks: models.Masks | None
    logits: torch.Tensor


def setup_of(config: Config, recipe: Recipe, recording: Recording, device: str) -> Setup:
    """Data, weights and masks of one batch."""
    n = 40 * recipe.batch_size * recipe.context + 1
    stream = np.minimum(np.random.default_rng(0).zipf(1.3, n), config.vocab_size) - 1
    data = batches.chunk(torch.from_numpy(stream), recipe.context)
    params = {name: w.to(device) for name, w in training.initial(config, recipe).items()}
    datum = torch.arange(recipe.batch_size)
    tokens, targets = (x[datum].to(device) for x in data)
    masks = tree.map(lambda mask: mask.to(device), training.masks_of(config, recipe, 0, datum))
    logits = torch.empty(config.vocab_size, tokens.numel(), device=device)
    return Setup(config, recipe, recording, device, data, params, datum, tokens, targets, masks, logits)


def toy_or_post(toy: bool, device: str) -> Setup:
    """The post's setting, or a small one."""
    config, recipe, recording = Config(28_782), Recipe(n_steps=200, epochs=5), Recording()
    if toy:
        config, recording = Config(500, d_model=16, d_hidden=16, n_layers=2), Recording(k=10)
        recipe = Recipe(context=8, batch_size=4, n_steps=20)
    return setup_of(config, recipe, recording, device)


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


def plain_step(setup: Setup) -> Row:
    """Forward, backward, clipping and update of the plain module."""
    model = Plain(setup.config, setup.recipe.context).to(setup.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=setup.recipe.lr)

    def step() -> None:
        optimizer.zero_grad()
        logits = model(setup.tokens)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), setup.targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), setup.recipe.max_norm)
        optimizer.step()

    return step


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
    peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(peak) / 1e6
