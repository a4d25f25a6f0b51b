"""Benchmark rows of other ways to the same per-example gradients."""

import warnings

import torch
from benchmark_setup import Plain, Row, Setup, measure, plain_step

from devinterp_func import models, per_example, units


def rival_lines(setup: Setup, rounds: int) -> list[str]:
    rows = {"plain nn.Module step": plain_step(setup), "one backward pass for one token": backward_pass(setup)}
    rows |= {"vmap(grad), captured units only, no update": definition(setup, units.choose(setup.params))}
    rows |= {"vmap(grad), all parameters, no update": definition(setup, list(setup.params))}
    if opacus := opacus_step(setup):
        rows["Opacus GradSampleModule, all parameters, no update"] = opacus
    taken = measure(rows, rounds)
    passes = setup.tokens.numel()
    taken[f"the post's way: {passes} backward passes, extrapolated"] = taken["one backward pass for one token"] * passes
    plain = taken["plain nn.Module step"]
    lines = ["| other ways, in one process | ms | ÷ plain step there |", "|---|---|---|"]
    return lines + [f"| {name} | {t * 1e3:.0f} | {t / plain:.2f} |" for name, t in taken.items()]


def backward_pass(setup: Setup) -> Row:
    """One of the n·C backward passes that the post made each step."""
    model = Plain(setup.config, setup.recipe.context).to(setup.device)
    logits = model(setup.tokens).flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, setup.targets.flatten(), reduction="none")
    return lambda: torch.autograd.grad(losses[0], list(model.parameters()), retain_graph=True)


def definition(setup: Setup, names: list[str]) -> Row:
    """``vmap(grad(loss))`` of some parameters."""
    chosen = {name: setup.params[name] for name in names}
    rest = {name: w for name, w in setup.params.items() if name not in chosen}

    def loss(params: dict, tokens: torch.Tensor, targets: torch.Tensor, masks: dict | None) -> torch.Tensor:
        return models.loss({**rest, **params}, tokens, targets, setup.config, masks)

    return lambda: per_example.grads(loss)(chosen, setup.tokens, setup.targets, setup.masks)


def opacus_step(setup: Setup) -> Row | None:
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
        fixed = ModuleValidator.fix(Plain(setup.config, setup.recipe.context, False))
        model = GradSampleModule(fixed, loss_reduction="mean")

    def step() -> None:
        model.zero_grad(set_to_none=True)
        logits = model(setup.tokens)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), setup.targets.flatten()).backward()

    return step
