"""Trainings that several processes share, as functions for ``processes.run``: recorded, and with one that fails."""

import math
import os
import signal
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from devinterp_func import models, optim, records, text, training
from devinterp_func.models import Config
from devinterp_func.records import Dataset
from devinterp_func.training import Recipe, _distributed

CORPUS = text.planted(key=0, n_tokens=3600)
TRANSFORMER = models.transformer(Config(len(CORPUS.vocab), d_model=12, n_heads=2, d_hidden=8, n_layers=1))
ADAMW = optim.adamw(weight_decay=0.1)
TEXTS = Recipe(context=10, batch_size=7, n_steps=12, optimizer=optim.sgd(momentum=0.9), lr=1.0, max_norm=0.5)
EXACT = Recipe(batch_size=7, n_steps=8, optimizer=ADAMW, lr=1e-2, max_norm=0.5)


def network():
    """A perceptron in float64, and its data."""
    x = torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
    data = Dataset((x[:50], x[:50, :3].argmax(1)), valid=(x[50:], x[50:, :3].argmax(1)))
    return data, models.module(net, lambda net, x, y: cross_entropy(net(x), y), "perceptron")


def what(recipe):
    """Data and model of a recipe."""
    return (CORPUS, TRANSFORMER) if recipe.context == 10 else network()


def record(run, recipe, recording, timeout=60.0, **how):
    """Records under torchrun's variables, or alone; the largest miss of the law goes beside the run."""
    data, model = what(recipe)
    with training.joined(timeout=timeout) as world:
        how |= {"world": world, "check_law": True}
        worst = max(now.missed for now in records.record(run, data, model, recipe, recording, **how))
    if world.rank == 0:
        Path(f"{run}.missed").write_text(str(worst))


def failing(rank, at, fail):
    """Has one rank fail, in its own way, in the step that it is told."""
    recorded = training.moves

    def until(*args, **how):
        for move in recorded(*args, **how):
            if move.step == at:
                fail()
            yield move

    if int(os.environ["RANK"]) == rank:
        training.moves = until


def killed(run, recipe, recording, rank, at):
    """Records; one rank kills itself in the step that it is told."""
    failing(rank, at, lambda: os.kill(os.getpid(), signal.SIGKILL))
    record(run, recipe, recording)


def killed_while_it_adds(run, recipe, recording, rank, at):
    """Records; one rank kills itself in the middle of an exchange: others have its numbers, and wait for its sum."""
    if int(os.environ["RANK"]) == rank:
        add, begun = _distributed.add_in_order, []

        def add_or_die(terms, out):
            begun.append(1)
            if len(begun) > at:
                os.kill(os.getpid(), signal.SIGKILL)
            return add(terms, out)

        _distributed.add_in_order = add_or_die
    record(run, recipe, recording)


def stopped(run, recipe, recording, rank, at):
    """Records with a short time-out; one rank stops, alive, in the step that it is told."""
    failing(rank, at, lambda: time.sleep(30))
    record(run, recipe, recording, timeout=8.0)


def drifted(run, recipe, recording, rank):
    """Records; one rank's third update comes out a little different."""
    if int(os.environ["RANK"]) == rank:
        update = optim.Optimizer.update

        def off(self, params, grads, state, lr, max_norm):
            after, new, split = update(self, params, grads, state, lr, max_norm)
            return {n: w + 1e-9 * (state.steps == 2) for n, w in after.items()}, new, split

        setattr(optim.Optimizer, "update", off)  # noqa: B010  (a method is not assigned to, say checkers)
    record(run, recipe, recording)


def overflowing(run, recipe, recording, datum):
    """Records data of which one is infinite."""
    data, model = what(recipe)
    data.train[0][datum] = math.inf
    with training.joined(timeout=60.0) as world:
        list(records.record(run, data, model, recipe, recording, world=world))


def devices():
    with training.joined("cuda:0"):
        pass
