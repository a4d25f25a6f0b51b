"""Benchmark rows of other ways to the same per-example gradients."""

import warnings

import torch
from benchmark_setup import Row, Setup, cross_entropy, measure, plain_module, plain_step

from devinterp_func import graph as graphs
from devinterp_func import per_example

OUTER = "n C o, n C i -> n o i"
HEADS = ("lm_head", "embed_out")  # of GPT-2 and GPT-NeoX


def rival_lines(setup: Setup, rounds: int) -> list[str]:
    """A table of other ways to per-example gradients of one model."""
    rows = {"plain nn.Module step": plain_step(setup), "one backward pass for one token": backward_pass(setup)}
    rows |= {"vmap(grad), captured units only, no update": definition(setup, graphs.choose(setup.graph))}
    rows |= {"vmap(grad), all parameters, no update": definition(setup, list(setup.params))}
    if setup.kind != "post":  # torch's own attention calls no module that a hook could see
        rows["hooks and einsum, captured units only, no update"] = hooked_step(setup)
    if opacus := opacus_step(setup):
        rows["Opacus GradSampleModule, all parameters, no update"] = opacus
    taken = measure(rows, rounds)
    passes = setup.tokens.numel()
    taken[f"the post's way: {passes} backward passes, extrapolated"] = taken["one backward pass for one token"] * passes
    plain = taken["plain nn.Module step"]
    lines = [f"| other ways for {setup.model.name}, in one process | ms | ÷ plain step there |", "|---|---|---|"]
    return lines + [f"| {name} | {t * 1e3:.0f} | {t / plain:.2f} |" for name, t in taken.items()]


def backward_pass(setup: Setup) -> Row:
    """One of the n·C backward passes that the post made each step."""
    model = plain_module(setup)
    logits = model(setup.tokens).flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, setup.targets.flatten(), reduction="none")
    return lambda: torch.autograd.grad(losses[0], list(model.parameters()), retain_graph=True)


def definition(setup: Setup, names: list[str]) -> Row:
    """``vmap(grad(loss))`` of some parameters, with dropout from torch's generator."""
    chosen = {name: setup.params[name] for name in names}
    rest = {name: w for name, w in setup.params.items() if name not in chosen}

    def loss(params: dict, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return setup.model.loss({**rest, **params}, tokens, targets)

    return lambda: per_example.grads(loss, randomness="different")(chosen, setup.tokens, setup.targets)


def hooked_step(setup: Setup) -> Row:
    """Forward and backward with hooks on the linear maps but the head, and an einsum for each datum's gradients."""
    model = plain_module(setup)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        output.register_hook(lambda signals: seen.append((inputs[0].detach(), signals)))

    for name, module in model.named_modules():
        if type(module).__name__ in ("Linear", "Conv1D") and not name.endswith(HEADS):
            module.register_forward_hook(keep)

    def step() -> list[torch.Tensor]:
        seen.clear()
        model.zero_grad(set_to_none=True)
        cross_entropy(model, setup).backward()
        return [torch.einsum(OUTER, signals, inputs) for inputs, signals in seen]

    return step


def opacus_step(setup: Setup) -> Row | None:
    """Forward and backward of Opacus' GradSampleModule; None where it is not installed or cannot do the model.

    The post's is without the causal mask, which Opacus' attention refuses where the batch comes first; the work is the
    same.
    """
    try:
        from opacus.grad_sample import GradSampleModule
        from opacus.validators import ModuleValidator
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = GradSampleModule(ModuleValidator.fix(plain_module(setup, causal=False)), loss_reduction="mean")
            cross_entropy(model, setup).backward()
        except (NotImplementedError, ValueError, RuntimeError):
            return None

    def step() -> None:
        model.zero_grad(set_to_none=True)
        cross_entropy(model, setup).backward()

    return step
