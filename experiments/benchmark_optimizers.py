"""The optimizers of the benchmark: as values of the library, and the same of torch for the plain step."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Muon

from devinterp_func import optim
from devinterp_func.graph import Graph
from devinterp_func.optim import Rule
from devinterp_func.training import Recipe

Name = Literal["sgd", "adamw", "muon"]
NAMES: tuple[Name, ...] = get_args(Name)
MODERN: dict[str, Any] = {"lr": 1e-3, "max_norm": 1.0}  # of AdamW and Muon


def recipe_with(name: Name, recipe: Recipe, graph: Graph) -> Recipe:
    """A recipe of SGD with another optimizer instead, at rates and clipping that are usual for it.

    Muon takes the matrices within the layers; AdamW takes embeddings, the head, biases and norms.
    """
    if name == "sgd":
        return recipe
    adamw = optim.adamw(weight_decay=0.1, matrices_only=True)
    if name == "adamw":
        return replace(recipe, optimizer=adamw, **MODERN)
    outside = {use.unit for use in graph.uses if use.kind == "lookup"} | ({graph.head.weight} if graph.head else set())
    return replace(recipe, optimizer=optim.muon(rest=adamw, but=tuple(sorted(outside))), **MODERN)


def torch_optimizers(recipe: Recipe, weights: Iterable[tuple[str, Tensor]]) -> list[torch.optim.Optimizer]:
    """torch's own optimizers of a recipe, one for each rule, with a group of weights that decay and one of the others.

    Args:
        recipe: whose optimizer and learning rate are taken.
        weights: a module's, by the names that the recipe's patterns are about.
    """
    found: dict[Rule, dict[tuple[float, bool], list[Tensor]]] = {}
    for name, weight in weights:
        group = recipe.optimizer.group(name, weight.ndim)
        alike = found.setdefault(group.rule, {})
        alike.setdefault((group.scale, group.decays(name, weight.ndim)), []).append(weight)
    return [_of(rule, recipe.lr, alike) for rule, alike in found.items()]


def _of(rule: Rule, lr: float, alike: dict[tuple[float, bool], list[Tensor]]) -> torch.optim.Optimizer:
    options = asdict(rule)  # type: ignore[call-overload]
    groups = [
        {"params": weights, "lr": lr * scale, "weight_decay": options["weight_decay"] if decays else 0.0}
        for (scale, decays), weights in alike.items()
    ]
    match rule:
        case optim.Sgd():
            return SGD(groups, lr, **options)
        case optim.Adam():
            return (AdamW if options.pop("decoupled") else Adam)(groups, lr, **options)
        case optim.Muon():
            options["adjust_lr_fn"] = options.pop("adjust")
            return Muon(groups, lr, ns_coefficients=options.pop("coefficients"), **options)
    raise TypeError(f"{rule} is no rule that torch has")
